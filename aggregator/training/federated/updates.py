"""One node's answer in a round: its tensors as they came, checked, and read piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from aggregator.engine.returned import ReturnedTensor, close
from aggregator.engine.spool import SpooledTensor
from aggregator.training.federated.plan import PIECE, WEIGHT, FederatedPlan
from edge_attention.core.encodings import Plain, UpdateEncoding
from edge_attention.core.errors import InvalidTensor, NotFinite
from edge_attention.core.losses import sound_count
from edge_attention.core.tensors import Array, Float32


class NotFiniteLoss(NotFinite):
    """Not only what local training made of the parameters: the loss is no number."""


@dataclass(eq=False)
class Update:
    """What `node` returned of a round. `weight`: what a row of its batches counted, the mean."""

    node: str
    samples: int
    steps: int
    seconds: float
    tensors: Mapping[str, ReturnedTensor]
    bytes: int = 0
    loss: float = math.nan
    norm: float = math.nan
    weight: float = 1.0
    staleness: int = 0
    attention: Array | None = None
    squared_norm: float = field(default=math.nan)

    @property
    def counted(self) -> float:
        """What its samples count in a mean of all nodes."""
        return self.samples * self.weight

    def read(self, name: str, start: int, stop: int) -> Array:
        """Elements start..stop of a returned tensor, flat."""
        tensor = self.tensors[name]
        if isinstance(tensor, SpooledTensor):
            return tensor.read(start, stop)
        return tensor.reshape(-1)[start:stop]

    def close(self) -> None:
        """Free what lies on the disk."""
        close(self.tensors)


def close_all(updates: Iterable[Update]) -> None:
    """Free what all of them have on the disk. It blocks."""
    for update in updates:
        update.close()


def pieces(size: int, piece: int = PIECE) -> Iterator[tuple[int, int]]:
    """A parameter of `size` elements in pieces: (start, stop)."""
    for start in range(0, size, piece):
        yield start, min(start + piece, size)


def piece_of(
    update: Update, plan: FederatedPlan, encoding: UpdateEncoding, index: int, start: int, stop: int
) -> Float32:
    """Elements start..stop of the update of parameter `index`, decoded."""
    if isinstance(encoding, Plain):  # most are so, and small: there is nothing to decode
        tensor = update.tensors[encoding.parts(index)[0]]
        if isinstance(tensor, np.ndarray):
            return np.asarray(tensor.reshape(-1)[start:stop], np.float32)
    return encoding.decode(index, plan.shapes[index], update.read, start, stop)


def check(update: Update, plan: FederatedPlan, encoding: UpdateEncoding, batch: int = 1) -> None:
    """Refuse an answer that is not finite; fill in loss, norm, weight, attention. It has what was asked for.

    `batch`: rows of one of its batches.

    Raises:
        NotFinite: naming the node and the tensor.
        InvalidTensor: its rows count less than nothing, or more than any can.
    """
    where = f"node {update.node!r}"
    update.loss, update.norm = (_scalar(update, name, where) for name in ("loss", "norm"))
    if plan.weighted:
        update.weight = _scalar(update, WEIGHT, where) / batch
        if not sound_count(update.weight, plan.most):
            said = f"{where} says that a row of its batches counts {update.weight:g}"
            raise InvalidTensor(f"{said}; it can count 0 to {plan.most:g}")
    squared = 0.0
    for index, size in enumerate(plan.sizes):
        for start, stop in pieces(size):
            piece = piece_of(update, plan, encoding, index, start, stop)
            # In float32 first: it is finite, and small enough to square, if the sum is.
            part = float(np.dot(piece, piece))
            if not math.isfinite(part):
                if not np.isfinite(piece).all():
                    raise NotFinite(f"{where} returned an update of {plan.names[index]} that is not finite")
                part = float(np.square(piece, dtype=np.float64).sum())
            squared += part
    update.squared_norm = squared
    if "attention" in update.tensors:
        tensor = update.tensors["attention"]
        attention = tensor.array() if isinstance(tensor, SpooledTensor) else tensor
        if not np.isfinite(attention).all():
            raise NotFinite(f"{where} returned attention weights that are not finite")
        update.attention = attention


def _scalar(update: Update, name: str, where: str) -> float:
    value = float(update.read(name, 0, 1)[0])
    if not math.isfinite(value):
        kind = NotFiniteLoss if name == "loss" else NotFinite
        raise kind(f"{where} returned a {name} that is not finite: {value}")
    return value
