"""What a request through a cut model has done: segments run, nodes looked for, its end told."""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.inference.course import PartSegment
from edge_attention.core.errors import EdgeAttentionError

__all__ = ["Action", "AskSegment", "Ended", "Seek", "Supply"]


@dataclass(frozen=True)
class AskSegment:
    """Have `node` run the segment.

    Attributes:
        number: what events call it by.
        again: it ran before, elsewhere: what it keeps is needed, and what it contributes is not.
    """

    number: int
    node: str
    one: PartSegment
    again: bool = False


@dataclass(frozen=True)
class Seek:
    """No node that is there holds the part: have one that is not in `without` given it."""

    part: int
    without: frozenset[str]


@dataclass(frozen=True)
class Supply:
    """The node lacks what it was given for the part: it has lost its store. Have it given that again."""

    part: int
    node: str


@dataclass(frozen=True)
class Ended:
    """It is over: `error` says why there is no answer; None: there is one."""

    error: EdgeAttentionError | None = None


Action = AskSegment | Seek | Supply | Ended
