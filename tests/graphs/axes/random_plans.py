"""Random plans over a model's layers and axes: every cut and crossing, stages, uneven shares, some none.

Ranges said one by one are a partition, so a plan covers all of the model unless a test takes some away.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Ranges, Stage

Draw = Callable[[st.SearchStrategy[Any]], Any]
PARTS = 4
"""Of a stage, at most."""


def partition(draw: Draw, size: int, parts: int) -> Ranges:
    """Of so many elements, in order; some may be of nobody's length."""
    ends = sorted(draw(st.lists(st.integers(0, size), min_size=parts - 1, max_size=parts - 1)))
    return tuple(zip([0, *ends], [*ends, size], strict=True))


@st.composite
def plans(
    draw: Draw,
    layers: int,
    sizes: Mapping[str, int],
    cuts: Sequence[Cut] = tuple(Cut),
    crossings: Sequence[Crossing] = tuple(Crossing),
) -> CutPlan:
    """A plan of a model of so many layers.

    Args:
        layers: of the model, so that a plan of all is `range(layers)`.
        sizes: of its axes, by the names that `Stage.ranges` may say.
        cuts: what stages may share. A model that cannot be cut by one is not to be asked for it.
    """
    count = draw(st.integers(1, min(layers, 3)))
    ends = [
        0,
        *sorted(draw(st.sets(st.integers(1, layers - 1), min_size=count - 1, max_size=count - 1))),
        layers,
    ]
    stages: list[Stage] = []
    taken = 0
    for start, stop in itertools.pairwise(ends):
        cut = draw(st.sampled_from(list(cuts)))
        of = 1 if cut is Cut.NONE else draw(st.integers(1, PARTS))
        # New parts, or, as one box may do a share of several stages, those that there are.
        parts = range(taken, taken + of)
        if taken >= of and draw(st.booleans()):
            parts = range(of)
        taken = max(taken, parts.stop)
        order = tuple(draw(st.permutations(list(parts))))
        shares: tuple[float, ...] = ()
        if draw(st.booleans()):
            drawn = draw(st.lists(st.integers(0, 4), min_size=of, max_size=of))
            shares = tuple(map(float, drawn)) if sum(drawn) else ()
        ranges: dict[str, Ranges] = {}
        for name in sorted(sizes):
            if _cuts(cut, name) and draw(st.booleans()):
                ranges[name] = partition(draw, sizes[name], of)
        crossing = draw(st.sampled_from(list(crossings))) if cut is Cut.TOKENS else Crossing.GATHER
        stages.append(Stage(range(start, stop), order, cut, crossing, shares, ranges))
    return CutPlan(tuple(stages))


def _cuts(cut: Cut, name: str) -> bool:
    kind = name.partition(".")[0]
    of = {Cut.TOKENS: ("tokens", "heads"), Cut.HEADS: ("heads", "feedforward"), Cut.BATCH: ("batch",)}
    return kind in of.get(cut, ())
