"""Reads the named axes off a model's axes: by what products do to them.

A product of two activations that sums over an axis which a softmax went over is where attention crosses
tokens: what it sums over are tokens of keys; what only its first operand has, tokens of queries; what both
have and some weight has, too, are heads. A feed-forward axis is made by a weight and summed over against a
weight, and nothing else sums over it or normalises it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.products import Product, products_of, weighty_axes
from edge_attention.graphs.axes.rule import Does

__all__ = ["Names", "name_axes"]

_NORMALISED = (Does.MOMENTS, Does.MEAN)


@dataclass(frozen=True)
class Names:
    """As the fields of the same names of `Axes`."""

    named: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    crossed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def name_axes(axes: Axes) -> Names:
    """The names of a model's axes."""
    return _Naming(axes).names()


class _Naming:
    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._products = products_of(axes)
        self._weighty = weighty_axes(axes, self._products)
        both = [p for p in self._products if p.weight is None and p.summed]
        softened = self._softened()
        # Tokens that a last layer sums over, all of a text at once: its weight has them, and none makes them.
        made = {axis for p in self._products if p.weight is not None for axis in (*p.of_weight, *p.both)}
        self._weighty -= {axis for p in both for axis in p.summed if axis in softened} - made
        softened -= self._weighty
        self._attentions = [p for p in both if softened & {*p.summed}]
        self._tensors = Counter(
            axis
            for name, dims in axes.dims.items()
            if name not in axes.static
            for axis in {a for dim in dims for a, _ in dim}
        )

    def names(self) -> Names:
        named: dict[str, tuple[int, ...]] = {}
        tokens = self._tokens()
        for number, axis in enumerate(tokens):
            named[f"tokens.{number}" if number else "tokens"] = (axis,)
        heads = self._heads()
        named.update((f"heads.{number}", found) for number, found in enumerate(heads))
        taken = {axis for found in named.values() for axis in found}
        batch = self._batch(taken)
        if batch is not None:
            named["batch"] = (batch,)
        hidden = self._hidden(taken)
        if hidden is not None:
            named["hidden"] = (hidden,)
        forward = self._feedforward({*taken, *self._hiddens(taken)})
        named.update((f"feedforward.{number}", (axis,)) for number, axis in enumerate(forward))
        crossed = {name: tuple(self._crossed(found[0])) for name, found in named.items()}
        return Names(named, crossed, self._refused(named))

    def _softened(self) -> set[int]:
        """Axes that a softmax goes over; also one that is written out: exponentials by their sum."""
        axes = self._axes
        found = {axis for axis, does in self._roles() if does is Does.SOFTMAX}
        for node in axes.bound.nodes:
            if node.op_type == "Slice" and node.output[0] in axes.dims and node.input[0] in axes.dims:
                # What is left of a softmax without what was joined for it alone, a sink.
                for before, after in zip(axes.dims[node.input[0]], axes.dims[node.output[0]], strict=True):
                    if before != after and found.issuperset(axis for axis, _ in before):
                        found.update(axis for axis, _ in after)
        for number, node in enumerate(axes.bound.nodes):
            if node.op_type == "ReduceSum" and node.output[0] not in axes.static:
                for factor, made_of in zip(axes.rules[number].factors, axes.factors[number], strict=True):
                    found.update(axis for axis in made_of if factor.does is Does.SUM)
        return found

    def _tokens(self) -> list[int]:
        found = Counter[int]()
        for p in self._attentions:
            one, _ = self._sides(p)
            found.update(axis for axis in (*p.summed, *one) if axis not in self._weighty)
        return sorted(found, key=lambda axis: (-self._tensors[axis], axis))

    def _sides(self, p: Product) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the operand with the scores alone has, and what the other has: values are made by weights."""
        loose_first = [axis for axis in p.first if axis not in self._weighty]
        loose_second = [axis for axis in p.second if axis not in self._weighty]
        return (p.first, p.second) if len(loose_first) >= len(loose_second) else (p.second, p.first)

    def _heads(self) -> list[tuple[int, ...]]:
        found: dict[tuple[int, ...], None] = {}
        for p in self._attentions:
            one, _ = self._sides(p)
            heads = tuple(axis for axis in (*p.both, *one) if axis in self._weighty)
            if heads:
                found.setdefault(self._outer_first(heads, p.node))
        for node in self._axes.bound.nodes:
            if node.op_type == "CachedAttention":
                dims = self._axes.dims[node.input[0]][1:3]
                if heads := tuple(axis for dim in dims for axis, _ in dim if axis in self._weighty):
                    found.setdefault(heads)
        return list(found)

    def _outer_first(self, heads: tuple[int, ...], number: int) -> tuple[int, ...]:
        """In the order in which a tensor has them."""
        node = self._axes.bound.nodes[number]
        for name in node.input[:2]:
            order = [axis for dim in self._axes.dims.get(name, ()) for axis, _ in dim]
            if set(heads) <= set(order):
                return tuple(sorted(heads, key=order.index))
        return heads

    def _batch(self, taken: set[int]) -> int | None:
        counts = Counter[int]()
        for name in self._axes.bound.inputs:
            dims = self._axes.dims.get(name, ())
            if dims and len(dims[0]) == 1 and dims[0][0][0] not in taken | self._weighty:
                counts[dims[0][0][0]] += self._tensors[dims[0][0][0]]
        return counts.most_common(1)[0][0] if counts else None

    def _hiddens(self, taken: set[int]) -> list[int]:
        """Axes that weights make and sum over, and that norms or many weights look at."""
        summed = Counter(axis for p in self._products if p.weight is not None for axis in p.summed)
        made = {axis for p in self._products if p.weight is not None for axis in p.of_weight}
        normal = {axis for axis, does in self._roles() if does in _NORMALISED}
        # Weights in blocks of bits sum over blocks: what is one block is not summed over, but normalised.
        found = [
            axis for axis in {*summed, *made} if axis not in taken and (axis in normal or summed[axis] > 2)
        ]
        return sorted(found, key=lambda axis: (-self._tensors[axis], axis))

    def _hidden(self, taken: set[int]) -> int | None:
        found = self._hiddens(taken)
        return found[0] if found else None

    def _feedforward(self, taken: set[int]) -> list[int]:
        made = {axis for p in self._products if p.weight is not None for axis in p.of_weight}
        among = {
            axis
            for p in self._products
            if p.weight is None
            for axis in (*p.summed, *p.first, *p.second, *p.both)
        }
        bad = {axis for axis, does in self._roles() if does not in (Does.CARRY, Does.SUM, Does.RANGE)}
        found: dict[int, None] = {}
        for p in self._products:
            if p.weight is not None:
                for axis in p.summed:
                    if axis in made and axis not in taken | among | bad:
                        found.setdefault(axis)
        return list(found)

    def _roles(self) -> Iterator[tuple[int, Does]]:
        """Of nodes on data: what becomes of each axis."""
        axes = self._axes
        for number, rule in enumerate(axes.rules):
            node = axes.bound.nodes[number]
            if node.output and node.output[0] in axes.static:
                continue
            for factor, made_of in zip(rule.factors, axes.factors[number], strict=True):
                for axis in made_of:
                    yield axis, factor.does

    def _crossed(self, axis: int) -> Iterator[int]:
        """Nodes on data that do anything to an axis but carry it."""
        axes = self._axes
        for number, rule in enumerate(axes.rules):
            node = axes.bound.nodes[number]
            if node.output and node.output[0] in axes.static:
                continue
            does = [
                factor.does
                for factor, made_of in zip(rule.factors, axes.factors[number], strict=True)
                if axis in made_of
            ]
            if len(does) > 1 or any(one is not Does.CARRY for one in does):
                yield number

    def _refused(self, named: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        axes = self._axes
        refused: dict[str, str] = {}
        unknown = next(iter(axes.bound.unknown.values()), "")
        for name, found in named.items():
            for number in self._crossed(found[0]):
                node, rule = axes.bound.nodes[number], axes.rules[number]
                if node.op_type in _RECURRENT:
                    refused[name] = rule.why
        if not any(name.startswith("tokens") for name in named):
            refused["tokens"] = (
                unknown or "no product sums over an axis of activations: there is no attention"
            )
        if not any(name.startswith("heads") for name in named):
            refused["heads"] = unknown or "no attention has an axis that its weights have, too"
        return refused


_RECURRENT = ("LSTM", "GRU", "RNN", "Loop", "Scan", "If")
