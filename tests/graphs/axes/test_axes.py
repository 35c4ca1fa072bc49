"""The axes of whole models, by what their operators do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge_attention.graphs.axes.axes import axes_of
from edge_attention.graphs.axes.bind import bind
from tests.graphs.axes.random_transformers import recipe_of, transformer

DATA = Path(__file__).parents[1] / "data"
EXPORTS = Path(__file__).parent / "exports"


@pytest.mark.parametrize("name", ["encoder_18", "encoder_default", "encoder_torchscript"])
def test_an_encoder_however_it_was_exported(name):
    axes = axes_of(bind(onnx.load(DATA / f"{name}.onnx"), {"n": 3}))
    assert {name: axes.size(name) for name in axes.named} == {
        "tokens": 6,
        "batch": 3,
        "hidden": 16,
        "heads.0": 2,
        "heads.1": 2,
        "feedforward.0": 64,
        "feedforward.1": 64,
    }
    assert not axes.refused


def test_what_cannot_be_cut_says_why():
    """An LSTM between attentions: the tokens are refused by it; its own axes are whole."""
    plain = {"mask": "none", "positions": "none", "memory": 0, "opset": 17, "result": "hidden"}
    recipe = recipe_of(5, layers=1, source="embedded", batch=2, tokens=5, dynamic=False, **plain)
    model = transformer(recipe)
    (value,) = model.graph.input
    width = value.type.tensor_type.shape.dim[2].dim_value
    rng = np.random.default_rng(0)
    tensors = {
        "lstm.w": rng.standard_normal((1, 4 * width, width)).astype(np.float32),
        "lstm.r": rng.standard_normal((1, 4 * width, width)).astype(np.float32),
    }
    first = [
        helper.make_node("Transpose", [value.name], ["turned"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["turned", *tensors], ["runs"], name="lstm", hidden_size=width),
        helper.make_node("Squeeze", ["runs", "lstm.axis"], ["ran"]),
        helper.make_node("Transpose", ["ran"], ["behind"], perm=[1, 0, 2]),
    ]
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == value.name:
                node.input[position] = "behind"
    nodes = [*first, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    tensors["lstm.axis"] = np.array([1], np.int64)
    model.graph.initializer.extend(numpy_helper.from_array(x, name) for name, x in tensors.items())
    axes = axes_of(bind(model, {}))
    assert axes.refused["tokens"] == "LSTM 'lstm' runs over the tokens, one after the other"
    assert "batch" not in axes.refused
    assert "heads.0" not in axes.refused


def test_no_attention_no_tokens():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", 1, ["n", 4])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in (("w", (4, 8)), ("v", (8, 3)))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    axes = axes_of(bind(model, {"n": 5}))
    assert "there is no attention" in axes.refused["tokens"]
    assert {name: axes.size(name) for name in axes.named} == {"batch": 5, "feedforward.0": 8}


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (DATA.parent / "axes" / "exports").glob("*.onnx"))
)
def test_exports_have_tokens_and_heads(name):
    """Architectures as exporters write them today, and their axes at two lengths."""
    model = onnx.load(EXPORTS / f"{name}.onnx")
    found = []
    for length in (5, 9):
        sizes = {}
        for value in model.graph.input:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                past = "past" in (dim.dim_param or value.name)
                if not dim.HasField("dim_value"):
                    sizes[dim.dim_param] = 2 if axis == 0 else length if not past else 0
        sizes |= {"kv_cache_dim": 8} if "kv_cache_dim" in sizes else {}
        if name.endswith("cached"):
            for value in model.graph.input:
                for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                    if axis and not dim.HasField("dim_value"):
                        sizes[dim.dim_param] = length + ("mask" in value.name)
        axes = axes_of(bind(model, sizes))
        assert not axes.bound.unknown
        assert not axes.refused
        found.append(sorted(axes.named))
    assert found[0] == found[1]
    # Weights in blocks of 32 rows: what is no longer than one block is no axis that could be cut.
    rows = set() if name.endswith("int4") else {"feedforward.0", "hidden"}
    assert {"batch", "tokens", "heads.0"} | rows <= set(found[0])
