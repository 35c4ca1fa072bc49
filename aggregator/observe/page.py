"""What the page tells, and what a recipe adds to it: pure data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_attention.core.messages.fleet import Node

Sections = dict[str, dict[str, Any]]
"""Section -> key -> a value, plain JSON. The page is told of values that change, and None of those gone."""


@dataclass(frozen=True)
class Trouble:
    """What is wrong, or was.

    Attributes:
        severity: "bad" where answers or runs suffer, "warn" where they will, "note" otherwise.
        remedy: what to do; empty where it ends by itself, or where `more` says it.
        since: seconds since 1970; of several nodes, when the first of them began; of what is over, when it
            was so last, if that can be told.
        over: it was wrong and is over: told apart from what is wrong now, until whoever looks puts it away.
        nodes: all that it is true of, where it is of nodes.
        more: id of the part of the page that has the whole of it; empty: there is no more.
    """

    severity: str
    text: str
    remedy: str = ""
    since: float | None = None
    over: bool = False
    nodes: tuple[str, ...] = ()
    more: str = ""


@dataclass(frozen=True)
class Lack:
    """Something that nobody here has, and that nodes which are away do.

    Attributes:
        holders: of it, all of them away.
        what: it is called: `tokens of 'memory'`, `part 3 of model bert`.
        count: how many, where it is counted.
        so: what follows of it, as half a sentence.
    """

    holders: frozenset[str]
    what: str
    count: int = 0
    so: str = ""


@dataclass(frozen=True)
class Fleet:
    """The fleet at one moment. Times are seconds since 1970.

    `days`: of certificates, by node. `revoked`: when a node's certificate was, by node. `disk`: bytes left,
    and in all, of the state folder's; (0, 0): not known.
    """

    now: float
    nodes: Sequence[Node]
    software: str
    started: float
    days: Mapping[str, float]
    revoked: Mapping[str, float] = field(default_factory=dict)
    disk: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Tile:
    """A line at the top of the page, beside those of the fleet: a value, and what it is of."""

    value: str
    more: str = ""


@dataclass(frozen=True)
class PagePart:
    """What a recipe tells the page, at one moment.

    Attributes:
        sections: of its own, for the recipe's script, which draws them.
        tile: its line, which the page draws by itself.
        holders: nodes that were given something to keep, also before they have come.
        lacks: what nobody that is here holds, and nodes that are away do.
        troubles: by a key that lasts as long as the trouble does.
    """

    sections: Sections = field(default_factory=dict)
    tile: Tile | None = None
    holders: frozenset[str] = frozenset()
    lacks: tuple[Lack, ...] = ()
    troubles: Mapping[str, Trouble] = field(default_factory=dict)


RecipePage = Callable[[Fleet], PagePart]
"""Asked twice a second while somebody looks: it must be quick."""


def number(value: float | None, digits: int = 6) -> float | None:
    """A number as JSON has it, short: to `digits` digits; NaN and infinity as null."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None
