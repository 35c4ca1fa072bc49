"""Half precision on the wire: float32 elements as two bytes, and back.

FLOAT16 keeps 11 significant bits and ends at 65,504; BFLOAT16 keeps 8 and has float32's range: it is the
upper 16 bits of a float32, rounded to nearest, ties to even.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidTensor
from edge_attention.core.tensors import Array, Encoding

__all__ = ["from_wire", "stored_dtype", "to_wire"]

_FLOAT32 = np.dtype(np.float32)
_STORED = {Encoding.FLOAT16: np.dtype(np.float16), Encoding.BFLOAT16: np.dtype(np.uint16)}
_QUIET = np.uint16(0x40)  # the bit that keeps a NaN one when its lower bits are cut off


def stored_dtype(encoding: Encoding, dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """What bytes in `encoding` are read as, for a tensor `name` of `dtype`; bfloat16 is read as its bits.

    Raises:
        InvalidTensor: the encoding stands for float32 only, and `dtype` is another.
    """
    if encoding is Encoding.RAW:
        return dtype
    if dtype != _FLOAT32:
        raise InvalidTensor(f"{name}: only float32 travels as {encoding.value}; it is {dtype}")
    return _STORED[encoding]


def to_wire(array: Array, encoding: Encoding) -> Array:
    """`array`, float32 for all but RAW, as elements of `stored_dtype`; NaN and Inf stay what they are."""
    if encoding is Encoding.RAW:
        return array
    if encoding is Encoding.FLOAT16:
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    stored = rounded.astype(np.uint16)
    nan = np.isnan(array).reshape(stored.shape)
    if nan.any():
        stored[nan] = (bits[nan] >> 16).astype(np.uint16) | _QUIET
    return stored.reshape(array.shape)


def from_wire(stored: Array, encoding: Encoding) -> Array:
    """The array whose `to_wire` is `stored`: `stored` itself if RAW, else a float32 array of its own."""
    if encoding is Encoding.RAW:
        return stored
    if encoding is Encoding.FLOAT16:
        return stored.astype(np.float32)
    bits = np.asarray(stored).astype(np.uint32, order="C").reshape(-1)
    bits <<= 16
    return bits.view(np.float32).reshape(stored.shape)
