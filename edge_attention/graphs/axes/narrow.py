"""Where a model can be cut into layers: places where one activation is alive.

Between two nodes, in their order, everything that was made and is still read must pass. In most models there
is a place before each attention and before each feed-forward layer where that is one activation, besides
masks and positions, which follow from the model's inputs without any product: who needs them makes them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.products import products_in, products_of, weighty_axes
from edge_attention.graphs.reading.needed import graphs_in, reads

__all__ = ["NarrowPlace", "bytes_of", "from_inputs", "layer_bytes", "narrow_places"]

_SMALL_TABLE = 1 << 16
"""Elements of a weight (an embedding of distances, of positions) that whoever makes a mask anew may read."""
_MAX_ALIVE = 256
"""Tensors that pass a border."""
_LONG = 12
"""Products from the first to the last that reads it: what an encoder gives each layer of a decoder."""


@dataclass(frozen=True)
class NarrowPlace:
    """A place between two nodes.

    Attributes:
        before: number of the node that comes next.
        alive: the activation that passes.
        beside: what else passes: small things, and what is read in many layers. Not what is made anew.
        size: bytes of all that passes.
    """

    before: int
    alive: str
    beside: tuple[str, ...]
    size: int


def bytes_of(form: TensorForm) -> int:
    return prod(form.shape) * np.dtype(form.dtype).itemsize


def from_inputs(axes: Axes) -> frozenset[str]:
    """What follows from the model's inputs, constants and small tables without a product: masks, positions.

    It is cheap to make wherever it is needed, and passes no border. Constants are in it, too, and what is
    made of them. Not so embedded tokens, though their table be small: those are the activation that passes.
    """
    bound = axes.bound
    hidden = set(axes.named.get("hidden", ()))
    products = products_in(axes)
    found = {*bound.inputs, *axes.static}
    for number, node in enumerate(bound.nodes):
        names = reads(node)
        tables = [name for name in names if name in bound.weights]
        small = all(prod(bound.shape(name)) <= _SMALL_TABLE for name in tables)
        known = not any(name in bound.unknown for name in (*names, *node.output))
        if names <= found and small and known and number not in products and not any(graphs_in(node)):
            found.update(
                name
                for name in node.output
                if name and not hidden.intersection(axis for dim in axes.dims[name] for axis, _ in dim)
            )
    return frozenset(found)


def narrow_places(axes: Axes) -> tuple[NarrowPlace, ...]:
    """The borders of a model's layers, in order; n of them make n + 1 layers. None: it has one layer.

    In each layer something is multiplied with a weight.
    """
    bound = axes.bound
    free = from_inputs(axes)
    products = products_in(axes)
    last = {name: number for number, node in enumerate(bound.nodes) for name in reads(node)}
    ending: dict[int, set[str]] = {}
    for name, number in last.items():
        ending.setdefault(number, set()).add(name)
    outputs = frozenset(bound.outputs)
    passing = _passing(bound, products)
    wide = _wide(axes)
    alive: set[str] = set()
    runs: list[list[NarrowPlace]] = []
    multiplied = False
    for number, node in enumerate(bound.nodes):
        if number in products and node.output[0] not in axes.static:
            multiplied = True
        alive |= {name for name in node.output if name in last and name not in free}
        alive -= ending.get(number, frozenset())
        few = 0 < len(alive) <= _MAX_ALIVE
        place = _place(number + 1, alive, passing, wide, bound) if few else None
        if place is not None and not outputs >= alive:
            if multiplied or not runs:
                runs.append([])
            multiplied = False
            runs[-1].append(place)
    if runs and not multiplied:  # nothing is multiplied behind the last
        runs.pop()
    if runs and not _multiplies(axes, products, runs[0][0].before):  # nor before the first: embeddings alone
        runs = runs[1:]
    return tuple(min(run, key=lambda place: place.size) for run in runs)


def _multiplies(axes: Axes, products: frozenset[int], before: int) -> bool:
    return any(n < before and axes.bound.nodes[n].output[0] not in axes.static for n in products)


def _passing(bound: BoundGraph, products: frozenset[int]) -> frozenset[str]:
    """What is read here and there over many layers: it passes their borders beside the activation."""
    order = sorted(products)
    return frozenset(
        name
        for name, readers in bound.readers.items()
        if bisect_left(order, readers[-1]) - bisect_left(order, readers[0]) >= _LONG
    )


def _place(
    before: int, alive: set[str], passing: frozenset[str], wide: frozenset[str], bound: BoundGraph
) -> NarrowPlace | None:
    """The place, if one activation passes it; or a sum and its norm, of one operator."""
    if any(name in bound.unknown for name in alive):
        return None
    new = sorted((alive & wide) - passing) or sorted(alive & wide)
    makers = {bound.makers.get(name) for name in new}
    fused = len(makers) == 1 and bound.nodes[before - 1].op_type.startswith("Skip")
    if not new or (len(new) > 1 and not fused) or not _passes(bound, new[0]):
        return None
    size = sum(bytes_of(bound.specs[name]) for name in alive)
    return NarrowPlace(before, new[0], tuple(sorted(alive - {new[0]})), size)


def _passes(bound: BoundGraph, name: str) -> bool:
    """Whether it is of a type that activations have: floats, or levels of a quantised file."""
    dtype = bound.specs[name].dtype
    return dtype.startswith(("float", "bfloat")) or dtype in ("int8", "uint8")


def _wide(axes: Axes) -> frozenset[str]:
    """Activations that have an axis some weight has, by which they are made or summed over.

    Whether two or one of them pass a place does not depend on lengths, as what is the largest there does.
    """
    weighty = weighty_axes(axes, products_of(axes))
    found = {
        name for name, dims in axes.dims.items() if weighty.intersection(a for dim in dims for a, _ in dim)
    }
    for node in axes.bound.nodes:  # a range of such an axis is no such axis, and as wide
        if node.op_type in ("Split", "Slice") and node.input[0] in found:
            found.update(name for name in node.output if name in axes.dims)
    return frozenset(found)


def layer_bytes(axes: Axes, places: Sequence[NarrowPlace]) -> tuple[int, ...]:
    """Bytes of the weights that each layer reads, in order; what several read counts in each."""
    bound = axes.bound
    borders = [0, *(place.before for place in places), len(bound.nodes)]
    found = []
    for start, stop in pairwise(borders):
        read = {name for node in bound.nodes[start:stop] for name in reads(node) if name in bound.weights}
        sizes = {(bound.weights[name], bound.piece(name)): bytes_of(bound.specs[name]) for name in read}
        found.append(sum(sizes.values()))
    return tuple(found)
