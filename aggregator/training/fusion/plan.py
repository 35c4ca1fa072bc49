"""A fusion job made ready: its graphs by digest, its parts, what leaves the nodes.

A plan is plain data: it is made once, in a process of its own (`planner`), and kept with the run as JSON,
so that a run that goes on after a restart goes on with the very same graphs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from edge_attention.core.errors import InvalidArgument, NotFound
from edge_attention.core.messages.link import Dataset
from edge_attention.core.messages.training import FusionJob, PlannedModel
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

    @property
    def source(self) -> str:
        """Where its rows come from, as alignment calls it."""
        return f"{self.node}/{self.dataset}"

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
    )


def _graph_from(data: dict[str, Any]) -> PlanGraph:
    return PlanGraph(data["digest"], frozenset(data["inputs"]))


def model_from(data: Mapping[str, Any] | None) -> PlannedModel | None:
    """What `asdict` has made of it, and JSON of that."""
    if not data:
        return None
    return PlannedModel(**{**data, "cut": tuple(data["cut"]), "notes": tuple(data["notes"])})


def check_dataset(part: PlannedPart, datasets: Sequence[Dataset]) -> None:
    """Refuse a part whose dataset its node does not have as it must be.

    Raises:
        NotFound: no such dataset or column.
        InvalidArgument: rows without ids, or a column that does not fit the graph's input.
    """
    dataset = next((d for d in datasets if d.name == part.dataset), None)
    if dataset is None:
        have = ", ".join(d.name for d in datasets) or "none"
        raise NotFound(
            f"node {part.node!r} has no dataset {part.dataset!r} (it has: {have}); "
            f"start it with --data {part.dataset}=FILE"
        )
    if not dataset.identified:
        raise InvalidArgument(
            f"dataset {part.dataset!r} of node {part.node!r} has no ids; samples are aligned by them: "
            "give it a column or key named id"
        )
    columns = {column.name: column for column in dataset.columns}
    for name, column in part.columns.items():
        if column not in columns:
            raise NotFound(
                f"dataset {part.dataset!r} of node {part.node!r} has no column {column!r}; "
                f"it has: {', '.join(columns)}"
            )
        wants = part.inputs[name]
        have_type, have_shape = columns[column].data_type.value, columns[column].shape
        fits = len(wants.shape) == len(have_shape) and all(
            want in (None, have) for want, have in zip(wants.shape, have_shape, strict=True)
        )
        if wants.dtype != have_type or not fits:
            wanted = ", ".join("?" if n is None else str(n) for n in wants.shape)
            raise InvalidArgument(
                f"column {column!r} of node {part.node!r} is {have_type} {list(have_shape)} a row, "
                f"input {name!r} of {part.place} takes {wants.dtype} [{wanted}]"
            )
