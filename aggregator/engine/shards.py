"""What an exchange is given and gives back, and what it knows of a shard; `exchange.py` decides over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from aggregator.engine.outcome import MissingKind, MissingShard
from aggregator.engine.prepared import PreparedData
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.program import BulkTensor, Call, Contribution, Instruction, Program
from edge_attention.core.tensors import Array


@dataclass(frozen=True, eq=False)
class Assignment:
    """One shard: who holds it, and what is to run there. The exchange builds the program of it.

    Attributes:
        tensors: its own, which travel with the program; None: those that all of the exchange share.
        prepared: what is called, with the tensors in its slots, in place of a program of all this.
    """

    shard: str
    holders: tuple[str, ...]
    coverage: range
    instructions: tuple[Instruction, ...]
    tensors: Mapping[str, Array] | None = None
    bulk_tensors: tuple[BulkTensor, ...] = ()
    releases: tuple[str, ...] = ()
    prepared: PreparedData | None = None


@dataclass(frozen=True)
class SendProgram:
    """Send the program to the node, if it is connected; sent again it is the same program."""

    node: str
    program: Program | Call


@dataclass(frozen=True)
class Revoke:
    """Have the node end the task: nobody waits for it any more."""

    node: str
    task_id: str


@dataclass(frozen=True)
class Deliver:
    """Fold the contribution; where that cannot be done, call `refuse` with its task."""

    assignment: Assignment
    node: str
    contribution: Contribution


Action = SendProgram | Revoke | Deliver


class ShardState(Enum):
    """How far a shard is. Open are those that WAIT or are ASKED."""

    WAITING = "waiting"
    """No holder can be asked now; one that is away may come back."""
    ASKED = "asked"
    """One holder has its task, of which every message but the last may have come."""
    ANSWERED = "answered"
    """The last message of its task has come."""
    MISSING = "missing"
    """It has no answer and will get none."""
    ABANDONED = "abandoned"
    """It was open when the exchange was cancelled or failed."""


OPEN = (ShardState.WAITING, ShardState.ASKED)


@dataclass(eq=False, slots=True)
class Shard:
    """What the exchange knows of one shard; only the exchange changes it."""

    assignment: Assignment
    index: int = 0
    state: ShardState = ShardState.WAITING
    node: str = ""
    """The node that has its task, or has answered it; empty where it waits."""
    task_id: str = ""
    attempts: int = 0
    unknown: bool = False
    """Its node has said once that it does not know the program called."""
    numbers: int = 0
    """Messages of its task that have come."""
    asked: str = ""
    """The node asked last, also where it is not waited for any more."""
    missing: MissingShard | None = None
    tried: dict[str, str] = field(default_factory=dict)
    """Nodes that are not asked again -> why."""
    fault: tuple[MissingKind, EdgeAttentionError] | None = None
    """What was wrong with the last answer, if one has come."""
    refusals: list[EdgeAttentionError] = field(default_factory=list)
    counted: str = ""
    """The node whose load it counts for: that which is asked."""

    @property
    def open(self) -> bool:
        return self.state in OPEN
