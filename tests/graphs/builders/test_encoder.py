"""A BERT encoder built of given weights is BERT, as float64 arithmetic written out says it."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.tensors import Array
from edge_attention.graphs.builders.encoder import attention_encoder

WIDTH, HEADS, INNER, LAYERS, WORDS, PLACES = 12, 3, 20, 2, 30, 16


def weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.position_embeddings.weight": (PLACES, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{name}.attention.{part}.weight"] = (WIDTH, WIDTH)
        shapes[f"{name}.intermediate.dense.weight"] = (INNER, WIDTH)
        shapes[f"{name}.output.dense.weight"] = (WIDTH, INNER)
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for name, shape in list(shapes.items()):
        if name.startswith("encoder"):
            shapes[name.replace("weight", "bias")] = shape[:1]
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (WIDTH,)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def bert(given: dict[str, Array], ids: Array, seen: Array) -> Array:
    """The encoder in float64."""
    w = {name: value.astype(np.float64) for name, value in given.items()}
    erf = np.vectorize(math.erf)

    def linear(name: str, x: Array) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], HEADS, WIDTH // HEADS).transpose(0, 2, 1, 3)

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x + w["embeddings.position_embeddings.weight"][: ids.shape[1]])
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q, k, v = (split(linear(f"{name}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(WIDTH // HEADS)
        p = np.exp(scores - scores.max()) * seen[:, None, None, :]
        mixed = (p / p.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(f"{name}.attention.output.LayerNorm", x + linear(f"{name}.attention.output.dense", mixed))
        inner = linear(f"{name}.intermediate.dense", x)
        inner = inner * (1 + erf(inner / math.sqrt(2))) / 2
        x = norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", inner))
    return x


def test_it_is_bert_at_any_length_and_with_a_mask() -> None:
    given = weights()
    session = onnxruntime.InferenceSession(attention_encoder(given, HEADS))
    for tokens in (5, PLACES):
        ids = np.random.default_rng(tokens).integers(0, WORDS, (2, tokens))
        seen = np.ones((2, tokens), np.int64)
        seen[1, tokens // 2 :] = 0
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": seen})
        expected = bert(given, ids, seen)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_sentence_is_the_mean_of_its_real_tokens_at_length_one() -> None:
    given = weights()
    session = onnxruntime.InferenceSession(attention_encoder(given, HEADS, sentences=True))
    ids = np.random.default_rng(1).integers(0, WORDS, (2, 7))
    seen = np.ones((2, 7), np.int64)
    seen[0, 3:] = 0
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": seen})
    tokens = bert(given, ids, seen)
    expected = np.stack([tokens[0, :3].mean(0), tokens[1].mean(0)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(found - expected).max() < 1e-5


def test_weights_of_something_else_are_refused_by_name() -> None:
    given = weights()
    del given["encoder.layer.1.output.dense.bias"]
    with pytest.raises(InvalidGraph, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        attention_encoder(given, HEADS)
    with pytest.raises(InvalidGraph, match="12 is no multiple of 5 heads"):
        attention_encoder(weights(), 5)
