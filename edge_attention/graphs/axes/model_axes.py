"""What each axis of a model is, as it was found (`axes.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.rule import Rule

__all__ = ["Axes", "Dim"]

Dim = tuple[tuple[int, int], ...]
"""The axes that a dimension of a tensor is made of, outer to inner: number and size. None of size 1."""


@dataclass(frozen=True, eq=False)
class Axes:
    """The axes of a bound model.

    Attributes:
        bound: the model.
        dims: tensor -> by dimension, what it is made of. Tensors of unknown shape are left out.
        rules: by node. Where a rule could not be reconciled with what is known of a tensor's axes, its
            factors there are WHOLE: so each dimension is exactly what its factors are.
        factors: by node, by factor of its rule, the axes it is made of, outer to inner.
        sizes: axis -> size.
        static: tensors that follow from weights and constants alone.
        named: name -> axes, outer to inner, as `tokens`, `batch`, `heads.3`, `feedforward.3`, `hidden`.
            Of `heads.3` the first is the one to cut: the key heads where several query heads share one.
        crossed: name -> nodes where parts that share the axis need each other: products over tokens, sums
            over heads.
        refused: name -> why it cannot be cut, in words; also of names that were not found.
    """

    bound: BoundGraph
    dims: Mapping[str, tuple[Dim, ...]]
    rules: tuple[Rule, ...]
    factors: tuple[tuple[tuple[int, ...], ...], ...]
    sizes: Mapping[int, int]
    static: frozenset[str]
    named: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    crossed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def size(self, name: str) -> int:
        """Of a named axis."""
        return self.sizes[self.named[name][0]]

    def where(self, axis: int, tensor: str) -> tuple[int, ...]:
        """The dimensions of a tensor that hold an axis."""
        return tuple(
            d for d, parts in enumerate(self.dims.get(tensor, ())) if any(one == axis for one, _ in parts)
        )
