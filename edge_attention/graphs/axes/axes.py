"""What each axis of a model is: axes that operators carry from tensor to tensor are one, and have a name.

    axes = axes_of(bound)
    axes.dims["scores"]                 # (((0, 2),), ((7, 12),), ((1, 128),), ((1, 128),))
    axes.named["heads.0"]               # (7,)

Every dimension of every tensor is a product of axes of the model. They are found by what operators do alone
(`rules.py`), not by names; two axes of one size are never taken for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.naming import name_axes
from edge_attention.graphs.axes.rule import Does, Factor, Rule
from edge_attention.graphs.axes.rules import rule_of
from edge_attention.graphs.axes.unify import AxisPart, parts_of, tie
from edge_attention.graphs.reading.needed import graphs_in

__all__ = ["Axes", "axes_of", "tied"]


def axes_of(bound: BoundGraph) -> Axes:
    """The axes of a bound model, with the names of those that a plan may cut."""
    axes = tied(bound)
    return replace(axes, **vars(name_axes(axes)))


def tied(bound: BoundGraph) -> Axes:
    """The axes of a bound model, without names."""
    parts = {name: [AxisPart(size) for size in form.shape] for name, form in bound.specs.items()}
    rules: list[Rule] = []
    factor_parts: list[list[AxisPart]] = []
    for node in bound.nodes:
        rule = rule_of(node, bound)
        made = [AxisPart(factor.size) for factor in rule.factors]
        rule = _tie_node(rule, made, list(node.input), list(node.output), parts)
        rules.append(rule)
        factor_parts.append(made)
    numbers: dict[AxisPart, int] = {}

    def number(part: AxisPart) -> int:
        return numbers.setdefault(part, len(numbers))

    dims = {
        name: tuple(
            tuple((number(part), part.size) for part in parts_of([own]) if part.size > 1) for own in side
        )
        for name, side in parts.items()
    }
    factors = tuple(
        tuple(tuple(number(part) for part in parts_of([own]) if part.size > 1) for own in made)
        for made in factor_parts
    )
    sizes = {number: part.size for part, number in numbers.items()}
    return Axes(bound, dims, tuple(rules), factors, sizes, _static(bound))


def _tie_node(
    rule: Rule,
    made: list[AxisPart],
    inputs: list[str],
    outputs: list[str],
    parts: Mapping[str, list[AxisPart]],
) -> Rule:
    """Tie a node's factors to the dimensions around it; the rule, with what cannot be tied made WHOLE."""
    factors = list(rule.factors)
    why = rule.why
    sides = []
    for names, of in ((inputs, rule.operands), (outputs, rule.results)):
        side_list: list[tuple[tuple[int, ...], ...] | None] = []
        for name, side in zip(names, of, strict=True):
            if side is None or name not in parts or len(side) != len(parts[name]):
                side_list.append(side)
                continue
            dims = list(side)
            for axis, (own, chosen) in enumerate(zip(parts[name], side, strict=True)):
                if not chosen or tie([own], [made[f] for f in chosen]):
                    continue
                for f in chosen:
                    factors[f] = Factor(factors[f].size, Does.WHOLE)
                factors.append(Factor(own.size, Does.WHOLE))
                made.append(own)
                dims[axis] = (len(factors) - 1,)
                why = why or f"an axis of '{name}' is divided otherwise elsewhere"
            side_list.append(tuple(dims))
        sides.append(side_list)
    results = tuple(side if side is not None else () for side in sides[1])
    return Rule(tuple(factors), tuple(sides[0]), results, rule.localised, why)


def _static(bound: BoundGraph) -> frozenset[str]:
    """What follows from constants alone."""
    found = {*bound.weights, *bound.literals, *bound.derived}
    for node in bound.nodes:
        if node.input and all(name in found for name in node.input if name) and not list(graphs_in(node)):
            found.update(name for name in node.output if name)
    return frozenset(found)
