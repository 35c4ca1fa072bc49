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


TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}


def identities():
    """An input and output [3] of each type: `out_INT8` is `INT8`."""
    values = [
        [helper.make_tensor_value_info(f"{prefix}{name}", kind, [3]) for name, kind in TYPES.items()]
        for prefix in ("", "out_")
    ]
    nodes = [helper.make_node("Identity", [name], [f"out_{name}"]) for name in TYPES]
    graph = helper.make_graph(nodes, "identities", *values)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


FIRST = np.arange(16, dtype=np.int32)[None]
SECOND = np.ones((1, 16), np.int32)
