"""What a request knows of one of its parts, and of nodes: phase, node, what runs next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.fleet import NodeState

__all__ = ["PartOfRequest", "PartPhase", "PartsNodes"]


class PartPhase(Enum):
    """How a part of a request stands."""

    IDLE = "idle"
    """Its next segment waits for boundaries, or it is through."""
    RUNS = "runs"
    """Its node has been asked for a segment."""
    WAITS = "waits for a node"
    """Its next segment could run, and no node is there for it."""
    LEFT_OUT = "left out"
    """The request goes on without it."""


@dataclass(eq=False)
class PartOfRequest:
    """What a request knows of one of its parts; only the request changes it."""

    part: int
    phase: PartPhase = PartPhase.IDLE
    node: str = ""
    """The node that has what the part has kept; empty: none has."""
    life: str = ""
    next: int = 0
    """Which of its segments is to contribute next."""
    again: list[int] = field(default_factory=list)
    """Earlier ones that its node is to run first."""
    number: int = 0
    """What its node is asked now; 0: nothing."""
    tried: dict[str, EdgeAttentionError] = field(default_factory=dict)
    """Nodes that are not asked again -> why."""
    lacked: dict[str, int] = field(default_factory=dict)
    away: dict[str, int] = field(default_factory=dict)


class PartsNodes(Protocol):
    """What is known of nodes."""

    def state(self, node: str) -> NodeState: ...

    def life(self, node: str) -> str:
        """Tells one process of the node from the next, which has kept nothing of a request."""

    def holders(self, part: int) -> Sequence[str]:
        """The nodes that have what the part needs, those to be asked first in front."""

    def why(self, part: int) -> str:
        """For a person: what became of those that are to hold the part."""

    def load(self, node: str) -> int:
        """How many parts of requests it has in hand."""
