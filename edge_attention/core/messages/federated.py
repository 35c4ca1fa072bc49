"""A federated job as it travels: each node holds other samples and the whole model.

One class a message of training.proto, where the fields' meaning is written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_attention.core.keywords import named_fields
from edge_attention.core.messages.table import TableSpec
from edge_attention.core.specs import EncodingSpec, OptimizerSpec, ScheduleSpec, StrategySpec
from edge_attention.core.tensors import Array


@named_fields
@dataclass(frozen=True)
class LossSpec:
    """A model's loss.

    `output`: the model's output `output` (by default `loss`) is the loss, a scalar, the mean over the batch.
    The others are of the output `output` (by default the only one) and a new input `labels` (by default so
    called): `cross_entropy` (logits [B, C] or [B, T, C], labels int64 [B] or [B, T]), `binary_cross_entropy`
    (logits [B], [B, 1] or [B, k], labels float32 [B] or [B, k]), `mse`, `l1`. docs/federated.md has a table.

    Attributes:
        options: of the loss, as core/losses.py has them: `label_smoothing`, `ignore_index`, `class_axis`.
        class_weights: of cross_entropy, one a class; empty: 1.
        positive_weights: of binary_cross_entropy, one for all labels or one a label: what a yes counts.
        weights: the new input, float32 [B], that says what each row counts; empty: 1.
    """

    name: str
    output: str = ""
    labels: str = ""
    options: Mapping[str, float] = field(default_factory=dict)
    class_weights: tuple[float, ...] = ()
    positive_weights: tuple[float, ...] = ()
    weights: str = ""


@named_fields
@dataclass(frozen=True)
class NewHead:
    """A new head on a value of a file: what the file has trains only if `parameters` names it.

    Attributes:
        of: the value, an output of the file or one inside (empty: its only output): [B, D], or [B, T, D] or
            [B, C, ...], which are pooled.
        outputs: classes, or numbers to be predicted.
        hidden: width of a hidden layer before the last; 0: none.
        pool: mean, max, first, last (of tokens), flatten, none; empty: mean where there is something to pool.
        mask: the input [B, T] that is not 0 where a token counts; empty: attention_mask, if the file has it.
    """

    of: str
    outputs: int
    hidden: int = 0
    pool: str = ""
    mask: str = ""


@dataclass(frozen=True)
class FederatedModel:
    """An ONNX file, by digest, whose initializers train: `parameters` names them (empty: all floating-point).

    `inputs`: graph input -> column; one left out is the column of its own name. `initial`: digest of a
    safetensors file of initial values (empty: those of the file). `gradients`: not empty if the file is a
    step graph, which computes its own: parameter (a graph input) -> the output that is its gradient.
    `metrics` are scalar outputs, sums over the batch. `dimensions`: symbolic dimension -> its size; those
    left out are taken from the nodes' columns. `head`: a new one on the file, which trains besides what
    `parameters` names.
    """

    graph: str
    loss: LossSpec
    parameters: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    initial: str = ""
    gradients: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    dimensions: Mapping[str, int] = field(default_factory=dict)
    head: NewHead | None = None


@named_fields
@dataclass(frozen=True)
class LocalSpec:
    """What a node does in a round: `steps` steps of `batch` samples, or `epochs` passes over its rows.

    `clip` above 0: an update's L2 norm over all parameters is at most that. `clip_gradients` above 0: so is
    the gradient's of each step. `schedule`: how the learning rate changes from round to round.
    """

    optimizer: OptimizerSpec
    batch: int
    steps: int = 0
    epochs: float = 0.0
    clip: float = 0.0
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    clip_gradients: float = 0.0


@named_fields
@dataclass(frozen=True)
class SelectionSpec:
    """Who is asked in a round, and when it goes on without those who have not answered.

    Attributes:
        fraction: share of the nodes asked, in (0, 1].
        minimum: nodes asked at least, and the least a round waits for.
        quorum: share of those asked that a round needs, in (0, 1].
        deadline_seconds: until a round with a quorum goes on without the others; None: it waits for all.
        adaptive: k: the deadline is the median of what nodes took plus k times their deviation.
    """

    fraction: float = 1.0
    minimum: int = 1
    quorum: float = 1.0
    deadline_seconds: float | None = None
    adaptive: float | None = None


@named_fields
@dataclass(frozen=True)
class PushSpec:
    """How parameters travel down: whole, or as the difference, so encoded, to what the node has."""

    difference: bool = False
    encoding: EncodingSpec = field(default_factory=EncodingSpec)


@named_fields
@dataclass(frozen=True, eq=False)
class ConsensusSpec:
    """The losses of DESIGN section 4 on a probe batch; penalties on local training where a weight is above 0.

    `attention` names the model's output that is its attention (empty: none is compared), `probe` holds the
    model's inputs, without labels, by name.
    """

    attention: str = ""
    probe: Mapping[str, Array] = field(default_factory=dict)
    attention_weight: float = 0.0
    parameter_weight: float = 0.0


@named_fields
@dataclass(frozen=True)
class StopSpec:
    """When a run ends before its last round, by whichever comes first.

    Attributes:
        loss: an evaluation's loss, or a round's where nothing is held out, is at most this.
        metrics: metric -> its share (`Evaluation.share`) is at least this.
        seconds: of training.
        patience: so many evaluations (rounds, where nothing is held out) one after the other have had no
            loss below the best before by more than `min_delta`; 0: it does not end for that.
    """

    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    patience: int = 0
    min_delta: float = 0.0


@dataclass(frozen=True, eq=False)
class FederatedJob:
    """Train one model over nodes that each hold other samples. See FederatedJob in training.proto."""

    name: str
    model: FederatedModel
    dataset: str
    strategy: StrategySpec
    local: LocalSpec
    rounds: int
    nodes: tuple[str, ...] = ()
    combine: StrategySpec = field(default_factory=lambda: StrategySpec("mean"))
    seed: int = 0
    weighting: str = "samples"
    selection: SelectionSpec = field(default_factory=SelectionSpec)
    update: EncodingSpec = field(default_factory=EncodingSpec)
    push: PushSpec = field(default_factory=PushSpec)
    consensus: ConsensusSpec = field(default_factory=ConsensusSpec)
    holdout: float = 0.0
    evaluate_every: int = 0
    patience_seconds: float | None = None
    stop: StopSpec = field(default_factory=StopSpec)
    keep_versions: int = 10
    table: TableSpec = field(default_factory=TableSpec)
