"""A job through the split made ready: how the model is cut, who holds what, what its parameters look like.

A plan is plain data: it is made once, in a process of its own (`planner`), and kept with the run as JSON,
with what the model was cut into beside the run's parameters: a run that goes on after a restart goes on with
the very same graphs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aggregator.training.federated.plan import DataInput
from aggregator.training.fusion.plan import model_from
from edge_attention.core.messages.training import PlannedModel, SplitJob
from edge_attention.core.schedule.saved import loads
from edge_attention.core.schedule.schedule import Schedule

__all__ = [
    "CUT",
    "EVALUATE",
    "LOSS",
    "LOSS_WEIGHT",
    "METRIC",
    "MODEL",
    "OVERWRITTEN",
    "SUMS",
    "SplitPart",
    "SplitPlan",
    "cut_folder",
    "grad",
    "pieces_at_once",
    "sums_of",
]

MODEL, CUT, EVALUATE = "model.onnx", "train", "evaluate"
"""In the folder of a run's cut: the model with its loss, and what it is cut into for steps and
evaluations."""
LOSS, LOSS_WEIGHT, METRIC = "loss", "loss/weight", "metric/"
"""Outputs of that model, as graphs call them: what defines them brings onnx."""

SUMS = "sums.json"
"""In the same folder: the schedule of what is sent of sums."""

OVERWRITTEN = 1024 * 1024
"""Bytes of a part's gradients up to which they, and sums, are written over by the next ones. What is larger
is dropped as soon as it was added: a node then has one of them less, and more to do."""

MOST_AT_ONCE = 8
"""Pieces under way, each of which keeps its activations on nodes meanwhile."""


def pieces_at_once(stages: int, pieces: int) -> int:
    """How many of a step's pieces are under way at a time: as many as keep all stages at work."""
    return min(stages + 1 if stages > 1 else 2, MOST_AT_ONCE, pieces)


def cut_folder(cut: Path, job: SplitJob, group: int) -> Path:
    """In the folder of what a run's model is cut into, that of a group."""
    return cut / str(group) if job.groups else cut


def sums_of(cut: Path) -> Schedule | None:
    """What is sent of the sums that nodes make of gradients; None: these are sent piece by piece. Blocks."""
    file = cut / SUMS
    return loads(file.read_text()) if file.exists() else None


def grad(name: str) -> str:
    """The result that is the gradient of a parameter."""
    return f"grad:{name}"


@dataclass(frozen=True)
class SplitPart:
    """One part, for a person, and for who looks whether it fits.

    Attributes:
        layers: from which layer to before which.
        share: what it does of them: `all`, `heads 0-3 of 12`.
        weights, trained: bytes of weights, and those of them that train.
        read: inputs of the model that its node reads itself.
        kept: bytes of what its node keeps of one piece, activations above all.
    """

    part: int
    layers: tuple[int, int]
    share: str
    weights: int
    trained: int
    read: tuple[str, ...] = ()
    kept: int = 0


@dataclass(frozen=True)
class SplitPlan:
    """See the module.

    Attributes:
        names, shapes: of the parameters that train, as the file calls them.
        inputs: of the model with its loss, labels included; of labels and what rows count, `labels`.
        metrics: what an evaluation sums up.
        weighted: labels do not all count alike, and LOSS_WEIGHT says what those of a piece count.
        plan: as core/schedule/saved_plan.py writes it; `text` the same in words.
        holders: part -> the node that holds it; empty: nodes are not known yet.
        stages: how many follow each other.
        samples: how many there are, where they are the aggregator's; 0: on nodes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[DataInput, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    weighted: bool
    plan: str
    text: str
    parts: tuple[SplitPart, ...]
    holders: Mapping[int, tuple[str, ...]]
    stages: int
    samples: int
    model: PlannedModel

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def nodes(self) -> tuple[str, ...]:
        """That are to hold parts, in the parts' order."""
        return tuple(dict.fromkeys(node for part in sorted(self.holders) for node in self.holders[part]))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Of the model: what a step wants besides gradients."""
        return (LOSS, *((LOSS_WEIGHT,) if self.weighted else ()))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SplitPlan:
        data: dict[str, Any] = json.loads(text)
        model = model_from(data["model"])
        assert model is not None
        return cls(
            tuple(data["names"]),
            tuple(tuple(shape) for shape in data["shapes"]),
            tuple(DataInput(d["name"], d["dtype"], tuple(d["shape"])) for d in data["inputs"]),
            tuple(data["labels"]),
            tuple(data["metrics"]),
            bool(data["weighted"]),
            str(data["plan"]),
            str(data["text"]),
            tuple(
                SplitPart(**{"kept": 0, **p, "layers": tuple(p["layers"]), "read": tuple(p["read"])})
                for p in data["parts"]
            ),
            {int(part): tuple(nodes) for part, nodes in data["holders"].items()},
            int(data["stages"]),
            int(data["samples"]),
            model,
        )
