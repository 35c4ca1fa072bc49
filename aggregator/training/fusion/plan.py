"""A fusion job made ready: its graphs by digest, its parts, what leaves the nodes.

A plan is plain data: it is made once, in a process of its own (`planner`), and kept with the run as JSON,
so that a run that goes on after a restart goes on with the very same graphs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from aggregator.fleet.columns import TableView, WantedInput, own_dataset, resolve
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.link import Dataset
from edge_attention.core.messages.training import Encoder, FusionJob, Head, PlannedModel
from edge_attention.core.optimizers import Optimizer, from_config

MAX_PATIENCE = 30 * 86_400


@dataclass(frozen=True)
class PlanGraph:
    """A graph nodes are sent by digest. `inputs`: those it has; differentiation drops what it needs not."""

    digest: str
    inputs: frozenset[str]


@dataclass(frozen=True)
class Input:
    """What a node's column must be: dtype by NumPy's name, shape of one row; None: any size."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class PlannedPart:
    """One node's part of the model, forward and gradient."""

    kind: Literal["encoder", "head"]
    node: str
    dataset: str
    columns: Mapping[str, str]
    """Data input -> column."""
    place: str
    """What messages call it."""
    inputs: Mapping[str, Input]
    """Those that `columns` are for."""
    parameters: Mapping[str, tuple[int, ...]]
    """Name in the file -> shape, in the file's order."""
    forward: PlanGraph
    gradient: PlanGraph
    model: PlannedModel | None = None
    """What the file is to the job, for a person; None: a plan of an earlier release does not say."""
    gaps: Mapping[str, PlanGraph] = field(default_factory=dict)
    """Of gap_reads' PRESENCE and MEANS those that the job's rules for missing values may need."""

    @property
    def source(self) -> str:
        """Where its rows come from, as alignment calls it."""
        return f"{self.node}/{self.dataset}"

    @property
    def wanted(self) -> list[WantedInput]:
        """What its graph takes of the dataset."""
        return [WantedInput(name, each.dtype, each.shape) for name, each in self.inputs.items()]

    @property
    def prefix(self) -> str:
        """What the run's names of its parameters begin with: `<prefix>/<name>`."""
        return "head" if self.kind == "head" else self.node


@dataclass(frozen=True, eq=False)
class FusionPlan:
    """A job whose parts fit each other."""

    job: FusionJob
    encoders: tuple[PlannedPart, ...]
    head: PlannedPart

    @property
    def optimizer(self) -> Optimizer:
        return from_config(self.job.optimizer.name, **self.job.optimizer.options)

    @property
    def scale(self) -> float:
        """Of the scores, as float32 holds it."""
        scale = 1 / math.sqrt(self.job.queries.shape[-1]) if self.job.scale is None else self.job.scale
        return float(np.float32(scale))

    def spec(self, part: PlannedPart) -> Encoder | Head:
        """What the job says of the part."""
        if part.kind == "head":
            return self.job.head
        return next(encoder for encoder in self.job.encoders if encoder.node == part.node)

    @property
    def parts(self) -> tuple[PlannedPart, ...]:
        return (*self.encoders, self.head)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.node for part in self.parts))

    @property
    def sources(self) -> Mapping[str, PlannedPart]:
        return {part.source: part for part in self.parts}

    @property
    def names(self) -> tuple[str, ...]:
        """Of every parameter that the models bring; with `queries` these are all."""
        return tuple(f"{part.prefix}/{name}" for part in self.parts for name in part.parameters)

    def to_json(self) -> str:
        """Without the job, which is kept by itself."""
        return json.dumps([asdict(part) for part in self.parts], default=sorted)

    @classmethod
    def from_json(cls, text: str, job: FusionJob) -> FusionPlan:
        *encoders, head = map(_part_from, json.loads(text))
        return cls(job, tuple(encoders), head)


def _part_from(data: dict[str, Any]) -> PlannedPart:
    return PlannedPart(
        data["kind"],
        data["node"],
        data["dataset"],
        data["columns"],
        data["place"],
        {name: Input(i["dtype"], tuple(i["shape"])) for name, i in data["inputs"].items()},
        {name: tuple(shape) for name, shape in data["parameters"].items()},
        _graph_from(data["forward"]),
        _graph_from(data["gradient"]),
        model_from(data.get("model")),
        {role: _graph_from(graph) for role, graph in data.get("gaps", {}).items()},
    )


def _graph_from(data: dict[str, Any]) -> PlanGraph:
    return PlanGraph(data["digest"], frozenset(data["inputs"]))


def model_from(data: Mapping[str, Any] | None) -> PlannedModel | None:
    """What `asdict` has made of it, and JSON of that."""
    if not data:
        return None
    return PlannedModel(**{**data, "cut": tuple(data["cut"]), "notes": tuple(data["notes"])})


def view_of(plan: FusionPlan, part: PlannedPart, datasets: Sequence[Dataset]) -> TableView:
    """How the part's node, which has `datasets`, reads the inputs of its graph.

    Raises:
        NotFound: no such dataset or column.
        InvalidArgument: rows without ids, or a column that does not fit the graph's input.
    """
    if not own_dataset(part.node, part.dataset, datasets).identified:
        raise InvalidArgument(
            f"dataset {part.dataset!r} of node {part.node!r} has no ids; samples are aligned by them: "
            "give it a column or key named id"
        )
    return resolve(part.dataset, part.wanted, part.columns, plan.spec(part).table, {part.node: datasets})


def unseen_view(plan: FusionPlan, part: PlannedPart) -> TableView:
    """The same while the node is away. Raises FailedPrecondition where it has to say what there is."""
    return resolve(part.dataset, part.wanted, part.columns, plan.spec(part).table, {})
