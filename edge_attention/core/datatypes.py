"""Tensors of the Open Inference Protocol as bytes and arrays, and the checks where one becomes the other."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidTensor
from edge_attention.core.messages.open_inference import Datatype, NamedTensor
from edge_attention.core.tensors import Array, DataType

__all__ = ["MAX_DIMENSIONS", "MAX_STRINGS", "NUMPY", "array_of", "datatype_of", "elements", "raw_bytes"]

MAX_DIMENSIONS = 32
"""Of a tensor that is looked at; a model wants far fewer."""
MAX_STRINGS = 1 << 20
"""Elements of one tensor of BYTES: each is an object here, however short it is."""
_MOST = 1 << 40
"""Elements of a shape that is multiplied out: more has nobody sent."""

NUMPY: dict[Datatype, np.dtype[Any]] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.UINT8: np.dtype("<u1"),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.UINT32: np.dtype("<u4"),
    Datatype.UINT64: np.dtype("<u8"),
    Datatype.INT8: np.dtype("<i1"),
    Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP16: np.dtype("<f2"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
    Datatype.BYTES: np.dtype(object),
    Datatype.BF16: np.dtype("<u2"),
}
"""How elements lie in an array; of BF16 their bits, of BYTES `bytes` each."""

_OF: dict[DataType, Datatype] = {
    DataType.FLOAT32: Datatype.FP32,
    DataType.FLOAT64: Datatype.FP64,
    DataType.INT8: Datatype.INT8,
    DataType.UINT8: Datatype.UINT8,
    DataType.INT32: Datatype.INT32,
    DataType.INT64: Datatype.INT64,
    DataType.BOOL: Datatype.BOOL,
    DataType.FLOAT16: Datatype.FP16,
    DataType.INT16: Datatype.INT16,
    DataType.UINT16: Datatype.UINT16,
    DataType.UINT32: Datatype.UINT32,
    DataType.UINT64: Datatype.UINT64,
}


def datatype_of(data_type: DataType) -> Datatype:
    """What the protocol calls it."""
    return _OF[data_type]


def elements(shape: Sequence[int], what: str) -> int:
    """How many elements a tensor of `shape` has.

    Raises:
        InvalidTensor: it is no shape: negative, of too many dimensions, or of more elements than anybody has.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidTensor(f"{what} has {len(shape)} dimensions; {MAX_DIMENSIONS} is the most")
    if any(size < 0 for size in shape):
        raise InvalidTensor(f"{what} has shape {_said(shape)}, with a size below 0; send the sizes it has")
    count = math.prod(shape)  # of Python's integers: it cannot overflow
    if count > _MOST or any(size > _MOST for size in shape):
        raise InvalidTensor(f"{what} has shape {_said(shape)}, more elements than can be; send fewer")
    return count


def array_of(tensor: NamedTensor, datatype: Datatype, what: str, told: str = "") -> Array:
    """The tensor's elements as an array of its shape; a view of what came, where that can be.

    Args:
        datatype: what it is, which was compared with what its sender says.
        what: how to call it, as "input 'ids'".
        told: what errors begin with.

    Raises:
        InvalidTensor: its bytes, or elements, are not what its shape and datatype make; a BOOL that is
            neither 0 nor 1.
    """
    count, dtype = elements(tensor.shape, told + what), NUMPY[datatype]
    data = tensor.data
    if data is None:
        raise InvalidTensor(f"{told}{what} has no data; send it")
    if isinstance(data, np.ndarray):
        if data.size != count or data.dtype != dtype:
            raise InvalidTensor(
                f"{told}{what}: unexpected number of elements {data.size}, of shape "
                f"{_said(tensor.shape)} there are {count} of {datatype.value}"
            )
        return data.reshape(tensor.shape)
    if datatype is Datatype.BYTES:
        return _strings(data, count, what, told).reshape(tensor.shape)
    expected = count * dtype.itemsize
    if len(data) != expected:
        raise InvalidTensor(
            f"{told}input byte size mismatch for {what}. Expected {expected}, got {len(data)}: shape "
            f"{_said(tensor.shape)} of {datatype.value}"
        )
    array = np.frombuffer(data, np.uint8 if datatype is Datatype.BOOL else dtype)
    if datatype is Datatype.BOOL:
        if array.size and int(array.max()) > 1:
            raise InvalidTensor(f"{told}{what}: a BOOL is one byte, 0 or 1; there are others")
        array = array.view(np.bool_)
    return array.reshape(tensor.shape)


def raw_bytes(tensor: NamedTensor) -> bytes | memoryview:
    """The elements of an answer's tensor as the protocol has them raw: without a copy, where that can be."""
    data = tensor.data
    if not isinstance(data, np.ndarray):
        assert data is not None, "an answer's tensor has elements"
        return data
    if data.dtype == object:
        parts: list[bytes] = []
        for element in data.reshape(-1):
            parts += (struct.pack("<I", len(element)), element)
        return b"".join(parts)
    little = data.astype(data.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _strings(data: bytes | memoryview, count: int, what: str, told: str) -> Array:
    """`count` elements, each after its length in four bytes.

    Raises:
        InvalidTensor: there are more, or fewer, or the last is cut off.
    """
    if count > MAX_STRINGS:
        raise InvalidTensor(
            f"{told}{what} has {count:,} elements of BYTES; {MAX_STRINGS:,} is the most (MAX_STRINGS): send "
            "fewer"
        )
    if len(data) < 4 * count:  # before room is made for what a shape says
        raise InvalidTensor(
            f"{told}input byte size mismatch for {what}. {count} elements of BYTES, each after its length in "
            f"four bytes, have {4 * count} bytes at least, got {len(data)}"
        )
    array = np.empty(count, object)
    at = found = 0
    while at + 4 <= len(data) and found < count:
        (size,) = struct.unpack_from("<I", data, at)
        if size > len(data) - at - 4:
            break
        array[found] = bytes(data[at + 4 : at + 4 + size])
        at += 4 + size
        found += 1
    if found != count or at != len(data):
        raise InvalidTensor(
            f"{told}input byte size mismatch for {what}. Expected {count} elements of BYTES, each after its "
            f"length in four bytes; {found} were read, of {at} of {len(data)} bytes"
        )
    return array


def _said(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape[:MAX_DIMENSIONS]))}]"
