"""The products of a model: nodes that multiply two operands and sum; and the axes of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.rule import Does

__all__ = ["Product", "products_in", "products_of", "weighty_axes"]

_KINDS = (
    "MatMul",
    "Gemm",
    "FusedMatMul",
    "TransposeMatMul",
    "Einsum",
    "Conv",
    "DynamicQuantizeMatMul",
    "FusedConv",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)


@dataclass(frozen=True)
class Product:
    """A node that sums over axes of two operands; the axes of each, by which operands have them."""

    node: int
    summed: tuple[int, ...]
    both: tuple[int, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]
    weight: int | None
    """Which input is static; None: neither is."""

    @property
    def of_weight(self) -> tuple[int, ...]:
        """What the static operand alone has."""
        return self.second if self.weight else self.first


def products_of(axes: Axes) -> list[Product]:
    """Those on data, in order."""
    found = (_product(axes, number) for number in range(len(axes.rules)))
    return [product for product in found if product is not None]


def weighty_axes(axes: Axes, products: Sequence[Product]) -> frozenset[int]:
    """Axes of the matrices that activations are multiplied with: those of the file, not what repeats them.

    Nor places that a table is of, as the rows of a picture for whose pairs there are biases: such a table has
    them twice, once beside the activations' own, or is looked up for them.
    """
    held: dict[str, frozenset[int]] = {}
    found: set[int] = set()
    for p in products:
        if p.weight is not None:
            of_file = _held(axes, axes.bound.nodes[p.node].input[p.weight], held)
            places = {*p.both}.intersection((*p.summed, *p.of_weight))
            found |= of_file.intersection((*p.summed, *p.both, *p.of_weight)) - places
    return frozenset(found)


def _held(axes: Axes, name: str, known: dict[str, frozenset[int]]) -> frozenset[int]:
    """Axes of the weights that a static value is made of."""
    waiting, seen, found = [name], {name}, set[int]()
    while waiting:
        one = waiting.pop()
        if one in known:
            found |= known[one]
        elif one in axes.bound.weights:
            found.update(axis for dim in axes.dims[one] for axis, _ in dim)
        elif (maker := axes.bound.makers.get(one)) is not None:
            before = [n for n in axes.bound.nodes[maker].input if n and n not in seen]
            waiting += before
            seen.update(before)
    known[name] = frozenset(found)
    return known[name]


def products_in(axes: Axes) -> frozenset[int]:
    """Numbers of the nodes that multiply two operands and sum."""
    return frozenset(
        number
        for number, rule in enumerate(axes.rules)
        if axes.bound.nodes[number].op_type.startswith(_KINDS)
        and any(factor.does in (Does.SUM, Does.WHOLE) for factor in rule.factors)
    )


def _product(axes: Axes, number: int) -> Product | None:
    """The node as a product of two operands, if it is one."""
    rule, node = axes.rules[number], axes.bound.nodes[number]
    places = (0, 3 if node.op_type.startswith("Q") else 1)  # quantised: each with its scale and zero point
    if len(rule.operands) <= places[1] or not node.op_type.startswith(_KINDS):
        return None
    sides = [rule.operands[place] for place in places]
    inside = [{f for dim in side for f in dim} if side is not None else set() for side in sides]
    if node.op_type == "Conv" and not inside[1]:
        return None
    static = [node.input[place] in axes.static for place in places]
    if all(static) or not all(inside):
        return None
    summed = [f for f, factor in enumerate(rule.factors) if factor.does is Does.SUM]

    def of(chosen: Iterable[int]) -> tuple[int, ...]:
        found = [axis for f in sorted(chosen) for axis in axes.factors[number][f]]
        return tuple(dict.fromkeys(found))

    rest = set(range(len(rule.factors))) - set(summed)
    # A factor of a dimension that only one operand has, the other having 1 there.
    return Product(
        number,
        of(summed),
        of(rest & inside[0] & inside[1]),
        of((rest & inside[0]) - inside[1]),
        of((rest & inside[1]) - inside[0]),
        places[1] if static[1] else 0 if static[0] else None,
    )
