"""Attention on the probe batch is a user's graph, run apart: whatever it does, the aggregator goes on."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from onnx import TensorProto, helper

from aggregator.tensor_file import TensorFileWriter
from aggregator.training.federated import probe
from edge_attention.core.errors import InvalidGraph

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT32
value, node = helper.make_tensor_value_info, helper.make_node


@pytest.fixture
def parameters(tmp_path):
    values = np.arange(6, dtype=np.float32)
    writer = TensorFileWriter(tmp_path / "p.safetensors", {"p/0": (values.dtype, (6,))}, {})
    writer.write(values)
    writer.finish()
    return tmp_path / "p.safetensors"


def attend(tmp_path, parameters, nodes, inputs, batch):
    graph = helper.make_graph(nodes, "g", inputs, [value("attention", FLOAT, None)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "g.onnx").write_bytes(made.SerializeToString())
    return asyncio.run(probe.attention(tmp_path / "g.onnx", parameters, [(2, 3)], batch))


PRODUCT = [node("MatMul", ["x/0", "a"], ["attention"])]
INPUTS = [value("x/0", FLOAT, [2, 3]), value("a", FLOAT, [3, 2])]


def test_parameters_and_probe_reach_the_graph(tmp_path, parameters):
    a = np.arange(6, dtype=np.float32).reshape(3, 2)
    weights = attend(tmp_path, parameters, PRODUCT, INPUTS, {"a": a})
    np.testing.assert_array_equal(weights, np.arange(6).reshape(2, 3) @ a)


def test_a_graph_that_ends_its_process_ends_no_more(tmp_path, parameters):
    nodes = [node("Div", ["a", "b"], ["c"]), node("Cast", ["c"], ["attention"], to=FLOAT)]
    inputs = [value("a", INT, [1]), value("b", INT, [1])]
    batch = {"a": np.array([-(2**31)], np.int32), "b": np.array([-1], np.int32)}
    with pytest.raises(InvalidGraph, match=r"the graph ended its process \(signal 8"):
        attend(tmp_path, parameters, nodes, inputs, batch)


def test_a_graph_that_fails_says_why(tmp_path, parameters):
    with pytest.raises(InvalidGraph, match="attention on the probe: ONNX Runtime refused it"):
        attend(tmp_path, parameters, PRODUCT, INPUTS, {"a": np.zeros((4, 2), np.float32)})


def test_a_graph_that_takes_too_much_memory_or_time_is_ended(tmp_path, parameters, monkeypatch):
    nodes = [node("Expand", ["a", "n"], ["attention"])]
    inputs = [value("a", FLOAT, [1]), value("n", TensorProto.INT64, [1])]
    batch = {"a": np.ones(1, np.float32), "n": np.array([1 << 32])}
    with pytest.raises(InvalidGraph, match=r"allocate|bad_alloc"):
        attend(tmp_path, parameters, nodes, inputs, batch)
    monkeypatch.setattr(probe, "SECONDS", 0.0)
    with pytest.raises(InvalidGraph, match="in 0 s"):
        attend(tmp_path, parameters, PRODUCT, INPUTS, {"a": np.zeros((3, 2), np.float32)})
