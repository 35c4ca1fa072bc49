"""Inputs that a model joins with what is new are found by what it does with them, not by their names."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edge_attention.graphs.axes.joined_inputs import joined_inputs
from edge_attention.graphs.axes.model_reading import open_model

EXPORTS = Path(__file__).parent / "exports"


@pytest.mark.parametrize("name", ["gpt2_cached", "llama_genai"])
def test_pasts_of_exports_are_joined_along_tokens(name: str) -> None:
    opened = open_model(EXPORTS / f"{name}.onnx")
    pasts = [value.name for value in opened.model.graph.input if "past" in value.name]
    assert {name: axis for name, axis in joined_inputs(opened).items() if "past" in name} == dict.fromkeys(
        pasts, 2
    )


def test_a_memory_of_three_dimensions_is_joined_and_what_has_a_size_is_not(tmp_path: Path) -> None:
    sizes = {"x": ["n", "t", 4], "memory": ["n", "m", 4], "fixed": ["n", 3, 4], "other": ["n", "m", 4]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in sizes.items()]
    nodes = [
        helper.make_node("Identity", ["memory"], ["same"]),
        helper.make_node("Concat", ["same", "fixed", "x"], ["joined"], axis=-2),
        helper.make_node("Add", ["joined", "other"], ["y"]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "m.onnx")
    assert joined_inputs(open_model(tmp_path / "m.onnx")) == {"memory": 1, "x": 1}
