"""What counts as a tensor here: dtypes, encodings, and the checks made where bytes become tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.errors import InvalidArgument, InvalidTensor, NotFinite

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

MAX_RANK = 8


class DataType(Enum):
    """Element types that travel. The value is NumPy's name."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    INT8 = "int8"
    UINT8 = "uint8"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"
    FLOAT16 = "float16"
    INT16 = "int16"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"

    @classmethod
    def of(cls, dtype: np.dtype[Any], where: str = "a tensor") -> DataType:
        if (known := _BY_DTYPE.get(dtype)) is not None:
            return known
        try:
            return cls(dtype.name)
        except ValueError:
            raise InvalidTensor(
                f"{where} has dtype {dtype}, which does not travel; "
                f"use one of {', '.join(t.value for t in cls)}"
            ) from None


# NumPy makes up a dtype's name anew each time it is asked.
_BY_DTYPE = {np.dtype(data_type.value): data_type for data_type in DataType}
TRAVELS = frozenset(_BY_DTYPE)
"""What `DataType.of` knows."""


class Encoding(Enum):
    """How bytes on the wire stand for elements."""

    RAW = "raw"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, eq=False)
class Encoded:
    """An array and the encoding it is to travel in. What arrives is a plain array of the same dtype."""

    array: Array
    encoding: Encoding


def require(
    array: Array,
    what: str,
    *,
    shape: Sequence[int | str | None],
    dtype: type[np.generic] = np.float32,
    finite: bool = True,
) -> None:
    """Refuse `array` unless it has this shape and dtype and, if asked, only finite numbers.

    Args:
        what: how to call the array in the error, as "keys".
        shape: one entry a dimension: a size, or a name for a dimension of any size.
        dtype: the NumPy scalar type it must have.
        finite: refuse NaN and infinities.

    Raises:
        InvalidTensor: naming the array, what it is, what it must be; NotFinite, naming the place, for NaN and
            Inf.
    """
    have = array.shape
    if have != shape and not (
        len(have) == len(shape)
        and all(n == want or not isinstance(want, int) for n, want in zip(have, shape, strict=True))
    ):
        wanted = ", ".join(str(size) for size in shape)
        raise InvalidTensor(f"{what} has shape {list(array.shape)}; it must be [{wanted}]")
    if array.dtype != dtype:
        raise InvalidTensor(
            f"{what} has dtype {array.dtype}; it must be {np.dtype(dtype).name}: convert it with "
            f".astype({np.dtype(dtype).name!r})"
        )
    if finite and not _finite(array):
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            place = bad[0].tolist()
            raise NotFinite(f"{what} holds {array[tuple(place)]} at {place}; every element must be finite")


def _finite(array: Array) -> bool:
    """Whether all elements are finite; of a large array False may also mean that its sum is not."""
    if array.size <= 65_536:
        return bool(np.isfinite(array).all())
    # One pass without a temporary: a sum is finite only if every element is.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(array, dtype=np.float64)))


def own_memory(array: Array, share: float = math.inf) -> Array:
    """`array` at an address that is aligned, in memory of its own: a copy of what lies in a message.

    `share`: what is so much of its message, or more, is left there, and keeps all of it.
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, memoryview) or array.nbytes >= share * memoryview(base.obj).nbytes:
        return array
    return array.copy()


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STORED = re.compile(r"(task|job|context|dataset)(/[A-Za-z0-9_.:-]+){1,7}/?")


def require_name(name: str, what: str) -> str:
    """`name` if it can name a node, a context, a dataset or a run.

    Raises:
        InvalidArgument: if it is not 1 to 64 letters, digits, dots, dashes and underscores.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{what} {str(name)[:80]!r} is not a name: use 1 to 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return name


def require_stored(name: str) -> str:
    """`name` if it can be a name in a node's store: a scope and a path, as `context/c1/s0/keys`."""
    if len(name) > 512 or not _STORED.fullmatch(name):
        raise InvalidArgument(
            f"{name[:80]!r} is not a name in a store: use task/..., job/..., context/... or dataset/..."
        )
    return name
