"""A client of Ostler: gRPC over mutual TLS, with the generated API and what makes it short to use.

    node = ostler.connect("127.0.0.1:7800", "certs/tenant-acme")
    node.vms.GetVirtualMachine(vm_pb2.GetVirtualMachineRequest(name="tenants/acme/vms/web"))

`connect` gives a `Node`, whose stubs are those of proto/ostler/v1; a call that fails raises `OstlerError`. `watch` and
`wait_for` follow VMs, `Console` is a VM's console, `upload_plugin` loads a component. Messages are in
`ostler.v1`.
"""

from .console import Console
from .errors import OstlerError
from .node import Node, connect, new_request_id
from .plugins import upload_plugin
from .watching import VmFailed, wait_for, watch

__all__ = [
    "Console",
    "Node",
    "OstlerError",
    "VmFailed",
    "connect",
    "new_request_id",
    "upload_plugin",
    "wait_for",
    "watch",
]
