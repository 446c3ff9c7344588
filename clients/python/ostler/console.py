"""A VM's console."""

import queue
import threading
import time

from .errors import OstlerError
from .v1 import vm_pb2

# Input that the node has not taken yet, in messages; `write` waits beyond it.
MAX_WAITING = 64


class Console:
    """Reads and types. What the console printed before is read first, as far as the node keeps it.

    with Console(node, "tenants/acme/vms/web") as console:
        console.read_until("login:", timeout=60)
        console.write("root\\n")
    """

    def __init__(self, node, name):
        self._input = queue.Queue(MAX_WAITING)
        self._input.put(vm_pb2.ConsoleRequest(name=name))
        self._stream = node.vms.Console(iter(self._input.get, None))
        self._changed = threading.Condition()
        self._output = bytearray()
        self._end = None
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self):
        try:
            for message in self._stream:
                with self._changed:
                    self._output += message.output
                    self._changed.notify_all()
            end = EOFError("the console has ended")
        except OstlerError as error:
            end = error
        with self._changed:
            self._end = end
            self._changed.notify_all()

    def read_until(self, text, timeout=60.0):
        """Returns what was printed up to and with `text`, and leaves the rest.

        Raises TimeoutError, OstlerError if the console breaks (NO_PROCESS: the VM does not run), EOFError if it ends.
        """
        wanted = text.encode()
        deadline = time.monotonic() + timeout
        with self._changed:
            while (at := self._output.find(wanted)) < 0:
                if self._end is not None:
                    raise self._end
                if not self._changed.wait(deadline - time.monotonic()):
                    seen = self._output[-2000:].decode(errors="replace")
                    raise TimeoutError(f"{text!r} did not come within {timeout} s, but: {seen}")
            end = at + len(wanted)
            seen = bytes(self._output[:end])
            del self._output[:end]
            return seen.decode(errors="replace")

    def write(self, text):
        """Types into the guest."""
        self._input.put(vm_pb2.ConsoleRequest(input=text.encode() if isinstance(text, str) else text))

    def resize(self, columns, rows):
        """Says how large the window is: a guest with a virtio console is told of it."""
        self._input.put(vm_pb2.ConsoleRequest(window=vm_pb2.WindowSize(columns=columns, rows=rows)))

    def close(self):
        """Leaves the console; the VM goes on."""
        self._stream.cancel()
        # Ends the iterator of requests, on whose thread gRPC waits; whoever is that far behind is not waited for.
        try:
            self._input.put_nowait(None)
        except queue.Full:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
