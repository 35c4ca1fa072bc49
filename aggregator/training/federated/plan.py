"""A federated job made ready: its graphs by digest, what the parameters look like, what leaves the nodes.

A plan is plain data: it is made once, in a process of its own (`planner`), and kept with the run as JSON,
so that a run that goes on after a restart goes on with the very same graphs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from aggregator.fleet.columns import TableView, WantedInput, resolve
from aggregator.store.tensor_file import Spec
from aggregator.training.fusion.plan import model_from
from edge_attention.core.encodings import Int8, UpdateEncoding
from edge_attention.core.encodings import from_config as encoding_from
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.learning_rates import factor_at, optimizer_at
from edge_attention.core.messages.link import Dataset
from edge_attention.core.messages.training import FederatedJob, PlannedModel
from edge_attention.core.rounds.selection import share_of
from edge_attention.core.strategies import Strategy
from edge_attention.core.strategies import from_config as strategy_from
from edge_attention.core.strategies.gradient_averaging import GradientAveraging

PIECE = 1 << 18
"""Elements of a parameter that are in memory at a time, of each update."""
WEIGHT = "weight"
"""What a node returns of a round of what its rows count, where they do not all count alike."""
LOSS_WEIGHT, WEIGHT_SUM = "loss/weight", "loss/weight_sum"
"""As graphs call them: what a batch counts, and those of all steps. What defines them brings onnx."""
SCALAR: Spec = (np.dtype(np.float32), ())


@dataclass(frozen=True)
class PlannedGraphFile:
    """A graph nodes run. `inputs`: those it has; differentiation drops what it does not need."""

    digest: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class DataInput:
    """What a node's column must be for an input of the model: dtype by NumPy's name, shape of one row."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LabelPlan:
    """What the labels of a standard loss must be, and what of them is told before the first round.

    Attributes:
        labels, weights: inputs of the model; `weights` empty: there are none.
        classes: labels are 0 to `classes` - 1; 0: they are floats.
        binary: they are between 0 and 1.
        reach: the lowest and the highest label that is told.
        most: the largest weight a row may have.
        places: labels of one row.
    """

    labels: str
    weights: str
    classes: int
    binary: bool
    reach: tuple[int, int]
    most: float
    places: int


@dataclass(frozen=True)
class FederatedPlan:
    """See the module. `graphs`: by role, of gradient, start, step, update, evaluate, attention, penalty,
    difference, labels, complete and means those the job needs. `slots`: the local optimizer's state, tensors
    a parameter. `weighted`: labels do not all count alike, and nodes return what theirs count. `most`: what a
    row counts at most.
    `model`: what the file is to the job, for a person; None: a plan of an earlier release does not say.
    `label`: of a standard loss."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[DataInput, ...]
    metrics: tuple[str, ...]
    slots: tuple[str, ...]
    graphs: Mapping[str, PlannedGraphFile]
    weighted: bool = False
    most: float = 1.0
    model: PlannedModel | None = None
    label: LabelPlan | None = None

    @property
    def sums(self) -> tuple[str, ...]:
        """What an evaluation sums up."""
        return ("loss", *((LOSS_WEIGHT,) if self.weighted else ()), *self.metrics)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FederatedPlan:
        data = json.loads(text)
        return cls(
            tuple(data["names"]),
            tuple(tuple(shape) for shape in data["shapes"]),
            tuple(DataInput(d["name"], d["dtype"], tuple(d["shape"])) for d in data["inputs"]),
            tuple(data["metrics"]),
            tuple(data["slots"]),
            {
                role: PlannedGraphFile(g["digest"], tuple(g["inputs"]), tuple(g["outputs"]))
                for role, g in data["graphs"].items()
            },
            # Runs of earlier releases do not say.
            bool(data.get("weighted", False)),
            float(data.get("most", 1.0)),
            model_from(data.get("model")),
            LabelPlan(**{**found, "reach": tuple(found["reach"])}) if (found := data.get("label")) else None,
        )

    def returned(self, encoding: UpdateEncoding) -> tuple[str, ...]:
        """Names of what a node returns of a round."""
        return tuple(self.specs(encoding))

    def specs(self, encoding: UpdateEncoding) -> dict[str, Spec]:
        """What a node returns of a round: name -> (dtype, shape)."""
        found = {"loss": SCALAR, "norm": SCALAR}
        if self.weighted:
            found[WEIGHT] = SCALAR
        for index, shape in enumerate(self.shapes):
            found |= encoding.specs(index, shape)
        return found


def asked_of(job: FederatedJob, nodes: int) -> int:
    """How many of `nodes` nodes a round asks, all being there."""
    return min(nodes, max(job.selection.minimum, share_of(job.selection.fraction, nodes)))


def strategy_of(job: FederatedJob) -> Strategy:
    """The job's strategy. Gradient averaging steps with the optimizer of `local`, as nodes take no step.

    Raises:
        InvalidArgument: there is no such strategy, or option.
    """
    if job.strategy.name == "gradient_averaging":
        if job.strategy.options:
            raise InvalidArgument(
                "gradient_averaging takes no options: the server steps with the optimizer of local"
            )
        optimizer = job.local.optimizer
        return strategy_from(job.strategy.name, optimizer=optimizer.name, **optimizer.options)
    return strategy_from(job.strategy.name, **job.strategy.options)


def strategy_at(job: FederatedJob, strategy: Strategy, number: int) -> Strategy:
    """`strategy` as it steps in round `number`: where it averages gradients, by the job's schedule."""
    if not isinstance(strategy, GradientAveraging):
        return strategy
    factor = factor_at(job.local.schedule, number, job.rounds)
    return replace(strategy, optimizer=optimizer_at(strategy.optimizer, factor))


def push_encoding(job: FederatedJob) -> UpdateEncoding:
    """How differences between versions travel down.

    Raises:
        InvalidArgument: one that cannot be made piece by piece.
    """
    encoding = encoding_from(job.push.encoding.name, **job.push.encoding.options)
    if encoding.name == "topk" or (isinstance(encoding, Int8) and PIECE % encoding.block):
        raise InvalidArgument(
            f"push.encoding is {encoding.name} {encoding.options}; it must be float32, float16, bfloat16, or "
            "int8 with a block that is a power of two"
        )
    return encoding


def view_of(plan: FederatedPlan, job: FederatedJob, nodes: Mapping[str, Sequence[Dataset]]) -> TableView:
    """How each of `nodes` (name -> its datasets) reads the model's inputs.

    Raises:
        NotFound, InvalidArgument: a node has not the columns that the model takes.
        FailedPrecondition: no node is here to say what `*` is.
    """
    wanted = [WantedInput(each.name, each.dtype, each.shape) for each in plan.inputs]
    return resolve(job.dataset, wanted, job.model.inputs, job.table, nodes)
