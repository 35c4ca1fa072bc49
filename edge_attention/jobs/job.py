"""A fusion job as a user writes it: model parts as files, bytes or ONNX models, in Python or TOML.

    job = FusionJob(
        name="patients",
        encoders=(Encoder("a", "patients", "encoder_a.onnx", {"x": "features"}),
                  Encoder("b", "patients", "encoder_b.onnx", {"x": "features"})),
        head=Head("a", "patients", "head.onnx", {"label": "label"}, metrics=("correct",)),
        queries=QueriesSpec(count=4, heads=4, dim=16),
        optimizer=OptimizerSpec("adam", {"lr": 1e-2}),
        rounds=100,
        batch=64,
    )

The same as a file for `edge_attention.read_job` is in docs/client.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edge_attention.core.arrays import as_float32
from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.keywords import named_fields
from edge_attention.core.messages import training as jobs
from edge_attention.core.messages.training import MissingSamples, OptimizerSpec, ScheduleSpec, StopSpec
from edge_attention.core.tensors import Array, require
from edge_attention.graphs.reading.bounds import MAX_BYTES
from edge_attention.jobs import federated_checks as checks
from edge_attention.jobs import values
from edge_attention.jobs.checks import require_sizes, require_whole
from edge_attention.jobs.columns import Columns, Inputs, WhereMissing, prepared
from edge_attention.jobs.external_data import with_external_data

__all__ = ["Encoder", "FusionJob", "Head", "QueriesSpec", "model_bytes"]


@runtime_checkable
class ModelProto(Protocol):
    """An `onnx.ModelProto`, without importing onnx."""

    def SerializeToString(self) -> bytes: ...


ModelFile = bytes | str | Path | ModelProto


def model_bytes(model: ModelFile) -> bytes:
    """The bytes of an ONNX model given as bytes, as a file's path, or as an `onnx.ModelProto`.

    Of a path, weights that the file keeps in other files beside it are read, too.

    Raises:
        InvalidGraph: a file that cannot be read, or nothing in it, or weights that are elsewhere.
        InvalidArgument: something else.
    """
    if isinstance(model, str | os.PathLike):
        file = values.path(model, "a model")
        try:
            if (size := file.stat().st_size) > MAX_BYTES:
                raise InvalidGraph(
                    f"the model {str(model)!r} has {size:,} bytes, more than the limit of {MAX_BYTES:,} "
                    "(MAX_BYTES); bring a smaller one"
                )
            data = file.read_bytes()
        except OSError as error:
            raise InvalidGraph(f"the model {str(model)!r} cannot be read: {error.strerror}") from None
    elif isinstance(model, bytes):
        data = model
    elif isinstance(model, ModelProto) and not isinstance(model, type):
        try:
            data = model.SerializeToString()
        except Exception as error:  # onnx's or protobuf's own, as of a model past 2 GB
            raise InvalidGraph(f"the model cannot be written as bytes: {error}") from None
    else:
        raise InvalidArgument(
            f"a model is {type(model).__name__}; give a path, the bytes of an ONNX file or an onnx.ModelProto"
        )
    if not data:
        raise InvalidGraph(
            f"the model {str(model)!r} is empty" if data is not model else "the model is empty"
        )
    if isinstance(model, str | os.PathLike):
        return with_external_data(data, f"the model {str(model)!r}", values.path(model, "a model").parent)
    return with_external_data(data, "the model", None)


@named_fields
@dataclass(frozen=True)
class Encoder:
    """A node's part of the model: from columns of its dataset to keys and values.

    See core.messages.training.Encoder. `trainable` names the initializers that train; None: all
    floating-point ones. `inputs`, `columns` and `missing_values`: see jobs/columns.py.
    """

    node: str
    dataset: str
    model: ModelFile
    inputs: Inputs
    trainable: tuple[str, ...] | None = None
    dimensions: Mapping[str, int] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)
    missing_values: WhereMissing | None = None


@named_fields
@dataclass(frozen=True)
class Head:
    """From the fused output and labels to a loss, on the node with the labels.

    See core.messages.training.Head. `trainable` names the initializers that train; None: all
    floating-point ones. `inputs`, `columns` and `missing_values`: see jobs/columns.py.
    """

    node: str
    dataset: str
    model: ModelFile
    inputs: Inputs
    trainable: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ()
    dimensions: Mapping[str, int] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)
    missing_values: WhereMissing | None = None


@named_fields
@dataclass(frozen=True)
class QueriesSpec:
    """Initial learned queries drawn from the standard normal distribution."""

    count: int
    heads: int
    dim: int
    seed: int = 0

    def draw(self) -> Array:
        """float32 [count, heads, dim], the same for the same spec."""
        for name in ("count", "heads", "dim"):
            require_whole(getattr(self, name), f"queries: {name}", 1)
        shape = self.count, self.heads, self.dim
        return np.random.default_rng(require_whole(self.seed, "queries: seed")).standard_normal(
            shape, np.float32
        )


@named_fields
@dataclass(frozen=True, eq=False)
class FusionJob:
    """Train one model whose samples' tokens are spread over nodes.

    Attributes:
        queries: the initial learned queries, float32 [queries, query_heads, key_dim], or how to draw them.
        optimizer: a name of core/optimizers.py, or one with options.
        rounds, batch: training steps, and samples of each.
        seed: of the order of samples and of the held-out split.
        scale: multiplies the scores; None: 1 / sqrt(key_dim).
        missing: what becomes of a sample some node lacks, as in a file: `"leave_out"` or `"attend"`.
        holdout: share of the samples kept for evaluation, in [0, 1).
        evaluate_every: rounds between evaluations; 0: after the last only.
        patience_seconds: how long a round may wait for a node; None: the server's default.
        schedule: of the learning rate, a name of core/learning_rates.py, or one with options.
        clip: above 0: the L2 norm of a round's gradient, over all parameters, is at most that.
        stop: when the run ends before its last round.
    """

    name: str
    encoders: tuple[Encoder, ...]
    head: Head
    queries: Array | QueriesSpec
    optimizer: str | OptimizerSpec
    rounds: int
    batch: int
    seed: int = 0
    scale: float | None = None
    missing: MissingSamples | str = MissingSamples.LEAVE_OUT
    holdout: float = 0.0
    evaluate_every: int = 0
    patience_seconds: float | None = None
    schedule: str | ScheduleSpec = "constant"
    clip: float = 0.0
    stop: StopSpec = field(default_factory=StopSpec)

    def prepare(self) -> tuple[jobs.FusionJob, dict[str, bytes]]:
        """The job as it travels, and its ONNX files by SHA-256.

        Raises:
            InvalidArgument, InvalidGraph, InvalidTensor: what cannot be such a job, whatever the fleet.
        """
        files: dict[str, bytes] = {}

        def digest(model: ModelFile) -> str:
            data = model_bytes(model)
            name = hashlib.sha256(data).hexdigest()
            files[name] = data
            return name

        given = self.encoders if isinstance(self.encoders, tuple | list) else (self.encoders,)
        encoders = tuple(_encoder(part, f"encoders[{at}]", digest) for at, part in enumerate(given))
        head = _head(self.head, digest)
        queries = self.queries.draw() if isinstance(self.queries, QueriesSpec) else self.queries
        queries = as_float32(queries, "queries (an array, or a QueriesSpec)")
        require(queries, "queries", shape=("queries", "query_heads", "key_dim"))
        return jobs.FusionJob(
            name=values.text(self.name, "name"),
            encoders=encoders,
            head=head,
            queries=queries,
            optimizer=checks.named(self.optimizer, "optimizer", OptimizerSpec),
            rounds=require_whole(self.rounds, "rounds", 1, 10_000_000),
            batch=require_whole(self.batch, "batch", 1, 65_536),
            seed=require_whole(self.seed, "seed"),
            scale=None if self.scale is None else values.above(self.scale, "scale", low=-values.MOST),
            missing=values.member(self.missing, "missing", MissingSamples),
            holdout=values.share_below_one(self.holdout, "holdout"),
            evaluate_every=require_whole(self.evaluate_every, "evaluate_every"),
            patience_seconds=values.optional(self.patience_seconds, "patience_seconds"),
            schedule=checks.named(self.schedule, "schedule", ScheduleSpec),
            clip=checks.number(self.clip, "clip"),
            stop=checks.stop(self.stop),
        ), files


def _encoder(given: Any, what: str, digest: Callable[[ModelFile], str]) -> jobs.Encoder:
    part = values.part(given, what, Encoder, "Encoder('a', 'patients', 'encoder.onnx', {'x': 'features'})")
    inputs, table = prepared(part.inputs, part.columns, part.missing_values, f"{what}.inputs")
    return jobs.Encoder(
        node=values.text(part.node, f"{what}.node"),
        dataset=values.text(part.dataset, f"{what}.dataset"),
        graph=digest(part.model),
        inputs=inputs,
        trainable=_trainable(part.trainable, f"{what}.trainable"),
        dimensions=require_sizes(part.dimensions, f"{what}.dimensions"),
        table=table,
    )


def _head(given: Any, digest: Callable[[ModelFile], str]) -> jobs.Head:
    part = values.part(given, "head", Head, "Head('a', 'patients', 'head.onnx', {'y': 'label'})")
    inputs, table = prepared(part.inputs, part.columns, part.missing_values, "head.inputs")
    return jobs.Head(
        node=values.text(part.node, "head.node"),
        dataset=values.text(part.dataset, "head.dataset"),
        graph=digest(part.model),
        inputs=inputs,
        trainable=_trainable(part.trainable, "head.trainable"),
        metrics=values.texts(part.metrics, "head.metrics"),
        dimensions=require_sizes(part.dimensions, "head.dimensions"),
        table=table,
    )


def _trainable(given: Any, what: str) -> tuple[str, ...]:
    """As it travels: empty for all."""
    if given is None:
        return ()
    if not isinstance(given, tuple | list) or not given:
        raise InvalidArgument(
            f"{what} is {values.said(given)}; leave it out to train all floating-point initializers, or list "
            "the names of those that train, at least one"
        )
    return values.texts(given, what)
