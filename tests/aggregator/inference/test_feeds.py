"""Inputs of a request in pieces: what a caller says of them is checked before room is made for it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.bounds.bounds import INFERENCE_BYTES
from aggregator.bounds.budget import Budgets
from aggregator.inference.feeds import (
    Feeds,
    pieces,
    require_given,
    require_inputs,
    require_looked_up,
    shape_key,
    shape_text,
)
from edge_attention.core.errors import InvalidArgument, InvalidTensor, Overloaded, ResourceExhausted
from edge_attention.core.messages.inference import ModelTensor, TensorPiece
from edge_attention.core.tensors import DataType

IDS = ModelTensor("ids", DataType.INT64, ("batch", "tokens"))
MASK = ModelTensor("mask", DataType.BOOL, ("batch", "tokens"))
IMAGE = ModelTensor("image", DataType.FLOAT32, ("?", "3"))


def feeds(*inputs, joined=None):
    return Feeds(inputs, Budgets().take(INFERENCE_BYTES, "somebody", 0), joined)


def piece(array, name="ids", offset=0, data=None, shape=None):
    data = array.tobytes() if data is None else data
    return TensorPiece(name, DataType.of(array.dtype), array.shape if shape is None else shape, offset, data)


@given(st.integers(1, 3), st.integers(1, 400_000))
def test_what_goes_in_pieces_comes_as_it_was(rows, columns):
    arrays = {
        "ids": np.arange(rows * columns).reshape(rows, columns),
        "mask": np.arange(rows * columns).reshape(rows, columns) % 3 == 0,
    }
    taken = feeds(IDS, MASK)
    for one in pieces(arrays):
        taken.take(one)
    found = taken.arrays()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


@pytest.mark.parametrize(
    ("one", "error", "words"),
    [
        (piece(np.zeros((1, 2), np.int64), "idz"), InvalidTensor, "no input 'idz'; its inputs: ids"),
        (piece(np.zeros((1, 2), np.int32)), InvalidTensor, r"is int32; .* int64 \[batch, tokens\]"),
        (piece(np.zeros(2, np.int64)), InvalidTensor, r"is \[2\]; the model wants int64"),
        (piece(np.zeros((0, 2), np.int64)), InvalidArgument, "empty"),
        (piece(np.zeros((1, 2), np.int64), shape=(-1, 2)), InvalidTensor, "no shape"),
        (piece(np.zeros((1, 2), np.int64), shape=(1,) * 9), InvalidTensor, "no shape"),
        (piece(np.zeros((1, 2), np.int64), offset=8), InvalidTensor, "in order"),
        (piece(np.zeros((1, 2), np.int64), data=b"x" * 17), InvalidTensor, "in order"),
        (piece(np.zeros((1, 2), np.int64), shape=(1 << 20, 1 << 20)), ResourceExhausted, "infer-bytes"),
    ],
)
def test_what_does_not_fit_is_refused(one, error, words):
    with pytest.raises(error, match=words):
        feeds(IDS).take(one)


@pytest.mark.parametrize("name", ["cache_k0", "memory"])
def test_what_the_model_joins_something_to_is_empty_along_that_axis_alone(name):
    past = ModelTensor(name, DataType.FLOAT32, ("batch", "past", "32"))
    taken = feeds(past, joined={"cache_k0": 1})
    if name == "memory":
        with pytest.raises(InvalidArgument, match="is empty"):
            taken.take(piece(np.zeros((2, 0, 32), np.float32), name))
        return
    taken.take(piece(np.zeros((2, 0, 32), np.float32), name))
    assert taken.arrays()[name].shape == (2, 0, 32)
    with pytest.raises(InvalidArgument, match="is empty"):
        feeds(past, joined={"cache_k0": 1}).take(piece(np.zeros((0, 3, 32), np.float32), name))


def test_a_past_that_has_not_begun_is_empty():
    past = ModelTensor("past_key_values.0.key", DataType.FLOAT32, ("batch", "4", "past", "8"))
    taken = feeds(past)
    taken.take(piece(np.zeros((2, 4, 0, 8), np.float32), past.name))
    assert taken.arrays()[past.name].shape == (2, 4, 0, 8)
    with pytest.raises(InvalidArgument, match="empty"):
        feeds(past).take(piece(np.zeros((0, 4, 3, 8), np.float32), past.name))


def test_a_fixed_size_is_the_models():
    with pytest.raises(InvalidTensor, match=r"\[2, 4\]; the model wants float32 \[\?, 3\]"):
        feeds(IMAGE).take(piece(np.zeros((2, 4), np.float32), "image"))


def test_what_lacks_is_named():
    taken = feeds(IDS, MASK)
    taken.take(piece(np.zeros((1, 2), np.int64), data=b"x" * 9))
    with pytest.raises(InvalidTensor, match="9 of 16 bytes"):
        taken.arrays()
    with pytest.raises(InvalidTensor, match=r"'ids' .* is missing"):
        feeds(IDS).arrays()


def test_a_bool_is_0_or_1():
    taken = feeds(MASK)
    taken.take(piece(np.zeros((1, 2), np.bool_), "mask", data=b"\x01\x02"))
    with pytest.raises(InvalidTensor, match="0 or 1"):
        taken.arrays()


def test_room_is_asked_for_before_it_is_made():
    budgets = Budgets()
    kept = budgets.take(INFERENCE_BYTES, None, INFERENCE_BYTES.total - 100)
    with pytest.raises(Overloaded, match="inference-bytes"):
        Feeds([IDS], budgets.take(INFERENCE_BYTES, "a", 0)).take(piece(np.zeros((1, 100), np.int64)))
    kept.give_back()


def test_a_dimension_of_one_name_has_one_size():
    arrays = {"ids": np.zeros((1, 2), np.int64), "mask": np.zeros((1, 3), np.bool_)}
    with pytest.raises(InvalidTensor, match="'tokens' is 2 in input 'ids' and 3 in axis 1 of 'mask'"):
        require_inputs([IDS, MASK], arrays)


def test_a_shape_has_one_key_whatever_the_order():
    shapes = {"ids": (1, 128), "mask": (1, 128)}
    assert shape_key(shapes) == shape_key(dict(reversed(shapes.items()))) == "1x128.1x128"
    assert shape_key({"ids": (1, 64)}) != shape_key({"ids": (16, 4)})
    many = {f"input{i}": (1, 128, i) for i in range(40)}
    assert len(shape_key(many)) < 20
    assert shape_text(shapes) == "ids [1, 128], mask [1, 128]"


def test_shapes_in_words_are_so_long_at_most():
    assert len(shape_text({f"{number}{'n' * 500}": (1, 2) for number in range(9)})) == 1000
    assert shape_text({"ids": (1, 2), "mask": ()}) == "ids [1, 2], mask []"


def test_the_step_of_a_file_that_was_not_cut_is_refused_with_what_to_send():
    require_given({"use_cache": True}, {"use_cache": np.array([True])})
    with pytest.raises(InvalidTensor, match=r"'use_cache' is false, .* send true, with a past of 0 tokens"):
        require_given({"use_cache": True}, {"use_cache": np.array([False])})
    with pytest.raises(InvalidTensor, match=r"'no_past' is true, .* send false"):
        require_given({"no_past": False}, {"no_past": np.array([True])})


def test_fewer_logits_than_a_model_is_cut_for_are_refused():
    require_given({"num_logits_to_keep": 0}, {"num_logits_to_keep": np.array(0)})
    for count in (np.array(1), np.array([1])):
        with pytest.raises(InvalidTensor, match="'num_logits_to_keep' is 1, and the model is cut for 0"):
            require_given({"num_logits_to_keep": 0}, {"num_logits_to_keep": count})


def test_numbers_beyond_the_rows_that_they_look_up_are_named_with_their_place():
    ids = np.array([[1, -7, 6], [0, 7, 99]])
    require_looked_up({"ids": 100}, {"ids": ids})
    require_looked_up({"ids": 7}, {"ids": ids[:1], "mask": ids})
    with pytest.raises(InvalidTensor, match=r"'ids' is 7 at \[1, 1\], .* looks up 7 rows, 0 to 6"):
        require_looked_up({"ids": 7}, {"ids": ids})
    with pytest.raises(InvalidTensor, match=r"'ids' is -7 at \[0, 1\]"):
        require_looked_up({"ids": 6}, {"ids": ids})


def test_numbers_that_are_all_wrong_take_less_memory_to_refuse_than_they_have():
    ids = np.full((1, 1 << 18), 99)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidTensor, match=r"'ids' is 99 at \[0, 0\]"):
            require_looked_up({"ids": 7}, {"ids": ids})
        assert tracemalloc.get_traced_memory()[1] < ids.nbytes
    finally:
        tracemalloc.stop()
