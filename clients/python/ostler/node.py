"""A connection to a node."""

import pathlib
import uuid

import grpc

from .errors import Stub
from .v1 import decision_pb2_grpc, host_pb2_grpc, plugin_pb2_grpc, tenant_pb2_grpc, vm_pb2_grpc

# A quiet connection is probed so often, in milliseconds: a watch notices a node that is gone.
KEEPALIVE_MS = 20_000
# Longest answer, in bytes: a page of some thousand VMs.
MAX_ANSWER_LEN = 64 << 20


class Node:
    """A node's services, each a generated stub: vms, plugins, decisions, tenants, host. Close it, or use `with`."""

    def __init__(self, channel):
        self._channel = channel
        self.vms = Stub(vm_pb2_grpc.VirtualMachineServiceStub(channel))
        self.plugins = Stub(plugin_pb2_grpc.PluginServiceStub(channel))
        self.decisions = Stub(decision_pb2_grpc.DecisionServiceStub(channel))
        self.tenants = Stub(tenant_pb2_grpc.TenantServiceStub(channel))
        self.host = Stub(host_pb2_grpc.HostServiceStub(channel))

    def close(self):
        """Ends the connection, and every call on it."""
        self._channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def connect(endpoint, identity, ca=None):
    """Connects to the node at `endpoint` ("host:port"; https:// may stand before it).

    `identity` is the prefix of a certificate and its key: "certs/tenant-acme" reads tenant-acme.pem and tenant-acme.key.
    `ca` is what signed the node's certificate; if not given, ca.pem beside the identity.
    """
    identity = pathlib.Path(identity)
    beside = identity.parent
    credentials = grpc.ssl_channel_credentials(
        root_certificates=(pathlib.Path(ca) if ca else beside / "ca.pem").read_bytes(),
        private_key=(beside / f"{identity.name}.key").read_bytes(),
        certificate_chain=(beside / f"{identity.name}.pem").read_bytes(),
    )
    options = [("grpc.keepalive_time_ms", KEEPALIVE_MS), ("grpc.max_receive_message_length", MAX_ANSWER_LEN)]
    return Node(grpc.secure_channel(endpoint.removeprefix("https://").rstrip("/"), credentials, options))


def new_request_id():
    """An id for a change: sent again with the same request, the change is done once."""
    return str(uuid.uuid4())
