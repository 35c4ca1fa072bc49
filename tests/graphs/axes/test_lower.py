"""Fused operators as plain ones, each against what ONNX Runtime computes with the fused one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bind import bind
from tests.graphs.axes.bound_runs import assert_close, run_bound, run_model

B, T, S, H, D = 2, 5, 7, 4, 8


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def one_node(
    kind: str,
    inputs: list[Array | None],
    outputs: int = 1,
    *,
    domain: str = "com.microsoft",
    opset: int = 23,
    weights: tuple[int, ...] = (),
    constants: tuple[int, ...] = (),
    **attributes: Any,
) -> tuple[ModelProto, dict[str, Array]]:
    """A model of one node; inputs at `weights` and `constants` are initializers."""
    given = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    node = helper.make_node(
        kind,
        [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)],
        [f"y{i}" for i in range(outputs)],
        domain=domain,
        **attributes,
    )
    held = {f"x{i}" for i in (*weights, *constants)}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in given.items()
            if n not in held
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
        [numpy_helper.from_array(given[name], name) for name in sorted(held)],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return model, {name: x for name, x in given.items() if name not in held}


def check(model: ModelProto, feeds: dict[str, Array], tolerance: float = 1e-5) -> None:
    bound = bind(model, {})
    fused = {node.op_type for node in model.graph.node}
    assert not fused & {node.op_type for node in bound.nodes}, "it was not lowered"
    assert not bound.unknown
    assert_close(run_bound(bound, model, feeds), run_model(model, feeds), tolerance)


STANDARD = {
    "plain": ((B, H, T, D), (B, H, S, D), {}),
    "flat": ((B, T, H * D), (B, S, H * D), {"q_num_heads": H, "kv_num_heads": H}),
    "grouped": ((B, H, T, D), (B, 2, S, D), {}),
    "flat and grouped": ((B, T, H * D), (B, S, 2 * D), {"q_num_heads": H, "kv_num_heads": 2}),
    "one key head": ((B, H, T, D), (B, 1, S, D), {}),
    "causal": ((B, H, T, D), (B, H, T, D), {"is_causal": 1}),
    "causal, fewer keys": ((B, H, S, D), (B, H, T, D), {"is_causal": 1, "scale": 0.3}),
}


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("name", list(STANDARD))
def test_the_attention_of_onnx(name, opset):
    q, k, attributes = STANDARD[name]
    inputs = [floats(*q), floats(*k, seed=1), floats(*k, seed=2)]
    check(*one_node("Attention", inputs, domain="", opset=opset, **attributes))


@pytest.mark.parametrize("groups", [H, 2])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", [(T, S), (H, T, S), (B, 1, T, S), (B, H, T, S)])
def test_masks_of_onnx_attention_and_rows_that_see_nothing(shape, kind, groups):
    mask: Array = floats(*shape, seed=3) > -0.5
    mask[..., 0, :] = False  # a row sees nothing: its result is 0
    if kind == "float":
        mask = np.where(mask, floats(*shape, seed=4), -np.inf).astype(np.float32)
    inputs = [floats(B, H, T, D), floats(B, groups, S, D, seed=1), floats(B, groups, S, D, seed=2), mask]
    check(*one_node("Attention", inputs, domain=""))


def test_onnx_attention_goes_on_from_the_past():
    past = [floats(B, 2, 3, D, seed=5), floats(B, 2, 3, D, seed=6)]
    inputs = [floats(B, H, T, D), floats(B, 2, T, D, seed=1), floats(B, 2, T, D, seed=2), None, *past]
    check(*one_node("Attention", inputs, 3, domain="", is_causal=1))


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", ["none", "lengths", "keys", "by query"])
def test_attention_with_packed_weights(mask, causal):
    masks = {
        "none": None,
        "lengths": np.array([T, 3], np.int32),
        "keys": np.array([[1] * T, [1, 1, 1, 0, 0]], np.int32),
        "by query": np.tril(np.ones((B, T, T), np.int32)),
    }
    inputs = [floats(B, T, 12), 0.3 * floats(12, 3 * H * D), 0.3 * floats(3 * H * D), masks[mask]]
    while inputs[-1] is None:
        inputs.pop()
    check(*one_node("Attention", inputs, weights=(1, 2), num_heads=H, unidirectional=causal))


def test_attention_with_values_of_another_width_and_a_bias():
    sizes = [H * D, H * D, H * 4]
    inputs = [
        floats(B, T, 12),
        0.3 * floats(12, sum(sizes)),
        floats(sum(sizes)),
        None,
        None,
        floats(B, H, T, T),
    ]
    check(*one_node("Attention", inputs, weights=(1, 2), num_heads=H, qkv_hidden_sizes=sizes))


def test_attention_keeps_what_was_before():
    inputs = [floats(B, T, 12), 0.3 * floats(12, 3 * H * D), floats(3 * H * D), None, floats(2, B, H, 3, D)]
    check(*one_node("Attention", inputs, 2, weights=(1, 2), num_heads=H, unidirectional=1))


def test_quantised_attention():
    rng = np.random.default_rng(0)
    inputs = [
        rng.integers(0, 255, (B, T, 12)).astype(np.uint8),
        rng.integers(-127, 127, (12, 3 * H * D)).astype(np.int8),
        floats(3 * H * D),
        np.array(0.02, np.float32),
        np.array(0.01, np.float32),
        np.array([[1] * T, [1, 1, 1, 0, 0]], np.int32),
        np.array(128, np.uint8),
        np.array(0, np.int8),
    ]
    check(*one_node("QAttention", inputs, weights=(1, 2, 3, 4, 6, 7), num_heads=H), tolerance=1e-4)


MULTI: dict[str, tuple[list[Array | None], int, dict[str, Any]]] = {
    "self": ([floats(B, T, H * D, seed=i) for i in range(3)], 1, {}),
    "cross": ([floats(B, T, H * D), floats(B, S, H * D, seed=1), floats(B, S, H * D, seed=2)], 1, {}),
    "bias": ([*(floats(B, T, H * D, seed=i) for i in range(3)), floats(3 * H * D)], 1, {}),
    "wide values": ([floats(B, T, H * D), floats(B, S, H * D, seed=1), floats(B, S, H * 6)], 1, {}),
    "by head": ([floats(B, T, H * D), floats(B, H, S, D, seed=1), floats(B, H, S, D, seed=2)], 1, {}),
    "causal": ([floats(B, T, H * D, seed=i) for i in range(3)], 1, {"unidirectional": 1}),
    "lengths": (
        [*(floats(B, T, H * D, seed=i) for i in range(3)), None, np.array([T, 3], np.int32)],
        1,
        {},
    ),
    "padding and bias": (
        [
            *(floats(B, T, H * D, seed=i) for i in range(3)),
            None,
            np.array([[1] * T, [1, 1, 0, 0, 0]], np.int32),
            floats(1, H, T, T),
        ],
        1,
        {"scale": 0.5, "mask_filter_value": -3.4e38},
    ),
    "past": (
        [
            *(floats(B, T, H * D, seed=i) for i in range(3)),
            None,
            None,
            None,
            floats(B, H, 3, D, seed=7),
            floats(B, H, 3, D, seed=8),
        ],
        3,
        {"unidirectional": 1},
    ),
}


@pytest.mark.parametrize("name", list(MULTI))
def test_multi_head_attention(name):
    inputs, outputs, attributes = MULTI[name]
    check(*one_node("MultiHeadAttention", inputs, outputs, num_heads=H, **attributes))


@pytest.mark.parametrize("keys", [1, 3])
def test_packed_queries_keys_and_values(keys):
    """ONNX Runtime computes none of these on a CPU: beside the same, not packed."""
    parts = [floats(B, T, H, D, seed=i) for i in range(3)]
    flat = [part.reshape(B, T, H * D) for part in parts]
    packed: list[Array | None] = [np.stack(parts, axis=3)]
    if keys == 1:
        packed = [flat[0], np.stack(parts[1:], axis=3)]
    model, feeds = one_node("MultiHeadAttention", packed, num_heads=H)
    found = run_bound(bind(model, {}), model, feeds)
    assert_close(found, run_model(*one_node("MultiHeadAttention", list(flat), num_heads=H)))


def grouped(
    lengths: list[int], queries: int, kept: int, *, packed: bool = False, heads: int = H, **more: Any
) -> tuple[ModelProto, dict[str, Array]]:
    """A GroupQueryAttention of two key heads; `lengths`: of each row, new tokens included."""
    batch, groups, positions, width = len(lengths), 2, 32, 16
    q, k = floats(batch, queries, heads * width), floats(batch, queries, groups * width, seed=1)
    v = floats(batch, queries, groups * width, seed=2)
    angles = floats(positions, width // 2, seed=3)
    total = max(lengths)
    inputs: list[Array | None] = [
        *([np.concatenate([q, k, v], axis=2), None, None] if packed else [q, k, v]),
        floats(batch, groups, kept, width, seed=4),
        floats(batch, groups, kept, width, seed=5),
        np.array(lengths, np.int32) - 1,
        np.array(total, np.int32),
        *([np.cos(angles), np.sin(angles)] if more.get("do_rotary") else []),
    ]
    return one_node(
        "GroupQueryAttention",
        inputs,
        3,
        constants=(6, 7, 8) if more.get("do_rotary") else (6,),
        num_heads=heads,
        kv_num_heads=2,
        **more,
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize(("lengths", "queries", "kept"), [([6, 6], 6, 0), ([9, 9], 1, 8), ([9], 3, 6)])
def test_grouped_query_attention(lengths, queries, kept, rotary, packed):
    check(*grouped(lengths, queries, kept, packed=packed, do_rotary=rotary))


@pytest.mark.parametrize("more", [{"scale": 0.2}, {"softcap": 3.0}, {"local_window_size": 3}])
@pytest.mark.parametrize(("lengths", "queries", "kept"), [([6, 6], 6, 0), ([9, 9], 1, 8), ([9], 3, 6)])
def test_grouped_query_attention_and_what_it_is_told(lengths, queries, kept, more):
    check(*grouped(lengths, queries, kept, **more))


def test_grouped_query_attention_where_each_query_has_its_key():
    check(*grouped([6, 6], 6, 0, heads=2, do_rotary=1, rotary_interleaved=1))


def test_rows_of_different_lengths():
    """Of the shorter row, tokens are kept without a gap; what is behind them is of no account."""
    model, feeds = grouped([9, 6], 1, 8, do_rotary=1)
    found = run_bound(bind(model, {}), model, feeds)
    wanted = run_model(model, feeds)
    assert_close({"y0": found["y0"]}, {"y0": wanted["y0"]})
    for name in ("y1", "y2"):
        assert_close({"a": found[name][0]}, {"a": wanted[name][0]})
        assert_close({"b": found[name][1, :, :6]}, {"b": wanted[name][1, :, :6]})


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("shape", [(B, T, H * D), (B, H, T, D)])
@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_rotary_positions(domain, shape, interleaved):
    angles = floats(16, D // 2)
    tables = [np.cos(angles), np.sin(angles)]
    places = np.arange(B * T).reshape(B, T).astype(np.int64)
    inputs = [floats(*shape), *tables, places] if not domain else [floats(*shape), places, *tables]
    more = {"num_heads": H} if len(shape) == 3 else {}
    check(*one_node("RotaryEmbedding", inputs, domain=domain, interleaved=interleaved, **more))


def test_rotary_positions_from_the_first_on():
    angles = floats(16, D // 2)
    inputs = [floats(B, T, H * D), np.array([3], np.int64), np.cos(angles), np.sin(angles)]
    check(*one_node("RotaryEmbedding", inputs))


def test_rotary_positions_of_some_of_each_head():
    angles = floats(16, D // 4)
    tables = [np.cos(angles), np.sin(angles)]
    inputs = [floats(B, T, H * D), *tables, np.arange(B * T).reshape(B, T).astype(np.int64)]
    check(*one_node("RotaryEmbedding", inputs, domain="", num_heads=H, rotary_embedding_dim=D // 2))


@pytest.mark.parametrize("kind", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_norms_of_sums(kind):
    inputs: list[Array | None] = [floats(B, T, D), floats(B, T, D, seed=1), floats(D), floats(D, seed=1)]
    if kind == "SkipLayerNormalization":
        inputs.append(floats(D, seed=2))
    model, feeds = one_node(kind, inputs, 4, weights=(2, 3), epsilon=1e-5)
    for position in (2, 1):  # what nobody asks for is not made
        model.graph.node[0].output[position] = ""
        del model.graph.output[position]
    check(model, feeds)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_embeddings(segments, mask):
    rng = np.random.default_rng(0)
    inputs: list[Array | None] = [
        rng.integers(0, 20, (B, T)).astype(np.int32),
        rng.integers(0, 2, (B, T)).astype(np.int32) if segments else None,
        floats(20, D),
        floats(9, D),
        floats(2, D) if segments else None,
        floats(D),
        floats(D, seed=1),
        np.array([[1] * T, [1, 1, 1, 0, 0]], np.int32) if mask else None,
    ]
    while inputs[-1] is None:
        inputs.pop()
    weights = (2, 3, 4, 5, 6) if segments else (2, 3, 5, 6)
    check(*one_node("EmbedLayerNormalization", inputs, 3, weights=weights))


def test_a_bias_is_added_behind_a_product():
    inputs = [floats(T, D), floats(H, D), floats(H)]
    model, feeds = one_node("Gemm", inputs, domain="", weights=(1, 2), transB=1, alpha=0.5, beta=2.0)
    bound = bind(model, {})
    assert [node.op_type for node in bound.nodes] == ["Mul", "Gemm", "Add"]
    assert_close(run_bound(bound, model, feeds), run_model(model, feeds))
