"""Rules of what computes: element by element, products, sums and other reductions, softmax, norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge_attention.graphs.axes.making import MakesRule, Making, Side
from edge_attention.graphs.axes.rule import Does

__all__ = ["PRODUCTS"]

_EACH = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu
    Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh
    ThresholdedRelu Where Xor
    com.microsoft.BiasGelu com.microsoft.FastGelu com.microsoft.Gelu com.microsoft.QuickGelu
    com.microsoft.BiasAdd
"""
_REDUCED = {
    "ReduceL1": Does.SUM,
    "ReduceMax": Does.MAX,
    "ReduceMean": Does.MEAN,
    "ReduceMin": Does.MIN,
    "ReduceSum": Does.SUM,
    "ReduceSumSquare": Does.SUM,
}
_WHOLE_REDUCED = ("ArgMax", "ArgMin", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd")


def each(make: Making) -> None:
    """Element by element, with broadcasting."""
    side = make.factors(make.y())
    make.result(0, side)
    for position in range(len(make.node.input)):
        make.broadcast(position, side)


def first_alone(make: Making) -> None:
    """Element by element of the first input; the others are scalars."""
    side = make.factors(make.y())
    make.result(0, side)
    make.operand(0, side)


def product(make: Making, a: Side, b: Side, a_at: int = 0, b_at: int = 1) -> tuple[Side, Side, Side]:
    """The factors of `[..., m, k]` by `[..., k, n]`, both of two dimensions or more, and of the result."""
    shape_a = [make.x(a_at)[i] for i in _order(a)]
    shape_b = [make.x(b_at)[i] for i in _order(b)]
    rank = max(len(shape_a), len(shape_b))
    m, k, n = make.factor(shape_a[-2]), make.factor(shape_a[-1], Does.SUM), make.factor(shape_b[-1])
    left: Side = []
    right: Side = []
    out: Side = []
    for i in range(rank - 2):
        p, q = i - rank + len(shape_a), i - rank + len(shape_b)
        size_a = shape_a[p] if p >= 0 else 1
        size_b = shape_b[q] if q >= 0 else 1
        factor = make.factor(max(size_a, size_b))
        out.append(factor)
        if p >= 0:
            left.append(factor if size_a > 1 else ())
        if q >= 0:
            right.append(factor if size_b > 1 else ())
    return [*left, m, k], [*right, k, n], [*out, m, n]


def _order(side: Side) -> list[int]:
    return [index for (index,) in side]


def _plain(rank: int) -> Side:
    return [(axis,) for axis in range(rank)]


def _ordered(side: Side, order: Side) -> Side:
    """`side`, which is of a tensor whose dimensions were put in `order`, in the tensor's own order."""
    found: Side = [()] * len(side)
    for factors, (axis,) in zip(side, order, strict=True):
        found[axis] = factors
    return found


def matmul(make: Making) -> None:
    rank_a, rank_b = len(make.x(0)), len(make.x(1))
    if rank_a == 1 or rank_b == 1:
        _vectors(make, rank_a, rank_b)
        return
    left, right, out = product(make, _plain(rank_a), _plain(rank_b))
    make.operand(0, left)
    make.operand(1, right)
    make.result(0, out)


def _vectors(make: Making, rank_a: int, rank_b: int) -> None:
    k = make.factor(make.x(0)[-1], Does.SUM)
    if rank_a == 1 and rank_b == 1:
        make.operand(0, [k])
        make.operand(1, [k])
    elif rank_a == 1:
        rest = make.factors((*make.x(1)[:-2], make.x(1)[-1]))
        make.operand(0, [k])
        make.operand(1, [*rest[:-1], k, rest[-1]])
        make.result(0, rest)
    else:
        rest = make.factors(make.x(0)[:-1])
        make.operand(0, [*rest, k])
        make.operand(1, [k])
        make.result(0, rest)


def matmul_integer(make: Making) -> None:
    """Zero points are one number, or one a row of the first, a column of the second."""
    matmul(make)
    out = make.results(0)
    if make.has(2) and len(make.x(2)) == 1 and make.x(2)[0] > 1:
        make.operand(2, [out[-2]])
    if make.has(3) and len(make.x(3)) == 1 and make.x(3)[0] > 1:
        make.operand(3, [out[-1]])


def gemm(make: Making) -> None:
    a: Side = [(1,), (0,)] if make.at("transA") else [(0,), (1,)]
    b: Side = [(1,), (0,)] if make.at("transB") else [(0,), (1,)]
    left, right, out = product(make, a, b)
    make.operand(0, _ordered(left, a))
    make.operand(1, _ordered(right, b))
    make.result(0, out)
    make.broadcast(2, out)
    if make.has(2):  # a bias that stayed: each of several parts would add it
        make.must(left[-1], f"{make.label} adds a bias")


def fused_matmul(make: Making) -> None:
    a, b = _turned(make, 0, "A"), _turned(make, 1, "B")
    left, right, out = product(make, a, b)
    make.operand(0, _ordered(left, a))
    make.operand(1, _ordered(right, b))
    make.result(0, out)


def _turned(make: Making, position: int, which: str) -> Side:
    order = _plain(len(make.x(position)))
    if make.at(f"transBatch{which}"):
        order = [*order[1:-1], order[0], order[-1]]
    if make.at(f"trans{which}"):
        order[-1], order[-2] = order[-2], order[-1]
    return order


def matmul_to_float(make: Making) -> None:
    """A product of whole numbers, scaled: a, b, scale of a, of b, zero point of a, of b, bias."""
    left, right, out = product(make, _plain(len(make.x(0))), _plain(len(make.x(1))))
    make.operand(0, left)
    make.operand(1, right)
    make.result(0, out)
    for position in (2, 3, 4, 5, 6):
        if make.has(position) and len(make.x(position)) == 1 and make.x(position)[0] > 1:
            make.operand(position, [out[-1]])
    if make.has(6):
        make.must(left[-1], f"{make.label} adds a bias")


def dynamic_matmul(make: Making) -> None:
    """Quantises a by its own range: a, b, scale of b, zero point of b, bias."""
    left, right, out = product(make, _plain(len(make.x(0))), _plain(len(make.x(1))))
    make.operand(0, left)
    make.operand(1, right)
    make.result(0, out)
    for position in (2, 3, 4):
        if make.has(position) and len(make.x(position)) == 1 and make.x(position)[0] > 1:
            make.operand(position, [out[-1]])
    for factors in left:
        make.must(factors, f"{make.label} quantises by the range of all of it")


def matmul_nbits(make: Making) -> None:
    """Weights `[n, blocks of k, bytes of a block]`, scales `[n * blocks]` or `[n, blocks]`."""
    n, k, block = make.at("N"), make.at("K"), make.at("block_size")
    blocks = -(-k // block)
    lead = make.factors(make.x(0)[:-1])
    column = make.factor(n)
    even = k % block == 0
    outer = make.factor(blocks, Does.SUM if even and not make.has(5) and not make.has(4) else Does.WHOLE)
    inner = make.factor(block if even else 1, Does.SUM)
    if inner:
        make.must(inner, f"{make.label} has its weights in blocks")
    make.operand(0, [*lead, (*outer, *inner) if even else make.factor(k, Does.WHOLE)])
    rest = len(make.x(1)) - 2
    make.operand(1, [column, outer, *make.factors(make.x(1)[2:], Does.WHOLE)][: 2 + rest])
    for position in (2, 3):
        if make.has(position):
            shape = make.x(position)
            if shape == (n * blocks,):
                make.operand(position, [(*column, *outer)])
            elif shape == (n, blocks):
                make.operand(position, [column, outer])
            elif shape and shape[0] == n:
                make.operand(position, [column, *make.factors(shape[1:], Does.WHOLE)])
                make.must(outer, f"{make.label} has several zero points in a byte")
            elif len(shape) == 1 and shape[0] % n == 0:
                make.operand(position, [(*column, *make.factor(shape[0] // n, Does.WHOLE))])
                make.must(outer, f"{make.label} has several zero points in a byte")
    if make.has(5):
        make.operand(5, [column])
    make.result(0, [*lead, column])
    make.localised = True


def einsum(make: Making) -> None:
    equation = make.at("equation").decode().replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation:
        letters = "".join(terms).replace(".", "")
        right = "..." * ("..." in left) + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    ranks = [len(make.x(i)) for i in range(len(terms))]
    more = max((r - len(t) + 3 for r, t in zip(ranks, terms, strict=True) if "..." in t), default=0)
    out = _spelled(right, more, more)
    factors: dict[str, tuple[int, ...]] = {}
    spelled = [
        _spelled(t, r - len(t) + 3 if "..." in t else 0, more) for t, r in zip(terms, ranks, strict=True)
    ]
    sizes: dict[str, int] = {}
    for position, letters_of in enumerate(spelled):
        for letter, size in zip(letters_of, make.x(position), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    twice = any(len(set(letters_of)) < len(letters_of) for letters_of in spelled)
    for letter, size in sizes.items():
        factors[letter] = make.factor(size, Does.CARRY if letter in out else Does.SUM)
    for position, letters_of in enumerate(spelled):
        make.operand(
            position,
            [
                factors[x] if size == sizes[x] else ()
                for x, size in zip(letters_of, make.x(position), strict=True)
            ],
        )
    make.result(0, [factors[letter] for letter in out])
    if twice:  # a diagonal
        make.whole(f"{make.label} takes a diagonal")


def _spelled(term: str, dots: int, most: int) -> list[str]:
    """Letters of a term, its ellipsis as numbers that count from the last."""
    found: list[str] = []
    while term:
        if term.startswith("..."):
            found += [str(most - dots + i) for i in range(dots)]
            term = term[3:]
        else:
            found.append(term[0])
            term = term[1:]
    return found


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


PRODUCTS: Mapping[str, MakesRule] = {
    **dict.fromkeys(_EACH.split(), each),
    **dict.fromkeys((*_REDUCED, *_WHOLE_REDUCED), reduce),
    **dict.fromkeys(("CumProd", "CumSum", "Hardmax", "LogSoftmax", "LpNormalization"), over_axis),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), quantize),
    **dict.fromkeys(("com.microsoft.DequantizeLinear", "com.microsoft.QuantizeLinear"), quantize),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), pool_all),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), layer_norm),
    **dict.fromkeys(
        ("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization"), skip_norm
    ),
    **dict.fromkeys(("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul"), fused_matmul),
    "BatchNormalization": batch_norm,
    "DynamicQuantizeLinear": dynamic_quantize,
    "Einsum": einsum,
    "Gemm": gemm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "Softmax": softmax,
    "com.microsoft.DynamicQuantizeMatMul": dynamic_matmul,
    "com.microsoft.MatMulIntegerToFloat": matmul_to_float,
    "com.microsoft.MatMulNBits": matmul_nbits,
}
