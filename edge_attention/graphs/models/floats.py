"""Models in float16, bfloat16 or float64 made ones in float32, which is what trains."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, numpy_helper

from edge_attention.graphs.onnx_file import all_nodes, tensors_in
from edge_attention.graphs.reading.needed import graphs_in

__all__ = ["FLOATS", "to_float32"]

_HALVES: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
_DOUBLE: dict[int, str] = {TensorProto.DOUBLE: "float64"}
FLOATS = frozenset({TensorProto.FLOAT, *_HALVES, *_DOUBLE})
"""Element types that a parameter may have in a file."""
# Attributes that say which element type comes out.
_TYPED = {"dtype", "output_dtype", "to"}


def to_float32(model: ModelProto) -> str:
    """Make, in place, tensors of float16 or bfloat16 ones of float32, and where weights are float64 those.

    Sums inside, and masks as large as float16 holds, keep their values. Returns the types that were, for a
    person; empty: nothing was changed.
    """
    changed: dict[int, str] = {}
    if _types(model.graph) & _HALVES.keys():
        changed |= _HALVES
    if any(t.data_type == TensorProto.DOUBLE and t.dims for t in tensors_in(model.graph)):
        changed |= _DOUBLE
    found = _types(model.graph) & changed.keys()
    if found:
        _graph(model.graph, changed)
    return " and ".join(sorted(changed[kind] for kind in found))


def _graph(graph: GraphProto, changed: dict[int, str]) -> None:
    for tensor in tensors_in(graph):
        if tensor.data_type in changed:
            with np.errstate(over="ignore"):  # a value that is too large is said of the parameter that has it
                array = numpy_helper.to_array(tensor).astype(np.float32)
            name, notes = tensor.name, list(tensor.metadata_props)
            tensor.CopyFrom(numpy_helper.from_array(array, name))
            tensor.metadata_props.extend(notes)
    for each in _graphs(graph):
        for value in (*each.input, *each.output, *each.value_info):
            _type(value.type, changed)
    for node in all_nodes(graph):
        for attribute in node.attribute:
            if attribute.name in _TYPED and attribute.i in changed:
                attribute.i = TensorProto.FLOAT
            for kind in (attribute.tp, *attribute.type_protos) if attribute.HasField("tp") else ():
                _type(kind, changed)


def _type(kind: TypeProto, changed: dict[int, str]) -> None:
    while kind.HasField("sequence_type") or kind.HasField("optional_type"):
        kind = (
            kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
        )
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type in changed:
        kind.tensor_type.elem_type = TensorProto.FLOAT


def _types(graph: GraphProto) -> set[int]:
    """The element types of what is given, comes out, or is a constant."""
    found = {tensor.data_type for tensor in tensors_in(graph)}
    return found | {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for inner in graphs_in(node):
            yield from _graphs(inner)
