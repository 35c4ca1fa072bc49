"""The yardstick itself, against plain float64 NumPy: forward, every gradient, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.models.one_machine import OneMachine, one_machine_model
from edge_attention.graphs.models.parts import load_part

FLOAT = TensorProto.FLOAT
BATCH, KEY_DIM, VALUE_DIM, SCALE = 3, 4, 2, 0.7
TOKENS = {"left": 2, "right": 5}
Array = NDArray[Any]


def part(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[str | int]],
    outputs: dict[str, list[str | int]],
    constants: dict[str, Array],
    opset: int = 18,
) -> bytes:
    sides = [
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "part", sides[0], sides[1], tensors)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def encoder(tokens: int, heads: int, opset: int = 18) -> bytes:
    """keys = tanh(x wk), values = x wv; x holds `tokens` tokens of three features."""
    rng = np.random.default_rng(tokens)
    return part(
        [
            helper.make_node("Reshape", ["x", "rows"], ["r"]),
            helper.make_node("MatMul", ["r", "wk"], ["k"]),
            helper.make_node("Tanh", ["k"], ["t"]),
            helper.make_node("Reshape", ["t", "ks"], ["keys"]),
            helper.make_node("MatMul", ["r", "wv"], ["v"]),
            helper.make_node("Reshape", ["v", "vs"], ["values"]),
        ],
        {"x": ["n", 3 * tokens]},
        {"keys": ["n", tokens, heads, KEY_DIM], "values": ["n", tokens, heads, VALUE_DIM]},
        {
            "wk": rng.standard_normal((3, heads * KEY_DIM)).astype(np.float32),
            "wv": rng.standard_normal((3, heads * VALUE_DIM)).astype(np.float32),
            "rows": np.array([-1, 3], np.int64),
            "ks": np.array([-1, tokens, heads, KEY_DIM], np.int64),
            "vs": np.array([-1, tokens, heads, VALUE_DIM], np.int64),
        },
        opset,
    )


def head(count: int, query_heads: int) -> bytes:
    """loss = mean over the batch of (sum(fused * w) - y)^2."""
    return part(
        [
            helper.make_node("Mul", ["fused", "w"], ["weighed"]),
            helper.make_node("ReduceSum", ["weighed", "axes"], ["prediction"], keepdims=0),
            helper.make_node("Sub", ["prediction", "y"], ["miss"]),
            helper.make_node("Mul", ["miss", "miss"], ["square"]),
            helper.make_node("ReduceMean", ["square"], ["loss"], keepdims=0),
        ],
        {"fused": ["n", count, query_heads, VALUE_DIM], "y": ["n"]},
        {"loss": [], "prediction": ["n"]},
        {
            "w": np.random.default_rng(9).standard_normal((count, query_heads, VALUE_DIM)).astype(np.float32),
            "axes": np.array([1, 2, 3], np.int64),
        },
    )


def make_queries(count: int, query_heads: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((count, query_heads, KEY_DIM)).astype(np.float32)


def make_feeds(batch: int) -> dict[str, Array]:
    rng = np.random.default_rng(batch)
    feeds = {f"{node}/x": rng.standard_normal((batch, 3 * tokens)) for node, tokens in TOKENS.items()}
    feeds["y"] = rng.standard_normal(batch)
    return {name: value.astype(np.float32) for name, value in feeds.items()}


def reference(params: dict[str, Array], feeds: dict[str, Array], heads: int) -> tuple[float, Array]:
    """Loss and predictions in float64: one query head, one sample at a time."""
    p = {name: value.astype(np.float64) for name, value in {**params, **feeds}.items()}
    batch = len(p["y"])
    rows = {node: p[f"{node}/x"].reshape(batch, tokens, 3) for node, tokens in TOKENS.items()}
    keys = np.concatenate([np.tanh(rows[node] @ p[f"{node}/wk"]) for node in TOKENS], axis=1)
    values = np.concatenate([rows[node] @ p[f"{node}/wv"] for node in TOKENS], axis=1)
    keys = keys.reshape(batch, -1, heads, KEY_DIM)
    values = values.reshape(batch, -1, heads, VALUE_DIM)
    count, query_heads, _ = p["queries"].shape
    fused = np.empty((batch, count, query_heads, VALUE_DIM))
    for b in range(batch):
        for h in range(query_heads):
            g = h // (query_heads // heads)
            weights = np.exp(SCALE * p["queries"][:, h] @ keys[b, :, g].T)
            fused[b, :, h] = weights / weights.sum(axis=1, keepdims=True) @ values[b, :, g]
    prediction = (fused * p["head/w"]).sum(axis=(1, 2, 3))
    return float(np.mean((prediction - p["y"]) ** 2)), prediction


SHAPES = [(1, 1, 1), (2, 2, 2), (3, 4, 2), (2, 3, 1)]  # queries, query heads, key heads


def build(count: int, query_heads: int, heads: int) -> bytes:
    encoders = {node: encoder(tokens, heads) for node, tokens in TOKENS.items()}
    return one_machine_model(encoders, head(count, query_heads), make_queries(count, query_heads), SCALE)


@pytest.mark.parametrize(("count", "query_heads", "heads"), SHAPES)
def test_it_computes_attention_over_all_nodes_tokens(count: int, query_heads: int, heads: int) -> None:
    machine = OneMachine(build(count, query_heads, heads), BATCH)
    for batch in (1, BATCH, 8):
        feeds = make_feeds(batch)
        loss, prediction = reference(machine.parameters, feeds, heads)
        found = machine.evaluate(machine.parameters, feeds)
        assert list(found) == ["loss", "prediction"]
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(found["prediction"], prediction, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "query_heads", "heads"), SHAPES)
def test_every_coordinate_of_every_gradient_is_right(count: int, query_heads: int, heads: int) -> None:
    machine = OneMachine(build(count, query_heads, heads), BATCH)
    feeds = make_feeds(BATCH)
    loss, gradients = machine.gradients(machine.parameters, feeds)
    np.testing.assert_allclose(loss, reference(machine.parameters, feeds, heads)[0], rtol=1e-5)
    assert set(gradients) == {"queries", "head/w"} | {f"{n}/{w}" for n in TOKENS for w in ("wk", "wv")}
    exact = {name: value.astype(np.float64) for name, value in machine.parameters.items()}
    for name, gradient in gradients.items():
        numeric = np.empty(gradient.shape)
        for index in np.ndindex(gradient.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = exact[name].copy()
                moved[index] += step
                sides.append(reference({**exact, name: moved}, feeds, heads)[0])
            numeric[index] = (sides[0] - sides[1]) / 2e-5
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, numeric, rtol=0, atol=2e-5 * np.abs(numeric).max())


def test_the_model_carries_its_initial_parameters() -> None:
    model = build(3, 4, 2)
    onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)
    machine = OneMachine(model, BATCH)
    np.testing.assert_array_equal(machine.parameters["queries"], make_queries(3, 4))
    for node, tokens in TOKENS.items():
        for name, value in load_part(encoder(tokens, 2), "encoder").parameters.items():
            np.testing.assert_array_equal(machine.parameters[f"{node}/{name}"], value)


def test_frozen_parameters_stay_out_of_the_gradients() -> None:
    encoders = {node: load_part(encoder(tokens, 1), "encoder", ["wv"]) for node, tokens in TOKENS.items()}
    machine = OneMachine(one_machine_model(encoders, head(1, 1), make_queries(1, 1), SCALE), BATCH)
    assert set(machine.parameters) == {"left/wv", "right/wv", "head/w", "queries"}
    whole = OneMachine(build(1, 1, 1), BATCH)
    _, some = machine.gradients(machine.parameters, make_feeds(BATCH))
    _, every = whole.gradients(whole.parameters, make_feeds(BATCH))
    for name, gradient in some.items():
        np.testing.assert_allclose(gradient, every[name], rtol=1e-5, atol=1e-6)


def test_a_node_may_have_any_other_name() -> None:
    encoders = {"attention": encoder(2, 1), "queries": encoder(5, 1)}
    machine = OneMachine(one_machine_model(encoders, head(1, 1), make_queries(1, 1), SCALE), BATCH)
    usual = OneMachine(build(1, 1, 1), BATCH)
    feeds = make_feeds(BATCH)
    renamed = {"attention/x": feeds["left/x"], "queries/x": feeds["right/x"], "y": feeds["y"]}
    found = machine.evaluate(machine.parameters, renamed)["loss"]
    assert found == usual.evaluate(usual.parameters, feeds)["loss"]


def test_parts_that_do_not_fit_together_are_refused() -> None:
    left, right = encoder(2, 1), encoder(5, 2)
    with pytest.raises(InvalidGraph, match="'right' do not fit"):
        one_machine_model({"left": left, "right": right}, head(1, 2), make_queries(1, 2), SCALE)
    with pytest.raises(InvalidGraph, match="3 query heads over 2 key heads"):
        one_machine_model({"right": right}, head(1, 3), make_queries(1, 3), SCALE)
    with pytest.raises(InvalidGraph, match="do not give the head's 'fused'"):
        one_machine_model({"left": left}, head(2, 1), make_queries(1, 1), SCALE)
    with pytest.raises(InvalidGraph, match="no node the name 'head'"):
        one_machine_model({"head": left}, head(1, 1), make_queries(1, 1), SCALE)
    with pytest.raises(InvalidGraph, match="different opsets"):
        one_machine_model({"left": encoder(2, 1, 17)}, head(1, 1), make_queries(1, 1), SCALE)
