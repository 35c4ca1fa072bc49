"""Tables of int8 that a model reads in several places: embeddings that are also the last weight."""

from __future__ import annotations

from collections import Counter

from edge_attention.graphs.axes.bound import BoundGraph

__all__ = ["shared_tables"]


def shared_tables(bound: BoundGraph) -> frozenset[str]:
    """What DequantizeLinear makes of a weight, with one scale, that the file also reads elsewhere.

    ONNX Runtime makes one operator of such a product that rounds its other operand to int8, too, but only of
    a weight that nothing else reads: not in the whole model, yet in the part that has this use of it alone.
    """
    uses = Counter(
        bound.weights[name]
        for name, readers in bound.readers.items()
        if name in bound.weights
        for _ in readers
    )
    return frozenset(
        node.output[0]
        for node in bound.nodes
        if node.op_type == "DequantizeLinear"
        and uses[bound.weights.get(node.input[0], "")] > 1
        and bound.constant(node.input[1]) is not None
        and len(bound.shape(node.input[1])) == 0
    )
