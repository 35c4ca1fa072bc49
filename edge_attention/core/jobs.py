"""Training jobs and what a run tells of itself. One class a message of training.proto."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.tensors import Array


class MissingSamples(Enum):
    """What becomes of a sample some node lacks: left out, or attended without that node."""

    LEAVE_OUT = "leave_out"
    ATTEND = "attend"


class RunState(Enum):
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


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer of core/optimizers.py by name, with its options."""

    name: str
    options: Mapping[str, float] = field(default_factory=dict)


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


@dataclass(frozen=True)
class Samples:
    """How many samples are on every node, on some only, and how they are used."""

    complete: int
    incomplete: int
    train: int
    holdout: int


@dataclass(frozen=True)
class TrainingRun:
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


@dataclass(frozen=True)
class Evaluation:
    """On the held-out samples: their number, the mean loss, and each metric's sum."""

    samples: int
    loss: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainingRound:
    """One round's record: what it used, what it cost, what it committed."""

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


@dataclass(frozen=True)
class StartRunRequest:
    job: FusionJob


@dataclass(frozen=True)
class StartRunResponse:
    run: TrainingRun


@dataclass(frozen=True)
class PlanRunRequest:
    job: FusionJob


@dataclass(frozen=True)
class PlannedGraph:
    """A graph a node would run, what of it leaves the node, and the release that needs."""

    node: str
    role: str
    digest: str
    outputs: tuple[str, ...]
    release: str


@dataclass(frozen=True)
class PlanRunResponse:
    graphs: tuple[PlannedGraph, ...]


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
class GetParametersRequest:
    run: str
    version: int | None = None


@dataclass(frozen=True)
class ParametersChunk:
    """A piece of a safetensors file of `size` bytes that holds version `version`."""

    version: int
    size: int
    data: bytes
