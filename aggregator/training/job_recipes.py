"""The ways to train, as one thing to `Runs`: plan a job, say what it releases, train it."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from aggregator.engine import scratch
from aggregator.fleet.columns import TableView, row_shapes
from aggregator.inference.cut_request import NodeTold
from aggregator.training import planner
from aggregator.training.active import ActiveRun, Job
from aggregator.training.federated import planner as federated_planner
from aggregator.training.federated import releases as federated_releases
from aggregator.training.federated.plan import FederatedPlan, view_of
from aggregator.training.federated.trainer import FederatedTrainer
from aggregator.training.fusion import planner as fusion_planner
from aggregator.training.fusion import releases as fusion_releases
from aggregator.training.fusion.plan import FusionPlan, unseen_view
from aggregator.training.fusion.plan import view_of as part_view
from aggregator.training.fusion.trainer import Trainer
from aggregator.training.plan_check import (
    Findings,
    Look,
    datasets_of,
    federated_findings,
    label_findings,
    part_findings,
)
from aggregator.training.services import Services
from aggregator.training.split import checks as split_checks
from aggregator.training.split import releases as split_releases
from aggregator.training.split.groups import group_jobs
from aggregator.training.split.on_nodes import node_views, require_rows
from aggregator.training.split.plan import CUT, EVALUATE, MODEL, SplitPlan, cut_folder, sums_of
from aggregator.training.split.trainer import SplitTrainer
from edge_attention.core.errors import FailedPrecondition, InvalidArgument, NotFound
from edge_attention.core.messages.link import Dataset
from edge_attention.core.messages.table import TableSpec
from edge_attention.core.messages.training import (
    Encoder,
    FederatedJob,
    FusionJob,
    Head,
    PlannedGraph,
    PlannedModel,
    SplitJob,
)
from edge_attention.core.schedule.schedule import Schedule
from edge_attention.graphs.axes.folder import CutFolder


class JobRecipe(ABC):
    """One job, from its plan to its training."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._folder: Path | None = None

    @abstractmethod
    async def plan(self) -> None:
        """Make the plan.

        Raises:
            EdgeAttentionError: the job cannot run.
        """

    async def _make(
        self,
        job: Job,
        digests: Iterable[str],
        rows: planner.RowShapes,
        nodes: Sequence[NodeTold] = (),
    ) -> str:
        """The plan as JSON; its files lie in a folder until they are kept or discarded."""
        state = self._services.state
        # Each is verified, which reads all of it.
        files = {digest: await asyncio.to_thread(state.blob_path, digest) for digest in digests}
        self._folder = await scratch.make(state.directory)
        try:
            return await self._services.plan(job, files, self._folder, rows, nodes)
        except BaseException:
            await self.discard()
            raise

    def _row_shapes(
        self, node: str, dataset: str, inputs: Mapping[str, str], table: TableSpec
    ) -> dict[str, tuple[int, ...]]:
        """What a row of each column of the dataset is, and of what inputs are called that read several.

        Nothing where it is not here.
        """
        member = self._services.membership.get(node)
        held = next((d for d in member.register.datasets if d.name == dataset), None) if member else None
        if member is None or held is None:
            return {}
        shapes = row_shapes(dataset, inputs, table, member.register.datasets)
        several = {inputs.get(name, name): shape for name, shape in shapes.items()}
        return {**{column.name: tuple(column.shape) for column in held.columns}, **several}

    def _keep(self, run: str, digests: Iterable[str]) -> None:
        """Put by the plan's graphs, and the initial parameters until they are version 0. Blocks."""
        assert self._folder is not None
        for digest in digests:
            self._services.state.put_blob((self._folder / f"{digest}.onnx").read_bytes())
        kept = self._services.parameters.folder(run) / "plan"
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / "initial.safetensors").replace(kept / "initial.safetensors")

    async def discard(self) -> None:
        """Leave nothing of a plan but what was put by."""
        folder, self._folder = self._folder, None
        if folder is not None:
            await scratch.remove(folder)

    @abstractmethod
    def released(self) -> tuple[PlannedGraph, ...]:
        """What each node must let leave."""

    @abstractmethod
    def models(self) -> tuple[PlannedModel, ...]:
        """What the plan makes of the job's files."""

    @abstractmethod
    async def findings(self) -> Findings:
        """What a run would be refused for, by what nodes that are here have. After `plan`."""

    @abstractmethod
    def check_nodes(self) -> None:
        """Refuse a job that does not fit the nodes that are here."""

    @abstractmethod
    def keep(self, run: str) -> Mapping[str, str]:
        """Put by what the run needs after a restart; what goes into its row."""

    @abstractmethod
    async def recall(self, run: str, stored: Mapping[str, str]) -> None:
        """The plan of a run that goes on."""

    @abstractmethod
    async def train(self, active: ActiveRun) -> str:
        """Train to the end; why it ended early, or nothing."""


