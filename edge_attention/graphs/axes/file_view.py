"""A model's file seen with the axes found in it: of which layer each node is, what each tensor holds."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from onnx import NodeProto

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown
from edge_attention.core.schedule.plan import Crossing, Cut, Stage
from edge_attention.core.schedule.shares import shared_ranges
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.narrow import narrow_places
from edge_attention.graphs.axes.sharding import NamedDims, Sharding, owners_of

__all__ = ["FAMILIES", "OPEN_AXES", "FileView", "StageOwners"]

FAMILIES = {Cut.TOKENS: ("tokens",), Cut.BATCH: ("batch",), Cut.HEADS: ("heads", "feedforward")}
"""Axes that a stage's parts share, by the first word of their names."""
OPEN_AXES = ("tokens", "batch")
"""Axes whose size is a request's: their shares are said, not their ranges."""
FINEST = 1000
"""Blocks of such an axis, for shares that are no small whole numbers."""

_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
"""Operators that hold the scores within. Their first input has the queries, the next two keys and values."""

Sides = dict[str, tuple[int, ...]]
"""By tensor, dimensions of it."""


@dataclass(frozen=True)
class StageOwners:
    """A stage, and by axis of the model (name) which part has which block."""

    number: int
    stage: Stage
    owners: Mapping[str, tuple[int, ...]]


