"""Rules of what computes element by element, and of products."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from edge_attention.graphs.axes.making import MakesRule, Making, Side
from edge_attention.graphs.axes.rule import Does

__all__ = ["PRODUCTS", "ordered", "product"]

_EACH = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu
    Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh
    ThresholdedRelu Where Xor
    com.microsoft.BiasGelu com.microsoft.FastGelu com.microsoft.Gelu com.microsoft.QuickGelu
    com.microsoft.BiasAdd
"""


def each(make: Making) -> None:
    """Element by element, with broadcasting."""
    side = make.factors(make.y())
    make.result(0, side)
    # Of a CastLike the second operand says a type alone, and has whatever shape it has.
    for position in range(1 if make.node.op_type == "CastLike" else len(make.node.input)):
        make.broadcast(position, side)


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


def ordered(side: Side, order: Side) -> Side:
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
    make.operand(0, ordered(left, a))
    make.operand(1, ordered(right, b))
    make.result(0, out)
    make.broadcast(2, out)
    if make.has(2):  # a bias that stayed: each of several parts would add it
        make.must(left[-1], f"{make.label} adds a bias")


def fused_matmul(make: Making) -> None:
    a, b = _turned(make, 0, "A"), _turned(make, 1, "B")
    left, right, out = product(make, a, b)
    make.operand(0, ordered(left, a))
    make.operand(1, ordered(right, b))
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


def matmul_bnb4(make: Making) -> None:
    """Weights [bytes] and their scales in one row each: nobody can take some of what is made."""
    lead = make.factors(make.x(0)[:-1])
    make.why = f"{make.label} has its weights in one row"
    make.operand(0, [*lead, make.factor(make.x(0)[-1], Does.WHOLE)])
    for position in range(1, len(make.node.input)):
        if make.has(position):
            make.operand(position, make.factors(make.x(position), Does.WHOLE))
    make.result(0, [*lead, make.factor(make.y()[-1], Does.WHOLE)])


def gather_blocks(make: Making) -> None:
    """Rows of a table that is packed in blocks, with their scales: each for itself."""
    axis, ids = make.at("gather_axis", 0) % len(make.x(0)), make.factors(make.x(1))
    make.why = f"{make.label} has its table in blocks"
    for position in (0, 2, 3):
        if make.has(position):
            make.operand(position, make.factors(make.x(position), Does.WHOLE))
    make.operand(1, ids)
    before, behind = make.y()[:axis], make.y()[axis + len(ids) :]
    make.result(0, [*make.factors(before, Does.WHOLE), *ids, *make.factors(behind, Does.WHOLE)])


def cached_attention(make: Making) -> None:
    """Attention over stored keys and values (graphs/decoding): q [r, g, s, d], k [r, g, d], v [r, g, e].

    With biases by distance [g, s, n], if there are any; a second result is the lse [r, g, s, 1].
    """
    rows = make.factor(make.x(0)[0], Does.WHOLE)
    make.why = f"{make.label} has rows of several sequences, each stored in one place"
    groups, shared = make.factor(make.x(0)[1]), make.factor(make.x(0)[2])
    width, values = make.factor(make.x(0)[3], Does.WHOLE), make.factor(make.x(2)[2], Does.WHOLE)
    make.operand(0, [rows, groups, shared, width])
    make.operand(1, [rows, groups, width])
    make.operand(2, [rows, groups, values])
    if len(make.node.input) > 3:
        make.operand(3, [groups, shared, make.factor(make.x(3)[2], Does.WHOLE)])
    make.result(0, [rows, groups, shared, values])
    make.result(1, [rows, groups, shared, ()])


def experts(make: Making) -> None:
    """MoE: rows `[..., hidden]` and what each thinks of the experts, `[rows, experts]`."""
    rows = make.factors(make.x(0)[:-1])
    hidden = make.factor(make.x(0)[-1], Does.WHOLE)
    make.why = f"{make.label} has experts that look at all of a row"
    make.operand(0, [*rows, hidden])
    if len(make.x(1)) != 2 or make.x(1)[0] != prod(make.x(0)[:-1]):
        make.whole(f"{make.label} has other rows than what it is told of them")
        return
    make.operand(1, [tuple(f for row in rows for f in row), make.factor(make.x(1)[1], Does.WHOLE)])
    make.result(0, [*rows, hidden])


PRODUCTS: Mapping[str, MakesRule] = {
    **dict.fromkeys(_EACH.split(), each),
    **dict.fromkeys(("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul"), fused_matmul),
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "com.microsoft.DynamicQuantizeMatMul": dynamic_matmul,
    "com.microsoft.MatMulIntegerToFloat": matmul_to_float,
    "com.microsoft.GatherBlockQuantized": gather_blocks,
    "com.microsoft.MatMulBnb4": matmul_bnb4,
    "com.microsoft.MatMulNBits": matmul_nbits,
    **dict.fromkeys(("com.microsoft.MoE", "com.microsoft.QMoE"), experts),
    "edge_attention.CachedAttention": cached_attention,
}
