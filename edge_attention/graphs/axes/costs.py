"""What a model costs by layers, for the planner: read off its axes, nothing is cut or run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod

from edge_attention.core.placement.cuts.costs import (
    AttentionBytes,
    LayerCosts,
    LayerWork,
    ModelCosts,
    Sharing,
)
from edge_attention.core.schedule.plan import Cut
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.narrow import NarrowPlace, bytes_of, narrow_places
from edge_attention.graphs.axes.rule import Does
from edge_attention.graphs.axes.work import work_of
from edge_attention.graphs.reading.needed import reads

__all__ = ["model_costs"]


def model_costs(axes: Axes, places: Sequence[NarrowPlace] | None = None) -> ModelCosts:
    """The costs of a bound model, whose layers lie between `places`, its narrow places."""
    if places is None:
        places = narrow_places(axes)
    bound = axes.bound
    cuts = _cut_axes(axes)
    borders = [0, *(place.before for place in places), len(bound.nodes)]
    results = sum(bytes_of(bound.specs[name]) for name in bound.outputs if name in bound.specs)
    outs = [*(place.size for place in places), results]
    attentions = list(_attentions(axes)) if Cut.TOKENS in cuts else []
    layers: list[LayerCosts] = []
    read_in: dict[object, int] = {}
    """Which layer read a weight last."""
    for number, ((start, stop), out) in enumerate(zip(pairwise(borders), outs, strict=True)):
        nodes = range(start, stop)
        weights: dict[object, str] = {}
        for n in nodes:
            for name in reads(bound.nodes[n]):
                if name in bound.weights:
                    weights.setdefault((bound.weights[name], bound.piece(name)), name)
        again: dict[int, int] = {}
        for key, name in weights.items():
            if key in read_in:
                before = number - read_in[key]
                again[before] = again.get(before, 0) + bytes_of(bound.specs[name])
            read_in[key] = number
        names = list(weights.values())
        layers.append(
            LayerCosts(
                _work(axes, nodes),
                sum(bytes_of(bound.specs[name]) for name in names),
                out,
                {cut: _sharing(axes, nodes, names, of) for cut, of in cuts.items()},
                tuple(one for n, one in attentions if n in nodes),
                tuple(_sums(axes, nodes, cuts.get(Cut.HEADS, frozenset()))),
                tuple(sorted(again.items())),
            )
        )
    feeds = sum(bytes_of(bound.specs[name]) for name in bound.inputs)
    refused = {
        cut: axes.refused[cut.value]
        for cut in (Cut.BATCH, Cut.TOKENS, Cut.HEADS)
        if cut.value in axes.refused
    }
    return ModelCosts(tuple(layers), feeds, _rows(axes, places), _units(axes), refused)


def _cut_axes(axes: Axes) -> Mapping[Cut, frozenset[int]]:
    """By cut the axes that its parts have ranges of; of a cut that is to be had."""
    found: dict[Cut, frozenset[int]] = {}
    for cut in (Cut.BATCH, Cut.TOKENS):
        if cut.value in axes.named and cut.value not in axes.refused:
            found[cut] = frozenset(axes.named[cut.value][:1])
    wide = [
        of[0]
        for name, of in axes.named.items()
        if name.startswith(("heads.", "feedforward.")) and name not in axes.refused
    ]
    if wide and any(name.startswith("heads.") for name in axes.named):
        found[Cut.HEADS] = frozenset(wide)
    return found


def _units(axes: Axes) -> Mapping[Cut, int]:
    found = {
        cut: axes.size(cut.value)
        for cut in (Cut.BATCH, Cut.TOKENS)
        if cut.value in axes.named and cut.value not in axes.refused
    }
    heads = [axes.sizes[of[0]] for name, of in axes.named.items() if name.startswith("heads.")]
    if heads:
        found[Cut.HEADS] = min(heads)
    return found


def _rows(axes: Axes, places: Sequence[NarrowPlace]) -> int:
    """Of the products with weights: samples times tokens, where both are known, else all of an activation
    besides its last axis."""
    if "tokens" in axes.named or not places:
        return prod(axes.size(name) for name in ("batch", "tokens") if name in axes.named)
    return prod(axes.bound.shape(places[0].alive)[:-1]) or 1


def _work(axes: Axes, nodes: Sequence[int]) -> LayerWork:
    """Of the nodes that run: what follows from constants alone does not."""
    of = [axes.bound.nodes[n] for n in nodes if axes.bound.nodes[n].output[0] not in axes.static]
    return work_of(of, axes.bound.specs)


def _sharing(axes: Axes, nodes: Sequence[int], weights: Sequence[str], cut: frozenset[int]) -> Sharing:
    """What a part that has a range of these axes does, and holds, whole."""
    whole = [n for n in nodes if not any(axis in cut for made_of in axes.factors[n] for axis in made_of)]
    held = sum(
        bytes_of(axes.bound.specs[name])
        for name in weights
        if not any(axis in cut for dim in axes.dims.get(name, ()) for axis, _ in dim)
    )
    return Sharing(_work(axes, whole), held)


def _attentions(axes: Axes) -> Iterator[tuple[int, AttentionBytes]]:
    """What passes between parts that share tokens: of each attention, by the node that multiplies with its
    values, and of what else needs all tokens."""
    tokens = axes.named["tokens"][0]
    crossed = axes.crossed.get("tokens", ())
    bound = axes.bound
    queries = keys = scores = 0
    for n in sorted(crossed):
        node, rule = bound.nodes[n], axes.rules[n]
        does = [
            factor.does
            for factor, made_of in zip(rule.factors, axes.factors[n], strict=True)
            if tokens in made_of
        ]
        ins = [name for name in node.input[:2] if name in bound.specs]
        if len(ins) == 2 and does.count(Does.CARRY) > 1 and Does.SUM not in does:
            if _is_product(axes, n):
                queries, keys = _small(axes, ins[0]), _small(axes, ins[1])
                scores = bytes_of(bound.specs[node.output[0]])
            continue
        if len(ins) == 2 and Does.SUM in does:
            # The scores have tokens twice, values have them once.
            values = min(ins, key=lambda name: len(axes.where(tokens, name)))
            lse = scores // axes.sizes[tokens]
            out = bytes_of(bound.specs[node.output[0]])
            yield n, AttentionBytes(keys + _small(axes, values), queries, out, lse)
            queries = keys = scores = 0
        elif ins and any(one in (Does.WHOLE, Does.MOMENTS) for one in does):
            yield n, AttentionBytes(bytes_of(bound.specs[ins[0]]), 0, 0)


def _is_product(axes: Axes, number: int) -> bool:
    return any(factor.does is Does.SUM for factor in axes.rules[number].factors)


def _small(axes: Axes, name: str) -> int:
    """Bytes of keys or values, or of queries; where heads share keys, those once."""
    size = bytes_of(axes.bound.specs[name])
    for label, of in axes.named.items():
        if label.startswith("heads.") and len(of) > 1 and axes.where(of[0], name):
            shared = prod(axes.sizes[axis] for axis in of[1:] if axes.where(axis, name))
            if axes.bound.specs[name].shape and _expanded(axes, name, of):
                return size // max(shared, 1)
    return size


def _expanded(axes: Axes, name: str, heads: Sequence[int]) -> bool:
    """Whether the tensor repeats over the query heads of a group: what makes it has no weight with them."""
    makers = {output: n for n, node in enumerate(axes.bound.nodes) for output in node.output}
    seen = name
    for _ in range(8):
        n = makers.get(seen)
        if n is None:
            return False
        node = axes.bound.nodes[n]
        if node.op_type in ("Expand", "Tile"):
            return True
        if node.op_type not in ("Reshape", "Transpose", "Mul", "Unsqueeze", "Identity", "Cast"):
            return False
        seen = node.input[0]
    return False


def _sums(axes: Axes, nodes: Sequence[int], cut: frozenset[int]) -> Iterator[int]:
    """Bytes of what parts by heads or feed-forward width add up."""
    for n in nodes:
        node = axes.bound.nodes[n]
        if node.output[0] in axes.static or node.output[0] not in axes.bound.specs:
            continue
        if any(
            factor.does in (Does.SUM, Does.MEAN) and any(axis in cut for axis in made_of)
            for factor, made_of in zip(axes.rules[n].factors, axes.factors[n], strict=True)
        ):
            yield bytes_of(axes.bound.specs[node.output[0]])
