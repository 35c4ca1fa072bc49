"""Inputs of a request as they come, and outputs as they go: pieces of tensors, checked against the model.

All a caller says of a tensor is checked before room is made for it: its type, its shape, that pieces come in
order and are no more than the shape has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from aggregator.bounds.budget import Lease
from edge_attention.core.errors import InvalidArgument, InvalidTensor, ResourceExhausted
from edge_attention.core.messages.inference import (
    ANY_RANK,
    INFER_BYTES,
    PIECE_BYTES,
    ModelTensor,
    TensorPiece,
)
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import MAX_RANK, Array, DataType

__all__ = [
    "Feeds",
    "may_be_empty",
    "pieces",
    "require_feeds",
    "require_given",
    "require_inputs",
    "require_looked_up",
    "shape_key",
    "shape_text",
    "whole_arrays",
]


_PAST_RANK = 4
TEXT = 1000
"""Characters of shapes in words, at most."""


class Feeds:
    """The inputs of one request as far as they have come. `room`, the caller's, grows with them.

    `joined`: by input the axis along which it may be empty.
    """

    def __init__(
        self, inputs: Sequence[ModelTensor], room: Lease, joined: Mapping[str, int] | None = None
    ) -> None:
        self._inputs = {one.name: one for one in inputs}
        self._joined = joined or {}
        self._room = room
        self._arrays: dict[str, Array] = {}
        self._filled: dict[str, int] = {}
        self._size = 0

    def take(self, piece: TensorPiece) -> None:
        """Put a piece where it belongs.

        Raises:
            InvalidTensor: no input of the model, or of another type or shape than the model's; a piece that
                does not follow the one before.
            ResourceExhausted: more than INFER_BYTES in all.
            Overloaded: the caller has too much under way.
        """
        filled = self._filled.get(piece.name)
        if filled is None:
            self._begin(piece)
            filled = 0
        array = self._arrays[piece.name]
        if piece.offset != filled or filled + len(piece.data) > array.nbytes:
            raise InvalidTensor(
                f"input {piece.name!r}: {len(piece.data):,} bytes at {piece.offset:,} do not follow the "
                f"{filled:,} of {array.nbytes:,} that have come; send a tensor's pieces in order"
            )
        if piece.data:
            flat = array.reshape(-1).view(np.uint8)
            flat[filled : filled + len(piece.data)] = np.frombuffer(piece.data, np.uint8)
        self._filled[piece.name] = filled + len(piece.data)

    def arrays(self) -> Mapping[str, Array]:
        """All inputs.

        Raises:
            InvalidTensor: one lacks, or has not come wholly; a bool that is neither 0 nor 1.
        """
        for name, one in self._inputs.items():
            if name not in self._arrays:
                raise InvalidTensor(f"input {name!r} ({said(one)}) is missing; send it")
            array, filled = self._arrays[name], self._filled[name]
            if filled != array.nbytes:
                raise InvalidTensor(f"input {name!r}: {filled:,} of {array.nbytes:,} bytes came")
            if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
                raise InvalidTensor(f"input {name!r}: a BOOL element is one byte, 0 or 1; there are others")
        return self._arrays

    def _begin(self, piece: TensorPiece) -> None:
        wanted = self._inputs.get(piece.name)
        if wanted is None:
            names = ", ".join(self._inputs) or "none"
            raise InvalidTensor(f"the model has no input {piece.name[:80]!r}; its inputs: {names}")
        if len(piece.shape) > MAX_RANK or any(n < 0 for n in piece.shape):
            raise InvalidTensor(f"input {piece.name!r}: {list(piece.shape)[:9]} is no shape")
        _require(wanted, piece.data_type, piece.shape)
        if 0 in piece.shape and not may_be_empty(wanted.name, piece.shape, self._joined):
            raise InvalidArgument(
                f"input {wanted.name!r} is empty: {list(piece.shape)}; send at least one of each"
            )
        dtype = np.dtype(piece.data_type.value)
        size = math.prod(piece.shape) * dtype.itemsize
        if self._size + size > INFER_BYTES:
            raise ResourceExhausted(
                f"bound infer-bytes: the inputs of one request have at most {INFER_BYTES:,} bytes; with "
                f"{piece.name!r} these have {self._size + size:,}: send fewer rows at a time"
            )
        self._room.grow(size)
        self._size += size
        self._arrays[piece.name] = np.empty(piece.shape, dtype)
        self._filled[piece.name] = 0


def whole_arrays(coming: Sequence[TensorPiece]) -> dict[str, Array]:
    """The arrays of one message, which has all of each, in order: views of what came.

    Raises:
        InvalidTensor: pieces of one do not follow each other, or are not as many bytes as its shape says.
    """
    found: dict[str, list[TensorPiece]] = {}
    for piece in coming:
        found.setdefault(piece.name, []).append(piece)
    arrays: dict[str, Array] = {}
    for name, parts in found.items():
        first, at = parts[0], 0
        dtype = np.dtype(first.data_type.value)
        for piece in parts:
            if (piece.data_type, piece.shape, piece.offset) != (first.data_type, first.shape, at):
                raise InvalidTensor(f"input {name[:80]!r}: its pieces do not follow each other")
            at += len(piece.data)
        size = math.prod(first.shape) * dtype.itemsize
        if len(first.shape) > MAX_RANK or min(first.shape, default=1) < 1 or size != at:
            raise InvalidTensor(
                f"input {name[:80]!r}: {at:,} bytes came of {dtype.name} {list(first.shape)[:16]}; send all "
                "of it"
            )
        data = b"".join(piece.data for piece in parts)
        arrays[name] = np.frombuffer(data, dtype).reshape(first.shape)
    return arrays


def require_inputs(inputs: Sequence[ModelTensor], arrays: Mapping[str, Array]) -> None:
    """Refuse shapes that do not go together: a dimension of one name has one size.

    Raises:
        InvalidTensor: names the inputs and the dimension.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for one in inputs:
        if one.shape == (ANY_RANK,):
            continue
        for axis, (name, size) in enumerate(zip(one.shape, arrays[one.name].shape, strict=True)):
            if name == "?" or name.isdigit():
                continue
            known, where = sizes.setdefault(name, (size, one.name))
            if known != size:
                raise InvalidTensor(
                    f"dimension {name!r} is {known} in input {where!r} and {size} in axis {axis} of "
                    f"{one.name!r}; it must be the same in both"
                )


