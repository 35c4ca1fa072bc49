"""Gradients of operators that pick elements along axes: `Slice` with steps, `Pad` that repeats or crops.

`onnx-ad` has rules for slices of step 1 and for padding with a constant; those stay. The rules here see each
output element along an axis as a copy of one input element, or as a constant, and add up what comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx_ad import UnsupportedOperator
from onnx_ad.rules import REVERSE, reverse_rule

from edge_attention.graphs.gradients.windows import attributes_of

_CONSTANT = -1
_Picks = dict[int, NDArray[np.int64]]
"""By axis, for each output element the input element it is a copy of; -1 for a constant."""

_LIBRARY = {name: REVERSE[name] for name in ("Pad", "Slice")}


def _picked_by_slice(
    shape: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
) -> _Picks:
    """What `Slice` picks from a tensor of that shape; negative numbers count from the end."""
    picks = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis]
        low, high = (0, size) if step > 0 else (-1, size - 1)
        first, beyond = (number + size if number < 0 else number for number in (start, end))
        first = min(max(first, 0), high)
        picks[axis % len(shape)] = np.arange(first, min(max(beyond, low), high), step)
    return picks


def _picked_by_pad(shape: Sequence[int], pads: Sequence[int], axes: Sequence[int], mode: str) -> _Picks:
    """What `Pad` picks from a tensor of that shape; negative pads crop."""
    picks = {}
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        size = shape[axis]
        inner = np.arange(size)[max(0, -before) : size - max(0, -after)]
        width = (max(0, before), max(0, after))
        if mode == "constant":
            picks[axis % len(shape)] = np.pad(inner, width, constant_values=_CONSTANT)
        else:
            picks[axis % len(shape)] = np.pad(inner, width, mode=mode)  # type: ignore[call-overload]
    return picks


@reverse_rule("Slice")  # type: ignore[untyped-decorator, unused-ignore]
def _slice(ctx: Any, node: NodeProto, grads: Sequence[str]) -> list[str | None]:
    steps = _integers(ctx, node, 4, [1])
    if steps is not None and set(steps) == {1}:
        return list(_LIBRARY["Slice"](ctx, node, grads))
    shape, starts, ends = ctx.shapes.static(node.input[0]), *(_integers(ctx, node, i, None) for i in (1, 2))
    axes = _integers(ctx, node, 3, list(range(len(starts or ()))))
    if shape is None or starts is None or ends is None or axes is None or steps is None:
        raise UnsupportedOperator("a slice with steps has a gradient where shapes and bounds are fixed")
    return _contributions(ctx, node, grads, shape, _picked_by_slice(shape, starts, ends, axes, steps))


@reverse_rule("Pad")  # type: ignore[untyped-decorator, unused-ignore]
def _pad(ctx: Any, node: NodeProto, grads: Sequence[str]) -> list[str | None]:
    mode, shape = attributes_of(node).get("mode", "constant"), ctx.shapes.static(node.input[0])
    if len(node.input) > 2 and node.input[2] and ctx.asked_for(node.input[2]):
        raise UnsupportedOperator("the constant of a Pad has no gradient; leave it out of `parameters`")
    pads = _integers(ctx, node, 1, None)
    if mode == "constant" and (pads is None or min(pads, default=0) >= 0):
        return list(_LIBRARY["Pad"](ctx, node, grads))
    axes = _integers(ctx, node, 3, list(range(len(shape or ()))))
    if shape is None or pads is None or axes is None:
        raise UnsupportedOperator(f"padding by '{mode}' has a gradient where shapes and pads are fixed")
    return _contributions(ctx, node, grads, shape, _picked_by_pad(shape, pads, axes, mode))


def _integers(ctx: Any, node: NodeProto, i: int, absent: list[int] | None) -> list[int] | None:
    """The constant that is input `i`, or `absent`; None if it is no constant."""
    return ctx.integers(node.input[i]) if i < len(node.input) and node.input[i] else absent


def _contributions(
    ctx: Any, node: NodeProto, grads: Sequence[str], shape: Sequence[int], picks: _Picks
) -> list[str | None]:
    """The gradient of input 0, of `shape` and a seeds' axis of one; None for the others."""
    current = list(ctx.shapes.static(node.output[0]) or ())
    if len(current) != len(shape):
        raise UnsupportedOperator("it has a gradient where shapes are fixed; export it with them")
    ops, value = ctx.b, ctx.full(grads[0], node.output[0])
    dtype = ctx.dtype(node.input[0])
    exact = dtype if dtype == TensorProto.DOUBLE else TensorProto.FLOAT  # ONNX Runtime adds no halves
    if exact != dtype:
        value = ops.op("Cast", [value], to=exact)
    zero = numpy_helper.from_array(np.zeros(1, helper.tensor_dtype_to_np_dtype(exact)))
    for axis, picked in picks.items():
        current[axis] = shape[axis]
        copies = np.flatnonzero(picked != _CONSTANT)
        if len(copies) < len(picked):
            value = ops.op("Gather", [value, ops.ints(copies.tolist())], axis=axis, stem="copies")
            picked = picked[copies]
        if np.array_equal(picked, np.arange(shape[axis])):
            continue
        order = [axis, *(other for other in range(len(shape) + 1) if other != axis)]
        rest = [1 if other == len(shape) else current[other] for other in order[1:]]
        zeros = ops.op("ConstantOfShape", [ops.ints([shape[axis], *rest])], value=zero)
        indices = ops.constant(picked, TensorProto.INT64, (len(picked), 1))
        turned = ops.op("Transpose", [value], perm=order)
        summed = ops.op("ScatterND", [zeros, indices, turned], reduction="add", stem="picked")
        value = ops.op("Transpose", [summed], perm=np.argsort(order).tolist())
    if exact != dtype:
        value = ops.op("Cast", [value], to=dtype)
    return [value] + [None] * (len(node.input) - 1)