class FusionRecipe(JobRecipe):
    def __init__(self, job: FusionJob, services: Services) -> None:
        super().__init__(services)
        self._job = job
        self._planned: FusionPlan | None = None

    @property
    def _plan(self) -> FusionPlan:
        assert self._planned is not None
        return self._planned

    async def plan(self) -> None:
        job = self._job
        fusion_planner.check(job)
        parts: tuple[Encoder | Head, ...] = (*job.encoders, job.head)
        rows: dict[str, dict[str, tuple[int, ...]]] = {}
        for part in parts:
            shapes = self._row_shapes(part.node, part.dataset, part.inputs, part.table)
            rows.setdefault(f"{part.node}/{part.dataset}", {}).update(shapes)
        made = await self._make(job, {part.graph for part in parts}, rows)
        self._planned = FusionPlan.from_json(made, job)

    def released(self) -> tuple[PlannedGraph, ...]:
        found: dict[str, TableView] = {}
        for part in self._plan.parts:
            member = self._services.membership.get(part.node)
            found[part.prefix] = unseen_view(self._plan, part)
            if member is not None and member.live:
                with suppress(NotFound, InvalidArgument):  # which are among the findings
                    found[part.prefix] = part_view(self._plan, part, member.register.datasets)
        return fusion_releases.planned(self._plan, found)

    async def findings(self) -> Findings:
        plan = self._plan
        here = datasets_of(self._services.membership, plan.nodes)
        return part_findings(((part.node, partial(part_view, plan, part)) for part in plan.parts), here)

    def models(self) -> tuple[PlannedModel, ...]:
        return tuple(part.model for part in self._plan.parts if part.model is not None)

    def check_nodes(self) -> None:
        for part in self._plan.parts:
            member = self._services.membership.get(part.node)
            if member is not None and member.live:
                part_view(self._plan, part, member.register.datasets)

    def keep(self, run: str) -> Mapping[str, str]:
        self._keep(
            run,
            {
                graph.digest
                for part in self._plan.parts
                for graph in (part.forward, part.gradient, *part.gaps.values())
            },
        )
        return {"fusion_plan": self._plan.to_json()}

    async def recall(self, run: str, stored: Mapping[str, str]) -> None:
        if "fusion_plan" in stored:
            self._planned = FusionPlan.from_json(stored["fusion_plan"], self._job)
        else:  # of a run that an earlier release has started
            await self.plan()
            self.keep(run)

    async def train(self, active: ActiveRun) -> str:
        return await Trainer(active, self._job, self._plan, self._services).train()


