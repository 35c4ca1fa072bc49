"""Small models for tests of the Open Inference Protocol, and tensors for them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper


def add_sub(rows="batch", columns=16, kind=TensorProto.INT32):
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1, all [rows, columns]: as in Triton's examples."""
    inputs, outputs = ("INPUT0", "INPUT1"), ("OUTPUT0", "OUTPUT1")
    nodes = [helper.make_node(op, inputs, [out]) for op, out in zip(("Add", "Sub"), outputs, strict=True)]
    return made(nodes, inputs, outputs, [rows, columns], kind)


def made(nodes, inputs, outputs, shape, kind):
    """The bytes of a model whose inputs and outputs are alike."""
    values = [[helper.make_tensor_value_info(name, kind, shape) for name in row] for row in (inputs, outputs)]
    graph = helper.make_graph(nodes, "small", *values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


FIRST = np.arange(16, dtype=np.int32)[None]
SECOND = np.ones((1, 16), np.int32)
