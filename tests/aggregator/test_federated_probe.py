"""Attention on the probe batch is a user's graph, run apart: whatever it does, the aggregator goes on."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import small_model
from house import House
from onnx import TensorProto, helper, numpy_helper

from aggregator.store.tensor_file import TensorFileWriter
from aggregator.training import planner
from aggregator.training.federated import probe
from edge_attention.core.errors import GraphDied, InvalidGraph

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
    with pytest.raises(GraphDied, match=r"attention on the probe: the process .* was ended \(signal 8"):
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
    monkeypatch.setattr(probe, "PROBE_PROCESS", replace(probe.PROBE_PROCESS, seconds=0.0))
    with pytest.raises(InvalidGraph, match=r"bound probe-seconds: .* more than 0 s"):
        attend(tmp_path, parameters, PRODUCT, INPUTS, {"a": np.zeros((3, 2), np.float32)})


def test_a_model_that_ends_its_planning_is_said_to(tmp_path):
    """A division that is folded as ONNX Runtime loads the graph: the planner is a process of its own, too."""
    nodes = [
        node("Div", ["least", "minus"], ["c"]),
        node("Cast", ["c"], ["f"], to=FLOAT),
        node("MatMul", ["x", "w"], ["xw"]),
        node("Add", ["xw", "f"], ["logits"]),
    ]
    held = {"least": np.int32([-(2**31)]), "minus": np.int32([-1]), "w": np.ones((4, 3), np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", FLOAT, ["batch", 4])],
        [value("logits", FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    file = tmp_path / "model.onnx"
    file.write_bytes(made.SerializeToString())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with House() as house:
        right = small_model.job(house)
    job = replace(right, model=replace(right.model, graph=digest, parameters=()))
    with pytest.raises(GraphDied, match=r"planning the model: the process .* was ended \(signal 8"):
        asyncio.run(planner.make(job, {digest: file}, tmp_path))
