"""The rule of each operator. What has none must be whole: it costs a gather, and is computed everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.making import MakesRule, Making
from edge_attention.graphs.axes.rule import Rule
from edge_attention.graphs.axes.rules_moves import MOVES
from edge_attention.graphs.axes.rules_products import PRODUCTS
from edge_attention.graphs.axes.rules_quantised import QUANTISED
from edge_attention.graphs.axes.rules_reductions import REDUCTIONS
from edge_attention.graphs.axes.rules_rows import ROWS
from edge_attention.graphs.reading.needed import reads

__all__ = ["rule_of"]

_TABLE: Mapping[str, MakesRule] = {**PRODUCTS, **REDUCTIONS, **MOVES, **ROWS, **QUANTISED}
"""Operators of ONNX by name, of other domains as `domain.name`."""


def rule_of(node: NodeProto, bound: BoundGraph) -> Rule:
    """What the node does to axes.

    Of a node that reads or makes what has no known shape the rule has no factors at all, and says why: it
    must be given all, and all it makes is made by whoever runs it.
    """
    open_ = [name for name in (*sorted(reads(node)), *node.output) if name in bound.unknown]
    name = node.name or node.output[0]
    if open_:
        return Rule(
            (),
            tuple(() if i else None for i in node.input),
            tuple(() for _ in node.output),
            False,
            bound.unknown[open_[0]],
        )
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    make = Making(node, bound)
    maker = _TABLE.get(kind)
    if maker is None:
        make.whole(f"{kind} '{name}' is not known here")
    elif any(0 in bound.shape(x) for x in (*node.input, *node.output) if x):
        make.whole(f"{kind} '{name}' has an empty tensor")
    else:
        maker(make)
    return make.rule()
