"""Half precision on the wire: bfloat16 against its definition, special values, dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidTensor
from edge_attention.core.halves import from_wire, stored_dtype, to_wire
from edge_attention.core.tensors import Encoding

any_float32 = st.integers(0, 2**32 - 1).map(lambda bits: np.array(bits, np.uint32).view(np.float32))

nans = st.tuples(st.sampled_from([0x7F800000, 0xFF800000]), st.integers(1, 2**23 - 1)).map(
    lambda parts: np.array(sum(parts), np.uint32).view(np.float32)
)


def bits(array) -> int:
    return int(np.asarray(array, np.float32).view(np.uint32))


def nearest(value: np.ndarray) -> int:
    """The upper half of the float32 nearest to `value` among those whose lower half is zero; ties to even."""
    low = bits(value) >> 16
    if bits(value) & 0xFFFF == 0:
        return low
    # Magnitudes are compared as integers: floats of one sign are ordered as their bits, Inf included.
    below, above = (low << 16, low), ((low + 1) << 16, low + 1)
    distances = [(abs(bits(value) - full), half & 1, half) for full, half in (below, above)]
    return min(distances)[2]


@given(any_float32.filter(lambda x: not np.isnan(x)))
def test_bfloat16_is_the_nearest_and_ties_are_even(value):
    stored = to_wire(value, Encoding.BFLOAT16)
    assert (stored.dtype, stored.shape) == (np.uint16, ())
    assert int(stored) == nearest(value)
    back = from_wire(stored, Encoding.BFLOAT16)
    assert (back.dtype, back.shape) == (np.float32, ())
    assert bits(back) == int(stored) << 16


@given(nans)
def test_a_nan_stays_one_with_its_sign(value):
    back = from_wire(to_wire(value, Encoding.BFLOAT16), Encoding.BFLOAT16)
    assert np.isnan(back)
    assert np.signbit(back) == np.signbit(value)


def test_inf_and_zeros_stay_and_the_largest_becomes_inf():
    values = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, np.finfo(np.float32).max], np.float32)
    back = from_wire(to_wire(values, Encoding.BFLOAT16), Encoding.BFLOAT16)
    np.testing.assert_array_equal(back, np.array([np.inf, -np.inf, 0, 0, 0, np.inf], np.float32))
    np.testing.assert_array_equal(np.signbit(back), np.signbit(values))


@pytest.mark.parametrize("encoding", [Encoding.FLOAT16, Encoding.BFLOAT16])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (4, 25)])
def test_shapes_orders_and_the_error(encoding, shape):
    array = np.asarray(np.random.default_rng(0).standard_normal(shape), np.float32)
    unit = {Encoding.FLOAT16: 2.0**-11, Encoding.BFLOAT16: 2.0**-8}[encoding]
    for given_ in (array, np.asfortranarray(array), array[..., ::-1]) if array.ndim else (array,):
        stored = to_wire(given_, encoding)
        assert stored.dtype.itemsize == 2
        back = from_wire(stored, encoding)
        assert (back.dtype, back.shape) == (np.float32, shape)
        assert (np.abs(back - given_) <= unit * np.abs(given_)).all()
        np.testing.assert_array_equal(to_wire(back, encoding), stored)


def test_only_float32_has_half_the_bytes():
    assert stored_dtype(Encoding.RAW, np.dtype(np.int8), "w") == np.int8
    assert stored_dtype(Encoding.FLOAT16, np.dtype(np.float32), "w") == np.float16
    assert stored_dtype(Encoding.BFLOAT16, np.dtype(np.float32), "w") == np.uint16
    with pytest.raises(InvalidTensor, match="w: only float32 travels as bfloat16; it is int64"):
        stored_dtype(Encoding.BFLOAT16, np.dtype(np.int64), "w")
