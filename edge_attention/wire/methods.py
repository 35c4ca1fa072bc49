"""What a gRPC method is to us: a path, and a codec for each direction. Messages stay inside `wire`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from edge_attention.wire.codec import MESSAGE_LIMIT, Codec

Q = TypeVar("Q")
R = TypeVar("R")

KEEPALIVE_SECONDS = 30.0
LEAST_PING_SECONDS = 15.0
"""Between two pings of a peer. Who pings more often is told GOAWAY."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Some room above MESSAGE_LIMIT, so that the refusal that names the limit is ours, not gRPC's.
    ("grpc.max_receive_message_length", 2 * MESSAGE_LIMIT),
    ("grpc.max_send_message_length", 2 * MESSAGE_LIMIT),
    # Both sides agree: NAT tables stay warm, and nobody sends GOAWAY for too many pings.
    ("grpc.keepalive_time_ms", int(1000 * KEEPALIVE_SECONDS)),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", int(1000 * LEAST_PING_SECONDS)),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", int(1000 * LEAST_PING_SECONDS)),
    # Without probing a stream's window is one message. With it a sender fills it with many megabytes that
    # nobody has asked for yet, and fifty senders as many times that.
    ("grpc.http2.bdp_probe", 0),
    # Reconnection is ours (edge_node/session.py); gRPC's own must not add to it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two servers on one port would each get some of the nodes, in silence.
    ("grpc.so_reuseport", 0),
)

SEALED_KEY = "edge-attention-sealed"
"""Metadata of a call all of whose messages have a checksum: one that comes without has lost it on the way."""

REQUEST_KEY = "edge-attention-request"
"""Metadata of a call that changes something: its id, the same when it is asked again."""


@dataclass(frozen=True)
class Service:
    """A gRPC service's full name, as `edge_attention.v1.FleetService`."""

    name: str


@dataclass(frozen=True, eq=False)
class Method(Generic[Q, R]):
    """One method: request `Q`, response `R`; either side may be a stream.

    The server's handler of a `raw` method reads and writes bytes itself, message by message. What a call
    of one that `changes` something does is not done twice: the server keeps its answer
    (aggregator/serving/answers.py). A `large` one has messages past MESSAGE_LIMIT: fewer come at a time,
    threads decode and encode them, and its handler counts its answers itself.
    """

    service: Service
    name: str
    request: Codec[Q]
    response: Codec[R]
    streams_request: bool = False
    streams_response: bool = False
    raw: bool = False
    changes: bool = False
    large: bool = False

    @property
    def path(self) -> str:
        return f"/{self.service.name}/{self.name}"


AnyMethod = Method[Any, Any]
