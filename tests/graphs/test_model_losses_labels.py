"""Labels that are no class are refused when a model runs, whichever way they are out of range."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.training import LossSpec
from edge_attention.graphs.gradients.gradients import Runner
from edge_attention.graphs.models.model import gradient_graph, load_model
from edge_attention.graphs.models.parts import serialize

CLASSES = 3


def regression():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "regression",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, CLASSES), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return load_model(model.SerializeToString(), loss=LossSpec("cross_entropy"))


@pytest.mark.parametrize("label", [-1, -CLASSES, -100, CLASSES, CLASSES + 5])
def test_a_label_out_of_range_is_refused(label):
    run = Runner(serialize(gradient_graph(regression(), 2)), "model")
    feeds = {"x": np.ones((2, 2), np.float32), "x/0": np.ones((2, CLASSES), np.float32)}
    assert np.isfinite(run(["loss"], {**feeds, "labels": np.array([0, CLASSES - 1])})[0])
    with pytest.raises(InvalidGraph, match="Out of range"):
        run(["loss"], {**feeds, "labels": np.array([0, label])})
