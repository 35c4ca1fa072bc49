"""Checks a fusion job, and makes its plan: the latter in the process of aggregator/training/planner.py."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aggregator.fleet.columns import rules_of
from aggregator.training.fusion.plan import MAX_PATIENCE, FusionPlan, Input, PlanGraph, PlannedPart
from aggregator.training.gap_reads import MEANS, PRESENCE
from aggregator.training.stopping import require_seen
from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.learning_rates import from_config as schedule_from
from edge_attention.core.messages.table import MissingRule
from edge_attention.core.messages.training import Encoder, FusionJob, Head, PlannedModel
from edge_attention.core.optimizers import from_config
from edge_attention.core.table_spec import check_spec
from edge_attention.core.tensors import require, require_name

# onnx and onnx-ad are for the process that plans alone.
if TYPE_CHECKING:
    from edge_attention.graphs.models.parts import GraphPart


def check(job: FusionJob) -> None:
    """Refuse what no model could mend.

    Raises:
        InvalidArgument, InvalidTensor: naming the field.
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
    parts: tuple[Encoder | Head, ...] = (*job.encoders, job.head)
    for spec in parts:
        what = "head" if spec is job.head else f"encoder on {spec.node!r}"
        check_spec(spec.table, f"{what}: ")
    require(job.queries, "queries", shape=("queries", "query_heads", "key_dim"))
    from_config(job.optimizer.name, **job.optimizer.options)
    schedule_from(job.schedule.name, **job.schedule.options)
    for what, number in (("clip", job.clip), ("stop.min_delta", job.stop.min_delta)):
        if not (math.isfinite(number) and number >= 0):
            raise InvalidArgument(f"{what} is {number}; it must be a number 0 or above")
    if job.stop.loss is not None and not math.isfinite(job.stop.loss):
        raise InvalidArgument(f"stop.loss is {job.stop.loss}; it must be a finite number")
    if unknown := sorted(set(job.stop.metrics) - set(job.head.metrics)):
        raise InvalidArgument(
            f"stop.metrics names {unknown[0]!r}, which is no metric of the head; it has "
            f"{', '.join(job.head.metrics) or 'none'}"
        )
    if (seconds := job.stop.seconds) is not None and not (math.isfinite(seconds) and seconds > 0):
        raise InvalidArgument(f"stop.seconds is {seconds}; it must be a number above 0")
    require_seen(job.stop, job.holdout, job.evaluate_every)
    if job.scale is not None and not abs(job.scale) <= np.finfo(np.float32).max:
        raise InvalidArgument(f"scale is {job.scale}; it must be a finite number")


def plan(
    job: FusionJob,
    files: Mapping[str, Path],
    folder: Path,
    rows: Mapping[str, Mapping[str, tuple[int, ...]]] | None = None,
) -> FusionPlan:
    """The plan of `job`; to `folder` go its graphs, `<digest>.onnx`, and the parameters that its models
    bring, `initial.safetensors`, by the run's names.

    Args:
        files: digest -> where the file is, for every graph the job names.
        rows: `<node>/<dataset>` -> column -> the shape of one row, of nodes that are here.

    Raises:
        InvalidArgument, InvalidGraph, InvalidTensor: naming what does not fit, and where.
    """
    import safetensors.numpy

    check(job)
    here = rows or {}
    encoders = [_encoder(encoder, files, here) for encoder in job.encoders]
    head = _head(job.head, files, here)
    _fit(job, encoders, head)
    made = [_part(s, p, job.batch, folder) for s, p in zip(job.encoders, encoders, strict=True)]
    result = FusionPlan(job, tuple(made), _part(job.head, head, job.batch, folder))
    parameters = [array for part in (*encoders, head) for array in part.parameters.values()]
    safetensors.numpy.save_file(
        {name: np.asarray(array, order="C") for name, array in zip(result.names, parameters, strict=True)},
        folder / "initial.safetensors",
    )
    return result


_Rows = Mapping[str, Mapping[str, tuple[int, ...]]]


