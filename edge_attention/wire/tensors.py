"""Arrays <-> Tensor messages. Everything a peer says of a tensor is checked here, before it is one."""

from __future__ import annotations

import math
import sys
import zlib
from typing import Any

import numpy as np

from edge_attention.core.errors import Damaged, InvalidArgument, InvalidTensor
from edge_attention.core.halves import from_wire, stored_dtype, to_wire
from edge_attention.core.tensors import MAX_RANK, Array, DataType, Encoded, Encoding

# protobuf numbers, by hand: tests/wire compares them with the generated enum.
_NUMBERS = {data_type: number for number, data_type in enumerate(DataType, start=1)}
TYPES = {number: np.dtype(data_type.value) for data_type, number in _NUMBERS.items()}
CODES = {np.dtype(data_type.value): number for data_type, number in _NUMBERS.items()}
ENCODING_CODES = {encoding: number for number, encoding in enumerate(Encoding, start=1)}
# 0, unspecified, is RAW.
ENCODINGS = {0: Encoding.RAW} | {number: encoding for encoding, number in ENCODING_CODES.items()}
_BOOL_CODE = _NUMBERS[DataType.BOOL]
_EMPTY_LIMIT = 2**31
VIEWED = 64 * 1024
"""Bytes from which elements are copied once on their way into a message or out of it; of few more is lost."""

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("tensors travel little-endian; this machine is big-endian")


def encode_tensor(value: Array | Encoded, message: Any, name: str = "") -> None:
    """Fill `message` with `value`; an Encoded travels in its encoding (all but RAW need float32).

    It gets no checksum of its own: the message it is in has one over all of it.
    """
    array, encoding = (value.array, value.encoding) if isinstance(value, Encoded) else (value, Encoding.RAW)
    code = CODES.get(array.dtype)
    if code is None:
        DataType.of(array.dtype, f"tensor {name!r}")
        raise InvalidTensor(f"tensor {name!r} has dtype {array.dtype}, which does not travel")
    if encoding is not Encoding.RAW:
        stored_dtype(encoding, array.dtype, f"tensor {name!r}")
    message.encoding = ENCODING_CODES[encoding]
    data = to_wire(array, encoding).tobytes()
    if name:
        message.name = name
    message.data_type = code
    message.shape.extend(array.shape)
    message.data = data


def decode_tensor(message: Any, where: str = "a tensor") -> Array:
    """The array of a Tensor message: read-only, over the message's own bytes. `where` it is, in errors.

    Raises:
        InvalidTensor: unknown dtype or encoding, a bad shape, or a length that does not fit the shape.
        Damaged: the checksum is wrong.
    """
    name = message.name[:80] or where
    dtype = TYPES.get(message.data_type)
    if dtype is None:
        raise InvalidTensor(
            f"{name}: data type {message.data_type} is not known; see DataType in tensor.proto"
        )
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise InvalidTensor(f"{name}: encoding {message.encoding} is not known; see Encoding in tensor.proto")
    stored = stored_dtype(encoding, dtype, name)
    if len(message.shape) > MAX_RANK:  # before four million of them become numbers here
        have = f"{len(message.shape):,} dimensions"
        raise InvalidTensor(f"{name}: {have} are not a shape of at most {MAX_RANK} dimensions")
    shape = tuple(message.shape)
    data = message.data
    check_size(name, shape, stored.itemsize, len(data))
    if message.HasField("crc32") and message.crc32 != zlib.crc32(data):
        raise Damaged(f"{name}: the checksum is wrong, its bytes were damaged on the way; send it again")
    array = np.frombuffer(data, stored).reshape(shape)
    if message.data_type == _BOOL_CODE and array.size and array.view(np.uint8).max() > 1:
        raise InvalidTensor(f"{name}: a BOOL element is one byte, 0 or 1; there are others")
    return from_wire(array, encoding)


def elements(array: Array) -> bytes | memoryview:
    """The elements, little-endian in C order: of a large array that lies so a view, of any other a copy."""
    if array.nbytes < VIEWED or not array.flags.c_contiguous:
        return array.tobytes()
    return array.reshape(-1).view(np.uint8).data


def check_size(name: str, shape: tuple[int, ...], itemsize: int, size: int) -> None:
    """Refuse a shape that is no shape, or that does not fit `size` bytes."""
    if len(shape) > MAX_RANK or any(n < 0 for n in shape):
        raise InvalidTensor(f"{name}: {list(shape)[:9]} is not a shape of at most {MAX_RANK} dimensions")
    if math.prod(shape) * itemsize != size:
        raise InvalidTensor(
            f"{name}: shape {list(shape)} of {itemsize}-byte elements takes {math.prod(shape) * itemsize:,} "
            f"bytes, but {size:,} came"
        )
    # No bytes vouch for the other dimensions of an empty tensor, and what is made from it may have them.
    if size == 0 and math.prod(n or 1 for n in shape) > _EMPTY_LIMIT:
        raise InvalidTensor(f"{name}: {list(shape)} is empty, and too large in its other dimensions")


def encode_range(value: range, message: Any) -> None:
    message.start, message.stop = value.start, value.stop


def decode_range(message: Any) -> range:
    if message.start < 0 or message.stop < message.start:
        raise InvalidArgument(f"[{message.start}, {message.stop}) is not a range")
    return range(message.start, message.stop)
