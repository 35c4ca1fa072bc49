"""The two ways to train, as one thing to `Runs`: plan a job, say what it releases, train it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

from aggregator.engine import scratch
from aggregator.fleet.columns import TableView, row_shapes
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
from aggregator.training.services import Services
from edge_attention.core.errors import NotFound
from edge_attention.core.messages.table import TableSpec
from edge_attention.core.messages.training import (
    Encoder,
    FederatedJob,
    FusionJob,
    Head,
    PlannedGraph,
    PlannedModel,
)


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

    async def _make(self, job: Job, digests: Iterable[str], rows: planner.RowShapes) -> str:
        """The plan as JSON; its files lie in a folder until they are kept or discarded."""
        state = self._services.state
        # Each is verified, which reads all of it.
        files = {digest: await asyncio.to_thread(state.blob_path, digest) for digest in digests}
        self._folder = await scratch.make(state.directory)
        try:
            return await planner.make(job, files, self._folder, rows)
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
            there = member is not None and member.live
            found[part.prefix] = (
                part_view(self._plan, part, member.register.datasets)
                if member is not None and there
                else unseen_view(self._plan, part)
            )
        return fusion_releases.planned(self._plan, found)

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
        await Trainer(active, self._job, self._plan, self._services).train()
        return ""


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
        return federated_releases.planned(self._plan, self._job, self._view(), nodes)

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


def recipe_of(job: Job | None, services: Services) -> JobRecipe:
    """The recipe for this kind of job."""
    if isinstance(job, FusionJob):
        return FusionRecipe(job, services)
    if isinstance(job, FederatedJob):
        return FederatedRecipe(job, services)
    raise NotFound("the request holds no job; give a fusion job or a federated one")