class FileView:
    """A model's file seen with its axes: of each node its layer, of each tensor its named axes."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        families = {word for words in FAMILIES.values() for word in words}
        cuttable = {n: f for n, f in axes.named.items() if n.partition(".")[0] in families}
        self.names = {found[0]: name for name, found in cuttable.items() if name not in axes.refused}
        self._borders = [place.before for place in narrow_places(axes)]
        self._makers = {n: i for i, node in enumerate(axes.bound.nodes) for n in node.output if n}
        self.layers = len(self._borders) + 1

    def place(self, node: NodeProto) -> int | None:
        """The number of the bound node that makes what this one does; None: nothing that computes on data."""
        return next((self._makers[name] for name in node.output if name in self._makers), None)

    def layer(self, place: int) -> int:
        return bisect_right(self._borders, place)

    def same(self, node: NodeProto, place: int) -> bool:
        """Whether the node is the bound one, not one that it was taken apart into."""
        bound = self.axes.bound.nodes[place]
        return (bound.op_type, len(bound.input)) == (node.op_type, len(node.input))

    def dims(self, name: str, node: NodeProto, place: int) -> NamedDims:
        """Of a tensor of the file, as this node has it: a shared weight has other axes elsewhere."""
        bound = self.axes.bound.nodes[place]
        if self.same(node, place) and name in node.input:
            name = bound.input[list(node.input).index(name)]
        found = self.axes.dims.get(name, ())
        return tuple(tuple((self.names.get(axis, ""), size) for axis, size in dim) for dim in found)

    def owners(self, stage: Stage) -> dict[str, tuple[int, ...]]:
        """By axis that the stage's parts share, its blocks."""
        found: dict[str, tuple[int, ...]] = {}
        if len(stage.parts) == 1:
            return found
        families = FAMILIES[stage.cut]
        if stage.cut is Cut.TOKENS and stage.crossing is Crossing.SWITCH:
            families += ("heads",)
        shares = stage.shares or (1.0,) * len(stage.parts)
        if unknown := sorted(set(stage.ranges) - set(self.axes.named)):
            raise InvalidArgument(f"the plan has ranges of {shown(unknown[0], 60)}, which the model has not")
        for name in self.names.values():
            if name.partition(".")[0] not in families:
                continue
            if name in stage.ranges:
                size = max(self.axes.size(name), *(stop for _, stop in stage.ranges[name]))
                found[name] = owners_of(stage.parts, stage.ranges[name], size)
            elif name.partition(".")[0] in OPEN_AXES:
                blocks = blocks_for(shares)
                found[name] = owners_of(stage.parts, shared_ranges(blocks, shares), blocks)
            else:
                size = self.axes.size(name)
                found[name] = owners_of(stage.parts, shared_ranges(size, shares), size)
        return found

    def shardings(self, node: NodeProto, place: int, of: StageOwners) -> Iterator[tuple[str, Sharding]]:
        """How each of the node's tensors lies; those that no axis of the stage is in are left out."""
        stage = of.stage
        if len(stage.parts) == 1:
            yield node.output[0], Sharding("", 0, stage.parts)
            return
        rows, columns = self.sides(node, place)
        for name in dict.fromkeys(name for name in (*node.input, *node.output) if name):
            dims = self.dims(name, node, place)
            held = [(axis, d) for d, dim in enumerate(dims) for axis, _ in dim if axis in of.owners]
            if stage.cut is Cut.TOKENS:
                crossing = bool(columns)
                wanted = {Crossing.GATHER: rows, Crossing.MERGE: columns}.get(stage.crossing)
                if wanted is None and not any(axis.startswith("heads") for axis in of.owners):
                    wanted = rows  # there is one head: nothing to switch to
                if crossing and wanted is None:
                    chosen = [(axis, d) for axis, d in held if axis.startswith("heads")]
                elif crossing and wanted is not None:
                    chosen = [(axis, d) for axis, d in held if d in wanted.get(name, ())]
                else:
                    chosen = [(axis, d) for axis, d in held if axis.startswith("tokens")]
            else:
                chosen = held
            if chosen:
                yield name, Sharding(*chosen[0], of.owners[chosen[0][0]])
            elif held:
                yield name, Sharding("", 0, stage.parts)

    def sides(self, node: NodeProto, place: int) -> tuple[Sides, Sides]:
        """Where a node crosses tokens: by tensor of the file its dimensions of queries, and those of keys."""
        rows: Sides = {}
        columns: Sides = {}
        if node.op_type in _ATTENTION and not self.same(node, place):
            for position, name in enumerate(node.input[:3]):
                found = self._tokens(self.axes.dims.get(name, ()))
                (columns if position else rows).setdefault(name, found)
            for name in node.output[:1]:
                rows[name] = self._tokens(self.axes.dims.get(name, ()))
            return (rows, columns) if len(node.input) > 2 and node.input[1] else ({}, {})
        if not self.same(node, place):
            return {}, {}
        rule, factors = self.axes.rules[place], self.axes.factors[place]
        crossing = {f for f, made in enumerate(factors) if any(self._is_tokens(axis) for axis in made)}
        if len(crossing) < 2 or not rule.results:
            return {}, {}
        first = next((f for dim in rule.results[0] for f in dim if f in crossing), None)
        for names, sides in ((node.input, rule.operands), (node.output, rule.results)):
            for name, side in zip(names, sides, strict=False):
                if side is None or not name:
                    continue
                rows[name] = tuple(d for d, dim in enumerate(side) if first in dim)
                columns[name] = tuple(d for d, dim in enumerate(side) if (crossing - {first}) & set(dim))
        return rows, columns

    def _is_tokens(self, axis: int) -> bool:
        return self.names.get(axis, "").startswith("tokens")

    def _tokens(self, dims: Sequence[Sequence[tuple[int, int]]]) -> tuple[int, ...]:
        return tuple(d for d, dim in enumerate(dims) if any(self._is_tokens(axis) for axis, _ in dim))


def blocks_for(shares: Sequence[float]) -> int:
    """Into how many equal blocks an axis is divided so that shares come out, as nearly as FINEST let them."""
    exact = [Fraction(share).limit_denominator(FINEST) for share in shares]
    whole = math.lcm(*(one.denominator for one in exact))
    found = [int(one * whole) for one in exact]
    common = math.gcd(*found) or 1
    total = sum(found) // common
    same = all(math.isclose(one, share, rel_tol=1e-12) for one, share in zip(exact, shares, strict=True))
    return max(total, 2) if same and total <= FINEST else FINEST
