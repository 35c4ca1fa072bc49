"""What a client is told of the fleet."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edge_attention.core.session import Dataset


class NodeState(Enum):
    """ready: connected, lease good. suspect: the stream broke, the lease still runs. lost: it ran out."""

    READY = "ready"
    SUSPECT = "suspect"
    LOST = "lost"
    DRAINING = "draining"


@dataclass(frozen=True)
class Node:
    """One node as the aggregator sees it. Memory in bytes."""

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


@dataclass(frozen=True)
class ListNodesRequest:
    pass


@dataclass(frozen=True)
class ListNodesResponse:
    nodes: tuple[Node, ...]
