"""A simplified graph computes what it computed before, whatever its shapes; and what goes away."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from small_models import FLOAT, model, node, normal, run

from edge_attention.graphs.gradients.simplify import flatten_products, squeeze_ones
from edge_attention.graphs.onnx_file import prune

SIZES = st.sampled_from([1, 1, 2, 3])


@st.composite
def graphs(draw: st.DrawFn) -> ModelProto:
    """A chain of operators as gradients have them, over shapes full of ones."""
    shape = draw(st.lists(SIZES, min_size=1, max_size=5))
    inputs, values, nodes = {"h0": (FLOAT, list(shape))}, {}, []
    outputs = []
    for step in range(draw(st.integers(1, 8))):
        name, made = f"h{step}", f"h{step + 1}"
        kind = draw(
            st.sampled_from(["binary", "reduce", "transpose", "reshape", "unsqueeze", "matmul", "expand"])
        )
        if kind == "binary":
            rank = draw(st.integers(0, len(shape)))
            other = [size if draw(st.booleans()) else 1 for size in shape[len(shape) - rank :]]
            values[f"c{step}"] = normal(step, *other)
            op = draw(st.sampled_from(["Add", "Mul", "Sub", "Div"]))
            sides = [name, f"c{step}"]
            nodes.append(node(op, sides[:: draw(st.sampled_from([1, -1]))] if op != "Div" else sides, [made]))
        elif kind == "reduce" and shape:
            axes = sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
            kept = draw(st.booleans())
            signed = [axis - len(shape) if draw(st.booleans()) else axis for axis in axes]
            values[f"c{step}"] = np.array(signed, np.int64)
            op = draw(st.sampled_from(["ReduceSum", "ReduceMean"]))
            nodes.append(node(op, [name, f"c{step}"], [made], keepdims=int(kept)))
            shape = [1 if i in axes else n for i, n in enumerate(shape) if kept or i not in axes]
        elif kind == "transpose" and shape:
            perm = draw(st.permutations(range(len(shape))))
            nodes.append(node("Transpose", [name], [made], perm=perm))
            shape = [shape[axis] for axis in perm]
        elif kind == "unsqueeze" and len(shape) < 6:
            axis = draw(st.integers(0, len(shape)))
            values[f"c{step}"] = np.array([axis], np.int64)
            nodes.append(node("Unsqueeze", [name, f"c{step}"], [made]))
            shape = [*shape[:axis], 1, *shape[axis:]]
        elif kind == "expand":
            shape = [draw(SIZES) if size == 1 else size for size in shape]
            values[f"c{step}"] = np.array(shape, np.int64)
            nodes.append(node("Expand", [name, f"c{step}"], [made]))
        elif kind == "matmul" and len(shape) >= 2:
            width = draw(SIZES)
            outer = draw(st.sampled_from([[], [1], shape[:-2]]))
            values[f"c{step}"] = normal(step, *outer, shape[-1], width)
            nodes.append(node("MatMul", [name, f"c{step}"], [made]))
            lead = shape[:-2] if len(shape) - 2 >= len(outer) else outer
            shape = [*lead, shape[-2], width]
        else:
            flat = [int(np.prod(shape, dtype=int))]
            values[f"c{step}"] = np.array([1, *flat], np.int64)
            nodes.append(node("Reshape", [name, f"c{step}"], [made]))
            shape = [1, *flat]
        if draw(st.booleans()):
            outputs.append((made, (FLOAT, list(shape))))
    outputs = dict([*outputs, (f"h{len(nodes)}", (FLOAT, list(shape)))])
    return onnx.load_model_from_string(model(nodes, inputs, outputs, values))


@settings(deadline=None, max_examples=150)
@given(graphs())
def test_squeezing_changes_no_result(graph: ModelProto) -> None:
    simple = squeeze_ones(graph)
    prune(simple.graph)
    shape = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"h0": normal(99, *shape)}
    expected, found = run(graph, feeds), run(simple, feeds)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * max(1, np.abs(value).max()))


def test_moving_an_axis_of_one_is_no_work() -> None:
    nodes = [
        node("Transpose", ["x"], ["front"], perm=[2, 0, 1]),
        node("Mul", ["front", "c"], ["scaled"]),
        node("Transpose", ["scaled"], ["back"], perm=[1, 2, 0]),
        node("ReduceSum", ["back", "last"], ["y"], keepdims=0),
    ]
    values = {"c": np.array([3.0], np.float32), "last": np.array([2], np.int64)}
    graph = model(nodes, {"x": (FLOAT, [4, 5, 1])}, {"y": (FLOAT, [4, 5])}, values)
    simple = squeeze_ones(onnx.load_model_from_string(graph))
    prune(simple.graph)
    assert {made.op_type for made in simple.graph.node} == {"Mul", "Reshape"}
    x = normal(0, 4, 5, 1)
    np.testing.assert_allclose(run(simple, {"x": x})["y"], 3 * x[..., 0], rtol=1e-6)


def test_a_graph_with_a_branch_comes_back_as_it_is() -> None:
    side = onnx.helper.make_graph(
        [node("Neg", ["x"], ["z"])], "side", [], [onnx.helper.make_tensor_value_info("z", FLOAT, [1, 3])]
    )
    nodes = [node("If", ["yes"], ["y"], then_branch=side, else_branch=side)]
    graph = model(nodes, {"x": (FLOAT, [1, 3])}, {"y": (FLOAT, [1, 3])}, {"yes": np.array(True)})
    parsed = onnx.load_model_from_string(graph)
    assert squeeze_ones(parsed) is parsed


def test_a_product_of_rows_is_one_matrix_product() -> None:
    graph = onnx.load_model_from_string(
        model(
            [node("MatMul", ["x", "w"], ["y"])],
            {"x": (FLOAT, [2, 3, 4])},
            {"y": (FLOAT, [2, 3, 5])},
            {"w": normal(1, 4, 5)},
        )
    )
    x = normal(0, 2, 3, 4)
    expected = run(graph, {"x": x})["y"]
    flatten_products(graph)
    assert [made.op_type for made in graph.graph.node] == ["Reshape", "MatMul", "Reshape"]
    np.testing.assert_allclose(run(graph, {"x": x})["y"], expected, rtol=1e-6)
