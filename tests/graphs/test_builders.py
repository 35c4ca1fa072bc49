"""The builders of whole models against plain float64 NumPy: forward pass, gradients, what a model may see."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.builders import attention_patches, attention_rows, attention_sequences
from edge_attention.graphs.gradients.gradients import differentiate

Array = NDArray[Any]
Parameters = dict[str, Array]
BATCH = 3

MODELS: dict[str, Callable[[], bytes]] = {
    "rows": lambda: attention_rows(5, 4, dim=6, heads=2, blocks=1, seed=1),
    "patches": lambda: attention_patches(4, 6, 2, 3, dim=8, heads=2, blocks=2, hidden=5, seed=2),
    "sequences": lambda: attention_sequences(9, 5, 8, 4, 1, classes=3, hidden=7, seed=3),
    "causal": lambda: attention_sequences(9, 5, 8, 2, 2, causal=True, hidden=6, seed=4),
}
HEADS = {"rows": 2, "patches": 2, "sequences": 4, "causal": 2}


def sample(kind: str) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    if kind == "rows":
        return {"features": rng.standard_normal((BATCH, 5)).astype(np.float32)}
    if kind == "patches":
        return {"image": rng.standard_normal((BATCH, 4, 6)).astype(np.float32)}
    return {"tokens": rng.integers(9, size=(BATCH, 5))}


def run(graph: bytes, feeds: dict[str, Array], *outputs: str) -> list[Array]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return list(session.run(list(outputs), feeds))


def parameters(graph: bytes) -> Parameters:
    tensors = onnx.load_model_from_string(graph).graph.initializer
    return {t.name: numpy_helper.to_array(t) for t in tensors if t.data_type == TensorProto.FLOAT}


# The same models, plainly, in float64.


def dense(p: Parameters, name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"]


def normed(p: Parameters, name: str, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / spread * p[f"{name}.gain"] + p[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attended(p: Parameters, name: str, x: Array, heads: int, causal: bool) -> tuple[Array, Array]:
    """x [B, T, dim]; each head on its own slice of the channels."""
    q, k, v = (dense(p, f"{name}.{part}", x) for part in ("query", "key", "value"))
    size, out, weights = x.shape[2] // heads, [], []
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        scores = q[:, :, mine] @ k[:, :, mine].swapaxes(1, 2) / math.sqrt(size)
        if causal:
            scores[:, ~np.tri(x.shape[1], dtype=bool)] = -np.inf
        share = np.exp(scores - scores.max(axis=2, keepdims=True))
        share /= share.sum(axis=2, keepdims=True)
        weights.append(share)
        out.append(share @ v[:, :, mine])
    return dense(p, f"{name}.output", np.concatenate(out, axis=2)), np.stack(weights, axis=1)


def reference(kind: str, p: Parameters, data: Array) -> tuple[Array, Array]:
    """Logits, and the attention weights of the first block."""
    if kind == "rows":
        x = data[:, :, None] * p["columns.weight"] + p["columns.bias"]
    elif kind == "patches":
        cut = [data[:, r : r + 2, c : c + 2].reshape(len(data), 4) for r in (0, 2) for c in (0, 2, 4)]
        x = dense(p, "patches", np.stack(cut, axis=1)) + p["positions"]
    else:
        x = p["embedding"][data] + p["positions"]
    first = None
    for i in range(sum(name.endswith("attention.norm.gain") for name in p)):
        out, weights = attended(
            p,
            f"blocks.{i}.attention",
            normed(p, f"blocks.{i}.attention.norm", x),
            HEADS[kind],
            kind == "causal",
        )
        first = weights if first is None else first
        x = x + out
        inner = gelu(
            dense(p, f"blocks.{i}.feed_forward.hidden", normed(p, f"blocks.{i}.feed_forward.norm", x))
        )
        x = x + dense(p, f"blocks.{i}.feed_forward.output", inner)
    x = normed(p, "norm", x)
    assert first is not None
    return dense(p, "head", x if kind == "causal" else x.mean(axis=1)), first


def doubled(p: Parameters) -> Parameters:
    return {name: value.astype(np.float64) for name, value in p.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_forward_equals_plain_numpy(kind):
    graph, feeds = MODELS[kind](), sample(kind)
    logits, attention = run(graph, feeds, "logits", "attention")
    expected, weights = reference(kind, doubled(parameters(graph)), next(iter(feeds.values())))
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(attention, weights, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("rows", {"features": ["batch", 5], "logits": ["batch", 4], "attention": ["batch", 2, 5, 5]}),
        ("patches", {"image": ["batch", 4, 6], "logits": ["batch", 3], "attention": ["batch", 2, 6, 6]}),
        ("sequences", {"tokens": ["batch", 5], "logits": ["batch", 3], "attention": ["batch", 4, 5, 5]}),
        ("causal", {"tokens": ["batch", 5], "logits": ["batch", 5, 9], "attention": ["batch", 2, 5, 5]}),
    ],
)
def test_the_declared_shapes_have_the_batch_open(kind, shapes):
    graph = onnx.load_model_from_string(MODELS[kind]()).graph
    declared = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert declared == shapes
    for rows in (1, 8):
        feeds = {name: np.resize(value, (rows, *value.shape[1:])) for name, value in sample(kind).items()}
        assert len(run(MODELS[kind](), feeds, "logits")[0]) == rows


def lifted(graph: bytes) -> onnx.ModelProto:
    """Its parameters as inputs."""
    model = onnx.load_model_from_string(graph)
    kept = [t for t in model.graph.initializer if t.data_type != TensorProto.FLOAT]
    for name, value in parameters(graph).items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_equal_finite_differences_of_plain_numpy(kind):
    graph, feeds = MODELS[kind](), sample(kind)
    initial, data = parameters(graph), next(iter(feeds.values()))
    point = doubled(initial)
    upstream = np.random.default_rng(8).standard_normal(reference(kind, point, data)[0].shape)
    backward = differentiate(
        lifted(graph), BATCH, wrt={name: f"grad/{name}" for name in initial}, seeds={"logits": "dlogits"}
    )
    feeds |= {"dlogits": upstream.astype(np.float32)}
    needed = {value.name for value in onnx.load_model_from_string(backward).graph.input}
    given = {name: value for name, value in {**feeds, **initial}.items() if name in needed}
    found = run(backward, given, *(f"grad/{name}" for name in initial))
    scale = max(float(np.abs(gradient).max()) for gradient in found)
    upstream = feeds["dlogits"].astype(np.float64)
    rng = np.random.default_rng(9)
    for name, gradient in zip(initial, found, strict=True):
        for index in {int(np.abs(gradient).argmax()), *rng.integers(gradient.size, size=4).tolist()}:
            sides = []
            for step in (1e-5, -1e-5):
                moved = point[name].copy()
                moved.flat[index] += step
                sides.append(float((reference(kind, {**point, name: moved}, data)[0] * upstream).sum()))
            slope = (sides[0] - sides[1]) / 2e-5
            assert abs(slope - gradient.flat[index]) <= 1e-5 * scale, f"{name}[{index}]"


def test_a_causal_model_does_not_look_ahead():
    graph, tokens = MODELS["causal"](), sample("causal")["tokens"]
    before, weights = run(graph, {"tokens": tokens}, "logits", "attention")
    assert np.all(np.triu(weights, 1) == 0)
    for place in range(1, 5):
        changed = tokens.copy()
        changed[:, place] = (changed[:, place] + 1) % 9
        after = run(graph, {"tokens": changed}, "logits")[0]
        assert np.array_equal(before[:, :place], after[:, :place])
        assert np.all(np.abs(before[:, place] - after[:, place]).max(axis=1) > 1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_is_a_tensor_of_its_own(kind):
    graph = onnx.load_model_from_string(MODELS[kind]()).graph
    found = parameters(MODELS[kind]())
    assert "blocks.0.attention.query.weight" in found
    assert len({value.tobytes() for value in found.values()}) == len(found)
    uses = [name for node in graph.node for name in node.input if name in found]
    assert sorted(uses) == sorted(found)


def test_the_initial_scales():
    p = parameters(attention_sequences(200, 64, 128, 4, 2, causal=True))
    for name, scale in {
        "embedding": 128**-0.5,
        "blocks.1.attention.query.weight": 128**-0.5,
        "blocks.1.attention.output.weight": 128**-0.5 / 2,
        "blocks.0.feed_forward.output.weight": 512**-0.5 / 2,
    }.items():
        assert p[name].std() == pytest.approx(scale, rel=0.05)
    assert abs(p["norm.gain"] - 1).max() < 0.1


def test_the_same_arguments_give_the_same_bytes_in_every_process():
    code = (
        "import hashlib; from edge_attention.graphs.builders import attention_patches as build;"
        "print(hashlib.sha256(build(4, 6, 2, 3, dim=8, heads=2, blocks=2, hidden=5, seed=2)).hexdigest())"
    )
    digest = hashlib.sha256(MODELS["patches"]()).hexdigest()
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == digest
    )
    other = attention_patches(4, 6, 2, 3, dim=8, heads=2, blocks=2, hidden=5, seed=3)
    assert hashlib.sha256(other).hexdigest() != digest


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: attention_rows(0, 2), "features=0"),
        (lambda: attention_rows(3, 2, dim=6, heads=4), "no multiple of heads=4"),
        (lambda: attention_patches(8, 6, 4, 2), "8 x 6 cannot be cut in patches of 4 x 4"),
        (lambda: attention_patches(8, 8, 0, 2), "patch=0"),
        (lambda: attention_sequences(9, 4, causal=True, classes=2), "one of the two"),
        (lambda: attention_sequences(9, 4), "one of the two"),
        (lambda: attention_sequences(9, 4, 8, 2, 0, causal=True), "blocks=0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(build, said):
    with pytest.raises(InvalidGraph, match=said):
        build()
