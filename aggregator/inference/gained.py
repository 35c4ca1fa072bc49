"""How many times as quick a plan made anew is predicted to be as the one that serves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from aggregator.inference.cut_request import CutRequest, HubTold, NodeTold
from aggregator.inference.measured import stated_box
from aggregator.inference.placement import Holders
from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import PlanWanted
from edge_attention.core.placement.cuts.costs import ModelCosts
from edge_attention.core.placement.cuts.predicting import StagePlanned, predict_stages
from edge_attention.core.placement.cuts.stages import Manner
from edge_attention.core.schedule.plan import CutPlan
from edge_attention.core.schedule.saved_plan import loads_plan

__all__ = ["USABLE", "box_of", "gained", "gained_whole", "links_of"]

USABLE = 0.85
"""Of a node's memory limit, for weights: sessions take some besides."""
MOST = 1e6
"""The gain over what cannot answer at all."""
_UNITS = 1000
"""A share in whole numbers."""


def gained(costs: ModelCosts, plan: CutPlan, holders: Holders, request: CutRequest) -> float:
    """Of `plan`, over `request.before` with `request.holders`, by which a part may be nobody's."""
    boxes, links = {node.name: box_of(node) for node in request.nodes}, links_of(request.nodes, request.hub)
    before = loads_plan(request.before)
    was = predicted_seconds(costs, before, request.holders, boxes, links)
    if math.isinf(was):
        return MOST
    return min(was / max(predicted_seconds(costs, plan, holders, boxes, links), 1e-9), MOST)


def gained_whole(request: CutRequest) -> float:
    """Of replicas over replicas: nothing, where one of those that were to be is here."""
    here = {node.name for node in request.nodes}
    return 1.0 if any(name in here for held in request.holders.values() for name in held) else MOST


def predicted_seconds(
    costs: ModelCosts,
    plan: CutPlan,
    holders: Holders,
    boxes: Mapping[str, ComputeBox],
    links: BoxLinks,
) -> float:
    """Of one request alone, with each part on the first of its holders in `boxes`; inf: a part has none.

    Parts of a stage that one box holds are done by it one after another: as one share.
    """
    if plan.parts == 1:
        held = [name for name in holders.get(plan.stages[0].parts[0], ()) if name in boxes]
        layers = range(len(costs.layers))  # of a model that was not cut its plan says nothing
        alone = [(StagePlanned(layers, Manner(), (boxes[name],)),) for name in held]
        return min((_seconds(costs, stages, links, plan) for stages in alone), default=math.inf)
    stages = []
    for stage in plan.stages:
        units: dict[str, float] = {}
        for part, share in zip(stage.parts, stage.shares or (1.0,) * len(stage.parts), strict=True):
            name = next((name for name in holders.get(part, ()) if name in boxes), "")
            if not name:
                return math.inf
            if share > 0:
                units[name] = units.get(name, 0.0) + share
        manner = Manner(stage.cut, stage.crossing) if len(units) > 1 else Manner()
        total = sum(units.values()) or 1.0
        shares = tuple(round(_UNITS * one / total) for one in units.values()) if len(units) > 1 else ()
        of = tuple(boxes[name] for name in units)
        stages.append(StagePlanned(stage.layers, manner, of, shares))
    return _seconds(costs, stages, links, plan)


def _seconds(costs: ModelCosts, stages: Sequence[StagePlanned], links: BoxLinks, plan: CutPlan) -> float:
    return predict_stages(costs, stages, links, PlanWanted(halves=plan.halves)).seconds


def links_of(nodes: Sequence[NodeTold], hub: HubTold = HubTold()) -> BoxLinks:  # noqa: B008
    """How they are reached."""
    together = hub.bandwidth or math.inf
    links = BoxLinks(
        {
            node.name: BoxLink(node.latency, node.down or math.inf, node.up or math.inf, cold=node.cold)
            for node in nodes
        },
        BoxLink(0.0, together, together, hub.bandwidth if hub.both else 0.0),
        request_seconds=hub.request_seconds,
    )
    return links if hub.trip_seconds < 0 else replace(links, trip_seconds=hub.trip_seconds)


def box_of(node: NodeTold) -> ComputeBox:
    """The node as the planner takes it."""
    memory = max(USABLE * node.memory_limit - node.taken, 1)
    return replace(
        stated_box(node.name, node.threads),
        memory=memory,
        slowness=node.slowness,
        call_seconds=node.call_seconds,
        machine=node.machine,
        cores=min(_boxes_at_once(node), node.at_once or math.inf),
    )


def _boxes_at_once(node: NodeTold) -> float:
    """For how many nodes like it its machine computes at a time: each has as many threads at work."""
    return max(node.cores / max(node.threads, 1), 1.0) if node.cores else math.inf
