"""What a session's encoder is asked, of what callers give."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator.inference.decoding.encoder_inputs import encoder_feeds, states_of
from edge_attention.core.errors import FailedPrecondition, InvalidTensor
from edge_attention.core.messages.inference import ModelTensor
from edge_attention.core.tensors import DataType

TEXT = (
    ModelTensor("input_ids", DataType("int64"), ("batch", "tokens")),
    ModelTensor("attention_mask", DataType("int64"), ("batch", "tokens")),
)
SOUND = (ModelTensor("input_features", DataType("float32"), ("batch", "8", "24")),)


def test_tokens_come_with_their_mask_and_are_padded_where_the_encoder_is_cut():
    feeds = encoder_feeds(TEXT, {}, [5, 6, 7], padded=True)
    assert feeds.tokens == 3
    assert feeds.arrays["input_ids"].tolist() == [[5, 6, 7, *[0] * 13]]
    assert feeds.arrays["attention_mask"].tolist() == [[1] * 3 + [0] * 13]
    whole = encoder_feeds(TEXT, {}, [5, 6, 7], padded=False)
    assert whole.tokens is None
    assert whole.arrays["input_ids"].shape == whole.arrays["attention_mask"].shape == (1, 3)
    assert encoder_feeds(TEXT, {}, range(16), padded=True).tokens is None
    for count, padded in ((17, 32), (513, 1024), (1025, 1536)):
        assert encoder_feeds(TEXT, {}, [1] * count, padded=True).arrays["input_ids"].shape == (1, padded)
    alone = encoder_feeds(TEXT[:1], {}, [5, 6, 7], padded=True)
    assert alone.arrays["input_ids"].shape == (1, 3), "nothing could hide what is behind"


def test_arrays_are_one_row_of_what_the_encoder_takes():
    features = np.zeros((8, 24), np.float64)
    found = encoder_feeds(SOUND, {"input_features": features}, (), padded=True)
    assert found.arrays["input_features"].shape == (1, 8, 24)
    assert found.arrays["input_features"].dtype == np.float32
    given = {"input_ids": np.array([[1, 2]], np.int32), "attention_mask": np.ones((1, 2), np.int64)}
    assert encoder_feeds(TEXT, given, (), padded=True).tokens == 2
    for inputs, given, error, why in (
        (SOUND, {}, FailedPrecondition, "give inputs"),
        (SOUND, {"mel": features}, InvalidTensor, "no input 'mel'"),
        (SOUND, {"input_features": np.zeros((2, 8, 24), np.float32)}, InvalidTensor, "one row"),
        (SOUND, {"input_features": np.zeros((8, 25), np.float32)}, InvalidTensor, "one row"),
        (SOUND, {"input_features": np.zeros((8, 24), np.int64)}, InvalidTensor, "takes float32"),
        (
            TEXT,
            {"attention_mask": np.ones((1, 2), np.int64)},
            InvalidTensor,
            "'input_ids' of the encoder lacks",
        ),
        (TEXT, {"input_ids": [[1, 2]], "attention_mask": [[1, 0]]}, InvalidTensor, "without padding"),
        (TEXT, {"input_ids": np.zeros((1, 0), np.int64)}, InvalidTensor, "one row"),
    ):
        with pytest.raises(error, match=why):
            encoder_feeds(inputs, given, (), padded=True)


def test_numbers_that_do_not_fit_are_refused_and_not_cut_off():
    short = (ModelTensor("input_ids", DataType("int32"), ("batch", "tokens")),)
    for wrong in (2**32 + 5, -(2**31) - 1):
        with pytest.raises(InvalidTensor, match="int32"):
            encoder_feeds(short, {"input_ids": np.array([[1, wrong]])}, (), padded=False)
    found = encoder_feeds(short, {"input_ids": np.array([[1, 2**31 - 1]])}, (), padded=False)
    assert found.arrays["input_ids"].tolist() == [[1, 2**31 - 1]]


def test_what_an_encoder_made_is_its_first_output_of_three_dimensions():
    made = np.arange(24, dtype=np.float32).reshape(1, 6, 4)
    results = {"pooled": np.zeros((1, 4), np.float32), "last_hidden_state": made}
    assert np.array_equal(states_of(results, 5), made[0, :5])
    assert np.array_equal(states_of(results, None), made[0])
    with pytest.raises(FailedPrecondition, match="no output"):
        states_of({"pooled": np.zeros((1, 4), np.float32)}, None)
