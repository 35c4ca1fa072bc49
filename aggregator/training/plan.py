"""A fusion job made ready: its graphs, digests, parameters, and the checks that need no node."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_attention.core.errors import InvalidArgument, InvalidGraph, NotFound
from edge_attention.core.jobs import Encoder, FusionJob, Head, PlannedGraph
from edge_attention.core.optimizers import Optimizer, from_config
from edge_attention.core.session import Dataset
from edge_attention.core.tensors import Array, require, require_name

# onnx is loaded for a job that needs it: it takes 10 MB of the aggregator's memory.
if TYPE_CHECKING:
    from edge_attention.graphs.parts import Part

MAX_PATIENCE = 30 * 86_400


@dataclass(frozen=True)
class Graph:
    """A graph nodes are sent by digest. `inputs`: those it has; differentiation drops what it needs not."""

    digest: str
    data: bytes
    inputs: frozenset[str]

    @classmethod
    def of(cls, data: bytes) -> Graph:
        from edge_attention.graphs.gradients import graph_inputs

        return cls(hashlib.sha256(data).hexdigest(), data, frozenset(graph_inputs(data)))


@dataclass(frozen=True, eq=False)
class PlannedPart:
    """One node's part of the model, forward and gradient."""

    node: str
    dataset: str
    columns: Mapping[str, str]
    """Data input -> column."""
    part: Part
    forward: Graph
    gradient: Graph

    @property
    def source(self) -> str:
        """Where its rows come from, as alignment calls it."""
        return f"{self.node}/{self.dataset}"


@dataclass(frozen=True, eq=False)
class FusionPlan:
    """A job whose parts fit each other."""

    job: FusionJob
    encoders: tuple[PlannedPart, ...]
    head: PlannedPart
    optimizer: Optimizer
    scale: float

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(e.node for e in self.encoders), self.head.node]))

    @property
    def sources(self) -> Mapping[str, PlannedPart]:
        return {part.source: part for part in (*self.encoders, self.head)}

    def parameters(self) -> dict[str, Array]:
        """Version 0: `<node>/<name>`, `head/<name>`, `queries`."""
        found: dict[str, Array] = {"queries": self.job.queries}
        for encoder in self.encoders:
            found |= {f"{encoder.node}/{name}": array for name, array in encoder.part.parameters.items()}
        return found | {f"head/{name}": array for name, array in self.head.part.parameters.items()}

    def released(self) -> tuple[PlannedGraph, ...]:
        """What each node must let leave."""
        planned = [
            PlannedGraph(part.node, "ids", "", ("keyed hashes of the ids",), "alignment")
            for part in (*self.encoders, self.head)
        ]
        for encoder in self.encoders:
            gradients = tuple(f"grad/{name}" for name in encoder.part.parameters)
            planned += [
                PlannedGraph(encoder.node, "encoder", encoder.forward.digest, (), ""),
                PlannedGraph(encoder.node, "attention", "", ("out", "lse", "dq"), "attention"),
                _planned(encoder.node, "encoder_gradient", encoder.gradient, gradients),
            ]
        head = self.head
        gradients = tuple(f"grad/{name}" for name in head.part.parameters)
        planned.append(_planned(head.node, "head_gradient", head.gradient, ("loss", "dfused", *gradients)))
        if self.job.holdout:
            planned.append(_planned(head.node, "head", head.forward, ("loss", *self.job.head.metrics)))
        return tuple(dict.fromkeys(planned))


def _planned(node: str, role: str, graph: Graph, outputs: tuple[str, ...]) -> PlannedGraph:
    return PlannedGraph(node, role, graph.digest, outputs, f"sha256:{graph.digest}")


def plan(job: FusionJob, models: Mapping[str, bytes]) -> FusionPlan:
    """Load the job's ONNX files, differentiate them, and check that everything fits.

    Args:
        models: digest -> file, for every graph the job names.

    Raises:
        InvalidArgument, InvalidGraph, InvalidTensor: naming what does not fit, and where.
    """
    require_name(job.name, "run")
    if not job.encoders:
        raise InvalidArgument("a fusion job needs an encoder on at least one node")
    names = [encoder.node for encoder in job.encoders]
    for name in [*names, job.head.node]:
        require_name(name, "node")
        if name in ("head", "queries") and name in names:
            raise InvalidArgument(f"a node of a fusion job cannot be called {name!r}; start it by another")
    if len(set(names)) != len(names):
        raise InvalidArgument(f"node {max(names, key=names.count)!r} has two encoders; give it one")
    for what, value, low, high in (
        ("rounds", job.rounds, 1, 10_000_000),
        ("batch", job.batch, 1, 65_536),
        ("evaluate_every", job.evaluate_every, 0, 10_000_000),
    ):
        if not low <= value <= high:
            raise InvalidArgument(f"{what} is {value}; it must be {low:,} to {high:,}")
    if not 0 <= job.holdout < 1:
        raise InvalidArgument(f"holdout is {job.holdout}; it is a share of the samples, 0 to below 1")
    if job.patience_seconds is not None and not 0 < job.patience_seconds <= MAX_PATIENCE:
        raise InvalidArgument(
            f"patience_seconds is {job.patience_seconds}; it must be above 0 and at most {MAX_PATIENCE:,}"
        )
    require(job.queries, "queries", shape=("queries", "query_heads", "key_dim"))
    optimizer = from_config(job.optimizer.name, **job.optimizer.options)
    encoders = tuple(_encoder(encoder, models, job.batch) for encoder in job.encoders)
    head = _head(job.head, models, job.batch)
    _fit(job, encoders, head)
    scale = 1 / math.sqrt(job.queries.shape[-1]) if job.scale is None else job.scale
    if not math.isfinite(scale):
        raise InvalidArgument(f"scale is {scale}; it must be a finite number")
    return FusionPlan(job, encoders, head, optimizer, float(np.float32(scale)))


