"""The gradient of lookups that leave a row of their table alone (lookups.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import NodeProto, TensorProto
from onnx_ad.rules import REVERSE, reverse_rule

from edge_attention.graphs.lookups import padding_row

_LIBRARY = REVERSE["Gather"]


@reverse_rule("Gather")  # type: ignore[untyped-decorator, unused-ignore]
def _gather(ctx: Any, node: NodeProto, grads: Sequence[str]) -> list[str | None]:
    row = padding_row(node)
    if row is None:
        return list(_LIBRARY(ctx, node, grads))
    ops, table = ctx.b, node.input[0]
    ids = ops.op("Cast", [node.input[1]], to=TensorProto.INT64)
    padding = ops.op("Equal", [ids, ops.constant(row, TensorProto.INT64, ())])
    each = ctx.unsqueeze(padding, list(range(-ctx.rank(table), 0)))  # the row's axes, and the seeds'
    zero = ctx.constant(0.0, ctx.dtype(table))
    masked = ops.op("Where", [each, zero, ctx.full(grads[0], node.output[0])], stem="a_lookup")
    return list(_LIBRARY(ctx, node, [masked]))
