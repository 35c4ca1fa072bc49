"""Gradient rules of `Conv`, `ConvTranspose` and `AveragePool`, in the place of `onnx-ad`'s own.

Its rules have no gradient for the weights of grouped convolutions (MobileNet) or of transposed ones
(decoders), and place the gradient of the input by a total of padding, which is wrong where padding is not
symmetric or windows do not reach the end. They are replaced in everything this process differentiates.

A convolution is linear in its input and in its weights, so both gradients are convolutions: of the
output's gradient with the same weights, transposed; and of the input with the output's gradient as the
filters, strides and dilations exchanged and the batch in the place of the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto
from onnx_ad import UnsupportedOperator
from onnx_ad.rules import reverse_rule

from edge_attention.graphs.windows import Shape, Window, attributes_of


class _Rule:
    """One node to differentiate. The seeds' axis of `onnx-ad` has size one here: it is reshaped away."""

    def __init__(self, ctx: Any, node: NodeProto) -> None:
        given = attributes_of(node)
        inputs = [name for name in node.input if name]
        shapes = {name: ctx.shapes.static(name) for name in (*inputs, node.output[0])}
        implicit = given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or given.get("ceil_mode")
        if None in shapes.values() or implicit or "output_shape" in given:
            raise UnsupportedOperator(
                f"{node.op_type} has no gradient without fixed shapes and explicit pads; export it with them"
            )
        self._ctx, self._ops, self._node = ctx, ctx.b, node
        self._shapes: dict[str, Shape] = shapes
        self._group = int(given.get("group", 1))
        self._window = Window.of(given, given.get("kernel_shape") or shapes[node.input[1]][2:])
        self._counts_padding = bool(given.get("count_include_pad"))
        self._spatial = list(range(2, len(shapes[node.input[0]])))
        self._moves = {name: getattr(self._window, name) for name in ("strides", "dilations", "pads")}
        self.x, self.y = shapes[node.input[0]], shapes[node.output[0]]

    def contributions(self, grads: Sequence[str], *makers: Callable[[str], str]) -> list[str | None]:
        """One gradient an input, with the seeds' axis; None where none is asked for. A bias comes last."""
        node, ctx = self._node, self._ctx
        gradient = self._reshaped(ctx.full(grads[0], node.output[0]), self.y)
        return [
            self._reshaped(make(gradient), (*self._shapes[name], 1)) if ctx.asked_for(name) else None
            for name, make in zip(node.input, (*makers, self._bias), strict=False)
        ]

    def onto_large(self, small: str) -> str:
        """The transposed convolution of the output's gradient, of the input's very shape."""
        return self._transposed(small, self._node.input[1], self._group)

    def onto_small(self, large: str) -> str:
        """The convolution of the output's gradient, of the input's very shape."""
        product = self._ops.op("Conv", [large, self._node.input[1]], group=self._group, **self._moves)
        return self._cut(product, self.x[2:])

    def spread(self, gradient: str) -> str:
        """The gradient of means: an equal share of each window's to all elements under it."""
        channels, kernel = self.x[1], self._window.kernel
        counts = self._window.counts(self.y[2:], self.x[2:], self._counts_padding)
        share = self._ops.constant(1 / counts, TensorProto.FLOAT, (1, 1, *counts.shape))
        ones = np.ones((channels, 1, *kernel))
        weights = self._ops.constant(ones, TensorProto.FLOAT, ones.shape)
        return self._transposed(self._ops.op("Mul", [gradient, share]), weights, channels)

    def weights(self, large: str, large_shape: Shape, small: str) -> str:
        """The gradient of weights [g * O, C, k...] from `large` [B, g * C, ...] to `small` [B, g * O, ...].

        One grouped convolution of [C, g * B, ...] with filters [g * O, B, ...].
        """
        batch, channels, *sizes = large_shape
        each, swap = channels // self._group, [1, 0, *self._spatial]
        split = self._reshaped(large, (batch, self._group, each, *sizes))
        turned = self._ops.op("Transpose", [split], perm=[2, 1, 0, *(axis + 1 for axis in self._spatial)])
        images = self._reshaped(turned, (each, self._group * batch, *sizes))
        moves = {"strides": self._window.dilations, "dilations": self._window.strides}
        product = self._ops.op(
            "Conv",
            [images, self._ops.op("Transpose", [small], perm=swap)],
            group=self._group,
            pads=self._window.pads,
            **moves,
        )
        return str(self._ops.op("Transpose", [self._cut(product, self._window.kernel)], perm=swap))

    def _transposed(self, small: str, weights: str, group: int) -> str:
        rest = self._window.rest(self.y[2:], self.x[2:])
        made = self._ops.op(
            "ConvTranspose", [small, weights], group=group, output_padding=rest, **self._moves
        )
        return str(made)

    def _bias(self, gradient: str) -> str:
        return str(self._ctx.reduce_sum(gradient, [0, *self._spatial], keepdims=0))

    def _cut(self, value: str, sizes: Sequence[int]) -> str:
        """The first so many elements of each spatial axis: strides leave a rest that no window reached."""
        bounds = [self._ops.ints(numbers) for numbers in ([0] * len(sizes), sizes, self._spatial)]
        return str(self._ops.op("Slice", [value, *bounds]))

    def _reshaped(self, value: str, shape: Sequence[int]) -> str:
        return str(self._ops.op("Reshape", [value, self._ops.ints(shape)]))


@reverse_rule("Conv")  # type: ignore[untyped-decorator, unused-ignore]
def _conv(ctx: Any, node: NodeProto, grads: Sequence[str]) -> list[str | None]:
    rule = _Rule(ctx, node)
    return rule.contributions(grads, rule.onto_large, lambda dy: rule.weights(node.input[0], rule.x, dy))


@reverse_rule("ConvTranspose")  # type: ignore[untyped-decorator, unused-ignore]
def _conv_transpose(ctx: Any, node: NodeProto, grads: Sequence[str]) -> list[str | None]:
    rule = _Rule(ctx, node)
    return rule.contributions(grads, rule.onto_small, lambda dy: rule.weights(dy, rule.y, node.input[0]))


@reverse_rule("AveragePool")  # type: ignore[untyped-decorator, unused-ignore]
def _average_pool(ctx: Any, node: NodeProto, grads: Sequence[str]) -> list[str | None]:
    rule = _Rule(ctx, node)
    return rule.contributions(grads, rule.spread)
