"""A plan for a person: who does what of a model."""

from __future__ import annotations

from aggregator.inference.placement import Holders
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.graphs.axes.cut import shared_ranges
from edge_attention.graphs.axes.model_axes import Axes

__all__ = ["plan_in_words", "share_in_words"]

_OF = {Cut.TOKENS: "tokens", Cut.BATCH: "batch", Cut.HEADS: "heads"}
_CALLED = {Cut.TOKENS: "tokens", Cut.BATCH: "rows", Cut.HEADS: "heads"}


def share_in_words(stage: Stage, at: int, axes: Axes) -> str:
    """What a stage's part does of it: `tokens 0-63 of 128`."""
    if stage.cut is Cut.NONE or len(stage.parts) == 1:
        return "all"
    names = [name for name in axes.named if name.split(".")[0] == _OF[stage.cut]]
    if not names:
        return f"a share by {stage.cut.value}"
    size = axes.sizes[axes.named[names[0]][0]]
    ranges = stage.ranges.get(names[0]) or shared_ranges(size, stage.shares or (1.0,) * len(stage.parts))
    start, stop = ranges[at]
    of = f" of {size}{' in each layer' if stage.cut is Cut.HEADS and len(names) > 1 else ''}"
    return f"{_CALLED[stage.cut]} {start}-{stop - 1}{of}" if stop > start else f"none{of}"


def plan_in_words(plan: CutPlan, holders: Holders) -> str:
    """The plan, for a person."""
    if len(plan.stages) == 1:
        return _stage_in_words(plan.stages[0], holders)
    return ", then ".join(
        f"layers {stage.layers.start}-{stage.layers.stop - 1} {_stage_in_words(stage, holders)}"
        for stage in plan.stages
    )


def _stage_in_words(stage: Stage, holders: Holders) -> str:
    if len(stage.parts) == 1:
        held = holders.get(stage.parts[0], ())
        nodes = ", ".join(held[:8]) + (f" and {len(held) - 8} more" if len(held) > 8 else "")
        return f"whole on {nodes}" if len(held) == 1 else f"whole on each of {nodes}"
    parts = ", ".join("/".join(holders.get(part, ())) for part in stage.parts[:8])
    more = f" and {len(stage.parts) - 8} more" if len(stage.parts) > 8 else ""
    how = f" ({stage.crossing.value})" if stage.cut is Cut.TOKENS else ""
    return f"by {_OF[stage.cut]}{how} over {parts}{more}"
