"""Training jobs and what a run tells of itself. One class a message of training.proto."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.messages.federated import ConsensusSpec as ConsensusSpec
from edge_attention.core.messages.federated import FederatedJob as FederatedJob
from edge_attention.core.messages.federated import FederatedModel as FederatedModel
from edge_attention.core.messages.federated import LocalSpec as LocalSpec
from edge_attention.core.messages.federated import LossSpec as LossSpec
from edge_attention.core.messages.federated import NewHead as NewHead
from edge_attention.core.messages.federated import PushSpec as PushSpec
from edge_attention.core.messages.federated import SelectionSpec as SelectionSpec
from edge_attention.core.messages.federated import StopSpec as StopSpec
from edge_attention.core.messages.split import SplitData as SplitData
from edge_attention.core.messages.split import SplitGroup as SplitGroup
from edge_attention.core.messages.split import SplitJob as SplitJob
from edge_attention.core.messages.table import TableSpec
from edge_attention.core.specs import EncodingSpec as EncodingSpec
from edge_attention.core.specs import OptimizerSpec as OptimizerSpec
from edge_attention.core.specs import ScheduleSpec as ScheduleSpec
from edge_attention.core.specs import StrategySpec as StrategySpec
from edge_attention.core.tensors import Array


class MissingSamples(Enum):
    """What becomes of a sample some node lacks: left out, or attended without that node."""

    LEAVE_OUT = "leave_out"
    ATTEND = "attend"


class RunState(Enum):
    """How a run stands."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Encoder:
    """A node's part of the model: an ONNX file, by digest, over columns of one of the node's datasets.

    Its outputs are `keys` [batch, tokens, key_heads, key_dim] and `values` [batch, tokens, key_heads,
    value_dim]. `inputs` maps a graph input to a column. `trainable` names the initializers that train
    (empty: all floating-point ones).
    """

    node: str
    dataset: str
    graph: str
    inputs: Mapping[str, str]
    trainable: tuple[str, ...] = ()
    dimensions: Mapping[str, int] = field(default_factory=dict)
    table: TableSpec = field(default_factory=TableSpec)


@dataclass(frozen=True)
class Head:
    """From the fused output [batch, queries, query_heads, value_dim] and labels to a loss.

    It runs on the node that holds the labels. `metrics` are scalar outputs, sums over the batch.
    """

    node: str
    dataset: str
    graph: str
    inputs: Mapping[str, str]
    trainable: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    dimensions: Mapping[str, int] = field(default_factory=dict)
    table: TableSpec = field(default_factory=TableSpec)


@dataclass(frozen=True, eq=False)
class FusionJob:
    """Train one model whose samples' tokens are spread over nodes. See FusionJob in training.proto."""

    name: str
    encoders: tuple[Encoder, ...]
    head: Head
    queries: Array
    optimizer: OptimizerSpec
    rounds: int
    batch: int
    seed: int = 0
    scale: float | None = None
    missing: MissingSamples = MissingSamples.LEAVE_OUT
    holdout: float = 0.0
    evaluate_every: int = 0
    patience_seconds: float | None = None
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    clip: float = 0.0
    stop: StopSpec = field(default_factory=StopSpec)


@dataclass(frozen=True)
class Samples:
    """How many samples are on every node, on some only, and how they are used."""

    complete: int
    incomplete: int
    train: int
    holdout: int


@dataclass(frozen=True)
class TrainingRun:
    """A run as it stands.

    `detail`: why it ended; while it goes on, which nodes it leaves out as their data is other than before.
    `nodes`: what each node of the round under way does, for a person. `notes`: what whoever trains should
    know of the model and the labels, a sentence each. `best_version`: of those evaluated, the one with the
    lowest loss on the held-out samples, which is kept; None: none was evaluated.
    """

    id: str
    name: str
    state: RunState
    detail: str
    round: int
    rounds: int
    version: int
    created: float
    waiting: str = ""
    samples: Samples | None = None
    nodes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    best_version: int | None = None
    best_loss: float | None = None


COUNTED = ("tokens", "labels")
"""Metrics that say what others are counted over, where that is not the samples."""


@dataclass(frozen=True)
class Evaluation:
    """On the held-out samples: their number, the mean loss, and each metric's sum."""

    samples: int
    loss: float
    metrics: Mapping[str, float]

    def share(self, metric: str) -> float:
        """The metric's sum by what it is counted over."""
        return self.metrics[metric] / max(1, self.counted)

    @property
    def counted(self) -> float:
        """What metrics are counted over: the first of COUNTED that is a metric, or else the samples."""
        return next((self.metrics[name] for name in COUNTED if name in self.metrics), self.samples)


@dataclass(frozen=True)
class NodeRound:
    """One node's part of a federated round.

    Attributes:
        samples, steps: what its local steps went over.
        loss: their mean.
        seconds: from asking it to its last byte.
        staleness: versions between the parameters it started from and the current.
        norm: L2 norm of its update before clipping.
    """

    samples: int
    steps: int
    loss: float
    seconds: float
    staleness: int = 0
    norm: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class TrainingRound:
    """One round's record: what it used, what it cost, what it committed.

    Of a federated round: `nodes` contributed, `left_out` were asked and why it went on without them,
    `consensus` are the consensus losses by name, and `quarantined` those of `left_out` that are asked no more
    in this run.
    """

    number: int
    version: int
    loss: float
    samples: tuple[int, ...]
    seconds: Mapping[str, float]
    bytes_sent: Mapping[str, int]
    bytes_received: Mapping[str, int]
    mass: Mapping[str, float]
    evaluation: Evaluation | None = None
    absent: Mapping[str, int] = field(default_factory=dict)
    nodes: Mapping[str, NodeRound] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    consensus: Mapping[str, float] = field(default_factory=dict)
    quarantined: tuple[str, ...] = ()


