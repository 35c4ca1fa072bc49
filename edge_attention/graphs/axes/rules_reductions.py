"""Rules of what looks along an axis: sums and other reductions, softmax, norms, ranges that are quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge_attention.graphs.axes.making import MakesRule, Making
from edge_attention.graphs.axes.rule import Does

__all__ = ["REDUCTIONS"]

_REDUCED = {
    "ReduceL1": Does.SUM,
    "ReduceMax": Does.MAX,
    "ReduceMean": Does.MEAN,
    "ReduceMin": Does.MIN,
    "ReduceSum": Does.SUM,
    "ReduceSumSquare": Does.SUM,
}
_WHOLE_REDUCED = ("ArgMax", "ArgMin", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd")


def softmax(make: Making) -> None:
    axis = make.at("axis", -1) % len(make.y())
    side = [make.factor(n, Does.SOFTMAX if i == axis else Does.CARRY) for i, n in enumerate(make.y())]
    make.operand(0, side)
    make.result(0, side)


def over_axis(make: Making) -> None:
    """Hardmax, LogSoftmax, LpNormalization, CumSum: along an axis all of it is looked at."""
    given = make.constant(1)
    axis = int(given.reshape(-1)[0]) if given is not None else make.at("axis", -1)
    if make.node.op_type.startswith("Cum") and given is None:
        make.whole(f"{make.label} runs over an axis that data tells")
        return
    axis %= len(make.y())
    side = [make.factor(n, Does.WHOLE if i == axis else Does.CARRY) for i, n in enumerate(make.y())]
    make.why = f"{make.label} runs over it"
    make.operand(0, side)
    make.result(0, side)


def layer_norm(make: Making) -> None:
    """Over the last axes; results beside the first have 1 there."""
    rank = len(make.x(0))
    axis = make.at("axis", -1) % rank
    side = [make.factor(n, Does.MOMENTS if i >= axis else Does.CARRY) for i, n in enumerate(make.x(0))]
    make.operand(0, side)
    make.result(0, side)
    make.broadcast(1, side)
    make.broadcast(2, side)
    for position in range(1, len(make.node.output)):
        make.result(position, [*side[:axis], *[()] * (rank - axis)])


def skip_norm(make: Making) -> None:
    """`norm(input + skip + bias)`, and the sum as its fourth result."""
    rank = len(make.x(0))
    side = [make.factor(n, Does.MOMENTS if i == rank - 1 else Does.CARRY) for i, n in enumerate(make.x(0))]
    for position in range(len(make.node.input)):
        make.broadcast(position, side)
    make.result(0, side)
    make.result(1, [*side[:-1], ()])
    make.result(2, [*side[:-1], ()])
    make.result(3, side)


def instance_norm(make: Making) -> None:
    side = [make.factor(n, Does.MOMENTS if i >= 2 else Does.CARRY) for i, n in enumerate(make.x(0))]
    make.operand(0, side)
    make.result(0, side)
    make.operand(1, [side[1]])
    make.operand(2, [side[1]])


def group_norm(make: Making) -> None:
    groups, channels = make.at("num_groups"), make.x(0)[1]
    outer = make.factor(groups)
    inner = make.factor(channels // groups, Does.MOMENTS)
    side = [
        make.factor(make.x(0)[0]),
        (*outer, *inner),
        *make.factors(make.x(0)[2:], Does.MOMENTS),
    ]
    make.operand(0, side)
    make.result(0, side)
    for position in (1, 2):
        if make.has(position):
            make.operand(position, [(*outer, *inner) if make.x(position)[0] == channels else outer])
    make.localised = True


def batch_norm(make: Making) -> None:
    if make.at("training_mode"):
        make.whole(f"{make.label} is in training")
        return
    side = make.factors(make.x(0))
    make.operand(0, side)
    make.result(0, side)
    for position in range(1, len(make.node.input)):
        make.operand(position, [side[1]])


def reduce(make: Making) -> None:
    kind, shape = make.node.op_type, make.x(0)
    given = make.constant(1)
    axes: Sequence[int] | None = make.at("axes")
    if kind.startswith("Arg"):
        axes = [make.at("axis", 0)]
    elif make.has(1):
        if given is None:
            make.whole(f"{make.label} reduces axes that data tells")
            return
        axes = [int(axis) for axis in given.reshape(-1)]
    if not axes:
        axes = [] if make.at("noop_with_empty_axes") else list(range(len(shape)))
    gone = {axis % len(shape) for axis in axes}
    does = _REDUCED.get(kind, Does.WHOLE)
    whole_numbers = not make.bound.specs[make.node.input[0]].dtype.startswith(("float", "bfloat"))
    if kind == "ReduceMean" and whole_numbers:
        does = Does.WHOLE
    if does is Does.WHOLE:
        make.why = f"{make.label} looks at all of it"
    side = [make.factor(n, does if i in gone else Does.CARRY) for i, n in enumerate(shape)]
    make.operand(0, side)
    keep = make.at("keepdims", 1)
    make.result(0, [() if i in gone else f for i, f in enumerate(side) if keep or i not in gone])


def pool_all(make: Making) -> None:
    """GlobalAveragePool and its kin: `[n, c, ...]` to `[n, c, 1, ...]`."""
    does = {"GlobalAveragePool": Does.MEAN, "GlobalMaxPool": Does.MAX}[make.node.op_type]
    side = [make.factor(n, does if i >= 2 else Does.CARRY) for i, n in enumerate(make.x(0))]
    make.operand(0, side)
    make.result(0, [*side[:2], *[()] * (len(side) - 2)])


def dynamic_quantize(make: Making) -> None:
    side = make.factors(make.x(0), Does.RANGE)
    make.operand(0, side)
    make.result(0, side)


def quantize(make: Making) -> None:
    """QuantizeLinear and DequantizeLinear: one scale, one a slice of an axis, or one a block of it."""
    shape = make.x(0)
    side = make.factors(shape)
    scale = make.x(1)
    block = make.at("block_size", 0)
    if len(scale) == 1 and scale[0] > 1:
        axis = make.at("axis", 1) % len(shape)
        for position in (1, 2):
            make.operand(position, [side[axis]])
    elif len(scale) == len(shape) and block:
        axis = make.at("axis", 1) % len(shape)
        if shape[axis] % block:
            make.whole(f"{make.label} has blocks that do not fill the axis")
            return
        outer = make.factor(shape[axis] // block)
        side[axis] = (*outer, *make.factor(block))
        for position in (1, 2):
            make.operand(position, [outer if i == axis else f for i, f in enumerate(side)])
    elif int(np.prod(scale)) > 1:
        make.whole(f"{make.label} has scales of a shape that is not known here")
        return
    make.operand(0, side)
    make.result(0, side)


REDUCTIONS: Mapping[str, MakesRule] = {
    **dict.fromkeys((*_REDUCED, *_WHOLE_REDUCED), reduce),
    **dict.fromkeys(("CumProd", "CumSum", "Hardmax", "LogSoftmax", "LpNormalization"), over_axis),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), quantize),
    **dict.fromkeys(("com.microsoft.DequantizeLinear", "com.microsoft.QuantizeLinear"), quantize),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), pool_all),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), layer_norm),
    **dict.fromkeys(
        ("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization"), skip_norm
    ),
    "BatchNormalization": batch_norm,
    "DynamicQuantizeLinear": dynamic_quantize,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "Softmax": softmax,
}
