"""Numbers that look up rows of a table: how many rows there are is read off the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_attention.graphs.axes.looked_up import rows_looked_up
from edge_attention.graphs.axes.model_reading import open_model

EXPORTS = Path(__file__).parent / "exports"


def written(path, nodes, outputs, **tables):
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4])]
    stored = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in tables.items()]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "tables", inputs, made, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return open_model(path)


def test_of_an_export_the_vocabulary_is_found():
    opened = open_model(EXPORTS / "bert.onnx")
    (rows,) = rows_looked_up(opened).values()
    assert rows_looked_up(opened) == {"input_ids": rows}
    assert [rows] in [list(t.dims[:1]) for t in opened.model.graph.initializer]


def test_the_smallest_of_the_tables_that_are_needed_counts(tmp_path):
    nodes = [
        helper.make_node("Unsqueeze", ["ids", "axes"], ["wide"]),
        helper.make_node("Gather", ["large", "ids"], ["one"]),
        helper.make_node("Gather", ["small", "wide"], ["two"], axis=1),
        helper.make_node("Gather", ["none", "ids"], ["nobody"]),
    ]
    tables = {"large": (9, 2), "small": (3, 7), "none": (2, 2), "axes": (1,)}
    assert rows_looked_up(written(tmp_path / "m.onnx", nodes, ["one", "two"], **tables)) == {"ids": 7}
    assert rows_looked_up(written(tmp_path / "m.onnx", nodes, ["one"], **tables)) == {"ids": 9}


def test_of_some_of_the_numbers_and_of_computed_ones_nothing_is_known(tmp_path):
    nodes = [
        helper.make_node("Mod", ["ids", "ids"], ["less"]),
        helper.make_node("Slice", ["ids", "axes", "axes"], ["some"]),
        helper.make_node("Gather", ["large", "less"], ["one"]),
        helper.make_node("Gather", ["large", "some"], ["two"]),
        helper.make_node("Mul", ["large", "large"], ["made"]),
        helper.make_node("Gather", ["made", "ids"], ["three"]),
    ]
    opened = written(tmp_path / "m.onnx", nodes, ["one", "two", "three"], large=(9, 2), axes=(1,))
    assert rows_looked_up(opened) == {}


def test_a_circle_has_no_end_and_no_input(tmp_path):
    nodes = [
        helper.make_node("Identity", ["two"], ["one"]),
        helper.make_node("Identity", ["one"], ["two"]),
        helper.make_node("Gather", ["large", "one"], ["out"]),
    ]
    assert rows_looked_up(written(tmp_path / "m.onnx", nodes, ["out"], large=(9, 2))) == {}
