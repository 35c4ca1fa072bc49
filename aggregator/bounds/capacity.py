"""How many connections the gRPC port may hold, by the process's limits, so that a stranger cannot use it up.

Nodes and clients make one connection each; a stranger can make as many as there are, and is nobody yet.
"""

from __future__ import annotations

import resource
from typing import Any

import grpc
from grpc_health.v1._async import HealthServicer

from edge_attention.wire.methods import CHANNEL_OPTIONS
from edge_attention.wire.open_inference import LARGEST_MESSAGE

STREAMS = 1024
"""Calls under way over one connection. Of more at once most wait at the client, some fail: UNAVAILABLE."""
CONNECTIONS = 4096
"""At most; fewer where the process may open fewer than twice as many files."""
HANDSHAKE_MILLISECONDS = 10_000
"""Milliseconds for TLS and the first frame of HTTP/2: a connection that says nothing ends then."""
WATCHERS = 64
"""Streams of Health/Watch, for which nobody has to say who they are. Health/Check is not limited."""


def connections() -> int:
    """Connections to let in: half of the files this process may open, the rest are for its own."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft // 2))


def server_options(largest: int = LARGEST_MESSAGE) -> tuple[tuple[str, int], ...]:
    """gRPC's options of the server: those of both sides (wire/methods.py), but for the size of messages.

    gRPC has one limit for all methods of a server, and that of the Open Inference Protocol's is the largest
    there is. So each method's codec refuses what is past its own before it is parsed.

    Args:
        largest: bytes of a message, of any method.
    """
    return (
        *(option for option in CHANNEL_OPTIONS if not option[0].endswith("_message_length")),
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", largest),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.max_allowed_incoming_connections", connections()),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MILLISECONDS),
    )


class Health(HealthServicer):  # type: ignore[misc]  # it comes without types
    """The standard health service, with so many who watch."""

    def __init__(self) -> None:
        super().__init__()
        self._watching = 0

    async def Watch(self, request: Any, context: Any) -> None:
        if self._watching >= WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{WATCHERS} callers watch this aggregator's health already; ask with Check instead",
            )
        self._watching += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watching -= 1
