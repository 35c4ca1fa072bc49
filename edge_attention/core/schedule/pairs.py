"""Plans that give each unit so many (layer, head) pairs, as swarms of units share a model in the articles.

Pairs are numbered layer by layer, head by head, and units take them in order: of 12 layers of 12 heads over
20 units, each has 7 or 8 of the 144 pairs, the last of one layer and the first of the next. Where a unit
takes only so many, as 5, the 20 do 100 pairs, and the plan's coverage says that the rest is nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_attention.core.schedule.plan import Cut, CutPlan, Ranges, Stage
from edge_attention.core.schedule.shares import shared_ranges

__all__ = ["plan_of_pairs"]


def plan_of_pairs(layers: int, heads: Mapping[str, int], units: int, each: int | None = None) -> CutPlan:
    """A plan whose parts are `units`, each with its pairs; feed-forward layers are shared by all alike.

    Args:
        layers: of the model, as a plan counts them.
        heads: the name of each attention's axis of heads -> its size, in order.
        each: how many pairs a unit takes; None: all pairs are taken, by all alike.
    """
    total = sum(heads.values())
    if each is None:
        taken = shared_ranges(total, (1.0,) * units)
    else:
        taken = tuple((min(n * each, total), min((n + 1) * each, total)) for n in range(units))
    ranges: dict[str, Ranges] = {}
    first = 0
    for name, size in heads.items():
        found = [(max(start - first, 0), min(stop - first, size)) for start, stop in taken]
        ranges[name] = tuple(span if span[0] < span[1] else (0, 0) for span in found)
        first += size
    return CutPlan((Stage(range(layers), tuple(range(units)), Cut.HEADS, ranges=ranges),))