class FederatedRecipe(JobRecipe):
    def __init__(self, job: FederatedJob, services: Services) -> None:
        super().__init__(services)
        self._job = job
        self._planned: FederatedPlan | None = None

    @property
    def _plan(self) -> FederatedPlan:
        assert self._planned is not None
        return self._planned

    async def plan(self) -> None:
        federated_planner.check(self._job)
        model = self._job.model
        rows: dict[str, dict[str, tuple[int, ...]]] = {}
        for node in self._job.nodes or self._candidates():
            shapes = self._row_shapes(node, self._job.dataset, model.inputs, self._job.table)
            if shapes not in rows.values():  # of nodes that are alike the first
                rows[node] = shapes
        made = await self._make(self._job, filter(None, (model.graph, model.initial)), rows)
        self._planned = FederatedPlan.from_json(made)

    def released(self) -> tuple[PlannedGraph, ...]:
        nodes = self._job.nodes or self._candidates() or ("*",)
        try:
            view = self._view()
        except (NotFound, InvalidArgument):  # which are among the findings
            view = view_of(self._plan, self._job, {})
        return federated_releases.planned(self._plan, self._job, view, nodes)

    async def findings(self) -> Findings:
        services = self._services
        assert self._folder is not None
        found = federated_findings(self._plan, self._job, services.membership)
        await label_findings(
            self._plan, self._job, services.membership, services.trips, services.bulk, self._folder, found
        )
        return found

    def _view(self) -> TableView:
        """As the nodes that are here have it."""
        live = {
            name: member.register.datasets
            for name in self._job.nodes or self._candidates()
            if (member := self._services.membership.get(name)) is not None and member.live
        }
        return view_of(self._plan, self._job, live)

    def models(self) -> tuple[PlannedModel, ...]:
        return (self._plan.model,) if self._plan.model is not None else ()

    def _candidates(self) -> tuple[str, ...]:
        members = (m for m in self._services.membership.members() if m.live)
        return tuple(
            sorted(
                m.register.name for m in members if self._job.dataset in {d.name for d in m.register.datasets}
            )
        )

    def check_nodes(self) -> None:
        live = (self._services.membership.get(name) for name in self._job.nodes or self._candidates())
        if any(member is not None and member.live for member in live):
            self._view()

    def keep(self, run: str) -> Mapping[str, str]:
        self._keep(run, {graph.digest for graph in self._plan.graphs.values()})
        return {"plan": self._plan.to_json()}

    async def recall(self, run: str, stored: Mapping[str, str]) -> None:
        self._planned = FederatedPlan.from_json(stored["plan"])

    async def train(self, active: ActiveRun) -> str:
        return await FederatedTrainer(active, self._job, self._plan, self._services).train()


