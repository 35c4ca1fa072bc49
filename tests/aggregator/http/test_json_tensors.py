"""Tensors in JSON: what is taken, what is refused, and that what is written says the same."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.http.json_tensors import (
    ELEMENTS_A_PIECE,
    _once,
    array_of_json,
    json_pieces,
    require_json,
    strict_json,
)
from edge_attention.core.datatypes import NUMPY
from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.messages.open_inference import Datatype

NUMBERS = [one for one in Datatype if one not in (Datatype.BYTES, Datatype.FP16, Datatype.BF16)]


@given(st.sampled_from(NUMBERS), st.lists(st.integers(1, 4), max_size=3), st.booleans(), st.randoms())
def test_what_is_written_reads_as_it_was(datatype, shape, nested, random):
    dtype = NUMPY[datatype]
    array = np.frombuffer(random.randbytes(8 * int(np.prod(shape))), np.uint8)
    array = array[: int(np.prod(shape))].astype(np.int64).reshape(shape)
    array = (array % 2 == 1) if dtype == np.bool_ else array.astype(dtype)
    written = b"".join(json_pieces(datatype.value, array))
    data = array.tolist() if nested and shape else json.loads(written)
    read = array_of_json("x", datatype.value, tuple(shape), data)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


def test_long_arrays_come_in_pieces_and_are_whole():
    array = np.arange(3 * ELEMENTS_A_PIECE + 5)
    pieces = list(json_pieces("INT64", array))
    assert len(pieces) == 4 + 2
    assert json.loads(b"".join(pieces)) == array.tolist()
    assert b"".join(json_pieces("FP32", np.zeros(0, np.float32))) == b"[]"


def test_texts_are_bytes_in_utf_8():
    read = array_of_json("x", "BYTES", (2, 1), [["ä"], [""]])
    assert read.tolist() == [["ä".encode()], [b""]]
    assert json.loads(b"".join(json_pieces("BYTES", read))) == ["ä", ""]
    with pytest.raises(InvalidTensor, match="lone surrogate"):
        array_of_json("x", "BYTES", (1,), ["\ud800"])
    with pytest.raises(InvalidArgument, match=r"no UTF-8.*binary_data"):
        require_json("y", "BYTES", np.array([b"\xff"], object))


@pytest.mark.parametrize(
    ("datatype", "data", "why"),
    [
        ("INT8", [128], "128 does not fit in INT8"),
        ("INT8", [-129], "-129 does not fit in INT8"),
        ("UINT8", [-1], "-1 does not fit in UINT8"),
        ("INT64", [1 << 63], "does not fit in INT64"),
        ("UINT64", [10**40], "a number of 41 digits does not fit"),
        ("INT32", [1.0], "has 1.0; it takes whole numbers"),
        ("INT32", [True], "has true or false; it takes whole numbers"),
        ("INT32", ["1"], "has a string"),
        ("INT32", [None], "has null"),
        ("BOOL", [1], "has 1; it takes true or false"),
        ("FP32", [1e39], "a number that does not fit in FP32"),
        ("FP64", [float("inf")], "does not fit in FP64"),
        ("FP64", [10**400], "does not fit in FP64"),
        ("FP32", [True], "has true or false"),
        ("FP32", [[1.0]], "has a list"),
        ("BYTES", [1], "has 1; it takes strings"),
        ("FP16", [1.0], "sending FP16 data via JSON is not supported"),
        ("BF16", [1.0], "sending BF16 data via JSON is not supported"),
        ("FLOAT", [1.0], "none of the protocol"),
        ("FP32", 1.0, "has 1.0, and needs a list"),
        ("FP32", [], "Shape does not match true shape of 'data' field"),
        ("FP32", [1, 2], "Shape does not match true shape of 'data' field"),
    ],
)
def test_what_a_datatype_does_not_hold_is_refused(datatype, data, why):
    with pytest.raises(InvalidTensor, match=re.escape(why)):
        array_of_json("x", datatype, (1,), data)


@pytest.mark.parametrize(
    "data",
    [[[1, 2], [3]], [[1, 2]], [[1], [2], [3], [4]], [1, [2], 3, 4], [[[1], [2]], [[3], [4]]], [[1, 2], 3]],
)
def test_lists_in_lists_are_as_the_shape_says(data):
    with pytest.raises(InvalidTensor, match="'x'"):
        array_of_json("x", "INT32", (2, 2), data)
    assert array_of_json("x", "INT32", (2, 2), [[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    assert array_of_json("x", "INT32", (2, 2), [1, 2, 3, 4]).tolist() == [[1, 2], [3, 4]]


def test_a_scalar_is_one_element():
    assert array_of_json("x", "FP32", (), [2.5]).shape == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "at 1"),
        (b"", "it is empty"),
        (b"[1,,2]", "at 3"),
        (b"[01]", "at 2"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b'{"a":1,"a":2}', "'a' is there twice"),
        (b"\xff", "no UTF-8 at byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "more digits than any datatype holds"),
    ],
)
def test_json_is_read_strictly(text, why):
    with pytest.raises(InvalidArgument, match=rf"the body: .*{re.escape(why)}"):
        strict_json(text, "the body")


def test_outputs_that_json_cannot_say_are_refused():
    for value in (np.nan, np.inf):
        with pytest.raises(InvalidArgument, match=r"NaN or infinity.*binary_data"):
            require_json("y", "FP32", np.array([1, value], np.float32))
    with pytest.raises(InvalidArgument, match="FP16 data via JSON"):
        require_json("y", "FP16", np.zeros(1, np.float16))
    require_json("y", "FP64", np.array([1e308]))


def test_each_name_of_an_object_is_looked_at_once():
    class Name(str):
        compared = 0

        def __eq__(self, other):
            Name.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    pairs = [(Name(f"n{number}"), number) for number in range(2000)]
    assert len(_once(pairs)) == 2000
    with pytest.raises(ValueError, match="'n1999' is there twice"):
        _once([*pairs, (Name("n1999"), 0)])
    assert Name.compared < 10 * len(pairs)
