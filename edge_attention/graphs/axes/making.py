"""What rules are written with: a node with the shapes around it, whose factors are made one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

from onnx import NodeProto, helper

from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.rule import Does, Factor, Rule

__all__ = ["MakesRule", "Making", "Side"]

Side = list[tuple[int, ...]]
"""By dimension of a tensor, its factors."""


class Making:
    """A node's rule in the making.

    `x(i)` and `y(i)` are the shapes of input and output i. `factor` makes one; `carried` gives the factors of
    a shape, one a dimension. What is not set with `operand` or `result` has no factors in any dimension.
    """

    def __init__(self, node: NodeProto, bound: BoundGraph) -> None:
        self.node = node
        self.bound = bound
        self.attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.localised = False
        self.why = ""
        self._factors: list[Factor] = []
        self._operands: list[Side | None] = [
            [()] * len(bound.shape(name)) if name else None for name in node.input
        ]
        self._results: list[Side] = [[()] * len(bound.shape(name)) if name else [] for name in node.output]

    def has(self, position: int) -> bool:
        return position < len(self.node.input) and bool(self.node.input[position])

    def x(self, position: int) -> tuple[int, ...]:
        return self.bound.shape(self.node.input[position])

    def y(self, position: int = 0) -> tuple[int, ...]:
        return self.bound.shape(self.node.output[position])

    def constant(self, position: int) -> Array | None:
        return self.bound.constant(self.node.input[position]) if self.has(position) else None

    def at(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def factor(self, size: int, does: Does = Does.CARRY) -> tuple[int, ...]:
        """A new one, as what a dimension is made of; nothing for a size of 1."""
        if size == 1:
            return ()
        self._factors.append(Factor(size, does))
        return (len(self._factors) - 1,)

    def size(self, factor: int) -> int:
        return self._factors[factor].size

    def factors(self, sizes: Iterable[int], does: Does = Does.CARRY) -> Side:
        return [self.factor(size, does) for size in sizes]

    def operand(self, position: int, side: Sequence[tuple[int, ...]]) -> None:
        """Set the factors of an input, where it is there."""
        if self.has(position):
            self._operands[position] = list(side)

    def result(self, position: int, side: Sequence[tuple[int, ...]]) -> None:
        if position < len(self.node.output) and self.node.output[position]:
            self._results[position] = list(side)

    def broadcast(self, position: int, side: Sequence[tuple[int, ...]]) -> None:
        """An input that is broadcast to dimensions made of `side`, their last against its last."""
        if not self.has(position):
            return
        shape = self.x(position)
        behind = list(side)[len(side) - len(shape) :]
        self.operand(
            position,
            [
                factors if size == prod(self._factors[f].size for f in factors) else ()
                for size, factors in zip(shape, behind, strict=True)
            ],
        )

    def results(self, position: int) -> Side:
        return list(self._results[position])

    @property
    def label(self) -> str:
        """The node, for a person."""
        return f"{self.node.op_type} '{self.node.name or self.node.output[0]}'"

    def must(self, factors: Sequence[int], why: str) -> None:
        """These factors must be whole after all."""
        for number in factors:
            self._factors[number] = Factor(self._factors[number].size, Does.WHOLE)
        if factors:
            self.why = why

    def rule(self) -> Rule:
        return Rule(
            tuple(self._factors),
            tuple(None if side is None else tuple(side) for side in self._operands),
            tuple(map(tuple, self._results)),
            self.localised,
            self.why,
        )

    def whole(self, why: str) -> None:
        """All of each operand is needed, and all of each result made."""
        self._factors.clear()
        self.why = why
        for position, name in enumerate(self.node.input):
            if name:
                self.operand(position, self.factors(self.x(position), Does.WHOLE))
        for position, name in enumerate(self.node.output):
            if name:
                self.result(position, self.factors(self.y(position), Does.WHOLE))


MakesRule = Callable[[Making], None]
