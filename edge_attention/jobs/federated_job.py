"""A federated job as a user writes it: the model as a file, bytes or an ONNX model, in Python or TOML.

    job = FederatedJob(
        name="digits",
        model=FederatedModel("digits.onnx", LossSpec("cross_entropy", "logits"),
                             inputs={"x": "pixels", "labels": "digit"}),
        dataset="digits",
        strategy="fedavg",
        local=LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=32, epochs=1),
        rounds=50,
        holdout=0.2,
    )

The same as a file for `edge_attention.read_job` is in docs/client.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_attention.core.arrays import as_float32
from edge_attention.core.errors import DataLoss, InvalidArgument
from edge_attention.core.keywords import named_fields
from edge_attention.core.messages import training as jobs
from edge_attention.core.messages.training import (
    ConsensusSpec,
    EncodingSpec,
    LocalSpec,
    LossSpec,
    NewHead,
    PushSpec,
    SelectionSpec,
    StopSpec,
    StrategySpec,
)
from edge_attention.core.tensors import Array
from edge_attention.jobs import federated_checks as checks
from edge_attention.jobs.checks import require_sizes, require_whole
from edge_attention.jobs.columns import Columns, Inputs, WhereMissing, prepared
from edge_attention.jobs.job import ModelFile, model_bytes
from edge_attention.jobs.parameters import read_safetensors, write_safetensors

__all__ = ["FederatedJob", "FederatedModel", "sent_model"]

WEIGHTINGS = ("samples", "equal")


@named_fields
@dataclass(frozen=True, eq=False)
class FederatedModel:
    """The model every node trains.

    Attributes:
        file: an ONNX file: its path, its bytes, or an `onnx.ModelProto`.
        loss: by default the file's output `loss`; or a name of core.messages.training.LossSpec, or one with
            its output and labels.
        inputs: graph input, labels included -> column, or a list of columns side by side (jobs/columns.py);
            one left out is the column of its own name.
        parameters: the initializers that train, or patterns (`*`, `?`) of their names; None: all
            floating-point ones, or with a new head none but its own.
        initial: values to begin with: a safetensors file's path, or name -> float32 array, as the
            parameters of another run; None: those of the file.
        gradients: given if the file is a step graph, which computes its own gradients: parameter (a graph
            input) -> the output that is its gradient. `initial` then has the values the file lacks.
        metrics: scalar outputs, sums over the batch, reported in evaluations.
        dimensions: symbolic dimension of the file's inputs -> its size; one left out is taken from the nodes'
            columns, which must be there then.
        head: a new one on the file, where its own is not wanted.
    """

    file: ModelFile
    loss: str | LossSpec = "output"
    inputs: Inputs = field(default_factory=dict)
    parameters: tuple[str, ...] | None = None
    initial: str | Path | Mapping[str, Array] | None = None
    gradients: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    dimensions: Mapping[str, int] = field(default_factory=dict)
    head: NewHead | None = None


@named_fields
@dataclass(frozen=True, eq=False)
class FederatedJob:
    """Train one model over nodes that each hold other samples.

    Attributes:
        dataset: what it is called on every node.
        strategy: a name of core/strategies, or one with options.
        local: the steps a node takes in a round.
        nodes: who takes part; empty: every node that has the dataset when the run starts.
        combine: a name of core/combine, or one with options.
        seed: of the nodes selected, of the order of samples and of the held-out split.
        weighting: how nodes weigh in a mean: by `samples`, or `equal`.
        selection: who is asked in a round, and when it goes on without those who have not answered.
        update, push: how updates travel up, parameters down.
        holdout: share of each node's rows kept for evaluation, in [0, 1).
        evaluate_every: rounds between evaluations; 0: after the last only.
        patience_seconds: how long a round may wait for a node; None: the server's default.
        stop: when the run ends before its last round.
        keep_versions: versions of the parameters kept, the latest ones.
        columns: column -> how it is read: as categories, and what is done where a value is missing.
        missing_values: what is done in columns that say nothing of it; None: a job is refused.
    """

    name: str
    model: FederatedModel
    dataset: str
    strategy: str | StrategySpec
    local: LocalSpec
    rounds: int
    nodes: tuple[str, ...] = ()
    combine: str | StrategySpec = "mean"
    seed: int = 0
    weighting: str = "samples"
    selection: SelectionSpec = field(default_factory=SelectionSpec)
    update: str | EncodingSpec = "float32"
    push: PushSpec = field(default_factory=PushSpec)
    consensus: ConsensusSpec = field(default_factory=ConsensusSpec)
    holdout: float = 0.0
    evaluate_every: int = 0
    patience_seconds: float | None = None
    stop: StopSpec = field(default_factory=StopSpec)
    keep_versions: int = 10
    columns: Columns = field(default_factory=dict)
    missing_values: WhereMissing | None = None

    def prepare(self) -> tuple[jobs.FederatedJob, dict[str, bytes]]:
        """The job as it travels, and its files by SHA-256.

        Raises:
            InvalidArgument, InvalidGraph, InvalidTensor: what cannot be such a job, whatever the fleet.
        """
        files: dict[str, bytes] = {}

        def digest(data: bytes) -> str:
            name = hashlib.sha256(data).hexdigest()
            files[name] = data
            return name

        inputs, table = prepared(
            self.model.inputs if isinstance(self.model, FederatedModel) else {},
            self.columns,
            self.missing_values,
            "model.inputs",
        )
        return jobs.FederatedJob(
            name=checks.text(self.name, "name"),
            model=sent_model(self.model, inputs, digest),
            dataset=checks.text(self.dataset, "dataset"),
            strategy=checks.named(self.strategy, "strategy", StrategySpec),
            local=checks.local(self.local),
            rounds=require_whole(self.rounds, "rounds", 1, 10_000_000),
            nodes=checks.texts(self.nodes, "nodes"),
            combine=checks.named(self.combine, "combine", StrategySpec),
            seed=require_whole(self.seed, "seed"),
            weighting=checks.choice(self.weighting, "weighting", WEIGHTINGS),
            selection=checks.selection(self.selection),
            update=checks.named(self.update, "update", EncodingSpec),
            push=checks.push(self.push),
            consensus=checks.consensus(self.consensus),
            holdout=checks.share_below_one(self.holdout, "holdout"),
            evaluate_every=require_whole(self.evaluate_every, "evaluate_every"),
            patience_seconds=checks.optional(self.patience_seconds, "patience_seconds"),
            stop=checks.stop(self.stop),
            keep_versions=require_whole(self.keep_versions, "keep_versions", 1),
            table=table,
        ), files


def sent_model(
    model: FederatedModel, inputs: Mapping[str, str], digest: Callable[[bytes], str]
) -> jobs.FederatedModel:
    """The model as it travels. `digest`: takes a file that is to be sent, and gives its SHA-256."""
    if not isinstance(model, FederatedModel):
        raise InvalidArgument(f"model is {type(model).__name__}; give a FederatedModel, which holds the file")
    parameters = () if model.parameters is None else checks.texts(model.parameters, "model.parameters")
    if model.parameters is not None and not parameters:
        raise InvalidArgument(
            "model.parameters is empty; leave it out to train all floating-point initializers, or list the "
            "names of those that train"
        )
    return jobs.FederatedModel(
        graph=digest(model_bytes(model.file)),
        loss=checks.loss(model.loss),
        parameters=parameters,
        inputs=inputs,
        initial="" if model.initial is None else digest(_initial(model.initial)),
        gradients=checks.mapping(model.gradients, "model.gradients"),
        metrics=checks.texts(model.metrics, "model.metrics"),
        dimensions=require_sizes(model.dimensions, "model.dimensions"),
        head=None if model.head is None else checks.new_head(model.head),
    )


def _initial(given: str | Path | Mapping[str, Array]) -> bytes:
    """A safetensors file of the values given."""
    if isinstance(given, Mapping):
        return write_safetensors(
            {
                checks.text(name, "a name in model.initial"): as_float32(array, f"model.initial[{name!r}]")
                for name, array in given.items()
            }
        )
    file = checks.path(given, "model.initial")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"model.initial, {str(given)!r}, cannot be read: {error.strerror}") from None
    try:
        read_safetensors(data, f"model.initial, {str(given)!r},")
    except DataLoss as error:
        raise InvalidArgument(error.message) from None
    return data
