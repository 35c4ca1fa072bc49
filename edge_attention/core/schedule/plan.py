"""Plans: who does which share of a model, as a person would say it. `graphs/axes` makes a schedule of one.

A model is a row of layers (what lies between places where one activation is alive, the narrow places). A plan
cuts that row into stages; within a stage its parts share the work by an axis of the model, or a single part
does all of it. Parts are numbered through the whole plan; who holds which is not the plan's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Crossing", "Cut", "CutPlan", "Stage"]


class Cut(Enum):
    """What a stage's parts share."""

    NONE = "none"
    """Nothing: one part does all of the stage."""
    BATCH = "batch"
    TOKENS = "tokens"
    HEADS = "heads"
    """Attention heads, and the width of the feed-forward layers."""


class Crossing(Enum):
    """How parts that share tokens get over an attention, which needs all of them. Each is exact."""

    GATHER = "gather"
    """Keys and values of all tokens come to each part."""
    SWITCH = "switch"
    """Parts change over from tokens to heads, and back."""
    MERGE = "merge"
    """Queries go to each part; `(out, lse)` come back and are merged."""


Ranges = tuple[tuple[int, int], ...]
"""By part of the stage, in order: start and stop of its range of an axis; start = stop: none of it."""


@dataclass(frozen=True)
class Stage:
    """Consecutive layers, and the parts that do them together.

    Attributes:
        layers: from which layer to before which; a model of n narrow places has n + 1.
        parts: numbers of its parts.
        cut: what they share.
        crossing: where `cut` is TOKENS.
        shares: each part's share of each axis, in proportion; empty: equal shares.
        ranges: axes, by name as `Axes` gives them (`tokens`, `heads.3`, `feedforward.3`), whose ranges are
            said one by one. They may leave some of an axis to nobody: the answer is then of the rest, and the
            schedule's coverage says so.
    """

    layers: range
    parts: tuple[int, ...]
    cut: Cut = Cut.NONE
    crossing: Crossing = Crossing.GATHER
    shares: tuple[float, ...] = ()
    ranges: Mapping[str, Ranges] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts or (self.cut is Cut.NONE and len(self.parts) > 1):
            raise ValueError("a stage that cuts nothing has one part; say what several parts share")
        shares = self.shares
        if shares and (len(shares) != len(self.parts) or min(shares) < 0 or sum(shares) <= 0):
            raise ValueError(f"{len(self.parts)} parts have the shares {shares}: one each, some above 0")


@dataclass(frozen=True)
class CutPlan:
    """A model in stages.

    Attributes:
        stages: in order; together all layers, each once. A plan of one stage that cuts nothing is the whole
            model on one box, of which there may be several replicas.
        halves: activations pass in float16, the answer's error is that of their rounding.
        mean: there is one stage, each of whose parts does all of the model on the same input (whatever its
            `cut` is), and the answer is the plain mean of theirs: what the article calls fusion by averaging.
    """

    stages: tuple[Stage, ...]
    halves: bool = False
    mean: bool = False

    @property
    def parts(self) -> int:
        return len({part for stage in self.stages for part in stage.parts})
