"""What a whole plan takes: its stages one after another, and with many requests what is busiest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import PlanWanted, PredictedPlan
from edge_attention.core.placement.cuts.costs import ModelCosts
from edge_attention.core.placement.cuts.stages import Manner, stage_costs
from edge_attention.core.schedule.plan import CutPlan, Stage

__all__ = ["StagePlanned", "occupied", "predict_replicas", "predict_stages"]


@dataclass(frozen=True)
class StagePlanned:
    """A stage with its boxes. `units`: how much of its axis each has; empty where one box does all."""

    layers: range
    manner: Manner
    boxes: tuple[ComputeBox, ...]
    units: tuple[int, ...] = ()

    @property
    def shares(self) -> tuple[float, ...]:
        total = sum(self.units)
        return tuple(one / total for one in self.units) if total else (1.0,)


def predict_stages(
    model: ModelCosts, stages: Sequence[StagePlanned], links: BoxLinks, wanted: PlanWanted
) -> PredictedPlan:
    """The plan of these stages, parts numbered in their order; it has a problem where weights do not fit."""
    scale = 0.5 if wanted.halves else 1.0
    seconds, trips, calls = links.request_seconds, 0, 0
    busy: dict[str, float] = {}
    down: dict[str, float] = {}
    up: dict[str, float] = {}
    weights: dict[str, float] = {}
    planned: list[Stage] = []
    holders: dict[int, tuple[str, ...]] = {}
    for stage in stages:
        costs = stage_costs(model, stage.layers, stage.manner, stage.boxes, stage.shares, links, scale)
        seconds += costs.seconds
        trips += costs.trips
        calls += costs.trips * len(stage.boxes)
        parts = tuple(range(len(holders), len(holders) + len(stage.boxes)))
        for n, box in enumerate(stage.boxes):
            _add(busy, box.name, costs.busy[n])
            _add(down, box.name, costs.down[n])
            _add(up, box.name, costs.up[n])
            _add(weights, box.name, costs.weights[n])
            holders[parts[n]] = (box.name,)
        shares = tuple(map(float, stage.units))
        planned.append(Stage(stage.layers, parts, stage.manner.cut, stage.manner.crossing, shares))
    boxes = {box.name: box for stage in stages for box in stage.boxes}
    over = [box for box in boxes.values() if weights[box.name] > box.memory]
    problem = ""
    if over:
        needed, has = weights[over[0].name] / 1e6, over[0].memory / 1e6
        problem = f"{over[0].name} would hold {needed:,.0f} MB of weights and has room for {has:,.0f} MB"
    plan = CutPlan(tuple(planned), halves=wanted.halves)
    each = max(seconds / wanted.in_flight, occupied(boxes, busy, down, up, calls, links))
    return PredictedPlan(plan, holders, seconds, each, trips, busy, down, up, weights, problem)


def predict_replicas(
    model: ModelCosts, boxes: Sequence[ComputeBox], links: BoxLinks, wanted: PlanWanted
) -> PredictedPlan:
    """The whole model on each of `boxes`; whole requests go to whichever is free, a lone one to the first."""
    layers, manner = range(len(model.layers)), Manner()
    alone = [stage_costs(model, layers, manner, (box,), (1.0,), links) for box in boxes]
    took = [links.request_seconds + costs.seconds for costs in alone]
    rate = sum(1 / each for each in took)
    names = tuple(box.name for box in boxes)
    seconds = min(took)
    shares = [1 / each / rate for each in took]
    busy = {name: share * costs.busy[0] for name, share, costs in zip(names, shares, alone, strict=True)}
    down = {name: share * costs.down[0] for name, share, costs in zip(names, shares, alone, strict=True)}
    up = {name: share * costs.up[0] for name, share, costs in zip(names, shares, alone, strict=True)}
    # More requests in flight than replicas wait for one; fewer leave the slowest without any.
    quickest = sorted(took)[: wanted.in_flight]
    together = 1 / sum(1 / each for each in quickest)
    hub = occupied({box.name: box for box in boxes}, busy, down, up, 1, links)
    return PredictedPlan(
        CutPlan((Stage(layers, (0,)),)),
        {0: names},
        seconds,
        max(together, hub),
        1,
        busy,
        down,
        up,
        {name: float(model.weights) for name in names},
    )


def occupied(
    boxes: Mapping[str, ComputeBox],
    busy: Mapping[str, float],
    down: Mapping[str, float],
    up: Mapping[str, float],
    calls: int,
    links: BoxLinks,
) -> float:
    """Seconds that what is busiest is busy with one request: a box, a machine, a link, the aggregator."""
    found = [0.0]
    machines: dict[str, list[str]] = {}
    media: dict[str, list[str]] = {}
    for name, box in boxes.items():
        found.append(busy[name])
        if box.machine:
            machines.setdefault(box.machine, []).append(name)
        media.setdefault(links.to(name).medium or name, []).append(name)
    found += [sum(busy[name] for name in names) / boxes[names[0]].cores for names in machines.values()]
    found += [sum(links.to(name).busy(down[name], up[name]) for name in names) for names in media.values()]
    total_down, total_up = sum(down.values()), sum(up.values())
    found.append(links.hub.busy(total_down, total_up))
    found.append((total_down + total_up) * links.byte_seconds + calls * links.call_seconds)
    return max(found)


def _add(to: dict[str, float], name: str, value: float) -> None:
    to[name] = to.get(name, 0.0) + value
