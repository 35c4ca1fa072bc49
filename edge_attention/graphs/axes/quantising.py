"""int8 of what is cut: quantised by the range of all parts, 8 bytes, then bit for bit as one machine does."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from edge_attention.core.schedule.schedule import Collective, TensorForm
from edge_attention.graphs.axes.forms import Operation, StageCut, Unfolded
from edge_attention.graphs.axes.stock import FormStock
from edge_attention.graphs.axes.ways import Way

__all__ = ["quantise"]


def quantise(stock: FormStock, stage: StageCut, node: NodeProto, way: Way) -> None:
    """Quantised by the least and the most of all parts: the same numbers as of the whole, to the bit."""
    state = way.operands[0]
    assert state is not None
    data = stock.obtain(stage, node.input[0], state)
    name, scalar, one = node.output[0], TensorForm("float32", ()), TensorForm("float32", (1,))
    ends = []
    for kind, collective in (("ReduceMin", Collective.MIN), ("ReduceMax", Collective.MAX)):
        end = f"{name}#{kind}"
        form = stock.made(
            stage, kind, [data], end, scalar, Unfolded(collective, way.axis), (), way.axis, keepdims=0
        )
        stock.homes[end] = form
        shape = stock.literal(stage, f"{end}#shape", np.array([1], np.int64))
        ends.append(
            stock.made(
                stage, "Reshape", [stock.obtain(stage, end, None), shape], f"{end}#1", one, None, ((),)
            )
        )
    both = stock.made(stage, "Concat", ends, f"{name}#ends", TensorForm("float32", (2,)), None, ((),), axis=0)
    made = NodeProto()
    made.CopyFrom(node)
    del made.input[:], made.output[:]
    names = [f"{name}#levels", *(o or f"{name}#{n}" for n, o in enumerate(node.output[1:3]))]
    made.input.append(both.tensor)
    made.output.extend(names)
    stock.specs[names[0]], stock.dims[names[0]] = TensorForm("uint8", (2,)), ((),)
    for extra, dtype in zip(names[1:], ("float32", "uint8"), strict=True):
        stock.specs.setdefault(extra, TensorForm(dtype, ()))
        stock.dims.setdefault(extra, ())
    operation = Operation(stage.number, both.level, made, (both,), {}, None)
    stock.finish(operation, [(one_name, None) for one_name in names])
    stock.settle(operation)
    steps = [form for form in operation.results[1:] if form is not None]
    result = stock.made(
        stage, "QuantizeLinear", [data, *steps], name, stock.specs[name], state, stock.dims[name], way.axis
    )
    stock.homes[name] = result
