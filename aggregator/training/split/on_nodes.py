"""Samples that stay on nodes: how they are read there, and which row of one is which row of the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand, Wanted
from aggregator.fleet.columns import TableView, WantedInput, own_dataset, refuse_rules, resolve
from aggregator.inference.calls import NodeRead
from aggregator.training.fusion.alignment import Alignment, align
from aggregator.training.known_data import KnownData, declared
from aggregator.training.services import Services
from aggregator.training.split.plan import SplitPlan
from aggregator.training.split.samples import INPUT_ROWS, LABEL_ROWS, AlignedSamples, require_batch
from edge_attention.core.errors import DeadlineExceeded, InvalidArgument
from edge_attention.core.messages.link import Dataset
from edge_attention.core.messages.program import Batch, Return
from edge_attention.core.messages.table import TableSpec
from edge_attention.core.messages.training import MissingSamples, SplitJob
from edge_attention.core.tensors import Array

__all__ = ["OnNodes", "node_views", "reads_of", "require_rows"]


def node_views(
    job: SplitJob, plan: SplitPlan, nodes: Mapping[str, Sequence[Dataset]]
) -> dict[str, TableView]:
    """Input of the model -> how its node reads it. `nodes`: the datasets of those that are here.

    Raises:
        NotFound, InvalidArgument: a node has not what the model takes, or rows without ids.
    """
    refuse_rules(job.table)
    found: dict[str, TableView] = {}
    for names, dataset in (
        ([one.name for one in plan.inputs if one.name not in plan.labels], job.data.inputs),
        (list(plan.labels), job.data.labels),
    ):
        wanted = [WantedInput(i.name, i.dtype, i.shape) for i in plan.inputs if i.name in names]
        inputs = {name: column for name, column in job.model.inputs.items() if name in names}
        holder = _holder(plan, names)
        there = {holder: nodes[holder]} if holder in nodes else {}
        for node, datasets in there.items():
            if not own_dataset(node, dataset, datasets).identified:
                raise InvalidArgument(
                    f"dataset {dataset!r} of node {node!r} has no ids; rows of inputs and labels are matched "
                    "by them: give it a column or key named id"
                )
        view = resolve(dataset, wanted, inputs, _spec_of(job.table, names, inputs), there)
        found |= dict.fromkeys(names, view)
    return found


def require_rows(job: SplitJob, plan: SplitPlan, node: str, datasets: Sequence[Dataset]) -> None:
    """Refuse a batch larger than a dataset that `node` reads for the job: no more of its rows can be matched.

    Raises:
        InvalidArgument: it says how large a batch may be.
    """
    inputs = [one.name for one in plan.inputs if one.name not in plan.labels]
    for names, dataset in ((inputs, job.data.inputs), (plan.labels, job.data.labels)):
        if _holder(plan, names) == node:
            require_batch(job, own_dataset(node, dataset, datasets).rows)


def reads_of(views: Mapping[str, TableView], labels: Sequence[str]) -> dict[str, NodeRead]:
    """The same, as calls have it."""
    return {
        name: NodeRead(
            view.dataset, view.tensors[name], LABEL_ROWS if name in labels else INPUT_ROWS, view.complete
        )
        for name, view in views.items()
    }


def _spec_of(spec: TableSpec, names: Sequence[str], inputs: Mapping[str, str]) -> TableSpec:
    """What of it is about these inputs: each of the two datasets has its own columns."""
    listed = {name: columns for name, columns in spec.inputs.items() if name in names}
    used = {text for columns in listed.values() for text in columns.columns}
    used |= {inputs.get(name, name) for name in names}
    return TableSpec(listed, {c: said for c, said in spec.columns.items() if c in used}, spec.missing)


def _holder(plan: SplitPlan, names: Sequence[str]) -> str:
    """The node of the part that reads these inputs."""
    for part in plan.parts:
        if set(names) & set(part.read):
            return plan.holders[part.part][0]
    return ""


@dataclass(eq=False)
class OnNodes:
    """The two datasets of a run, matched by ids: again where a node has been restarted."""

    run: str
    job: SplitJob
    plan: SplitPlan
    services: Services
    key: bytes
    patience: float
    say: Callable[[str], None]

    async def views(self) -> dict[str, TableView]:
        """How both are read, once both are here.

        Raises:
            DeadlineExceeded: a node stays away.
            NotFound, InvalidArgument: a node has not what the model takes.
        """
        membership = self.services.membership
        nodes = tuple(dict.fromkeys(self._ends()))
        if not await self.services.trips.all_live(nodes, self.patience, self.say):
            away = [node for node in nodes if not membership.live(node)]
            raise DeadlineExceeded(
                f"node {', '.join(away)}, which has samples, did not come within {self.patience:.0f} s; "
                "start it, and the run anew"
            )
        datasets = {node: membership.require_live(node).register.datasets for node in nodes}
        return await asyncio.to_thread(node_views, self.job, self.plan, datasets)

    async def samples(self, releases: tuple[str, ...]) -> tuple[AlignedSamples, Alignment]:
        """Who is which. After `views`.

        Args:
            releases: what programs of the run bring: that of the job lets the hashes of ids leave, too.

        Raises:
            FailedPrecondition: no row is in both.
            EdgeAttentionError: a node cannot tell its hashes, or may not.
        """
        first, last = self._ends()
        hashes = await self._hashes(
            {"inputs": (first, self.job.data.inputs), "labels": (last, self.job.data.labels)}, releases
        )
        found = await asyncio.to_thread(align, hashes, "labels", ["inputs"], MissingSamples.LEAVE_OUT)
        rows = {INPUT_ROWS: found.rows["inputs"], LABEL_ROWS: found.rows["labels"]}
        return AlignedSamples(rows), found

    def _ends(self) -> tuple[str, str]:
        """The nodes that have the inputs and the labels."""
        inputs = [one.name for one in self.plan.inputs if one.name not in self.plan.labels]
        return _holder(self.plan, inputs), _holder(self.plan, self.plan.labels)

    def data(self) -> tuple[KnownData, ...]:
        """What both nodes have declared of what they have."""
        names = (self.job.data.inputs, self.job.data.labels)
        found: dict[KnownData, None] = {}
        for node, name in zip(self._ends(), names, strict=True):
            member = self.services.membership.get(node)
            datasets = member.register.datasets if member is not None else ()
            found |= dict.fromkeys(declared(node, datasets, [name]))
        return tuple(found)

    async def _hashes(
        self, sources: Mapping[str, tuple[str, str]], releases: tuple[str, ...]
    ) -> dict[str, Array]:
        """Keyed hashes of the ids of both: uint8 [rows, 16]."""
        found: dict[str, Array] = {}
        wanted: dict[str, Wanted] = {"ids": (np.dtype(np.uint8), ("rows", 16))}

        def take(answer: Returned) -> None:
            found[answer.shard] = answer.array("ids")

        errands = [
            Errand(
                shard=source,
                holders=(node,),
                coverage=range(at, at + 1),
                instructions=(Batch(dataset, {}, None, "task/ids", self.key), Return("task/ids", "ids")),
                wanted=wanted,
                releases=releases,
            )
            for at, (source, (node, dataset)) in enumerate(sources.items())
        ]
        outcome = await self.services.trips.make(errands, self.patience, take, say=self.say)
        for missing in outcome.missing.values():
            raise (missing.error or missing.cause(missing.text))
        return found