def require_given(given: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
    """Refuse what a model was not cut for: of a file with two steps the other one, or fewer tokens' logits.

    Raises:
        InvalidTensor: names the input, and says what to send instead.
    """
    for name, value in given.items():
        array = arrays[name]
        if array.dtype != np.bool_ and bool((array != value).any()):
            raise InvalidTensor(
                f"input {name!r} is {array.reshape(-1)[0]}, and the model is cut for {value}, which is the "
                f"logits of all tokens: send {value}; or deploy the model by replicate, which takes any"
            )
        if bool((array != value).any()):
            is_not, is_ = ("false", "true") if value else ("true", "false")
            raise InvalidTensor(
                f"input {name!r} is {is_not}, which chooses the file's step without a past, and what is cut "
                f"is the one with it: send {is_}, with a past of 0 tokens for a first step; or deploy the "
                "model by replicate, which serves both"
            )


def require_looked_up(rows: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
    """Refuse numbers beyond the rows that they look up: they would fail whoever runs in the same batch.

    Raises:
        InvalidTensor: names the input, the number and its place.
    """
    for name, count in rows.items():
        array = arrays[name]
        if array.dtype.kind in "iu" and array.size and not -count <= array.min() <= array.max() < count:
            # One number of a byte for each: a list of all that are wrong could be many times the request.
            first = int(np.argmax((array < -count) | (array >= count)))
            place = tuple(map(int, np.unravel_index(first, array.shape)))
            raise InvalidTensor(
                f"the model cannot be computed of these inputs: {name!r} is {array[place]} at "
                f"{list(place)}, out of bounds; it looks up {count:,} rows, 0 to {count - 1:,}"
            )


def require_feeds(forms: Mapping[str, TensorForm], feeds: Mapping[str, Array]) -> None:
    """Raises InvalidTensor unless these are what a request brings, with these dtypes and shapes."""
    for name, form in forms.items():
        array = feeds.get(name)
        if array is None:
            raise InvalidTensor(f"input {name!r} is missing; the model takes {', '.join(forms)}")
        if array.dtype != form.dtype or array.shape != form.shape:
            raise InvalidTensor(
                f"input {name!r} is {array.dtype} {list(array.shape)}; here it must be {form.dtype} "
                f"{list(form.shape)}"
            )
    if unknown := feeds.keys() - forms.keys():
        raise InvalidTensor(f"{min(unknown)[:80]!r} is no input; the model takes {', '.join(forms)}")


def shape_text(shapes: Mapping[str, Sequence[int]]) -> str:
    """`ids [1, 128], mask [1, 128]`."""
    text = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    return text if len(text) <= TEXT else text[: TEXT - 4] + " ..."


def shape_key(shapes: Mapping[str, Sequence[int]]) -> str:
    """What names these shapes on nodes and on the disk: `1x128.1x128`, or a digest where that is long."""
    # Sorted: callers send inputs in any order.
    text = ".".join("x".join(map(str, shapes[name])) or "s" for name in sorted(shapes))
    if len(text) <= 40:
        return text or "none"
    return "s" + hashlib.sha256(text.encode()).hexdigest()[:16]


def pieces(arrays: Mapping[str, Array]) -> Iterator[TensorPiece]:
    """The arrays as pieces, in order; one at least of each."""
    for name, array in arrays.items():
        data_type = DataType.of(array.dtype, name)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for at in range(0, max(flat.nbytes, 1), PIECE_BYTES):
            yield TensorPiece(name, data_type, array.shape, at, flat[at : at + PIECE_BYTES].tobytes())


def said(one: ModelTensor) -> str:
    """`int64 [batch, 128]`."""
    return f"{one.data_type.value} [{', '.join(one.shape)}]"


def _require(wanted: ModelTensor, data_type: DataType, shape: Sequence[int]) -> None:
    if data_type is not wanted.data_type:
        raise InvalidTensor(
            f"input {wanted.name!r} is {data_type.value}; the model wants {said(wanted)}: convert it with "
            f".astype({wanted.data_type.value!r})"
        )
    fits = wanted.shape == (ANY_RANK,) or (
        len(shape) == len(wanted.shape)
        and all(
            not want.isdigit() or int(want) == have for want, have in zip(wanted.shape, shape, strict=True)
        )
    )
    if not fits:
        raise InvalidTensor(f"input {wanted.name!r} is {list(shape)}; the model wants {said(wanted)}")


def may_be_empty(name: str, shape: Sequence[int], joined: Mapping[str, int]) -> bool:
    """Whether an input of this shape, in which a size is 0, is a past that has not begun.

    `joined`: by input the axis along which the model joins something to it. What is given on as it came (an
    encoder's keys, in a file of both steps) is joined to nothing, and known by its name and form.
    """
    empty = [axis for axis, size in enumerate(shape) if not size]
    if name in joined and empty == [joined[name]]:
        return True
    return len(shape) == _PAST_RANK and bool(shape[0]) and "past" in name
