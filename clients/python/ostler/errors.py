"""Errors of calls, with their details in reach."""

import contextlib

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class OstlerError(Exception):
    """A call that failed, as the node told it.

    code      grpc.StatusCode
    message   for people
    reason    stable, for programs: docs/errors.md lists them; empty if the node was not reached
    metadata  what varies: {"field": "spec.vcpus"}
    advice    what to do about it; empty if nothing is known
    retry     seconds after which to try again, or None
    """

    def __init__(self, error):
        self.code = error.code()
        self.message = error.details() or ""
        self.reason = ""
        self.metadata = {}
        self.advice = ""
        self.retry = None
        status = rpc_status.from_call(error) if hasattr(error, "trailing_metadata") else None
        for detail in status.details if status else ():
            self._read(detail)
        super().__init__(f"{self.reason or self.code.name}: {self.message}")

    def _read(self, detail):
        info, help_, retry = error_details_pb2.ErrorInfo(), error_details_pb2.Help(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            self.reason, self.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(help_):
            self.advice = " ".join(link.description for link in help_.links)
        elif detail.Unpack(retry):
            self.retry = retry.retry_delay.ToTimedelta().total_seconds()


@contextlib.contextmanager
def translated():
    """Has a failed call within it raise an OstlerError."""
    try:
        yield
    except grpc.RpcError as error:
        raise OstlerError(error) from error


class Stream:
    """A call's answers, one by one; `cancel` ends it from this side."""

    def __init__(self, call):
        self._call = call

    def __iter__(self):
        return self

    def __next__(self):
        with translated():
            return next(self._call)

    def cancel(self):
        """Ends the call; whoever iterates is told so by CANCELLED."""
        self._call.cancel()


class Stub:
    """A generated stub whose calls raise OstlerError."""

    def __init__(self, stub):
        self._stub = stub

    def __getattr__(self, method):
        call = getattr(self._stub, method)

        def invoke(request, **options):
            with translated():
                answer = call(request, **options)
            return Stream(answer) if isinstance(answer, grpc.RpcContext) else answer

        return invoke