def _encoder(encoder: Encoder, models: Mapping[str, bytes], batch: int) -> PlannedPart:
    from edge_attention.graphs.gradients import encoder_gradient
    from edge_attention.graphs.parts import load_part

    part = load_part(models[encoder.graph], "encoder", encoder.trainable or None, encoder.node)
    gradient = encoder_gradient(part, batch)
    return _part(encoder, part, gradient)


def _head(head: Head, models: Mapping[str, bytes], batch: int) -> PlannedPart:
    from edge_attention.graphs.gradients import head_gradient
    from edge_attention.graphs.parts import load_part

    part = load_part(models[head.graph], "head", head.trainable or None, f"head on {head.node}")
    for metric in head.metrics:
        if metric not in part.outputs:
            raise InvalidArgument(
                f"metric {metric!r} is no output of the head; it has: {', '.join(part.outputs)}"
            )
        dtype, shape = part.outputs[metric]
        if shape not in ((), (1,)) or dtype != np.float32:
            raise InvalidArgument(
                f"metric {metric!r} is {dtype} of shape {shape}; it must be a float32 scalar"
            )
    return _part(head, part, head_gradient(part, batch))


def _part(spec: Encoder | Head, part: Part, gradient: bytes) -> PlannedPart:
    wanted, given = set(part.labels), set(spec.inputs)
    if wanted != given:
        raise InvalidGraph(
            f"{part.place}: its inputs are {sorted(wanted)}, the job binds {sorted(given)}; "
            "bind each input to a column"
        )
    return PlannedPart(
        spec.node, spec.dataset, dict(spec.inputs), part, Graph.of(part.forward), Graph.of(gradient)
    )


def _fit(job: FusionJob, encoders: Sequence[PlannedPart], head: PlannedPart) -> None:
    queries, query_heads, key_dim = job.queries.shape
    value_dim: int | None = None
    key_heads: int | None = None
    for encoder in encoders:
        (_, keys), (_, values) = encoder.part.outputs["keys"], encoder.part.outputs["values"]
        if keys[-1] not in (None, key_dim):
            raise InvalidGraph(f"{encoder.part.place}: keys have dimension {keys[-1]}, the queries {key_dim}")
        heads = keys[-2]
        if heads is not None:
            if query_heads % heads:
                raise InvalidGraph(
                    f"{encoder.part.place}: {heads} key heads do not divide the {query_heads} query heads"
                )
            if key_heads not in (None, heads):
                raise InvalidGraph(
                    f"{encoder.part.place}: {heads} key heads, another encoder has {key_heads}"
                )
            key_heads = heads
        if value_dim not in (None, values[-1]):
            raise InvalidGraph(
                f"{encoder.part.place}: values have dimension {values[-1]}, another encoder's {value_dim}"
            )
        value_dim = values[-1]
    _, fused = head.part.inputs["fused"]
    for have, want in zip(fused[1:], (queries, query_heads, value_dim), strict=True):
        if have is not None and want is not None and have != want:
            raise InvalidGraph(
                f"{head.part.place}: fused has shape {list(fused)}, the encoders and queries give "
                f"[batch, {queries}, {query_heads}, {value_dim}]"
            )


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
        dtype, shape = part.part.inputs[name]
        have_type, have_shape = columns[column].data_type.value, columns[column].shape
        fits = len(shape) == len(have_shape) + 1 and all(
            want in (None, have) for want, have in zip(shape[1:], have_shape, strict=True)
        )
        if dtype.name != have_type or not fits:
            wanted = ", ".join("?" if n is None else str(n) for n in shape[1:])
            raise InvalidArgument(
                f"column {column!r} of node {part.node!r} is {have_type} {list(have_shape)} a row, "
                f"input {name!r} of {part.part.place} takes {dtype} [{wanted}]"
            )
