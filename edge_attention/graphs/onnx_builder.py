"""A small writer of ONNX graphs: one call a node, names made up, constants shared.

    g = Builder("softplus")
    x = g.input("x", FLOAT, ["n"])
    g.output("y", g("Log", g("Add", g("Exp", x), g.const(np.float32(1)))), FLOAT, ["n"])
    model = g.model()

Bodies of `Scan` and `If` come from `Builder.body`: they see the names of the graph around them, and
their constants are kept in the outermost graph, where each value is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FLOAT", "INT64", "IR_VERSION", "OPSET", "Builder"]

FLOAT: int = TensorProto.FLOAT
INT64: int = TensorProto.INT64
# What ONNX Runtime 1.22, the oldest we support, reads; nothing here needs a later operator.
OPSET = 21
IR_VERSION = 10


class Builder:
    """Collects the nodes of one graph. Values are names; `model` or `graph` turns them into ONNX."""

    def __init__(self, name: str, around: Builder | None = None) -> None:
        self.name = name
        self._root: Builder = self if around is None else around._root
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._names = 0

    def body(self, name: str) -> Builder:
        """A graph for an attribute of a node of this one; it may use this one's names."""
        return Builder(name, self)

    def input(self, name: str, dtype: int, dims: Sequence[str | int] | None) -> str:
        """Declare an input; a string in `dims` is a symbolic dimension, None leaves the shape open."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def output(self, name: str, value: str, dtype: int, dims: Sequence[str | int] | None) -> None:
        """Declare that output `name` is `value`."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, dims))
        self._nodes.append(helper.make_node("Identity", [value], [name], name=self._root._fresh("Identity")))

    def const(self, value: npt.ArrayLike) -> str:
        """The name of a constant; equal constants share one."""
        array = np.asarray(value)
        root = self._root
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in root._constants:
            root._constants[key] = numpy_helper.from_array(array, root._fresh("constant"))
        return root._constants[key].name

    def ints(self, *values: int) -> str:
        """A constant int64 vector: axes, shapes, indices."""
        return self.const(np.array(values, np.int64))

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output and return that output's name."""
        return self.nodes(kind, 1, *inputs, **attributes)[0]

    def nodes(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Append a node with several outputs and return their names."""
        name = self._root._fresh(kind)
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def dim(self, value: str, axis: int) -> str:
        """The size of one axis, int64 [1]."""
        return self("Shape", value, start=axis, end=axis + 1)

    def reshape(self, value: str, *dims: str | int) -> str:
        """Reshape; a string is the name of an int64 [1], an int stands for itself (0 copies, -1 infers)."""
        parts = [self.ints(d) if isinstance(d, int) else d for d in dims]
        return self("Reshape", value, self("Concat", *parts, axis=0))

    def either(
        self,
        condition: str,
        then: Callable[[Builder], Sequence[str]],
        otherwise: Callable[[Builder], Sequence[str]],
        dims: Sequence[Sequence[str | int]],
    ) -> list[str]:
        """An `If`: only the chosen side runs. Each side returns one float value for each of `dims`."""
        sides = []
        for side in (then, otherwise):
            b = self.body(self._root._fresh("branch"))
            for i, value in enumerate(side(b)):
                b.output(f"{b.name}_{i}", value, FLOAT, dims[i])
            sides.append(b.graph())
        return self.nodes("If", len(dims), condition, then_branch=sides[0], else_branch=sides[1])

    def graph(self) -> onnx.GraphProto:
        """The graph as collected so far."""
        constants = list(self._constants.values())
        return helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, constants)

    def model(self) -> onnx.ModelProto:
        """The checked model, with opset and IR version pinned."""
        model = helper.make_model(
            self.graph(),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edge-attention",
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _fresh(self, kind: str) -> str:
        self._root._names += 1
        return f"{kind}_{self._root._names}"
