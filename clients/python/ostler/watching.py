"""VMs as they change."""

import time

from .errors import OstlerError
from .v1 import vm_pb2

# A watch that was cut off for these is resumed: the reader was slow, or the node or the network went away.
RESUMED = {"WATCH_LAGGED", "SHUTTING_DOWN", ""}
RESUMED_CODES = {"ABORTED", "UNAVAILABLE"}
# Between attempts, in seconds.
PAUSE = 0.5


class VmFailed(Exception):
    """A VM that is FAILED, with the cause."""

    def __init__(self, vm):
        self.vm = vm
        super().__init__(f"{vm.name} is FAILED: {vm.failure}")


def watch(node, parent="", resume_token=""):
    """Yields a WatchVirtualMachinesResponse for each VM of `parent`, then for each change; bookmarks are left out.

    Once it has begun, it goes on where it was when the connection breaks or the node is restarted. Nothing is missed and
    nothing told twice, except that a break within the first snapshot begins with it anew. Keep the last message's
    resume_token to go on in another process; OstlerError with reason WATCH_COMPACTED says that it is too old.
    """
    has_begun = False
    while True:
        request = vm_pb2.WatchVirtualMachinesRequest(parent=parent, resume_token=resume_token)
        stream = None
        try:
            stream = node.vms.WatchVirtualMachines(request)
            for message in stream:
                has_begun = True
                resume_token = message.resume_token or resume_token
                if not message.bookmark:
                    yield message
        except OstlerError as error:
            is_passing = error.code.name in RESUMED_CODES and error.reason in RESUMED
            if not (has_begun and is_passing):
                raise
        finally:
            if stream is not None:
                stream.cancel()
        time.sleep(PAUSE)


def wait_for(node, name, state, timeout=60.0):
    """Returns the VM once it is in `state` ("RUNNING", or a number of VirtualMachine.State).

    Raises VmFailed if it is FAILED instead, and TimeoutError after `timeout` seconds.
    """
    State = vm_pb2.VirtualMachine.State
    wanted = State.Value(state) if isinstance(state, str) else state
    deadline = time.monotonic() + timeout
    # It must be there: a watch of the tenant says nothing of a VM that does not exist.
    node.vms.GetVirtualMachine(vm_pb2.GetVirtualMachineRequest(name=name), timeout=timeout)
    parent = "/".join(name.split("/")[:2])
    stream = node.vms.WatchVirtualMachines(vm_pb2.WatchVirtualMachinesRequest(parent=parent), timeout=timeout)
    try:
        for message in stream:
            vm = message.virtual_machine
            if message.bookmark or vm.name != name:
                continue
            if vm.state == wanted:
                return vm
            if vm.state == State.FAILED:
                raise VmFailed(vm)
    except OstlerError as error:
        if error.code.name != "DEADLINE_EXCEEDED" or time.monotonic() < deadline - PAUSE:
            raise
    finally:
        stream.cancel()
    raise TimeoutError(f"{name} is not {State.Name(wanted)} after {timeout} s")
