"""The outputs of a model's answer as they come to a client, within bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from edge_attention.core.errors import DataLoss
from edge_attention.core.messages import inference as wire
from edge_attention.core.tensors import Array, DataType

__all__ = ["ArrivingOutputs"]

OUTPUTS = 10_000
"""Of one answer; a graph has fewer."""


class ArrivingOutputs:
    """The outputs of an answer as they come: those that its report names, and no byte more.

    What the report says is believed only within `most` bytes of outputs in all, and room is made only for
    what has come: a server that misbehaves does not fill this process.
    """

    def __init__(self, model: str, most: int = wire.INFER_BYTES) -> None:
        self._model = model
        self._most = most
        self._outputs: dict[str, tuple[wire.ModelTensor, tuple[int, ...]]] = {}
        self._data: dict[str, bytearray] = {}

    def begin(self, outputs: Iterable[wire.ModelTensor]) -> None:
        """What the report says that comes. Raises DataLoss: too much, or no shape."""
        if self._outputs:
            raise self._wrong("two reports came")
        size = 0
        for one in outputs:
            if not all(n.isdecimal() and len(n) < 20 for n in one.shape) or one.name in self._outputs:
                raise self._wrong(f"output {one.name[:80]!r} has no shape, or comes twice")
            shape = tuple(map(int, one.shape))
            size += _nbytes(one.data_type, shape)
            if size > self._most or len(self._outputs) >= OUTPUTS:
                raise self._wrong(
                    f"it says that {size:,} bytes or more come, and {self._most:,} of {OUTPUTS:,} outputs "
                    "are the most"
                )
            self._outputs[one.name] = one, shape

    def take(self, piece: wire.TensorPiece) -> None:
        """Raises DataLoss: it is none of what was to come, or not where it was to be."""
        one, shape = self._outputs.get(piece.name, (None, ()))
        data = self._data.setdefault(piece.name, bytearray()) if one is not None else bytearray()
        if one is None or piece.data_type is not one.data_type or piece.shape != shape:
            raise self._wrong(f"{piece.name[:80]!r} came, which is no output that was told of")
        if piece.offset != len(data) or len(data) + len(piece.data) > _nbytes(one.data_type, shape):
            raise self._wrong(f"output {piece.name[:80]!r}: {len(piece.data):,} bytes at {piece.offset:,}")
        data += piece.data

    def arrays(self) -> dict[str, Array]:
        """The outputs; DataLoss if one is not whole."""
        found: dict[str, Array] = {}
        for name, (one, shape) in self._outputs.items():
            data = self._data.pop(name, bytearray())
            if len(data) != _nbytes(one.data_type, shape):
                raise self._wrong(f"output {name[:80]!r} did not come whole")
            found[name] = np.frombuffer(data, one.data_type.value).reshape(shape)
        return found

    def _wrong(self, what: str) -> DataLoss:
        return DataLoss(f"the answer of model {self._model!r} is damaged: {what}; ask again")


def _nbytes(data_type: DataType, shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(data_type.value).itemsize
