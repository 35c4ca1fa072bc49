"""Weights that an exporter keeps in `Constant` nodes, made initializers, which are what trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from edge_attention.graphs.models.floats import FLOATS
from edge_attention.graphs.onnx_file import all_nodes

__all__ = ["lift_constants"]

# Operators to the inputs, by position, that weights are read by.
_WEIGHTS = {
    "BatchNormalization": {1, 2},
    "Conv": {1, 2},
    "ConvTranspose": {1, 2},
    "GRU": {1, 2, 3},
    "Gather": {0},
    "Gemm": {0, 1, 2},
    "GroupNormalization": {1, 2},
    "InstanceNormalization": {1, 2},
    "LSTM": {1, 2, 3},
    "LayerNormalization": {1, 2},
    "MatMul": {0, 1},
    "PRelu": {1},
    "RMSNormalization": {1},
    "RNN": {1, 2, 3},
}
_PRODUCTS = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
# What a weight may go through before it is used as one.
_FORMS = {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def lift_constants(graph: GraphProto, named: Collection[str], by_use: bool) -> None:
    """Turn `Constant` nodes of floating-point tensors into initializers, in place, called as their outputs.

    Those in `named`, and with `by_use` those that a product, a norm, an embedding or a recurrence reads as a
    weight, or that are added after a product: what else is constant, a mean of pixels or a scale, stays.
    """
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in all_nodes(graph):
        for slot, name in enumerate(node.input):
            readers[name].append((node, slot))
    producers = {output: node for node in graph.node for output in node.output}
    nodes = []
    for node in graph.node:
        tensor = _tensor(node)
        name = node.output[0] if node.output else ""
        weight = name in named or (by_use and _is_weight(name, readers, producers))
        if tensor is None or name in outputs or not weight:
            nodes.append(node)
            continue
        tensor.name = name
        graph.initializer.append(tensor)
    if len(nodes) < len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)


def _tensor(node: NodeProto) -> TensorProto | None:
    """The floating-point tensor, not a scalar, that a `Constant` node holds."""
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    given, made = node.attribute[0], TensorProto()
    if given.type == AttributeProto.TENSOR:
        made.CopyFrom(given.t)
    elif given.type == AttributeProto.FLOATS:
        array = helper.get_attribute_value(given)
        made = helper.make_tensor("", TensorProto.FLOAT, [len(array)], array)
        made.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(made)))
    return made if made.data_type in FLOATS and made.dims else None


def _is_weight(
    name: str, readers: dict[str, list[tuple[NodeProto, int]]], producers: dict[str, NodeProto]
) -> bool:
    waiting, seen = [name], {name}
    while waiting:
        for node, slot in readers[waiting.pop()]:
            if slot in _WEIGHTS.get(node.op_type, ()) or node.op_type == "Einsum":
                return True
            others = (producers.get(other) for other in node.input)
            if node.op_type == "Add" and any(o is not None and o.op_type in _PRODUCTS for o in others):
                return True
            if node.op_type in _FORMS and slot == 0 and node.output[0] not in seen:
                seen.add(node.output[0])
                waiting.append(node.output[0])
    return False
