"""Tensors of the Open Inference Protocol: what is no tensor is refused before room is made for it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_attention.core.datatypes import MAX_STRINGS, NUMPY, array_of, datatype_of, elements, raw_bytes
from edge_attention.core.errors import InvalidTensor
from edge_attention.core.messages.open_inference import Datatype, NamedTensor
from edge_attention.core.tensors import DataType


def tensor(shape, data, datatype="FP32"):
    return NamedTensor("x", datatype, tuple(shape), data)


NUMERIC = [one for one in Datatype if one is not Datatype.BYTES]


@given(st.sampled_from(NUMERIC).flatmap(lambda d: st.tuples(st.just(d), hnp.arrays(NUMPY[d], (2, 3)))))
def test_numbers_are_the_same_as_bytes_and_back(drawn):
    datatype, array = drawn
    raw = raw_bytes(tensor(array.shape, array))
    assert bytes(raw) == array.tobytes()
    back = array_of(tensor(array.shape, raw), datatype, "input 'x'")
    assert back.dtype == NUMPY[datatype]
    assert back.tobytes() == array.tobytes()
    assert back.shape == (2, 3)


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_strings_are_the_same_as_bytes_and_back(strings):
    array = np.empty(len(strings), object)
    array[:] = strings
    raw = raw_bytes(tensor(array.shape, array))
    assert raw == b"".join(struct.pack("<I", len(one)) + one for one in strings)
    back = array_of(tensor((len(strings),), raw), Datatype.BYTES, "input 'x'")
    assert list(back) == strings


def test_arrays_of_other_byte_orders_and_strides_travel_little_endian():
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert bytes(raw_bytes(tensor(array.shape, array))) == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((-1, 4), "size below 0"),
        ((1,) * 33, "33 dimensions"),
        ((1 << 32, 1 << 32), "more elements than can be"),
        ((0, 1 << 62), "more elements than can be"),
    ],
)
def test_no_shape(shape, why):
    with pytest.raises(InvalidTensor, match=why):
        elements(shape, "input 'x'")


@pytest.mark.parametrize(
    ("given", "datatype", "why"),
    [
        (tensor((2, 2), b"\0" * 15), Datatype.FP32, "Expected 16, got 15"),
        (tensor((2, 2), b"\0" * 17), Datatype.FP32, "Expected 16, got 17"),
        (tensor((1 << 19, 1 << 19), b""), Datatype.FP64, "Expected 2199023255552, got 0"),
        (tensor((2,), None), Datatype.FP32, "has no data"),
        (tensor((2,), np.zeros(3, np.float32)), Datatype.FP32, "unexpected number of elements 3"),
        (tensor((2,), b"\1\2"), Datatype.BOOL, "0 or 1"),
        (tensor((2,), b"\1\0\0\0x"), Datatype.BYTES, "have 8 bytes at least, got 5"),
        (tensor((1,), b"\2\0\0\0x"), Datatype.BYTES, "0 were read, of 0 of 5"),
        (tensor((1,), b"\1\0\0\0xy"), Datatype.BYTES, "1 were read, of 5 of 6"),
        (tensor((1,), b"\xff\xff\xff\xff"), Datatype.BYTES, "0 were read"),
        (tensor((MAX_STRINGS + 1,), b""), Datatype.BYTES, "MAX_STRINGS"),
    ],
)
def test_what_is_not_what_its_shape_makes_is_refused(given, datatype, why):
    with pytest.raises(InvalidTensor, match=why):
        array_of(given, datatype, "input 'x'")


def test_every_type_that_travels_has_a_name_in_the_protocol():
    for data_type in DataType:
        assert NUMPY[datatype_of(data_type)] == np.dtype(data_type.value)
