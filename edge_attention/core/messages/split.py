"""A job that trains one model through a split of it over nodes, as it travels.

One class a message of training.proto, where the fields' meaning is written out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_attention.core.keywords import named_fields
from edge_attention.core.messages.federated import FederatedModel, StopSpec
from edge_attention.core.messages.table import TableSpec
from edge_attention.core.specs import OptimizerSpec, ScheduleSpec, StrategySpec


@named_fields
@dataclass(frozen=True)
class SplitData:
    """Where the samples are: the aggregator's (`file`, the digest of a safetensors file), or on nodes.

    Attributes:
        inputs: the dataset with the model's inputs, on the node of the first layers.
        labels: the dataset with the labels, on the node of the last ones; rows are matched by their ids.
        passes: inputs that later layers read, too, as a mask: their rows leave the first node with its
            activations.
    """

    file: str = ""
    inputs: str = ""
    labels: str = ""
    passes: tuple[str, ...] = ()

    @property
    def on_nodes(self) -> bool:
        return not self.file


@named_fields
@dataclass(frozen=True)
class SplitGroup:
    """Nodes that hold the whole model together; `file`: the digest of their samples, empty: on nodes."""

    nodes: tuple[str, ...]
    file: str = ""


@dataclass(frozen=True)
class SplitJob:
    """Train one model that is cut over nodes. See SplitJob in training.proto."""

    name: str
    model: FederatedModel
    split: str
    optimizer: OptimizerSpec
    rounds: int
    batch: int
    data: SplitData
    plan: bytes = b""
    nodes: tuple[str, ...] = ()
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    micro_batches: int = 1
    recompute: bool = False
    seed: int = 0
    holdout: float = 0.0
    evaluate_every: int = 0
    patience_seconds: float | None = None
    stop: StopSpec = field(default_factory=StopSpec)
    keep_versions: int = 10
    clip: float = 0.0
    table: TableSpec = field(default_factory=TableSpec)
    groups: tuple[SplitGroup, ...] = ()
    local_steps: int = 1
    strategy: StrategySpec = field(default_factory=lambda: StrategySpec("fedavg"))
