"""Flops and bytes of operators, and of a segment's graph once its inputs have shapes."""

from __future__ import annotations

import pytest
from onnx import NodeProto, TensorProto, helper

from edge_attention.core.placement.cuts.boxes import HALF_ROWS
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.work import graph_work, operator_work


def forms(**shapes: tuple[int, ...]) -> dict[str, TensorForm]:
    return {name: TensorForm("float32", shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("node", "shapes", "flops"),
    [
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": (2, 5, 3), "b": (3, 7), "y": (2, 5, 7)}, 420),
        (
            helper.make_node("MatMul", ["a", "b"], ["y"]),
            {"a": (2, 4, 5, 3), "b": (2, 4, 3, 5), "y": (2, 4, 5, 5)},
            2 * 8 * 5 * 5 * 3,
        ),
        (
            helper.make_node("Gemm", ["a", "b", "c"], ["y"], transA=1),
            {"a": (3, 5), "b": (3, 7), "c": (7,), "y": (5, 7)},
            2 * 5 * 7 * 3,
        ),
        (
            helper.make_node("Conv", ["a", "b"], ["y"]),
            {"a": (1, 3, 8, 8), "b": (6, 3, 2, 2), "y": (1, 6, 4, 4)},
            2 * 6 * 16 * 12,
        ),
        (
            helper.make_node("Einsum", ["a", "b"], ["y"], equation="bij, bjk -> bik"),
            {"a": (2, 3, 4), "b": (2, 4, 5), "y": (2, 3, 5)},
            2 * 2 * 3 * 4 * 5,
        ),
        # 3 queries of 8 elements, over 5 keys: two products.
        (
            helper.make_node("Attention", ["q", "k", "v"], ["y"]),
            {"q": (1, 2, 3, 4), "k": (1, 2, 5, 4), "v": (1, 2, 5, 4), "y": (1, 2, 3, 4)},
            2 * 2 * 3 * 8 * 5,
        ),
        (
            helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft"),
            {"q": (1, 3, 8), "k": (1, 5, 8), "v": (1, 5, 8), "y": (1, 3, 8)},
            2 * 2 * 3 * 8 * 5,
        ),
        # With the products that make queries, keys and values of the input.
        (
            helper.make_node("Attention", ["x", "w"], ["y"], domain="com.microsoft"),
            {"x": (1, 3, 8), "w": (8, 24), "y": (1, 3, 8)},
            2 * 3 * 8 * 24 + 2 * 2 * 3 * 8 * 3,
        ),
        # Packed; 3 tokens after 4.
        (
            helper.make_node("GroupQueryAttention", ["x", "", "", "p", "p"], ["y"], domain="com.microsoft"),
            {"x": (1, 3, 16), "p": (1, 2, 4, 2), "y": (1, 3, 8)},
            2 * 2 * 3 * 8 * 7,
        ),
    ],
)
def test_flops_of_products(node: NodeProto, shapes: dict[str, tuple[int, ...]], flops: float) -> None:
    work = operator_work(node, forms(**shapes))
    assert (work.flops, work.moved, work.operators) == (flops, 0, 1)


def test_views_are_free_and_others_move_their_bytes() -> None:
    shapes = forms(a=(10, 10), b=(10,), y=(10, 10))
    assert operator_work(helper.make_node("Reshape", ["a", "b"], ["y"]), shapes).operators == 0
    assert operator_work(helper.make_node("Add", ["a", "b"], ["y"]), shapes).moved == 800
    assert operator_work(helper.make_node("Softmax", ["a"], ["y"]), shapes).moved == 3200
    skip = helper.make_node("SkipLayerNormalization", ["a", "y", "b"], ["y"], domain="com.microsoft")
    assert operator_work(skip, shapes).moved == 1600
    embed = helper.make_node("EmbedLayerNormalization", ["i", "", "t"], ["y"], domain="com.microsoft")
    assert operator_work(embed, forms(i=(1, 10), t=(10_000, 10), y=(1, 10, 10))).moved == 1600
    # A table of which rows are picked is not read whole.
    picked = forms(a=(10_000, 10), b=(3,), y=(3, 10))
    assert operator_work(helper.make_node("Gather", ["a", "b"], ["y"]), picked).moved == 240


def test_a_graph_is_sized_by_its_inputs() -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "segment",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b"]) for name in ("x", "w")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    work, made = graph_work(model, forms(x=(8, 16), w=(16, 32)))
    assert made["h"].shape == (8, 32)
    assert work.flops == 2 * 8 * 16 * 32 * (1 + HALF_ROWS / 8)
    assert work.moved == 2 * 8 * 32 * 4
    assert work.operators == 2
