"""What constants would become when a graph is loaded: as ONNX Runtime computes it, and bounded."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hostile import by_hand, mutation, operators
from hostile.by_hand import f32, i64, of
from hostile.files import node
from onnx import ModelProto, TensorProto, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading import folding, read_graph

HUGE = 1 << 31


def read(made):
    return read_graph(made.data, "it")


FOLDS = {
    "Expand": ([node("Expand", ["a", "s"], ["y"])], {"a": f32(1), "s": i64(HUGE)}),
    "Tile": ([node("Tile", ["a", "s"], ["y"])], {"a": f32(1), "s": i64(HUGE)}),
    "ConstantOfShape": ([node("ConstantOfShape", ["s"], ["y"])], {"s": i64(HUGE)}),
    "Range": (
        [node("Range", ["a", "b", "c"], ["y"])],
        {"a": np.array(0), "b": np.array(HUGE), "c": np.array(1)},
    ),
    "Pad": ([node("Pad", ["a", "p"], ["y"])], {"a": f32(1), "p": i64(0, HUGE)}),
    "OneHot": (
        [node("OneHot", ["i", "s", "v"], ["y"])],
        {"i": i64(1), "s": np.array(HUGE), "v": f32(0, 1)},
    ),
    "Resize": (
        [node("Resize", ["a", "", "", "s"], ["y"], mode="nearest")],
        {"a": np.ones((1, 1, 2, 2), np.float32), "s": i64(1, 1, 2**16, 2**16)},
    ),
    "Resize by scales": (
        [node("Resize", ["a", "", "s"], ["y"], mode="nearest")],
        {"a": np.ones((1, 1, 2, 2), np.float32), "s": f32(1, 1, 2**15, 2**15)},
    ),
    "MatMul": (
        [node("MatMul", ["a", "b"], ["y"])],
        {"a": np.ones((2**15, 1), np.float32), "b": np.ones((1, 2**15), np.float32)},
    ),
    "broadcast": (
        [node("Add", ["a", "b"], ["y"])],
        {"a": np.ones((2**15, 1), np.float32), "b": np.ones((1, 2**15), np.float32)},
    ),
    "Concat": (
        [
            *(node("Concat", [f"c{n}", f"c{n}"], [f"c{n + 1}"], axis=0) for n in range(34)),
            node("Neg", ["c34"], ["y"]),
        ],
        {"c0": f32(1)},
    ),
    "Gather": (
        [node("Gather", ["a", "i"], ["y"], axis=1)],
        {"a": np.ones((2**14, 1), np.float32), "i": np.zeros(2**14, np.int64)},
    ),
    "a size that is computed": (
        [
            node("Shape", ["a"], ["n"]),
            node("Mul", ["n", "n"], ["m"]),
            node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
            node("Cast", ["f"], ["i"], to=TensorProto.INT64),
            node("Concat", ["i", "one"], ["s"], axis=0),
            node("Expand", ["b", "s"], ["y"]),
        ],
        {"a": np.zeros(2**15, np.float32), "one": i64(1), "b": np.ones((1, 1), np.float32)},
    ),
    "in a Constant": (
        [
            node("Constant", [], ["s"], value=numpy_helper.from_array(i64(HUGE))),
            node("Constant", [], ["a"], value_float=1.0),
            node("Expand", ["a", "s"], ["y"]),
        ],
        {},
    ),
    "many of them": (
        [
            *(node("Expand", ["a", "s"], [f"e{n}"]) for n in range(64)),
            node("Max", [f"e{n}" for n in range(64)], ["y"]),
        ],
        {"a": f32(1), "s": i64(1 << 22)},
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_what_would_be_too_large_is_refused(name):
    nodes, constants = FOLDS[name]
    with pytest.raises(InvalidGraph, match=r"it: loading it would compute [\d,]+ bytes .*MAX_FOLDED"):
        read(of(name, nodes, {}, constants))


@pytest.mark.parametrize("name", FOLDS)
def test_the_same_within_a_graph_and_a_function_is_refused(name):
    nodes, constants = FOLDS[name]
    whole = [
        node("Constant", [], [key], value=numpy_helper.from_array(given)) for key, given in constants.items()
    ]
    body = by_hand.helper.make_graph(
        [*whole, *nodes], "b", [], [by_hand.helper.make_empty_tensor_value_info("y")]
    )
    with pytest.raises(InvalidGraph, match="MAX_FOLDED"):
        read(of(name, [node("If", ["c"], ["y"], then_branch=body, else_branch=body)], {"c": np.array(True)}))
    function = by_hand.files.function(
        "F", [*whole, *nodes, node("Add", ["a", "y"], ["b"])], inputs=("x",), outputs=("b",)
    )
    with pytest.raises(InvalidGraph, match="MAX_FOLDED"):
        read_graph(by_hand.files.called(function).SerializeToString(), "it")


def test_what_depends_on_an_input_is_not_counted():
    read(of("Expand", [node("Expand", ["a", "s"], ["y"])], {"s": i64(1)}, {"a": f32(1)}))
    made = of("Expand", [node("Expand", ["a", "s"], ["y"])], {}, {"a": f32(1), "s": i64(HUGE)})
    model = ModelProto.FromString(made.data)
    model.graph.input.append(by_hand.value("s", TensorProto.INT64, [1]))  # the constant is a default
    read_graph(model.SerializeToString(), "it")


def test_weights_in_another_form_are_not_counted():
    weights = np.zeros((1 << 13, 1 << 10), np.int8)
    nodes = [node("Cast", ["w"], ["f0"], to=TensorProto.FLOAT)]
    nodes += [node("Transpose", [f"f{n}"], [f"f{n + 1}"]) for n in range(100)]
    read(
        of(
            "weights",
            [*nodes, node("MatMul", ["x", "f100"], ["y"])],
            {"x": np.zeros((1, 1), np.float32)},
            {"w": weights},
        )
    )


def test_shapes_are_those_that_onnx_runtime_computes(monkeypatch):
    """Over ONNX's own tests of each operator that has a rule, as constants."""
    compared = set()
    for (domain, op), cases in operators.cases().items():
        if domain or op not in folding._RULES:
            continue
        for model, feeds in cases[:6]:
            if len(model.graph.node) > 1:
                continue
            scope = {
                name: folding._constant(numpy_helper.from_array(array, name)) for name, array in feeds.items()
            }
            (one,) = model.graph.node
            told = folding._made(one, [scope.get(name) for name in one.input])
            if told.dims is None:
                continue
            try:
                session = onnxruntime.InferenceSession(model.SerializeToString())
                result = session.run(None, dict(feeds))[0]
            except Exception:  # not every test of ONNX runs here
                continue
            assert np.prod(told.dims, dtype=np.int64) == np.size(result), (op, told, result.shape)
            if told.value is not None:
                np.testing.assert_array_equal(told.value.reshape(-1), result.reshape(-1), str(op))
            compared.add(op)
    assert compared >= {
        "Expand",
        "Tile",
        "ConstantOfShape",
        "Range",
        "Pad",
        "OneHot",
        "Resize",
        "Concat",
        "Gather",
        "MatMul",
        "Where",
        "Reshape",
        "Constant",
        "Shape",
    }


@pytest.mark.parametrize("name", sorted(mutation.real()))
def test_real_graphs_are_far_from_the_bound(name, monkeypatch):
    monkeypatch.setattr(folding, "MAX_FOLDED", folding.MAX_FOLDED >> 6)
    read_graph(mutation.real()[name], name)
