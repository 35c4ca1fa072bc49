"""What a fusion job's nodes let leave, and from what: releases by role, of each part of the model."""

from __future__ import annotations

from collections.abc import Mapping

from aggregator.fleet.columns import TableView
from aggregator.training.fusion.plan import FusionPlan, PlanGraph, PlannedPart
from aggregator.training.gap_reads import MEANS, PRESENCE, reads
from edge_attention.core.job_release import JobRelease
from edge_attention.core.messages.training import PlannedGraph
from edge_attention.core.release import GraphRule, Release, every_row, numbered, output, table_source
from edge_attention.graphs.attention import library

__all__ = ["TOLD", "planned", "releases", "texts"]

TOLD: Mapping[str, tuple[str, ...]] = {PRESENCE: ("complete",), MEANS: ("sums", "counts")}
"""What nodes tell of what their datasets lack, by role."""

_FORWARD = library.digest("attention_batch_forward")
_BACKWARD = library.digest("attention_batch_backward")


def releases(plan: FusionPlan, part: PlannedPart, view: TableView) -> Mapping[str, Release]:
    """The releases that the part's node needs, by role."""
    return {**_of_part(plan, part, view), **_of_gaps(part, view)}


def _of_gaps(part: PlannedPart, view: TableView) -> Mapping[str, Release]:
    found = {}
    for role, tensors in reads(view, PRESENCE).items():
        rows = {
            name: frozenset({every_row(table_source(view.dataset, tensor))})
            for name, tensor in tensors.items()
        }
        found[role] = Release({part.gaps[role].digest: GraphRule(rows, _numbered(TOLD[role]))})
    return found


def _of_part(plan: FusionPlan, part: PlannedPart, view: TableView) -> Mapping[str, Release]:
    if part.kind == "encoder":
        encoder = {part.forward.digest: GraphRule(_rows(view, part.forward))}
        stored = {name: frozenset({output(part.forward.digest, name)}) for name in ("keys", "values")}
        seeds = {name: frozenset({output(_BACKWARD, name)}) for name in ("dkeys", "dvalues")}
        gradient = GraphRule({**_rows(view, part.gradient), **seeds}, _numbered(_gradients(part)))
        attention = {
            _FORWARD: GraphRule(stored, frozenset({"out", "lse"})),
            _BACKWARD: GraphRule(stored, frozenset({"dq"})),
        }
        backward = {_BACKWARD: GraphRule(stored)}
        return {
            "attention": Release({**encoder, **attention}),
            "encoder_gradient": Release({**encoder, **backward, part.gradient.digest: gradient}),
        }
    gradient = GraphRule(_rows(view, part.gradient), _numbered(("loss", "dfused", *_gradients(part))))
    found = {"head_gradient": Release({part.gradient.digest: gradient})}
    if plan.job.holdout:
        leaves = _numbered(("loss", *plan.job.head.metrics))
        found["head"] = Release({part.forward.digest: GraphRule(_rows(view, part.forward), leaves)})
    return found


def texts(plan: FusionPlan, views: Mapping[str, TableView]) -> dict[str, tuple[str, ...]]:
    """What a program for the node of each part brings, by the part's prefix: its releases, and that of the
    whole job."""
    needed = {part.prefix: tuple(releases(plan, part, views[part.prefix]).values()) for part in plan.parts}
    digests = frozenset(one.digest for some in needed.values() for one in some)
    whole = JobRelease(digests, alignment=True).text
    return {prefix: (whole, *(one.text for one in some)) for prefix, some in needed.items()}


def planned(plan: FusionPlan, views: Mapping[str, TableView]) -> tuple[PlannedGraph, ...]:
    """What each node runs, and must let leave."""
    found = [
        PlannedGraph(part.node, "ids", "", ("keyed hashes of the ids",), "alignment") for part in plan.parts
    ]
    for part in plan.parts:
        needed = releases(plan, part, views[part.prefix])
        leaves: dict[str, tuple[str, tuple[str, ...]]]
        if part.kind == "encoder":
            leaves = {
                "encoder": (part.forward.digest, ()),
                "attention": ("", ("out", "lse", "dq")),
                "encoder_gradient": (part.gradient.digest, _gradients(part)),
            }
        else:
            leaves = {"head_gradient": (part.gradient.digest, ("loss", "dfused", *_gradients(part)))}
            if plan.job.holdout:
                leaves["head"] = (part.forward.digest, ("loss", *plan.job.head.metrics))
        leaves |= {role: (part.gaps[role].digest, TOLD[role]) for role in needed if role in TOLD}
        for role, (digest, outputs) in leaves.items():
            release = needed.get(role)
            flag, text = (f"sha256:{release.digest}", release.text) if release is not None else ("", "")
            found.append(PlannedGraph(part.node, role, digest, outputs, flag, text))
    return tuple(dict.fromkeys(found))


def _gradients(part: PlannedPart) -> tuple[str, ...]:
    return tuple(f"grad/{name}" for name in part.parameters)


def _numbered(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(numbered, names))


def _rows(view: TableView, graph: PlanGraph) -> dict[str, frozenset[str]]:
    """The inputs of the graph that are rows, and which."""
    found: dict[str, frozenset[str]] = {}
    for name in sorted(graph.inputs & view.tensors.keys()):
        source = frozenset({view.source(name)})
        found[numbered(name)] = found.get(numbered(name), frozenset()) | source
    return found
