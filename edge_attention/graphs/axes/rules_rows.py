"""Rules of convolutions, pooling, resizing and recurrences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_attention.graphs.axes.making import MakesRule, Making, Side
from edge_attention.graphs.axes.rule import Does

__all__ = ["ROWS", "conv", "window"]


def conv(
    make: Making,
    weight: int = 1,
    bias: int | None = 2,
    by_channel: Sequence[int] = (),
    rounds: bool = False,
) -> None:
    """Patches (a kernel as wide as its stride) split an axis; a kernel of 1 carries it; others overlap.

    Args:
        weight, bias: the inputs that have them.
        by_channel: inputs that may have a number for each channel that is made.
        rounds: what is summed is rounded, or goes through a function, so that parts cannot add it.
    """
    x, w, y = make.x(0), make.x(weight), make.y()
    groups, spatial = make.at("group", 1), len(x) - 2
    kernel = make.at("kernel_shape") or list(w[2:])
    strides = make.at("strides") or [1] * spatial
    pads = make.at("pads") or [0] * (2 * spatial)
    dilations = make.at("dilations") or [1] * spatial
    plain = not any(pads) and make.at("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    batch = make.factor(x[0])
    group = make.factor(groups)
    # A bias would be added by each of several parts that have some of what is summed over.
    biased = bias is not None and make.has(bias)
    one = Does.WHOLE if rounds or biased else Does.SUM
    inner, outer = make.factor(w[1], one), make.factor(w[0] // groups)
    left: Side = [batch, (*group, *inner)]
    right: Side = [batch, (*group, *outer)]
    kernels: Side = [(*group, *outer), inner]
    for axis in range(spatial):
        size, made, wide = x[2 + axis], y[2 + axis], kernel[axis]
        if wide == 1 and strides[axis] == 1 and plain:
            factor = make.factor(size)
            left.append(factor)
            right.append(factor)
            kernels.append(())
        elif wide == strides[axis] and plain and dilations[axis] == 1 and size == made * wide:
            row, within = make.factor(made), make.factor(wide)
            make.must(within, f"{make.label} takes patches")
            left.append((*row, *within))
            right.append(row)
            kernels.append(within)
        else:
            left.append(make.factor(size, Does.WHOLE))
            right.append(make.factor(made, Does.WHOLE))
            kernels.append(make.factor(wide, Does.WHOLE))
            make.why = f"{make.label} looks at what lies beside it"
    if one is Does.WHOLE and not make.why:
        make.why = f"{make.label} sums over it, and {'rounds' if rounds else 'adds a bias'}"
    make.operand(0, left)
    make.operand(weight, kernels)
    for position in (*by_channel, *([bias] if bias is not None else [])):
        if make.has(position) and make.x(position) == (w[0],):
            make.operand(position, [(*group, *outer)])
    make.result(0, right)
    make.localised = groups > 1


def conv_integer(make: Making) -> None:
    """`x, w`, the zero point of x, that of w or one a channel."""
    conv(make, bias=None, by_channel=(3,))


def fused_conv(make: Making) -> None:
    """ONNX Runtime's: something is added to it, and a function done, before it is given on."""
    conv(make, rounds=True)
    if make.has(3):
        make.operand(3, make.results(0))


def window(make: Making) -> None:
    """Pooling and resizing: along axes whose size changes or that have a window all is needed."""
    side: Side = []
    out: Side = []
    moving = make.node.op_type != "Resize"
    for axis, (before, after) in enumerate(zip(make.x(0), make.y(), strict=True)):
        if before == after and not (moving and axis >= 2):
            factor = make.factor(before)
            side.append(factor)
            out.append(factor)
        else:
            side.append(make.factor(before, Does.WHOLE))
            out.append(make.factor(after, Does.WHOLE))
            make.why = f"{make.label} looks at what lies beside it"
    make.operand(0, side)
    make.result(0, out)
    make.result(1, out)
    make.localised = not moving


def recurrent(make: Making) -> None:
    """LSTM, GRU, RNN: `x [t, b, i]`, weights, lengths `[b]`, states `[d, b, h]`."""
    if make.at("layout"):
        make.whole(f"{make.label} runs over the tokens")
        return
    x = make.x(0)
    batch = make.factor(x[1])
    directions = make.x(1)[0]
    make.operand(0, [make.factor(x[0], Does.WHOLE), batch, make.factor(x[2], Does.WHOLE)])
    for position in (1, 2, 3, 7):
        if make.has(position):
            make.operand(position, make.factors(make.x(position), Does.WHOLE))
    make.operand(4, [batch])
    for position in (5, 6):
        if make.has(position):
            make.operand(
                position,
                [make.factor(directions, Does.WHOLE), batch, make.factor(make.x(position)[2], Does.WHOLE)],
            )
    for position, name in enumerate(make.node.output):
        if name:
            shape = make.y(position)
            lead = make.factors(shape[:-2], Does.WHOLE)
            make.result(position, [*lead, batch, make.factor(shape[-1], Does.WHOLE)])
    make.why = f"{make.label} runs over the tokens, one after the other"


def inside(make: Making) -> None:
    """If, Loop and Scan, which run graphs inside over all that they are given."""
    what = "decides by data" if make.node.op_type == "If" else "runs over it, one after the other"
    make.whole(f"{make.label} {what}")


ROWS: Mapping[str, MakesRule] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool", "Resize"), window),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent),
    **dict.fromkeys(("If", "Loop", "Scan"), inside),
    "Conv": conv,
    "ConvInteger": conv_integer,
    "com.microsoft.FusedConv": fused_conv,
}
