"""Tensors on the wire: numbers by hand, checksums, and every refusal."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from messages import arrays, same

from edge_attention.core.errors import Damaged, EdgeAttentionError, InvalidTensor
from edge_attention.core.tensors import DataType, Encoded, Encoding, require
from edge_attention.wire.tensors import decode_tensor, encode_tensor
from protos.edge_attention.v1.tensor_pb2 import Tensor


def encoded(value, name="w") -> Tensor:
    message = Tensor()
    encode_tensor(value, message, name)
    return message


@given(arrays())
def test_any_bits_arrive(array):
    message = encoded(array)
    came = decode_tensor(Tensor.FromString(message.SerializeToString()))
    assert same(array, came)
    assert not message.HasField("crc32"), "the message it is in has one over all of it"
    assert not came.flags.writeable


@pytest.mark.parametrize("data_type", DataType)
def test_data_types_are_numbered_as_in_the_contract(data_type):
    message = encoded(np.zeros(2, data_type.value))
    assert (
        message.data_type
        == Tensor.DESCRIPTOR.fields_by_name["data_type"]
        .enum_type.values_by_name[f"DATA_TYPE_{data_type.name}"]
        .number
    )
    assert decode_tensor(message).dtype == np.dtype(data_type.value)


@pytest.mark.parametrize("encoding", Encoding)
def test_encodings_are_numbered_as_in_the_contract(encoding):
    message = encoded(Encoded(np.zeros(2, np.float32), encoding))
    numbers = Tensor.DESCRIPTOR.fields_by_name["encoding"].enum_type.values_by_name
    assert message.encoding == numbers[f"ENCODING_{encoding.name}"].number


@pytest.mark.parametrize(
    ("encoding", "number", "error"), [(Encoding.FLOAT16, 2, 2**-11), (Encoding.BFLOAT16, 3, 2**-8)]
)
def test_half_precision_travels_in_half_and_comes_back_float32(encoding, number, error):
    array = np.linspace(-3, 3, 100, dtype=np.float32).reshape(4, 25)
    message = encoded(Encoded(array, encoding))
    assert (len(message.data), message.encoding, message.data_type) == (200, number, 1)
    came = decode_tensor(message)
    assert came.dtype == np.float32
    np.testing.assert_allclose(came, array, rtol=error)
    assert (came != array).any()
    assert same(decode_tensor(encoded(Encoded(came, encoding))), came)
    assert same(decode_tensor(encoded(Encoded(array, Encoding.RAW))), array)


def test_nan_and_inf_travel_in_half():
    array = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    for encoding in (Encoding.FLOAT16, Encoding.BFLOAT16):
        came = decode_tensor(encoded(Encoded(array, encoding)))
        np.testing.assert_array_equal(came, array)
        assert np.signbit(came[3])


def test_only_float32_travels_as_float16():
    with pytest.raises(InvalidTensor, match="'w': only float32 travels as float16; it is float64"):
        encoded(Encoded(np.zeros(2), Encoding.FLOAT16))


@pytest.mark.parametrize("dtype", [np.complex64, np.datetime64, ">f4", "U2"])
def test_dtypes_that_do_not_travel_are_refused_by_name(dtype):
    with pytest.raises(InvalidTensor, match="'w' has dtype"):
        encoded(np.zeros(2, dtype))


GOOD = {"name": "w", "data_type": 1, "shape": [2], "data": b"12345678"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data_type": 0}, "data type 0"),
        ({"data_type": 99}, "data type 99"),
        ({"encoding": 7}, "encoding 7"),
        ({"encoding": 2, "data_type": 2}, "only float32 travels as float16"),
        ({"encoding": 3, "data_type": 8}, "only float32 travels as bfloat16"),
        ({"encoding": 2}, "4 bytes, but 8 came"),
        ({"shape": [3]}, "12 bytes, but 8 came"),
        ({"shape": []}, "4 bytes, but 8 came"),
        ({"shape": [-2]}, "not a shape"),
        ({"shape": [-1, -2]}, "not a shape"),
        ({"shape": [1] * 9}, "at most 8 dimensions"),
        ({"shape": [2**40]}, "but 8 came"),
        ({"shape": [2**62, 2**62, 2**62]}, "but 8 came"),
        ({"shape": [2**63 - 1, 2]}, "but 8 came"),
        ({"shape": [0, 2**62], "data": b""}, "too large in its other dimensions"),
        ({"shape": [2**40, 0], "data": b""}, "too large in its other dimensions"),
        ({"shape": [2**20, 2**20, 0], "data": b""}, "too large in its other dimensions"),
        ({"data_type": 7, "shape": [3], "data": b"\0\1\2"}, "0 or 1"),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(change, says):
    with pytest.raises(InvalidTensor) as caught:
        decode_tensor(Tensor(**{**GOOD, **change}))
    assert caught.value.message.startswith("w: ")
    assert says in caught.value.message


def test_empty_tensors_of_a_sensible_shape_pass():
    for shape in ([0], [0, 8, 64], [3, 0], [0] * 8):
        assert decode_tensor(Tensor(data_type=1, shape=shape)).shape == tuple(shape)


@given(arrays().filter(lambda a: a.size and a.dtype != bool))
def test_one_flipped_bit_is_data_loss(array):
    message = encoded(array)
    message.crc32 = zlib.crc32(message.data)
    assert same(array, decode_tensor(message))
    message.data = bytes([message.data[0] ^ 1]) + message.data[1:]
    with pytest.raises(Damaged, match="w: the checksum"):
        decode_tensor(message)


def test_a_checksum_is_optional_and_zero_is_one():
    assert decode_tensor(Tensor(**GOOD)).shape == (2,)
    with pytest.raises(Damaged):
        decode_tensor(Tensor(**GOOD, crc32=0))


def test_nan_passes_here_and_is_refused_where_finite_is_required():
    came = decode_tensor(encoded(np.array([1, np.nan, np.inf], np.float32)))
    assert np.isnan(came[1])
    with pytest.raises(InvalidTensor, match=r"w holds nan at \[1\]"):
        require(came, "w", shape=(3,))


def test_a_long_name_does_not_make_a_long_error():
    with pytest.raises(EdgeAttentionError) as caught:
        decode_tensor(Tensor(name="x" * 100_000))
    assert len(caught.value.message) < 300
