"""Policy plugins."""

from .v1 import plugin_pb2

# Longest part of an upload, in bytes.
CHUNK_LEN = 64 << 10


def upload_plugin(node, name, component, settings=None, **header):
    """Loads the WebAssembly component `component` (bytes) as "tenants/{tenant}/plugins/{plugin}", or an operator's.

    `header` is the rest of LoadPluginRequest.Header: request_id, etag, validate_only, signatures, mode, canary_percent.
    """

    def parts():
        first = plugin_pb2.LoadPluginRequest.Header(name=name, settings=settings or {}, **header)
        yield plugin_pb2.LoadPluginRequest(header=first)
        for at in range(0, len(component), CHUNK_LEN):
            yield plugin_pb2.LoadPluginRequest(chunk=component[at : at + CHUNK_LEN])

    return node.plugins.LoadPlugin(parts())
