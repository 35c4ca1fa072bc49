"""Which numbers are exactly numbers of another type."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from edge_node.data.conversion import exact_in_float32, exact_in_int64, first_inexact

TYPES = [
    np.dtype(name)
    for name in ("bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float32", "float64")
]
arrays = st.sampled_from(TYPES).flatmap(
    lambda dtype: some.arrays(
        dtype, st.integers(1, 6), elements=some.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    )
)


def exact(value, dtype):
    """By Python's own numbers, which have no size."""
    number = float(value) if isinstance(value, float) else int(value)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            there = float(np.array(value).astype(dtype))
        whole = number == int(number) and abs(number) >= 2.0 ** (np.finfo(dtype).nmant + 1)
        return np.isfinite(there) and (there == number or (isinstance(value, float) and not whole))
    if dtype.kind == "b":
        return number in (0, 1)
    bounds = np.iinfo(dtype)
    return number == int(number) and bounds.min <= int(number) <= bounds.max


@given(arrays, st.sampled_from(TYPES))
def test_what_is_exact_is_what_python_finds(values, dtype):
    if values.dtype == dtype:
        assert first_inexact(values, dtype) is None
        return
    wrong = [row for row, value in enumerate(values.tolist()) if not exact(value, dtype)]
    assert first_inexact(values, dtype) == (wrong[0] if wrong else None)


@pytest.mark.parametrize(
    ("value", "real", "whole"),
    [
        (2**24, True, True),
        (2**24 + 1, False, True),
        (0.1, True, False),  # which every table rounds
        (3.0, True, True),
        (1e300, False, False),
        (2.0**63, True, False),
        (-(2.0**63), True, True),
    ],
)
def test_float32_and_int64(value, real, whole):
    values = np.array([1, value])
    assert (exact_in_float32(values), exact_in_int64(values)) == (real, whole)


def test_vectors_of_no_length_are_exact():
    assert exact_in_float32(np.zeros((3, 0)))


def test_vectors_and_long_columns_say_the_row():
    column = np.zeros((1_200_000, 2))
    column[1_100_000, 1] = 0.5
    assert first_inexact(column, np.dtype(np.int64)) == 1_100_000
