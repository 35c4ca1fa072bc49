"""What a federated job's nodes let leave, and from what: releases by role (update, evaluate, attention)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aggregator.fleet.columns import TableView
from aggregator.training import gap_reads
from aggregator.training.federated.plan import FederatedPlan
from edge_attention.core.encodings import from_config as encoding_from
from edge_attention.core.job_release import JobRelease
from edge_attention.core.messages.training import FederatedJob, PlannedGraph
from edge_attention.core.release import GraphRule, Release, every_row, numbered, output, table_source

__all__ = ["planned", "releases", "texts"]


def releases(plan: FederatedPlan, job: FederatedJob, view: TableView) -> Mapping[str, Release]:
    """The release that each role needs whose outputs leave."""
    found = {}
    for role, leaving in _leaving(plan, job, view).items():
        wanted, graphs = [role], dict[str, GraphRule]()
        while wanted:  # what it is computed from, and what that is
            each = wanted.pop()
            graph = plan.graphs[each]
            if graph.digest in graphs:
                continue
            sources = _sources(plan, view, each)
            leaves = frozenset(map(numbered, leaving)) if each == role else frozenset[str]()
            graphs[graph.digest] = GraphRule(
                {name: frozenset(from_) for name, (from_, _) in sources.items()}, leaves
            )
            wanted += [before for _, befores in sources.values() for before in befores]
        found[role] = Release(graphs)
    return found


def texts(plan: FederatedPlan, job: FederatedJob, view: TableView) -> tuple[str, ...]:
    """What a program of the job brings: each release, and that of the whole job."""
    needed = tuple(releases(plan, job, view).values())
    return (JobRelease(frozenset(one.digest for one in needed)).text, *(one.text for one in needed))


def planned(
    plan: FederatedPlan, job: FederatedJob, view: TableView, nodes: Iterable[str]
) -> tuple[PlannedGraph, ...]:
    """What each node runs, and must let leave."""
    needed, leaving = releases(plan, job, view), _leaving(plan, job, view)
    return tuple(
        PlannedGraph(
            node,
            role,
            graph.digest,
            leaving.get(role, ()),
            f"sha256:{needed[role].digest}" if role in needed else "",
            needed[role].text if role in needed else "",
        )
        for node in nodes
        for role, graph in plan.graphs.items()
    )


def _leaving(plan: FederatedPlan, job: FederatedJob, view: TableView) -> dict[str, tuple[str, ...]]:
    encoding = encoding_from(job.update.name, **job.update.options)
    found = {"update": plan.returned(encoding)}
    if "evaluate" in plan.graphs:
        found["evaluate"] = tuple(f"next/{name}" for name in plan.sums)
    if "labels" in plan.graphs:
        found["labels"] = tuple(name for name in plan.graphs["labels"].outputs)
    for role in gap_reads.reads(view):
        found[role] = plan.graphs[role].outputs
    if "attention" in plan.graphs:
        found["attention"] = ("attention",)
    return found


# By role and input, without numbers: the role and output that it may be, as `Programs` binds them. What is
# not here is sent by the aggregator, or computed from that alone.
_BOUND: Mapping[str, Mapping[str, tuple[tuple[str, str], ...]]] = {
    "step": {
        "x/*": (("step", "next/x/*"),),
        "count": (("step", "next/count"),),
        "loss_sum": (("step", "next/loss_sum"),),
        "loss/weight_sum": (("step", "next/loss/weight_sum"),),
        "extra/*": (("penalty", "grad/*"),),
    },
    "penalty": {"x/*": (("step", "next/x/*"),)},
    "update": {
        "x/*": (("step", "next/x/*"),),
        "grad/*": (("gradient", "grad/*"),),
        "loss_sum": (("step", "next/loss_sum"), ("gradient", "loss")),
        "loss/weight_sum": (("step", "next/loss/weight_sum"), ("gradient", "loss/weight")),
        "residual/*": (("update", "next/residual/*"),),
    },
    "attention": {"x/*": (("step", "next/x/*"),)},
}


def _sources(plan: FederatedPlan, view: TableView, role: str) -> dict[str, tuple[set[str], set[str]]]:
    """What each input of the role's graph may be that may be private, and the roles that compute that."""
    bound = dict(_BOUND.get(role, {}))
    if role == "step":
        bound |= {f"slot/{slot}/*": ((role, f"next/slot/{slot}/*"),) for slot in plan.slots}
    rows: dict[str, str] = {}
    if role in (told := gap_reads.reads(view)):
        rows = {name: every_row(table_source(view.dataset, tensor)) for name, tensor in told[role].items()}
    elif role != "attention" and role != "penalty":  # those see the probe, under the same names
        rows = {wanted.name: view.source(wanted.name) for wanted in plan.inputs}
    found: dict[str, tuple[set[str], set[str]]] = {}
    for name in plan.graphs[role].inputs:
        sources, befores = found.setdefault(numbered(name), (set(), set()))
        if name in rows:
            sources.add(rows[name])
            continue
        for before, out in bound.get(numbered(name), ()):
            made_by = plan.graphs.get(before)
            if made_by is not None and out in set(map(numbered, made_by.outputs)):
                sources.add(output(made_by.digest, out))
                befores.add(before)
    return {name: each for name, each in found.items() if each[0]}
