"""The gradient of a `Softmax` that is guarded: exporters write `Where(IsNaN(p), 0, p)` behind it.

A row of which a mask of -inf hides everything is NaN there, and 0 behind the guard. No gradient comes to it,
but 0 times NaN is NaN, and would be in the gradient of every weight before: such a row has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import ModelProto, NodeProto
from onnx_ad._build import attribute
from onnx_ad.rules import REVERSE, reverse_rule

__all__ = ["mark_guarded"]

_GUARDED = "guarded"
_LIBRARY = REVERSE["Softmax"]


def mark_guarded(model: ModelProto) -> None:
    """Note, in place, which Softmax is guarded: its rule reads that."""
    checked = {node.input[0] for node in model.graph.node if node.op_type == "IsNaN"}
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.doc_string = _GUARDED if node.output[0] in checked else ""


@reverse_rule("Softmax")  # type: ignore[untyped-decorator, unused-ignore]
def _softmax(ctx: Any, node: NodeProto, grads: Sequence[str]) -> list[str | None]:
    if node.doc_string != _GUARDED:
        return list(_LIBRARY(ctx, node, grads))
    ops, y = ctx.b, node.output[0]
    zero = ctx.constant(0.0, ctx.dtype(y))
    seen = ctx.unsqueeze(ops.op("Where", [ops.op("IsNaN", [y]), zero, y]), [-1])
    seeded = ctx.full(grads[0], y)
    axis = attribute(node, "axis", -1) % ctx.rank(node.input[0])
    total = ctx.reduce_sum(ops.op("Mul", [seen, seeded]), [axis], keepdims=1)
    return [ops.op("Mul", [seen, ops.op("Sub", [seeded, total])])]
