"""A decoder answers what the model does whose weights it has, however its tokens come."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.demo.local_decoder import LocalDecoder
from edge_attention.graphs.builders import attention_decoder, attention_sequences

LENGTH = 24


def trained():
    file = attention_sequences(40, LENGTH, 24, 3, 2, causal=True, rotary=True, hidden=32, seed=3)
    return file, {
        one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(file).graph.initializer
    }


def test_it_answers_what_the_model_answers_in_any_pieces():
    file, weights = trained()
    assert "positions" not in weights
    ids = np.random.default_rng(0).integers(0, 40, LENGTH)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {"tokens": ids[None]})
    decoder = LocalDecoder(attention_decoder(weights, 3))
    np.testing.assert_allclose(decoder.extend(ids), expected[0], atol=1e-5)
    decoder.restart()
    found = [decoder.extend(ids[start:stop]) for start, stop in ((0, 7), (7, 8), (8, 20))]
    decoder.extend(np.array([1, 2, 3]))
    decoder.truncate(20)
    found.append(decoder.extend(ids[20:]))
    np.testing.assert_allclose(np.concatenate(found), expected[0], atol=1e-5)


def test_what_cannot_be_a_decoder_is_refused():
    _, weights = trained()
    with pytest.raises(InvalidGraph, match=r"blocks\.1\.attention\.query\.weight"):
        attention_decoder({k: v for k, v in weights.items() if k != "blocks.1.attention.query.weight"}, 3)
    with pytest.raises(InvalidGraph, match="5 heads"):
        attention_decoder(weights, 5)
    with pytest.raises(InvalidGraph, match="turn"):
        attention_sequences(40, LENGTH, 24, 3, 2, classes=3, rotary=True)
    with pytest.raises(InvalidGraph, match="turn"):
        attention_sequences(40, LENGTH, 27, 3, 2, causal=True, rotary=True)
