"""The ways a node can be cut: which factor of its rule, by which axis of the model, what that asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from edge_attention.graphs.axes.forms import SplitBy
from edge_attention.graphs.axes.rule import Does, Rule

__all__ = ["Dims", "Way", "ways_of"]

Dims = tuple[tuple[tuple[int, int], ...], ...]
"""By dimension of a tensor the axes of the model in it, outer to inner: id and size."""


@dataclass(frozen=True)
class Way:
    """A node cut by one axis.

    Attributes:
        factor: of the rule.
        axis: of the model.
        does: what the node does to the factor.
        operands: by input, what form is asked for; None: all of it.
        results: by output, the form that comes; None where the output does not have the factor.
    """

    factor: int
    axis: int
    does: Does
    operands: tuple[SplitBy | None, ...]
    results: tuple[SplitBy | None, ...]


def ways_of(
    node: NodeProto, rule: Rule, factors: Sequence[Sequence[int]], axes: frozenset[int]
) -> Iterator[Way]:
    """Every way to cut `node` by one of `axes`, whatever it asks for.

    None of a dimension that has the axis twice, as tokens by tokens in a row: a range of it is of neither.

    Args:
        factors: of the rule, the axes of the model that each is made of.
    """
    for factor, members in enumerate(factors):
        for axis in members:
            if axis in axes and not any(
                _twice(factor, axis, side, factors) for side in (*rule.operands, *rule.results)
            ):
                operands = tuple(_where(factor, axis, of) for of in rule.operands)
                results = tuple(_where(factor, axis, of) for of in rule.results)
                operands += (None,) * (len(node.input) - len(operands))
                results += (None,) * (len(node.output) - len(results))
                if _in_several_places(node, rule, factor, axis, factors, operands[0] if operands else None):
                    continue
                yield Way(factor, axis, rule.factors[factor].does, operands, results)


def _in_several_places(
    node: NodeProto,
    rule: Rule,
    factor: int,
    axis: int,
    factors: Sequence[Sequence[int]],
    first: SplitBy | None,
) -> bool:
    """Whether a range of the axis is no one range of what the node takes of an operand that is whole.

    A Slice of keys and values, two by heads, has some heads of each; a Split would have to leave something
    out between its results. Then all is taken, and of that the range.
    """
    if first is not None or node.op_type not in ("Slice", "Split"):
        return False
    found = [dim for side in rule.results for dim in side if factor in dim]
    outermost = all(dim[0] == factor and factors[factor][0] == axis for dim in found)
    return bool(found) and (node.op_type == "Split" or not outermost)


def _twice(
    factor: int, axis: int, of: tuple[tuple[int, ...], ...] | None, factors: Sequence[Sequence[int]]
) -> bool:
    """Whether a dimension of a tensor that has the factor has the axis more than once."""
    return any(factor in dim and sum(list(factors[one]).count(axis) for one in dim) > 1 for dim in of or ())


def _where(factor: int, axis: int, of: tuple[tuple[int, ...], ...] | None) -> SplitBy | None:
    for dim, factors in enumerate(of or ()):
        if factor in factors:
            return SplitBy(dim, axis)
    return None
