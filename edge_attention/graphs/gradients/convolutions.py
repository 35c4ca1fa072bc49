"""Gradient rules of `Conv`, `ConvTranspose`, `AveragePool` and `LpPool`, in the place of `onnx-ad`'s own.

Its rules have no gradient for the weights of grouped convolutions (MobileNet) or of transposed ones
(decoders), and place the gradient of the input by a total of padding, which is wrong where padding is not
symmetric or windows do not reach the end. They are replaced in everything this process differentiates, but
for shapes that depend on data and for `output_shape`.

A convolution is linear in its input and in its weights, so both gradients are convolutions: of the
output's gradient with the same weights, transposed; and of the input with the output's gradient as the
filters, strides and dilations exchanged and the batch in the place of the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto
from onnx_ad import UnsupportedOperator
from onnx_ad.rules import REVERSE, reverse_rule

from edge_attention.graphs.gradients.windows import Shape, SlidingWindow, attributes_of


class _Rule:
    """One node to differentiate. The seeds' axis of `onnx-ad` has size one here: it is reshaped away."""

    def __init__(self, ctx: Any, node: NodeProto, shapes: Mapping[str, Shape]) -> None:
        given = attributes_of(node)
        implicit = given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or given.get("ceil_mode")
        if implicit:
            raise UnsupportedOperator(
                "its windows have no equal with explicit pads (dilation or steps longer than the window with "
                "SAME, ceil_mode where padding counts, or inside a subgraph); export it with explicit pads, "
                "and a mean with count_include_pad=False"
            )
        self._ctx = ctx
        self._ops = ctx.b
        self._node = node
        self._shapes = shapes
        self._group = int(given.get("group", 1))
        self._window = SlidingWindow.of(given, given.get("kernel_shape") or shapes[node.input[1]][2:])
        self._counts_padding = bool(given.get("count_include_pad"))
        self._power = float(given.get("p", 2))
        self._spatial = list(range(2, len(shapes[node.input[0]])))
        self._moves = {name: getattr(self._window, name) for name in ("strides", "dilations", "pads")}
        self._dtype = ctx.dtype(node.input[0])
        self.x = shapes[node.input[0]]
        self.y = shapes[node.output[0]]

    def contributions(self, grads: Sequence[str], *makers: Callable[[str], str]) -> list[str | None]:
        """One gradient an input, with the seeds' axis; None where none is asked for. A bias comes last."""
        node, ctx = self._node, self._ctx
        gradient = self._reshaped(ctx.full(grads[0], node.output[0]), self.y)
        return [
            self._reshaped(make(gradient), (*self._shapes[name], 1)) if name and ctx.asked_for(name) else None
            for name, make in zip(node.input, (*makers, self._bias), strict=False)
        ]

    def onto_large(self, small: str) -> str:
        """The transposed convolution of the output's gradient, of the input's very shape."""
        return self._transposed(small, self._node.input[1], self._group)

    def onto_small(self, large: str) -> str:
        """The convolution of the output's gradient, of the input's very shape."""
        product = self._ops.op("Conv", [large, self._node.input[1]], group=self._group, **self._moves)
        return self._cut(product, self.x[2:])

    def mean(self, gradient: str) -> str:
        """The gradient of means: an equal share of each window's to all elements under it."""
        counts = np.maximum(self._window.counts(self.y[2:], self.x[2:], self._counts_padding), 1)
        share = self._ops.constant(1 / counts, self._dtype, (1, 1, *counts.shape))
        return self._spread(self._ops.op("Mul", [gradient, share]))

    def norm(self, gradient: str) -> str:
        """The gradient of y = (sum |x|^p)^(1/p): sign(x) |x|^(p-1) times what comes of dy y^(1-p).

        0 where y is.
        """
        x, y, ops = self._node.input[0], self._node.output[0], self._ops
        zero = ops.constant(0.0, self._dtype)
        outer, inner = (ops.constant(number, self._dtype) for number in (1 - self._power, self._power - 1))
        falls = ops.op("Where", [ops.op("Greater", [y, zero]), ops.op("Pow", [y, outer]), zero])
        spread = self._spread(ops.op("Mul", [gradient, falls]))
        rises = ops.op("Mul", [ops.op("Sign", [x]), ops.op("Pow", [ops.op("Abs", [x]), inner])])
        return str(ops.op("Mul", [spread, rises]))

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

    def _spread(self, small: str) -> str:
        """To each element the sum over the windows above it."""
        ones = np.ones((self.x[1], 1, *self._window.kernel))
        return self._transposed(small, self._ops.constant(ones, self._dtype, ones.shape), self.x[1])

    def _bias(self, gradient: str) -> str:
        return str(self._ctx.reduce_sum(gradient, [0, *self._spatial], keepdims=0))

    def _cut(self, value: str, sizes: Sequence[int]) -> str:
        """The first so many elements of each spatial axis: strides leave a rest that no window reached."""
        bounds = [self._ops.ints(numbers) for numbers in ([0] * len(sizes), sizes, self._spatial)]
        return str(self._ops.op("Slice", [value, *bounds]))

    def _reshaped(self, value: str, shape: Sequence[int]) -> str:
        return str(self._ops.op("Reshape", [value, self._ops.ints(shape)]))


def _convolution(rule: _Rule, grads: Sequence[str], node: NodeProto) -> list[str | None]:
    return rule.contributions(grads, rule.onto_large, lambda dy: rule.weights(node.input[0], rule.x, dy))


def _transposed_convolution(rule: _Rule, grads: Sequence[str], node: NodeProto) -> list[str | None]:
    return rule.contributions(grads, rule.onto_small, lambda dy: rule.weights(dy, rule.y, node.input[0]))


_RULES: dict[str, Callable[[_Rule, Sequence[str], NodeProto], list[str | None]]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "AveragePool": lambda rule, grads, _: rule.contributions(grads, rule.mean),
    "LpPool": lambda rule, grads, _: rule.contributions(grads, rule.norm),
}
_LIBRARY = {kind: REVERSE[kind] for kind in _RULES}


@reverse_rule(*_RULES)  # type: ignore[untyped-decorator, unused-ignore]
def _reverse(ctx: Any, node: NodeProto, grads: Sequence[str]) -> list[str | None]:
    names = [name for name in (*node.input, node.output[0]) if name]
    shapes = {name: ctx.shapes.static(name) for name in names}
    # The gradient of weights alone needs no shapes. With `output_shape` onnx infers none that are right.
    if None in shapes.values() or "output_shape" in attributes_of(node):
        return list(_LIBRARY[node.op_type](ctx, node, grads))
    return _RULES[node.op_type](_Rule(ctx, node, shapes), grads, node)
