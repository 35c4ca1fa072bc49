"""Inputs that a model joins with what is new: keys and values of earlier tokens, whatever they are called.

Along that axis such an input may have nothing in it, which a first step's has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx import NodeProto, helper

from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.onnx_file import all_nodes

__all__ = ["joined_along", "joined_inputs"]

_PASTS: Mapping[tuple[str, str], tuple[tuple[int, int], ...]] = {
    ("", "Attention"): ((4, 2), (5, 2)),
    ("com.microsoft", "Attention"): ((4, 3),),
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): ((5, 2), (6, 2)),
    ("com.microsoft", "GroupQueryAttention"): ((3, 2), (4, 2)),
    ("com.microsoft", "MultiHeadAttention"): ((6, 2), (7, 2)),
}
"""By operator which of its inputs are pasts, and along which axis."""
_SAME = frozenset({"Cast", "Identity"})


def joined_inputs(opened: OpenModel) -> dict[str, int]:
    """By input the axis, of open size, along which something is joined to it."""
    graph = opened.model.graph
    held = {tensor.name for tensor in graph.initializer}
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name not in held
    }
    return joined_along(all_nodes(graph), sizes)


def joined_along(nodes: Iterable[NodeProto], sizes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The same of nodes; `sizes`: of each input, 0 where it is open."""
    same = {name: name for name in sizes}
    found: dict[str, int] = {}
    for node in nodes:
        if node.op_type in _SAME and node.input[0] in same:
            same[node.output[0]] = same[node.input[0]]
        for name, axis in _joined_by(node):
            own = same.get(name, "")
            rank = len(sizes.get(own, ()))
            if -rank <= axis < rank and not sizes[own][axis]:
                found.setdefault(own, axis % rank)
    return found


def _joined_by(node: NodeProto) -> list[tuple[str, int]]:
    """What the node is given to join something to, and the axis."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if (domain, node.op_type) == ("", "Concat") and len(node.input) > 1:
        axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), 0)
        return [(name, axis) for name in node.input]
    return [
        (node.input[at], axis)
        for at, axis in _PASTS.get((domain, node.op_type), ())
        if at < len(node.input) and node.input[at]
    ]
