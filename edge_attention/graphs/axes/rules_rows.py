"""Rules of convolutions, pooling, resizing and recurrences."""

from __future__ import annotations

from collections.abc import Mapping

from edge_attention.graphs.axes.making import MakesRule, Making, Side
from edge_attention.graphs.axes.rule import Does

__all__ = ["ROWS"]


def conv(make: Making) -> None:
    """Patches (a kernel as wide as its stride) split an axis; a kernel of 1 carries it; others overlap."""
    x, w, y = make.x(0), make.x(1), make.y()
    groups, spatial = make.at("group", 1), len(x) - 2
    kernel = make.at("kernel_shape") or list(w[2:])
    strides = make.at("strides") or [1] * spatial
    pads = make.at("pads") or [0] * (2 * spatial)
    dilations = make.at("dilations") or [1] * spatial
    plain = not any(pads) and make.at("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    batch = make.factor(x[0])
    group = make.factor(groups)
    # A bias would be added by each of several parts that have some of what is summed over.
    one = Does.SUM if not make.has(2) else Does.WHOLE
    inner, outer = make.factor(w[1], one), make.factor(w[0] // groups)
    left: Side = [batch, (*group, *inner)]
    right: Side = [batch, (*group, *outer)]
    weight: Side = [(*group, *outer), inner]
    for axis in range(spatial):
        size, made, wide = x[2 + axis], y[2 + axis], kernel[axis]
        if wide == 1 and strides[axis] == 1 and plain:
            factor = make.factor(size)
            left.append(factor)
            right.append(factor)
            weight.append(())
        elif wide == strides[axis] and plain and dilations[axis] == 1 and size == made * wide:
            row, within = make.factor(made), make.factor(wide)
            make.must(within, f"{make.label} takes patches")
            left.append((*row, *within))
            right.append(row)
            weight.append(within)
        else:
            left.append(make.factor(size, Does.WHOLE))
            right.append(make.factor(made, Does.WHOLE))
            weight.append(make.factor(wide, Does.WHOLE))
            make.why = f"{make.label} looks at what lies beside it"
    if make.has(2) and not make.why:
        make.why = f"{make.label} sums over it, and adds a bias"
    make.operand(0, left)
    make.operand(1, weight)
    make.operand(2, [(*group, *outer)])
    make.result(0, right)
    make.localised = groups > 1


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


ROWS: Mapping[str, MakesRule] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool", "Resize"), window),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent),
    "Conv": conv,
}