def _loaded(spec: Encoder | Head, files: Mapping[str, Path], rows: _Rows) -> GraphPart:
    from edge_attention.graphs.models.parts import load_part

    source = f"{spec.node}/{spec.dataset}"
    columns = rows.get(source, {})
    return load_part(
        files[spec.graph].read_bytes(),
        "encoder" if isinstance(spec, Encoder) else "head",
        spec.trainable or None,
        spec.node if isinstance(spec, Encoder) else f"head on {spec.node}",
        outputs=() if isinstance(spec, Encoder) else spec.metrics,
        dimensions=spec.dimensions,
        rows={source: {name: columns[c] for name, c in spec.inputs.items() if c in columns}},
    )


def _encoder(encoder: Encoder, files: Mapping[str, Path], rows: _Rows) -> GraphPart:
    return _bound(encoder, _loaded(encoder, files, rows))


def _head(head: Head, files: Mapping[str, Path], rows: _Rows) -> GraphPart:
    part = _loaded(head, files, rows)
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
    return _bound(head, part)


def _bound(spec: Encoder | Head, part: GraphPart) -> GraphPart:
    wanted, given = set(part.labels), {*spec.inputs, *spec.table.inputs}
    if wanted != given:
        raise InvalidGraph(
            f"{part.place}: its inputs are {sorted(wanted)}, the job binds {sorted(given)}; "
            "bind each input to a column"
        )
    return part


def _part(spec: Encoder | Head, part: GraphPart, batch: int, folder: Path) -> PlannedPart:
    from edge_attention.graphs.gradients.gradients import encoder_gradient, head_gradient

    gradient = encoder_gradient(part, batch) if part.kind == "encoder" else head_gradient(part, batch)
    return PlannedPart(
        part.kind,
        spec.node,
        spec.dataset,
        dict(spec.inputs),
        part.place,
        {name: Input(dtype.name, tuple(shape[1:])) for name, (dtype, shape) in part.labels.items()},
        {name: array.shape for name, array in part.parameters.items()},
        _graph(part.forward, folder),
        _graph(gradient, folder),
        PlannedModel(
            part.place,
            {name: array.size for name, array in part.parameters.items()},
            part.frozen,
            part.cut,
            part.dimensions,
            part.notes,
        ),
        {role: _graph(data, folder) for role, data in _gaps(spec)},
    )


def _gaps(spec: Encoder | Head) -> Iterator[tuple[str, bytes]]:
    """The graphs that what is missing is learnt by."""
    from edge_attention.graphs.models.gap_graphs import means_graph, presence_graph

    rules = rules_of(spec.table)
    if MissingRule.DROP in rules:
        yield PRESENCE, presence_graph()
    if MissingRule.MEAN in rules:
        yield MEANS, means_graph()


def _graph(data: bytes, folder: Path) -> PlanGraph:
    from edge_attention.graphs.gradients.gradients import graph_inputs

    digest = hashlib.sha256(data).hexdigest()
    (folder / f"{digest}.onnx").write_bytes(data)
    return PlanGraph(digest, frozenset(graph_inputs(data)))


def _fit(job: FusionJob, encoders: Sequence[GraphPart], head: GraphPart) -> None:
    queries, query_heads, key_dim = job.queries.shape
    value_dim: int | None = None
    key_heads: int | None = None
    for encoder in encoders:
        (_, keys), (_, values) = encoder.outputs["keys"], encoder.outputs["values"]
        if keys[-1] not in (None, key_dim):
            raise InvalidGraph(f"{encoder.place}: keys have dimension {keys[-1]}, the queries {key_dim}")
        heads = keys[-2]
        if heads is not None:
            if query_heads % heads:
                raise InvalidGraph(
                    f"{encoder.place}: {heads} key heads do not divide the {query_heads} query heads"
                )
            if key_heads not in (None, heads):
                raise InvalidGraph(f"{encoder.place}: {heads} key heads, another encoder has {key_heads}")
            key_heads = heads
        if value_dim not in (None, values[-1]):
            raise InvalidGraph(
                f"{encoder.place}: values have dimension {values[-1]}, another encoder's {value_dim}"
            )
        value_dim = values[-1]
    _, fused = head.inputs["fused"]
    for have, want in zip(fused[1:], (queries, query_heads, value_dim), strict=True):
        if have is not None and want is not None and have != want:
            raise InvalidGraph(
                f"{head.place}: fused has shape {list(fused)}, the encoders and queries give "
                f"[batch, {queries}, {query_heads}, {value_dim}]"
            )