@dataclass(frozen=True)
class StartRunRequest:
    """Exactly one of the three."""

    job: FusionJob | None = None
    federated: FederatedJob | None = None
    split: SplitJob | None = None

    @property
    def any_job(self) -> FusionJob | FederatedJob | SplitJob | None:
        """The one that there is."""
        return self.job or self.federated or self.split


@dataclass(frozen=True)
class StartRunResponse:
    run: TrainingRun


@dataclass(frozen=True)
class PlanRunRequest:
    """Exactly one of the three."""

    job: FusionJob | None = None
    federated: FederatedJob | None = None
    split: SplitJob | None = None

    @property
    def any_job(self) -> FusionJob | FederatedJob | SplitJob | None:
        """The one that there is."""
        return self.job or self.federated or self.split


@dataclass(frozen=True)
class PlannedGraph:
    """A graph a node would run, what of it leaves the node, and the release that needs."""

    node: str
    role: str
    digest: str
    outputs: tuple[str, ...]
    release: str
    release_text: str = ""


@dataclass(frozen=True)
class PlannedModel:
    """What a job makes of a file.

    Attributes:
        place: what messages call it.
        trained: the parameters that train, and how many numbers each has.
        frozen: weights that do not, and why.
        cut: outputs of the file that nothing here needs.
        dimensions: those that the file leaves open, and the sizes they have.
        notes: what else its user should know, a sentence each.
    """

    place: str
    trained: Mapping[str, int]
    frozen: Mapping[str, str] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    dimensions: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanProblem:
    """Why a run of the job would be refused. `node`: because of what it has; empty: of none in particular."""

    node: str
    text: str


@dataclass(frozen=True)
class PlanRunResponse:
    """What a job would run.

    `job_release`: what to allow on nodes for all that the job needs (core/job_release.py); empty: nothing
    private leaves. `problems`: what a run would be refused for. `unchecked`: what was not looked at, and why.
    """

    graphs: tuple[PlannedGraph, ...]
    models: tuple[PlannedModel, ...] = ()
    job_release: str = ""
    problems: tuple[PlanProblem, ...] = ()
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True)
class WatchRunRequest:
    run: str
    after_round: int = 0


@dataclass(frozen=True)
class StopRunRequest:
    run: str


@dataclass(frozen=True)
class StopRunResponse:
    run: TrainingRun


@dataclass(frozen=True)
class ResumeRunRequest:
    run: str


@dataclass(frozen=True)
class ResumeRunResponse:
    run: TrainingRun


@dataclass(frozen=True)
class DescribeRunRequest:
    run: str


@dataclass(frozen=True)
class DescribeRunResponse:
    run: TrainingRun


@dataclass(frozen=True)
class ListRunsRequest:
    pass


@dataclass(frozen=True)
class ListRunsResponse:
    runs: tuple[TrainingRun, ...]


@dataclass(frozen=True)
class DeleteRunRequest:
    run: str


@dataclass(frozen=True)
class DeleteRunResponse:
    """The run as it was."""

    run: TrainingRun


@dataclass(frozen=True)
class GetParametersRequest:
    """`best`: of the versions evaluated the best, instead of one by its number."""

    run: str
    version: int | None = None
    best: bool = False


@dataclass(frozen=True)
class ParametersChunk:
    """A piece of a safetensors file of `size` bytes that holds version `version`."""

    version: int
    size: int
    data: bytes


@dataclass(frozen=True)
class GetModelRequest:
    """As GetParametersRequest."""

    run: str
    version: int | None = None
    best: bool = False


@dataclass(frozen=True)
class RowsRead:
    """How rows of a table become inputs of a trained model, as the job of its run says.

    Attributes:
        node: of a fusion run an encoder's, whose inputs the model calls `<node>/<input>`; empty: they are the
            whole model's, or of a fusion run the head's.
        inputs: input -> column; one left out is the column of its own name.
        table: what else the job says of the columns.
    """

    node: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    table: TableSpec = field(default_factory=TableSpec)


@dataclass(frozen=True)
class ModelChunk:
    """A piece of an ONNX file of `size` bytes that holds version `version`.

    `reads`: in the first, which has no data.
    """

    version: int
    size: int
    data: bytes
    reads: tuple[RowsRead, ...] = ()


@dataclass(frozen=True)
class PredictRequest:
    """Of samples whose rows are on nodes, by `ids`, with the version as GetParametersRequest chooses it."""

    run: str
    version: int | None = None
    best: bool = False
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PredictResponse:
    """What a fusion run's model says of samples.

    Attributes:
        outputs: those of the head that need no labels, a row a sample.
        mass: share of attention that each node's tokens received, the mean over the samples.
        absent: how many of the samples a node lacks, of those that lack some.
    """

    version: int
    outputs: Mapping[str, Array]
    mass: Mapping[str, float]
    absent: Mapping[str, int] = field(default_factory=dict)
