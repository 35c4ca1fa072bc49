"""What a run of a job would be refused for, by node, before anything is started: `train --plan`.

What nodes have said of their datasets is looked at here. Of labels they are asked, as a run asks them, those
that let it leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aggregator.engine.bulk import Bulk
from aggregator.engine.trip import Trips
from aggregator.fleet.columns import own_dataset
from aggregator.fleet.membership import Membership
from aggregator.training.federated.asker import Asker
from aggregator.training.federated.labels import ask_labels, wrong_labels
from aggregator.training.federated.plan import FederatedPlan, asked_of, strategy_of, view_of
from aggregator.training.federated.programs import Programs
from aggregator.training.federated.releases import releases, texts
from aggregator.training.federated.samples import NodeSamples
from edge_attention.core.combine import from_config as combine_from
from edge_attention.core.encodings import from_config as encoding_from
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.job_release import OWN_DATA, JobRelease
from edge_attention.core.keywords import hint
from edge_attention.core.messages.link import Dataset
from edge_attention.core.messages.training import FederatedJob, PlanProblem

__all__ = ["Findings", "Look", "datasets_of", "federated_findings", "label_findings", "part_findings"]

LABEL_SECONDS = 10.0
"""How long a plan waits for what nodes tell of their labels."""
MAX_SHOWN = 8
"""Nodes that a sentence names."""

Datasets = Mapping[str, Sequence[Dataset]]
"""Node that is here -> what it has said of its datasets."""

Look = Callable[[Sequence[Dataset]], object]
"""Looks at what a node has said of its datasets, and raises what a run would be refused for."""


@dataclass
class Findings:
    """What was found. `unchecked`: what was not looked at, and why."""

    problems: list[PlanProblem] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def try_(self, node: str, look: Callable[[], object]) -> bool:
        """Whether `look` finds no fault with what the node has."""
        try:
            look()
        except EdgeAttentionError as error:
            self.problems.append(PlanProblem(node, error.message))
            return False
        return True

    def away(self, nodes: Iterable[str]) -> None:
        """These nodes of the job are not here."""
        for node in nodes:
            self.unchecked.append(f"node {node!r} is not here: what it has is not looked at")


def datasets_of(membership: Membership, nodes: Iterable[str]) -> Datasets:
    """Those of the nodes that are here."""
    found = ((name, membership.get(name)) for name in nodes)
    return {name: m.register.datasets for name, m in found if m is not None and m.live}


def part_findings(parts: Iterable[tuple[str, Look]], here: Datasets) -> Findings:
    """Of a job whose parts have nodes of their own: each is its node, and what looks at its datasets."""
    found, away = Findings(), dict[str, None]()
    for node, look in parts:
        if node not in here:
            away[node] = None
            continue
        found.try_(node, lambda look=look, node=node: look(here[node]))  # type: ignore[misc]
    found.away(away)
    found.problems = list(dict.fromkeys(found.problems))
    return found


def federated_findings(plan: FederatedPlan, job: FederatedJob, membership: Membership) -> Findings:
    """Of a federated job: datasets, columns, their types and shapes, on each node and on all together."""
    found = Findings()
    live = [m.register.name for m in membership.members() if m.live]
    everywhere = datasets_of(membership, live)
    names = job.nodes or tuple(n for n in sorted(live) if any(d.name == job.dataset for d in everywhere[n]))
    here = {name: everywhere[name] for name in names if name in everywhere}
    found.away(name for name in names if name not in here)
    if not names:
        _no_dataset(found, job.dataset, everywhere)
        return found
    strategy = strategy_of(job)
    good = []
    for node, datasets in here.items():

        def look(node: str = node, datasets: Sequence[Dataset] = datasets) -> None:
            view_of(plan, job, {node: datasets})
            NodeSamples(job, strategy, node, own_dataset(node, job.dataset, datasets).rows).check()

        if found.try_(node, look):
            good.append(node)
    if len(good) == len(here):
        # Each by itself fits, and all are to have the same columns.
        found.try_("", lambda: view_of(plan, job, here))
        if len(here) < (least := max(1, job.selection.minimum)):
            found.unchecked.append(f"{len(here)} nodes of the job are here, and a round takes {least}")
        elif not strategy.asynchronous:
            combine = combine_from(job.combine.name, **job.combine.options)
            found.try_("", lambda: combine.require(asked_of(job, len(here))))
    return found


def _no_dataset(found: Findings, name: str, everywhere: Datasets) -> None:
    known = {node: [d.name for d in datasets] for node, datasets in everywhere.items()}
    if not known:
        found.unchecked.append(f"no node is here: that one has a dataset {name!r}, and what it is like")
        return
    shown = "; ".join(f"{node}: {', '.join(own) or 'none'}" for node, own in list(known.items())[:MAX_SHOWN])
    more = f"; and {len(known) - MAX_SHOWN} more nodes" if len(known) > MAX_SHOWN else ""
    near = hint(name, {each for own in known.values() for each in own})
    found.problems.append(
        PlanProblem(
            "",
            f"no node here has a dataset {name!r}{near}; a run would wait for one. They have: {shown}{more}",
        )
    )


async def label_findings(
    plan: FederatedPlan,
    job: FederatedJob,
    membership: Membership,
    trips: Trips,
    bulk: Bulk,
    folder: Path,
    found: Findings,
) -> None:
    """Add what is wrong with labels, of nodes that let it leave what theirs are like. `folder`: the plan's
    graphs, `<digest>.onnx`."""
    wanted, graph = plan.label, plan.graphs.get("labels")
    names = job.nodes or tuple(sorted(m.register.name for m in membership.members() if m.live))
    bad = {problem.node for problem in found.problems}
    here = {
        name: datasets
        for name, datasets in datasets_of(membership, names).items()
        if name not in bad and any(d.name == job.dataset for d in datasets)
    }
    if wanted is None or graph is None or not here or "" in bad:
        return
    view = view_of(plan, job, here)
    if view.complete or view.means:
        found.unchecked.append("labels, as rows that lack a value are known when a run has begun")
        return
    needed = releases(plan, job, view)
    allowing = {
        OWN_DATA,
        needed["labels"].digest,
        JobRelease(frozenset(r.digest for r in needed.values())).flag,
    }
    asked: dict[str, NodeSamples] = {}
    for node, datasets in here.items():
        if allowing.isdisjoint(membership.require_live(node).register.releases):
            found.unchecked.append(
                f"labels of node {node!r}: what they are like leaves it with the job's release, or with that "
                "of the graph `labels`"
            )
            continue
        asked[node] = NodeSamples(job, strategy_of(job), node, own_dataset(node, job.dataset, datasets).rows)
    if not asked:
        return
    encoding = encoding_from(job.update.name, **job.update.options)
    programs = Programs("plan", job, plan, view, strategy_of(job), encoding)
    asker = Asker(trips, membership, LABEL_SECONDS, texts(plan, job, view))
    with _lent(bulk, folder / f"{graph.digest}.onnx"):
        told, untold = await ask_labels(asker, programs, asked, LABEL_SECONDS, lambda sentence: None)
    found.unchecked += [f"labels of node {node!r}: {why}" for node, why in untold.items()]
    for labels in told:
        if text := wrong_labels(job, wanted, labels):
            found.problems.append(PlanProblem(labels.node, text))


@contextmanager
def _lent(bulk: Bulk, file: Path) -> Iterator[None]:
    """A graph that is not kept, for nodes to download."""
    digest = bulk.lend(file.read_bytes())
    try:
        yield
    finally:
        bulk.take_back(digest)