class SplitRecipe(JobRecipe):
    """A plan for each group of nodes, or one for all nodes."""

    def __init__(self, job: SplitJob, services: Services) -> None:
        super().__init__(services)
        self._job = job
        self._jobs = group_jobs(job)
        self._plans: list[SplitPlan] = []
        self._folders: list[Path] = []

    async def plan(self) -> None:
        split_checks.check(self._job)
        try:
            for job in self._jobs:
                await self._plan_of(job)
            split_checks.require_alike(self._plans)
        except BaseException:
            await self.discard()
            raise

    async def _plan_of(self, job: SplitJob) -> None:
        nodes = self._nodes(job)
        rows: dict[str, dict[str, tuple[int, ...]]] = {}
        if job.data.on_nodes:
            for dataset in (job.data.inputs, job.data.labels):
                for node in nodes:
                    shapes = self._row_shapes(node.name, dataset, job.model.inputs, job.table)
                    rows.setdefault(node.name, {}).update(shapes)
        digests = filter(None, (job.model.graph, job.model.initial, job.data.file))
        made = await self._make(job, digests, rows, nodes)
        assert self._folder is not None
        self._folders.append(self._folder)
        self._folder = None
        self._plans.append(SplitPlan.from_json(made))

    async def discard(self) -> None:
        await super().discard()
        while self._folders:
            await scratch.remove(self._folders.pop())

    def _nodes(self, job: SplitJob) -> tuple[NodeTold, ...]:
        """Those that are to hold parts, in the parts' order: where samples are on nodes, theirs are the first
        and the last."""
        membership = self._services.membership
        live = {m.register.name: m for m in membership.members() if m.live}
        names = list(job.nodes) or sorted(live)
        if job.data.on_nodes and not job.nodes:
            first = self._with(job.data.inputs, names)
            last = self._with(job.data.labels, names)
            names = [first, *(name for name in names if name not in (first, last))]
            names += [last] if last != first else []
        found = []
        for name in names:
            member = membership.get(name)
            limit, threads = (member.register.memory_limit, member.register.threads) if member else (0, 1)
            # What other models' weights take there, and contexts.
            found.append(NodeTold(name, limit, member.memory if member else 0, threads))
        return tuple(found)

    def _with(self, dataset: str, names: Sequence[str]) -> str:
        """The first node that has it. Raises NotFound."""
        for name in names:
            member = self._services.membership.get(name)
            if member is not None and any(d.name == dataset for d in member.register.datasets):
                return name
        raise NotFound(
            f"no node is here with a dataset {dataset!r}; start one with --data {dataset}=FILE, or name "
            "nodes in the job: the first is to have the inputs, the last the labels"
        )

    def _schedule(self, group: int, shape: str) -> Schedule:
        cut = self._folders[group] / "cut"
        return CutFolder(cut / MODEL, cut / shape).schedule()

    def released(self) -> tuple[PlannedGraph, ...]:
        return tuple(graph for group in range(len(self._jobs)) for graph in self._released(group))

    def _released(self, group: int) -> tuple[PlannedGraph, ...]:
        job, plan = self._jobs[group], self._plans[group]
        shapes = {"": CUT, **({"evaluation": EVALUATE} if job.holdout else {})}
        schedules = {what: self._schedule(group, shape) for what, shape in shapes.items()}
        sums = sums_of(self._folders[group] / "cut")
        if not job.data.on_nodes:
            return split_releases.planned_graphs(schedules, plan.holders, {}, sums)
        try:
            views = node_views(job, plan, self._datasets(plan))
        except (NotFound, InvalidArgument):  # which are among the findings
            views = node_views(job, plan, {})
        needed = split_releases.part_releases(schedules.values(), views, sums)
        return split_releases.planned_graphs(schedules, plan.holders, needed, sums)

    async def findings(self) -> Findings:
        found = Findings()
        for job, plan in zip(self._jobs, self._plans, strict=True):
            here = self._datasets(plan)
            found.unchecked += [
                f"node {node!r} is not here: a run gives its part to another of the job's nodes, or waits"
                for node in plan.nodes
                if node not in here
            ]
            if not job.data.on_nodes:
                continue

            def look(node: str, job: SplitJob = job, plan: SplitPlan = plan) -> Look:
                def looked(datasets: Sequence[Dataset]) -> None:
                    node_views(job, plan, {node: datasets})
                    require_rows(job, plan, node, datasets)

                return looked

            readers = [node for part in plan.parts if part.read for node in plan.holders.get(part.part, ())]
            each = part_findings(((node, look(node)) for node in readers), here)
            found.problems += each.problems
            found.unchecked += each.unchecked
        return found

    def _datasets(self, plan: SplitPlan) -> dict[str, tuple[Dataset, ...]]:
        members = (self._services.membership.get(node) for node in plan.nodes)
        return {m.register.name: m.register.datasets for m in members if m is not None and m.live}

    def models(self) -> tuple[PlannedModel, ...]:
        return tuple(plan.model for plan in self._plans)

    def check_nodes(self) -> None:
        for job, plan in zip(self._jobs, self._plans, strict=True):
            if job.data.on_nodes:
                node_views(job, plan, self._datasets(plan))

    def keep(self, run: str) -> Mapping[str, str]:
        self._folder = self._folders[0]
        self._keep(run, ())
        self._folder = None
        cut = self._services.parameters.folder(run) / "cut"
        for group, folder in enumerate(self._folders):
            into = cut_folder(cut, self._job, group)
            into.parent.mkdir(mode=0o700, exist_ok=True)
            (folder / "cut").rename(into)
        plans = [plan.to_json() for plan in self._plans]
        return {"split_plan": plans[0], **({"split_plans": json.dumps(plans)} if self._job.groups else {})}

    async def recall(self, run: str, stored: Mapping[str, str]) -> None:
        if "split_plan" not in stored:
            raise FailedPrecondition(f"of run {run} its plan is not kept; start it anew")
        plans = json.loads(stored["split_plans"]) if self._job.groups else [stored["split_plan"]]
        self._plans = [SplitPlan.from_json(text) for text in plans]

    async def train(self, active: ActiveRun) -> str:
        return await SplitTrainer(active, self._job, self._plans, self._services).train()


def recipe_of(job: Job | None, services: Services) -> JobRecipe:
    """The recipe for this kind of job."""
    if isinstance(job, FusionJob):
        return FusionRecipe(job, services)
    if isinstance(job, FederatedJob):
        return FederatedRecipe(job, services)
    if isinstance(job, SplitJob):
        return SplitRecipe(job, services)
    raise NotFound("the request holds no job; give a fusion job, a federated one or one through the split")
