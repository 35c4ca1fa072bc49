"""What people have where an array is wanted, as an array: tensors of frameworks, lists, tables, other dtypes.

Nothing of a framework is imported. What is exact is converted, and float64 is rounded to float32, as
everybody expects; what would change a number otherwise is refused, and the error says which call mends it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidTensor, NotFinite
from edge_attention.core.tensors import Array, Float32, Int64

__all__ = ["as_array", "as_dtype", "as_float32", "as_int64", "as_numbers"]

EXACT_FLOAT32 = 1 << 24
"""Whole numbers to this are exact in float32."""
EXACT_FLOAT64 = 1 << 53


def as_array(value: Any, what: str) -> Array:
    """`value` as an array of its own dtype: itself, or what its `__array__` or `__dlpack__` gives, or a list.

    Tensors that require gradients are detached, those on an accelerator copied, bfloat16 becomes float32.

    Raises:
        InvalidTensor: it is none, as a list of rows of several lengths.
    """
    found = value
    try:
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise InvalidTensor(
                f"{what} has masked elements, which are no numbers: fill them with .filled(...)"
            )
        if not isinstance(value, np.ndarray):
            if callable(getattr(value, "detach", None)) and callable(getattr(value, "cpu", None)):
                found = value.detach().cpu()
                if str(getattr(found, "dtype", "")) == "torch.bfloat16":
                    found = found.float()
            if not hasattr(found, "__array__") and hasattr(found, "__dlpack__"):
                found = np.from_dlpack(found)
        array = np.asarray(found)
    except InvalidTensor:
        raise
    except Exception as error:  # a framework's own
        said = " ".join(str(error).split())
        raise InvalidTensor(
            f"{what}: {_kind(value)} is not an array of numbers ({said}); give np.asarray(..., 'float32')"
        ) from None
    if array.dtype == object and array.size and all(_is_plain(one) for one in array.flat):
        array = np.array(array.tolist())  # as a table of pandas gives it that could lack numbers
    if array.dtype.name == "bfloat16":  # ml_dtypes', as JAX gives it
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise InvalidTensor(
            f"{what}: {_kind(value)} holds no plain numbers (dtype {array.dtype}); give "
            f"{'what is missing a number and ' if array.dtype == object else ''}np.asarray(..., 'float32')"
        )
    return array


def as_float32(value: Any, what: str) -> Float32:
    """`value` as float32. Whole numbers past 2**24, which would be rounded, are refused.

    Raises:
        InvalidTensor: it is no array of numbers, or does not fit; NotFinite where a number is past float32.
    """
    array = as_array(value, what)
    if array.dtype == np.float32 and array.dtype.isnative:
        return array
    if array.dtype.kind in "iu" and array.size:
        low, high = int(array.min()), int(array.max())
        if max(-low, high) > EXACT_FLOAT32:
            raise InvalidTensor(
                f"{what} has dtype {array.dtype} and holds {high if high > EXACT_FLOAT32 else low}; float32 "
                f"is exact to {EXACT_FLOAT32:,}: scale it, or round it with .astype('float32')"
            )
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype(np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4 and not np.isfinite(found).all():
        lost = np.argwhere(np.isinf(found) & np.isfinite(array))
        if len(lost):
            place = lost[0].tolist()
            raise NotFinite(f"{what} holds {array[tuple(place)]} at {place}, which is past float32: scale it")
    return found


def as_int64(value: Any, what: str) -> Int64:
    """`value` as int64; floats if they are whole.

    Raises:
        InvalidTensor: it is no array of numbers, or one of them is not whole or does not fit.
    """
    array = as_array(value, what)
    if array.dtype == np.int64 and array.dtype.isnative:
        return array
    if array.dtype.kind == "b":
        raise InvalidTensor(
            f"{what} has dtype bool; it must be whole numbers: convert it with .astype('int64')"
        )
    wrong = np.zeros((0, array.ndim), np.intp)
    if array.dtype.kind == "f":
        # Not in float16, in which the bound is infinite.
        wide = array.astype(np.result_type(array.dtype, np.float64))
        wrong = np.argwhere(~(np.abs(wide) <= EXACT_FLOAT64) | (wide != np.floor(wide)))
    elif array.dtype.kind == "u":
        wrong = np.argwhere(array > np.iinfo(np.int64).max)
    if len(wrong):
        place = wrong[0].tolist()
        raise InvalidTensor(
            f"{what} holds {array[tuple(place)]} at {place}; it must be whole numbers that int64 holds"
        )
    return array.astype(np.int64)


def as_dtype(value: Any, dtype: np.dtype[Any], what: str) -> Array:
    """`value` as `dtype`: float32 and int64 as above; into any other only what it holds all of.

    Raises:
        InvalidTensor: it is no array of numbers, or does not fit.
    """
    if dtype == np.float32:
        return as_float32(value, what)
    if dtype == np.int64:
        return as_int64(value, what)
    array = as_array(value, what)
    found = array.astype(dtype)
    if not np.array_equal(found.astype(array.dtype), array, equal_nan=array.dtype.kind == "f"):
        raise InvalidTensor(f"{what} has dtype {array.dtype}, and {dtype} cannot hold all of it: round it")
    return found


def as_numbers(value: Any, what: str) -> Array:
    """`value` as an array that travels: floats as float32, whole numbers in their own dtype.

    Raises:
        InvalidTensor: it is no array of numbers.
    """
    array = as_array(value, what)
    if array.dtype.kind == "f":
        return as_float32(array, what)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    kind = type(value)
    home = kind.__module__.split(".")[0]
    return kind.__name__ if home in ("builtins", "numpy") else f"{home}.{kind.__name__}"
