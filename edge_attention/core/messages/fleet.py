"""What a client is told of the fleet and its aggregator. One class a message."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edge_attention.core.messages.box import Box
from edge_attention.core.messages.link import Dataset


class NodeState(Enum):
    """ready: connected, lease good. suspect: the stream broke, the lease still runs. lost: it ran out."""

    READY = "ready"
    SUSPECT = "suspect"
    LOST = "lost"
    DRAINING = "draining"


@dataclass(frozen=True)
class Node:
    """One node as the aggregator sees it. Memory in bytes.

    `registrations` counts how often it has come, `registered_seconds` is how long ago it last did, and
    `clock_seconds` by how much its clock was ahead of the aggregator's then. `revoked_at`: when its
    certificate was revoked, seconds since 1970; None: it was not.
    """

    name: str
    state: NodeState
    provider: str
    threads: int
    memory_limit: int
    memory: int
    datasets: tuple[Dataset, ...]
    silent_seconds: float
    software: str
    tasks: int
    releases: tuple[str, ...]
    box: Box | None = None
    registrations: int = 0
    registered_seconds: float = 0.0
    clock_seconds: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True)
class ListNodesRequest:
    pass


@dataclass(frozen=True)
class ListNodesResponse:
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class DescribeAggregatorRequest:
    pass


@dataclass(frozen=True)
class DescribeAggregatorResponse:
    """The aggregator, its machine and clock (`box`), and its terms. Times in seconds; port 0: none known.

    `disk_free`, `disk_size`: bytes of the disk of its state folder; 0: not known.
    """

    software: str
    protocol: int
    uptime_seconds: float
    lease_seconds: float
    heartbeat_seconds: float
    keepalive_seconds: float
    least_ping_seconds: float
    http_port: int
    box: Box
    disk_free: int = 0
    disk_size: int = 0


@dataclass(frozen=True)
class ForgetNodeRequest:
    """`even_alone`: also where only this node has what something needs."""

    node: str
    even_alone: bool = False


@dataclass(frozen=True)
class ForgetNodeResponse:
    """`lost`: what only this node had, a sentence each."""

    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProbeNodeRequest:
    """Time `round_trips` to `node`, and `bytes` there and back."""

    node: str
    round_trips: int = 0
    bytes: int = 0
    deadline_seconds: float | None = None


@dataclass(frozen=True)
class ProbeNodeResponse:
    """Seconds of each round trip and of it at the node; of the bytes' way down and up, if there were any."""

    round_trip_seconds: tuple[float, ...]
    task_seconds: tuple[float, ...]
    down_seconds: float | None
    up_seconds: float | None
    bytes: int
