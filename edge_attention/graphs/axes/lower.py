"""Fused operators as plain ones, so that each axis of theirs is seen: tokens of queries and of keys, heads.

What is given is exact to the rounding of float32. What a lowering writes is bound like any other node, and
may be lowered again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import NodeProto, helper

from edge_attention.graphs.axes.lower_attention import ATTENTIONS
from edge_attention.graphs.axes.lower_grouped import GROUPED
from edge_attention.graphs.axes.lower_norms import NORMS
from edge_attention.graphs.axes.lower_quantised import QUANTISED
from edge_attention.graphs.axes.lowering import Lowered, Lowering, Rewrite, Unlowerable

__all__ = ["lowered"]


def lowered(node: NodeProto, write: Lowering, rounds: bool = False) -> Lowered | None:
    """What stands in the node's place; None where it stays as it is.

    `rounds`: the model rounds activations to 8 bits, by which a difference of 1e-7 may be 1e-2: a norm with
    the sum before it stays, as it adds otherwise than the two do.
    """
    rewrite = _LOWERED.get((node.domain, node.op_type))
    if rewrite is None or (rounds and (node.domain, node.op_type) in NORMS):
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    try:
        rewrite(node, attributes, write)
    except (Unlowerable, IndexError, KeyError, TypeError, ValueError):
        return None  # or it is not as its operator is: whoever runs it says so
    return write.made


def _gemm(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """Its bias is added behind it: of parts that each have a range of k, each would add it."""
    if len(node.input) < 3:
        raise Unlowerable
    plain = {name: value for name, value in at.items() if name != "beta"}
    beta = at.get("beta", 1.0)
    bias = node.input[2]
    if beta != 1.0:
        bias = write("Mul", bias, write.const(beta, write.form(bias).dtype))
    write("Add", write("Gemm", *node.input[:2], **plain), bias, out=node.output[0])


_LOWERED: Mapping[tuple[str, str], Rewrite] = {
    **ATTENTIONS,
    **GROUPED,
    **NORMS,
    **QUANTISED,
    ("", "Gemm"): _gemm,
}
