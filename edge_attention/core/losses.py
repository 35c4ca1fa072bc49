"""The standard losses by name, with their options: what a job may ask of one, checked wherever a job is read.

The graphs are made in graphs/models/model_losses.py; formulas, shapes and dtypes are in docs/federated.md.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.federated import LossSpec
from edge_attention.core.options import INTEGER, SHARE, Configured, configure, find, option

__all__ = [
    "LOSSES",
    "MAX_LOSS_WEIGHT",
    "OPTIONS",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "L1Loss",
    "MeanSquaredError",
    "OutputLoss",
    "StandardLoss",
    "loss_of",
    "most_counted",
    "sound_count",
]

MAX_LOSS_WEIGHT = 1e6
"""A class weight or a sample's weight is at most that: sums of many stay exact enough in float32."""
MAX_LOSS_WEIGHTS = 1 << 20
"""Class weights of a loss."""
_ROUNDING = 1e-3
"""A node adds up in float32."""


@dataclass(frozen=True)
class StandardLoss(Configured, ABC):
    """A loss. `listed`: the list of weights it takes, one a class or one a label; empty: none."""

    kind: ClassVar[str] = "loss"
    listed: ClassVar[str] = ""


@dataclass(frozen=True)
class OutputLoss(StandardLoss):
    """The file's own output is the loss."""

    name: ClassVar[str] = "output"


@dataclass(frozen=True)
class CrossEntropy(StandardLoss):
    """One class of several, for a row or for each of its tokens.

    Attributes:
        label_smoothing: share of a label that goes to all classes alike, in [0, 1).
        ignore_index: the label that does not count; None: every label counts.
        class_axis: the axis of the logits that holds the classes; None: the last, or that of a Softmax.
    """

    name: ClassVar[str] = "cross_entropy"
    listed: ClassVar[str] = "class_weights"
    label_smoothing: float = option(0.0, SHARE)
    ignore_index: int | None = option(None, INTEGER)
    class_axis: int | None = option(None, INTEGER)


@dataclass(frozen=True)
class BinaryCrossEntropy(StandardLoss):
    """A yes or no, or several a row. `ignore_index`: the label that does not count."""

    name: ClassVar[str] = "binary_cross_entropy"
    listed: ClassVar[str] = "positive_weights"
    ignore_index: int | None = option(None, INTEGER)


@dataclass(frozen=True)
class MeanSquaredError(StandardLoss):
    """The mean of squared differences."""

    name: ClassVar[str] = "mse"


@dataclass(frozen=True)
class L1Loss(StandardLoss):
    """The mean of absolute differences."""

    name: ClassVar[str] = "l1"


_ALL: tuple[type[StandardLoss], ...] = (
    OutputLoss,
    CrossEntropy,
    BinaryCrossEntropy,
    MeanSquaredError,
    L1Loss,
)
LOSSES = {loss.name: loss for loss in _ALL}
OPTIONS = frozenset(field.name for loss in _ALL for field in fields(loss))
"""The options of all losses."""


def loss_of(spec: LossSpec) -> StandardLoss:
    """The loss of `spec`, with its options.

    Raises:
        InvalidArgument: there is no such loss, or it has no such option, or a weight is out of range.
    """
    kind = find(LOSSES, "loss", spec.name)
    lists = {"class_weights": spec.class_weights, "positive_weights": spec.positive_weights}
    for listed, values in lists.items():
        if values and listed != kind.listed:
            raise InvalidArgument(f"loss {spec.name} has no {listed}; {_instead(kind)}")
        _check_weights(values, f"{listed} of loss {spec.name}")
    if spec.weights and kind is OutputLoss:
        raise InvalidArgument(
            "loss output has no weights: the file computes its loss itself; let it take them as an input"
        )
    if spec.weights and spec.weights == (spec.labels or "labels"):
        raise InvalidArgument(
            f"loss.weights and loss.labels are both {spec.weights!r}; they are two inputs, of two columns"
        )
    return configure(kind, spec.options)


def _instead(kind: type[StandardLoss]) -> str:
    if kind.listed:
        return f"it has {kind.listed}, and weights, an input with a number a row"
    return (
        "it has weights, an input with a number a row" if kind is not OutputLoss else "its file computes it"
    )


def _check_weights(values: Sequence[float], what: str) -> None:
    if len(values) > MAX_LOSS_WEIGHTS:
        raise InvalidArgument(f"{what} are {len(values):,}; there may be {MAX_LOSS_WEIGHTS:,}")
    for i, value in enumerate(values):
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        if not usable or not math.isfinite(value) or not 0 <= value <= MAX_LOSS_WEIGHT:
            raise InvalidArgument(
                f"{what}: number {i} is {value!r}; each must be a number, 0 to {MAX_LOSS_WEIGHT:,.0f}"
            )
    if values and not any(values):
        raise InvalidArgument(f"{what} are all 0; nothing would count")


def most_counted(loss: LossSpec) -> float:
    """What a row counts at most in a mean of losses."""
    return max(loss.class_weights, default=1.0) * (MAX_LOSS_WEIGHT if loss.weights else 1.0)


def sound_count(count: float, most: float) -> bool:
    """Whether rows that count `most` at most may count so much, as a node says; NaN is not.

    >>> sound_count(8.0, 8.0), sound_count(8.1, 8.0), sound_count(-1.0, 8.0)
    (True, False, False)
    """
    return 0 <= count <= most * (1 + _ROUNDING)
