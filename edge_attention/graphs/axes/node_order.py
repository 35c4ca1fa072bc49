"""Nodes behind what they read: ONNX asks for it, ONNX Runtime does not, and some tools write otherwise.

ONNX Runtime's `convert_float_to_float16` puts the casts of inputs behind all other nodes, for one, and those
of outputs: keys and values of each layer would live until the end, and no layer would end before.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto

from edge_attention.graphs.reading.needed import reads

__all__ = ["put_in_order"]


def put_in_order(graph: GraphProto) -> None:
    """Put the graph's nodes in an order in which each is behind what it reads, and what casts an output is
    behind what makes it, in place. All others stay where they are, and so does a graph with a circle, which
    whoever reads on refuses."""
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    before = [
        {makers[name] for name in reads(node) if name in makers} - {at} for at, node in enumerate(graph.node)
    ]
    outputs = {value.name for value in graph.output}
    ends: dict[int, list[int]] = {}
    for at, node in enumerate(graph.node):
        if node.op_type == "Cast" and node.output[0] in outputs and len(before[at]) == 1:
            ends.setdefault(next(iter(before[at])), []).append(at)
    moved = {at for own in ends.values() for at in own}
    if not moved.isdisjoint(ends):
        ends, moved = {}, set()
    order = [at for at in _ordered(before) if at not in moved]
    order = [one for at in order for one in (at, *ends.get(at, ()))]
    if len(order) != len(before) or order == list(range(len(order))):
        return
    copy = GraphProto()
    copy.node.extend(graph.node[at] for at in order)
    del graph.node[:]
    graph.node.extend(copy.node)


def _ordered(before: Sequence[set[int]]) -> list[int]:
    """The numbers, each behind those that are `before` it; fewer where they go in a circle."""
    order: dict[int, None] = {}
    for start in range(len(before)):
        waiting = {start: iter(sorted(before[start]))}
        while waiting:
            at, rest = next(reversed(waiting.items()))
            lacking = next((one for one in rest if one not in order), None)
            if lacking in waiting:
                return []
            if lacking is None:
                order[at] = None
                del waiting[at]
            else:
                waiting[lacking] = iter(sorted(before[lacking]))
    return list(order)
