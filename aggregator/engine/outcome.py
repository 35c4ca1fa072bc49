"""How an exchange ended, as data, so that nobody parses sentences: who answered, what is missing and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError, Unavailable


class MissingKind(Enum):
    """Why a shard has no answer: what this side knows, whatever a node says of it."""

    LATE = "late"
    """A node was asked, is connected, and had not answered at the deadline: of this side's clock."""
    LOST = "lost"
    """The nodes that hold it are not connected, or went in the middle of it."""
    FAILED = "failed"
    """The last node asked says that it met an error."""
    REFUSED = "refused"
    """The last node asked says that the request is wrong, or not allowed there."""
    DAMAGED = "damaged"
    """What came of the last node asked could not be read."""
    WRONG = "wrong"
    """What came of the last node asked is not what it was asked for."""


@dataclass(frozen=True)
class MissingShard:
    """Why a shard has no answer.

    Attributes:
        node: who was asked last; empty: nobody could be.
        text: a sentence for a person; it may quote what nodes say.
        error: what the last node asked met, named after that node; none of LATE and LOST.
    """

    kind: MissingKind
    node: str
    text: str
    error: EdgeAttentionError | None = None

    @property
    def said(self) -> bool:
        """Whether a node says so, in `error`."""
        return self.kind in (MissingKind.FAILED, MissingKind.REFUSED)

    @property
    def cause(self) -> type[EdgeAttentionError]:
        """The class of the error that tells a caller of it."""
        if self.said and self.error is not None:
            return type(self.error)
        return DeadlineExceeded if self.kind is MissingKind.LATE else Unavailable


@dataclass(frozen=True)
class Outcome:
    """How an exchange ended: who answered each shard, what is missing and why, and how long it all took.

    Attributes:
        answered: shard -> the node that answered.
        run_seconds, task_seconds: by shard, in graphs and from a task's arrival to its end, as nodes say.
        seconds: by shard that answered, from the start to its last word.
        alone: shards whose node had no other task of this aggregator while it had theirs.
    """

    answered: Mapping[str, str]
    missing: Mapping[str, MissingShard]
    run_seconds: Mapping[str, float] = field(default_factory=dict)
    task_seconds: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()

    @property
    def cause(self) -> type[EdgeAttentionError]:
        """The class of the error that tells a caller of what is missing: what a node says goes first."""
        missing = self.missing.values()
        first = next((m for m in missing if m.said), None) or next(
            (m for m in missing if m.kind is MissingKind.LATE), None
        )
        return Unavailable if first is None else first.cause

    @property
    def why(self) -> str:
        """Why shards are missing, each reason once: for a person."""
        return "; ".join(sorted({missing.text for missing in self.missing.values()}))
