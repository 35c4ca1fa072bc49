"""A segment's graph at fixed sizes: what it is differentiated as. Shapes and bounds are constants of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.infer import form_of, infer_types
from edge_attention.graphs.onnx_file import infer_shapes
from edge_attention.graphs.reading.needed import reads

__all__ = ["SAYS_SIZES", "FixedGraph", "fixed_graph", "reached"]

SAYS_SIZES = 1024
"""Elements of a constant of whole numbers up to which it may say a shape, and becomes one of the graph."""


@dataclass(frozen=True, eq=False)
class FixedGraph:
    """A segment at fixed sizes.

    Attributes:
        model: with all shapes inferred; the inputs in `written` are initializers of it.
        forms: of all its values whose shapes are known.
        written: inputs that are constants here.
    """

    model: ModelProto
    forms: Mapping[str, TensorForm]
    written: frozenset[str]

    @property
    def graph(self) -> GraphProto:
        return self.model.graph

    @cached_property
    def makers(self) -> Mapping[str, NodeProto]:
        """Value -> the node that makes it."""
        return {name: node for node in self.graph.node for name in node.output if name}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.graph.input)

    def is_float(self, name: str) -> bool:
        """Whether a gradient may pass it."""
        form = self.forms.get(name)
        return form is None or form.dtype in ("float32", "float64", "float16")


def fixed_graph(data: bytes, forms: Mapping[str, TensorForm], constants: Mapping[str, Array]) -> FixedGraph:
    """A segment's graph for inputs of these forms.

    Args:
        data: the graph's bytes.
        forms: of its inputs.
        constants: values of those inputs that say sizes.
    """
    model = ModelProto.FromString(data)
    graph = model.graph
    names = [value.name for value in graph.input]
    del graph.input[:], graph.value_info[:]
    for name in names:
        if name in constants:
            graph.initializer.append(numpy_helper.from_array(constants[name], name))
        else:
            form = forms[name]
            number = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
            graph.input.append(helper.make_tensor_value_info(name, number, form.shape))
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = infer_shapes(model)
    return FixedGraph(inferred, _forms(inferred), frozenset(constants) & set(names))


def _forms(model: ModelProto) -> dict[str, TensorForm]:
    """Of all values; what onnx knows no operator of is told by our own rules."""
    graph = model.graph
    types: dict[str, TypeProto] = {value.name: value.type for value in (*graph.input, *graph.value_info)}
    small = {}
    for tensor in graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        if tensor.data_type == TensorProto.INT64 and prod(tensor.dims) <= SAYS_SIZES:
            small[tensor.name] = numpy_helper.to_array(tensor)
    for value in graph.output:
        if form_of(value.type) is not None:
            types[value.name] = value.type
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    for node in graph.node:
        if any(name and (name not in types or form_of(types[name]) is None) for name in node.output):
            try:
                types |= infer_types(node, types, small, opsets, model.ir_version)
            except Exception:  # an operator that nobody knows: what follows of it has no gradient
                continue
    found = {name: form_of(kind) for name, kind in types.items()}
    return {name: form for name, form in found.items() if form is not None}


def reached(fixed: FixedGraph, names: Collection[str]) -> set[str]:
    """Values that a gradient comes from to one of `names`: these, and the floats that are made of them."""
    found = set(names)
    for node in fixed.graph.node:
        if reads(node) & found:
            found.update(name for name in node.output if name and fixed.is_float(name))
    return found
