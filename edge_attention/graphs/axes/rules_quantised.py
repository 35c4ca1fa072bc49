"""Rules of operators on numbers of 8 bits, which each have a scale and a zero point: `x, scale, zero, ...`.

What one sums is rounded by itself, so that what it sums over must be whole; products are lowered
(`lower_quantised.py`) to what parts can sum.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_attention.graphs.axes.making import MakesRule, Making, Side
from edge_attention.graphs.axes.rule import Does
from edge_attention.graphs.axes.rules_products import ordered, product
from edge_attention.graphs.axes.rules_reductions import softmax
from edge_attention.graphs.axes.rules_rows import conv, window

__all__ = ["QUANTISED"]


def _each(*positions: int) -> MakesRule:
    """Element by element, with broadcasting; `positions` of what has elements."""

    def rule(make: Making) -> None:
        side = make.factors(make.y())
        make.result(0, side)
        for position in positions:
            make.broadcast(position, side)

    return rule


def _product(make: Making) -> None:
    """QLinearMatMul and QGemm: a, b at 0 and 3; of b a scale and a zero point, or one a column."""
    if len(make.x(0)) < 2 or len(make.x(3)) < 2:
        make.whole(f"{make.label} multiplies vectors")
        return
    orders: list[Side] = []
    for position, which in ((0, "A"), (3, "B")):
        order: Side = [(axis,) for axis in range(len(make.x(position)))]
        if make.at(f"trans{which}"):
            order[-1], order[-2] = order[-2], order[-1]
        orders.append(order)
    left, right, out = product(make, orders[0], orders[1], b_at=3)
    make.operand(0, ordered(left, orders[0]))
    make.operand(3, ordered(right, orders[1]))
    make.result(0, out)
    for position in (4, 5):
        if len(make.x(position)) == 1 and make.x(position)[0] > 1:
            make.operand(position, [out[-1]])
    if make.node.op_type == "QGemm":
        make.broadcast(6, out)
    make.must(left[-1], f"{make.label} rounds what it sums")


def _conv(make: Making) -> None:
    if make.at("channels_last"):
        make.whole(f"{make.label} has its channels last")
    else:
        conv(make, weight=3, bias=8, by_channel=(4, 5), rounds=True)


def _pool(make: Making) -> None:
    if make.at("channels_last"):
        make.whole(f"{make.label} has its channels last")
    else:
        window(make)


def _concat(make: Making) -> None:
    """Scale and zero point of the result, then each x with its own: along the axis all must be whole."""
    out = make.y()
    axis = make.at("axis", 0) % len(out)
    side = make.factors(out)
    make.must(side[axis], f"{make.label} joins along it")
    for position in range(2, len(make.node.input), 3):
        own = make.factor(make.x(position)[axis], Does.WHOLE)
        make.operand(position, [*side[:axis], own, *side[axis + 1 :]])
    make.result(0, side)


def _embeddings(make: Making) -> None:
    """Ids `[batch, tokens]`, segments and a mask like them: it counts the places of tokens itself."""
    batch = make.factor(make.x(0)[0])
    tokens, hidden = (make.factor(size, Does.WHOLE) for size in make.y()[1:])
    make.why = f"{make.label} counts places along it"
    for position in (0, 1, 7):
        make.operand(position, [batch, tokens])
    if make.has(8) and make.node.op_type.startswith("Embed"):  # where it is told of places
        make.operand(8, [batch if make.x(8)[0] > 1 else (), tokens])
    make.result(0, [batch, tokens, hidden])
    make.result(1, [batch])
    make.result(2, [batch, tokens, hidden])


def _softmax(make: Making) -> None:
    """Along its axis; of before opset 13, which it says, over all from there on."""
    rank, axis = len(make.y()), make.at("axis", -1)
    if make.at("opset", 13) < 13 and axis % rank != rank - 1:
        make.whole(f"{make.label} normalises over several axes")
    else:
        softmax(make)


QUANTISED: Mapping[str, MakesRule] = {
    **dict.fromkeys(("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul"), _each(0, 3)),
    **dict.fromkeys(("com.microsoft.QLinearLeakyRelu", "com.microsoft.QLinearSigmoid"), _each(0)),
    **dict.fromkeys(("QLinearConv", "com.microsoft.QLinearConv"), _conv),
    **dict.fromkeys(("QLinearMatMul", "com.microsoft.QGemm"), _product),
    **dict.fromkeys(("com.microsoft.QLinearAveragePool", "com.microsoft.QLinearGlobalAveragePool"), _pool),
    **dict.fromkeys(
        ("com.microsoft.EmbedLayerNormalization", "com.microsoft.QEmbedLayerNormalization"), _embeddings
    ),
    "com.microsoft.QLinearConcat": _concat,
    "com.microsoft.QLinearSoftmax": _softmax,
    "com.microsoft.QLinearWhere": _each(0, 1, 4),
}
