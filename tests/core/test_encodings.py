"""Encodings of updates: ranges decode as the whole does, errors are bounded, bad input is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_attention.core.encodings import UpdateEncoding, from_config
from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.tensors import Encoding

EVERY = [
    from_config("float32"),
    from_config("float16"),
    from_config("bfloat16"),
    from_config("int8"),
    from_config("int8", block=7),
    from_config("topk"),
    from_config("topk", fraction=0.3),
    from_config("topk", fraction=1),
]
every = pytest.mark.parametrize("encoding", EVERY, ids=repr)

arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    elements=st.floats(-100, 100, width=32) | st.sampled_from([0.0, -0.0, 1e-45, 1e-40, 3.0, -3.0]),
)


@given(st.sampled_from(EVERY), arrays, st.data())
@settings(max_examples=300)
def test_any_range_decodes_as_the_whole_does(encoding: UpdateEncoding, array, data):
    tensors = encoding.encode_array(3, array)
    specs = encoding.specs(3, array.shape)
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == specs
    assert tuple(specs) == encoding.parts(3)
    whole = encoding.decode_array(3, array.shape, tensors)
    assert (whole.dtype, whole.shape) == (np.float32, array.shape)

    asked = []

    def read(name, start, stop):
        flat = tensors[name].reshape(-1)
        assert 0 <= start <= stop <= flat.size
        asked.append(stop - start)
        return flat[start:stop]

    start = data.draw(st.integers(0, array.size))
    stop = data.draw(st.integers(start, array.size))
    piece = encoding.decode(3, array.shape, read, start, stop)
    assert piece.dtype == np.float32
    assert piece.tobytes() == whole.reshape(-1)[start:stop].tobytes()
    # As much is read as the range needs, whatever the size of the parameter.
    assert max(asked) <= max(1, stop - start)


@given(st.sampled_from(EVERY), arrays)
def test_what_is_lost_is_bounded(encoding: UpdateEncoding, array):
    decoded = encoding.decode_array(0, array.shape, encoding.encode_array(0, array))
    error = np.abs(decoded.astype(np.float64) - array).reshape(-1)
    size = np.abs(array.astype(np.float64)).reshape(-1)
    if encoding.name == "int8":
        for at in range(0, array.size, encoding.block):
            block = slice(at, at + encoding.block)
            # Half a step; a scale among the subnormals is itself rounded, by half of the smallest number.
            assert error[block].max() <= size[block].max() * (0.5 / 127 + 1e-6) + 127 * 2.0**-149
    elif encoding.name == "topk":
        k = encoding.kept(array.size)
        # The k largest arrive as they are, the others not at all.
        np.testing.assert_array_equal(np.sort(error)[k:], np.sort(size)[: array.size - k])
        assert (np.sort(error)[:k] == 0).all()
    else:
        bound = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[encoding.name]
        smallest = {"float32": 0, "float16": 2.0**-25, "bfloat16": 2.0**-134}[encoding.name]
        assert (error <= size * bound + smallest).all()


def test_int8_by_hand():
    array = np.array([127, -63.5, 0.4, 0.6, 2.54, -1.27], np.float32)
    tensors = from_config("int8", block=4).encode_array(0, array)
    np.testing.assert_array_equal(tensors["update/0/q"], [127, -64, 0, 1, 127, -64, 0, 0])
    np.testing.assert_allclose(tensors["update/0/scale"], [1, 0.02], rtol=1e-6)


def test_topk_by_hand_and_of_equals_the_first():
    array = np.array([[1, -3, 0], [3, 2, -3]], np.float32)
    tensors = from_config("topk", fraction=0.5).encode_array(2, array, "difference")
    np.testing.assert_array_equal(tensors["difference/2/indices"], [1, 3, 5])
    np.testing.assert_array_equal(tensors["difference/2/values"], [-3, 3, -3])
    two = from_config("topk", fraction=0.3).encode_array(2, array)
    np.testing.assert_array_equal(two["update/2/indices"], [1, 3])


def test_how_many_travel():
    kept = from_config("topk", fraction=0.1).kept
    assert [kept(n) for n in (0, 1, 10, 11, 30, 1000)] == [0, 1, 1, 2, 3, 100]
    assert from_config("topk", fraction=1e-9).kept(1_000_000) == 1


def test_feedback_and_wire():
    assert {e.name: e.feedback for e in EVERY} == {
        "float32": False, "float16": False, "bfloat16": False, "int8": True, "topk": True,
    }  # fmt: skip
    assert not from_config("int8", feedback=False).feedback
    assert not from_config("topk", feedback=0.0).feedback
    assert [from_config(n).wire for n in ("float16", "bfloat16", "int8", "float32")] == [
        Encoding.FLOAT16,
        Encoding.BFLOAT16,
        Encoding.RAW,
        Encoding.RAW,
    ]


@every
def test_options_make_the_same_again(encoding: UpdateEncoding):
    as_doubles = {name: float(value) for name, value in encoding.options.items()}
    again = from_config(encoding.name, **as_doubles)
    assert again == encoding
    assert [type(v) for v in again.options.values()] == [type(v) for v in encoding.options.values()]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("int4", {}, "there is no encoding 'int4'; there are bfloat16, float16, float32, int8, topk"),
        ("float32", {"block": 1}, "float32 has no option 'block'; it has none"),
        ("int8", {"fraction": 0.1}, "int8 has no option 'fraction'; it has block, feedback"),
        ("int8", {"block": 0}, "option block of encoding int8 is 0"),
        ("int8", {"block": 2.5}, "whole number"),
        ("int8", {"block": 2**40}, "1048576 at most"),
        ("int8", {"block": math.nan}, "whole number"),
        ("int8", {"block": True}, "whole number"),
        ("int8", {"feedback": 2}, "true or false"),
        ("topk", {"fraction": 0}, "above 0"),
        ("topk", {"fraction": 1.5}, "1 at most"),
        ("topk", {"fraction": math.nan}, "above 0"),
        ("topk", {"fraction": "much"}, "above 0"),
        ("topk", {"feedback": "no"}, "true or false"),
    ],
)
def test_what_is_no_encoding_is_refused(name, options, says):
    with pytest.raises(InvalidArgument) as caught:
        from_config(name, **options)
    assert says in caught.value.message


@pytest.mark.parametrize("indices", [[2, 1, 3], [1, 1, 2], [-1, 1, 2], [1, 2, 10], [0, 5, -(2**31)]])
def test_indices_that_are_none_are_refused(indices):
    encoding = from_config("topk", fraction=0.3)
    tensors = {"update/0/indices": np.array(indices, np.int32), "update/0/values": np.ones(3, np.float32)}
    with pytest.raises(InvalidTensor, match="update/0/indices must increase from 0 or more to below 10"):
        encoding.decode_array(0, (10,), tensors)


@given(hnp.arrays(np.int32, 5, elements=st.integers(-50, 50)), st.integers(0, 20), st.integers(0, 20))
def test_no_indices_make_more_than_an_error(indices, a, b):
    encoding = from_config("topk", fraction=0.25)
    tensors = {"update/0/indices": indices, "update/0/values": np.ones(5, np.float32)}
    start, stop = sorted((a, b))

    def read(name, i, j):
        assert 0 <= i <= j <= 5
        return tensors[name][i:j]

    try:
        piece = encoding.decode(0, (20,), read, start, stop)
    except InvalidTensor:
        return
    assert piece.shape == (stop - start,)
    assert set(np.flatnonzero(piece) + start) <= set(indices.tolist())


def test_numbers_that_are_not_finite_come_through():
    encoding = from_config("int8", block=2)
    tensors = {"update/0/q": np.ones(4, np.int8), "update/0/scale": np.array([1, np.nan], np.float32)}
    assert np.isnan(encoding.decode_array(0, (4,), tensors)).tolist() == [False, False, True, True]
