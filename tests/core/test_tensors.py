"""Checks where bytes become tensors, and names."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.tensors import DataType, own_memory, require, require_name, require_stored


@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.lists(st.tuples(st.integers(0, 23), st.sampled_from([np.nan, np.inf, -np.inf])), max_size=4),
)
def test_a_number_that_is_not_finite_is_found_and_its_place_told(dtype, bad):
    array = np.zeros((2, 3, 4), dtype)
    for index, number in bad:
        array.flat[index] = number
    if not bad:
        require(array, "keys", shape=(2, "heads", None), dtype=dtype)
        return
    first = min(index for index, _ in bad)
    with pytest.raises(InvalidTensor, match="keys holds") as caught:
        require(array, "keys", shape=(2, "heads", None), dtype=dtype)
    assert str([int(i) for i in np.unravel_index(first, array.shape)]) in caught.value.message
    require(array, "keys", shape=(2, "heads", None), dtype=dtype, finite=False)


def test_numbers_whose_sum_overflows_are_finite_all_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require(np.full(4, 1.7e308), "x", shape=(4,), dtype=np.float64)
        require(np.full(4, 3.4e38, np.float32), "x", shape=(4,))
        with pytest.raises(InvalidTensor, match=r"holds inf at \[0\]"):
            require(np.array([np.inf, -np.inf, 1]), "x", shape=(3,), dtype=np.float64)
        with pytest.raises(InvalidTensor, match=r"holds -inf at \[2\]"):
            require(np.array([1.7e308, 1.7e308, -np.inf]), "x", shape=(3,), dtype=np.float64)


def test_scalars_empty_and_integer_arrays_pass():
    require(np.float32(1).reshape(()), "x", shape=())
    require(np.zeros((0, 3), np.float32), "x", shape=("tokens", 3))
    require(np.zeros(3, np.int64), "x", shape=(3,), dtype=np.int64)
    with pytest.raises(InvalidTensor, match=r"nan at \[\]"):
        require(np.array(np.nan, np.float32), "x", shape=())


@pytest.mark.parametrize("shape", [(2,), (2, 3, 1), (3, 3), ("a", 4), ()])
def test_another_shape_is_refused_with_both_shapes(shape):
    with pytest.raises(InvalidTensor) as caught:
        require(np.zeros((2, 3), np.float32), "keys", shape=shape)
    assert "keys has shape [2, 3]" in caught.value.message


@pytest.mark.parametrize("dtype", [np.float64, np.int32, bool, ">f4"])
def test_another_dtype_is_refused_with_the_remedy(dtype):
    with pytest.raises(InvalidTensor, match="astype"):
        require(np.zeros(2, dtype), "keys", shape=(2,))


def test_dtypes_that_do_not_travel():
    assert DataType.of(np.dtype(np.float32)) is DataType.FLOAT32
    assert DataType.of(np.dtype(np.uint64)) is DataType.UINT64
    for dtype in (np.complex64, "M8[s]", "S3", "U3", object):
        with pytest.raises(InvalidTensor, match="does not travel"):
            DataType.of(np.dtype(dtype))


@pytest.mark.parametrize("name", ["a", "clinic-1", "A.b_c-9", "0", "x" * 64])
def test_names(name):
    assert require_name(name, "node") == name


@pytest.mark.parametrize(
    "name", ["", ".", "-a", "..", "a/b", "a b", "a\n", "\na", "x" * 65, "é", "a\x00", "٣", "a:b"]
)
def test_names_that_are_none(name):
    with pytest.raises(InvalidArgument, match="node"):
        require_name(name, "node")


@pytest.mark.parametrize(
    "name", ["task/x", "context/c1/s0/keys", "job/j-1/", "dataset/a:b/c.d", "task/" + "/".join("abcdefg")]
)
def test_stored_names(name):
    assert require_stored(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "task",
        "task/",
        "other/x",
        "task//x",
        "/task/x",
        "task/x\n",
        "task/" + "/".join("abcdefgh"),
        "context/" + "x" * 600,
        "task/é",
        "task/a b",
    ],
)
def test_stored_names_that_are_none(name):
    with pytest.raises(InvalidArgument) as caught:
        require_stored(name)
    assert len(caught.value.message) < 300


def test_what_lies_in_a_message_is_copied_to_memory_of_its_own_and_nothing_else_is():
    whole = b"x" + np.arange(6, dtype=np.float32).tobytes()
    lying = np.frombuffer(memoryview(whole)[1:], np.float32).reshape(2, 3)
    own = own_memory(lying[1:])
    assert own.flags.aligned
    assert not np.shares_memory(own, lying)
    np.testing.assert_array_equal(own, [[3, 4, 5]])
    for array in (own, own[:, 1:], np.frombuffer(whole[1:], np.float32)):
        assert own_memory(array) is array


def test_what_is_enough_of_its_message_is_left_there():
    message = memoryview(bytes(400))
    for floats, share, left in ((50, 0.5, True), (50, 0.51, False), (100, 1.0, True), (100, 2.0, False)):
        lying = np.frombuffer(message[: 4 * floats], np.float32)
        assert (own_memory(lying, share) is lying) == left
