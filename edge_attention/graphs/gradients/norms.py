"""The gradient of a `BatchNormalization` whose mean and variance the graph computes.

`onnx-ad` takes both for stored statistics, whatever they are made of, and leaves out what passes through
them: PyTorch's exporter writes a batch norm without running statistics as two means and such a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import NodeProto
from onnx_ad._build import attribute
from onnx_ad.rules import REVERSE, reverse_rule

_LIBRARY = REVERSE["BatchNormalization"]


@reverse_rule("BatchNormalization")  # type: ignore[untyped-decorator, unused-ignore]
def _batch_norm(ctx: Any, node: NodeProto, grads: Sequence[str]) -> list[str | None]:
    """With y = scale (x - mean) / d + bias and d = sqrt(variance + epsilon):
    dmean = -scale / d dbias, and dvariance = -scale / (2 d^2) dscale."""
    dx, dscale, dbias, *_ = _LIBRARY(ctx, node, grads)
    found = [dx, dscale, dbias, None, None]
    scale, mean, variance = node.input[1], node.input[3], node.input[4]
    if not (ctx.asked_for(mean) or ctx.asked_for(variance)):
        return found
    ops, dtype = ctx.b, ctx.dtype(mean)
    squared = ops.op("Add", [variance, ctx.constant(attribute(node, "epsilon", 1e-5), dtype)])
    if ctx.asked_for(mean):
        gain = ops.op("Neg", [ops.op("Div", [scale, ops.op("Sqrt", [squared])])])
        found[3] = ops.op("Mul", [ctx.lift(gain), dbias], stem="a_mean")
    if ctx.asked_for(variance):
        half = ops.op("Div", [scale, ops.op("Mul", [squared, ctx.constant(-2.0, dtype)])])
        found[4] = ops.op("Mul", [ctx.lift(half), dscale], stem="a_variance")
    return found
