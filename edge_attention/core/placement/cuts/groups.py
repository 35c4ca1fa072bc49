"""Groups of boxes that could share a stage: in which manner, with which shares, and what each run of layers
would take them. Boxes that are alike, links included, are counted, not told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import PlanWanted
from edge_attention.core.placement.cuts.costs import LayerCosts, ModelCosts
from edge_attention.core.placement.cuts.shares import compositions, even_shares, level_shares, shares_tried
from edge_attention.core.placement.cuts.stages import Manner, StageCosts, ends_costs, layer_costs
from edge_attention.core.schedule.plan import Crossing, Cut

__all__ = ["BoxKinds", "GroupOption", "group_options", "manners"]

KindCounts = tuple[int, ...]

ALL_SHARES = 1_000
"""Ways to share that are all tried for one group and manner; where there are more, a search goes downhill."""


@dataclass(frozen=True)
class BoxKinds:
    """Boxes by kind, the quickest kind first; a kind's boxes in the order they were given."""

    kinds: tuple[tuple[ComputeBox, ...], ...]

    @classmethod
    def of(cls, boxes: Sequence[ComputeBox], links: BoxLinks, model: ModelCosts) -> BoxKinds:
        found: dict[
            tuple[float, float, float, float, float, float, str, float, BoxLink], list[ComputeBox]
        ] = {}
        for box in boxes:
            speed = box.flops, box.moved, box.operator_seconds, box.call_seconds, box.memory, box.slowness
            found.setdefault((*speed, box.machine, box.cores, links.to(box.name)), []).append(box)
        ordered = sorted(
            found.values(),
            key=lambda alike: sum(alike[0].seconds(layer.work, model.rows) for layer in model.layers),
        )
        return cls(tuple(map(tuple, ordered)))

    @property
    def counts(self) -> KindCounts:
        return tuple(map(len, self.kinds))

    def subsets(self, of: KindCounts | None = None) -> Iterator[KindCounts]:
        """Every choice of boxes, none included, by how many of each kind."""
        yield from product(*(range(count + 1) for count in (self.counts if of is None else of)))

    def boxes(self, counts: KindCounts) -> tuple[ComputeBox, ...]:
        """Some boxes of these counts, for what they take: the first of each kind."""
        return tuple(box for kind, count in zip(self.kinds, counts, strict=True) for box in kind[:count])

    @property
    def pairs(self) -> int:
        """How many pairs there are of a choice of boxes and a choice among those."""
        return math.prod((count + 1) * (count + 2) // 2 for count in self.counts)


@dataclass(frozen=True, eq=False)
class GroupOption:
    """One manner and shares for a group.

    Attributes:
        units: by box; empty where nothing is shared.
        seconds: [i, j] for the layers from i to before j; infinite where it cannot be.
        busy: [i, j] the most that one of its boxes, or its link, is busy with them.
    """

    manner: Manner
    boxes: tuple[ComputeBox, ...]
    units: tuple[int, ...]
    seconds: NDArray[np.float64]
    busy: NDArray[np.float64]

    @property
    def shares(self) -> tuple[float, ...]:
        total = sum(self.units)
        return tuple(units / total for units in self.units) if total else (1.0,)


def manners(model: ModelCosts, wanted: PlanWanted, boxes: int) -> Iterator[Manner]:
    """How so many boxes may share a stage."""
    if boxes == 1:
        yield Manner()
        return
    for cut in (Cut.BATCH, Cut.HEADS, Cut.TOKENS):
        if model.units.get(cut, 0) < boxes or wanted.family not in ("", cut.value):
            continue
        if cut is not Cut.TOKENS:
            yield Manner(cut)
            continue
        for crossing in Crossing:
            if wanted.crossing in (None, crossing):
                yield Manner(cut, crossing)


def group_options(
    model: ModelCosts, boxes: tuple[ComputeBox, ...], links: BoxLinks, wanted: PlanWanted, scale: float
) -> list[GroupOption]:
    """Every manner in which the boxes can share some of the layers, each with the best shares found."""
    found = []
    for manner in manners(model, wanted, len(boxes)):
        costing = _Costing(model, manner, boxes, links, scale)
        if len(boxes) == 1:
            found.append(costing.option(()))
            continue
        found += [costing.option(units) for units in costing.best()]
    return found


class _Costing:
    """What a manner costs a group; layers that are alike are looked at once."""

    def __init__(
        self,
        model: ModelCosts,
        manner: Manner,
        boxes: tuple[ComputeBox, ...],
        links: BoxLinks,
        scale: float,
    ) -> None:
        self._model, self._manner, self._boxes = model, manner, boxes
        self._links, self._scale = links, scale
        self._units = model.units.get(manner.cut, 1)
        self._distinct: list[LayerCosts] = []
        self._kind: list[int] = []
        """By layer, its number among the distinct ones; -1: it cannot be cut so."""
        for number, layer in enumerate(model.layers):
            if not model.allows(manner.cut, range(number, number + 1)):
                self._kind.append(-1)
                continue
            if layer not in self._distinct:
                self._distinct.append(layer)
            self._kind.append(self._distinct.index(layer))

    def best(self) -> list[tuple[int, ...]]:
        """Units by box: the quickest found, and the quickest of those whose weights fit, where it differs."""
        if not self._distinct:
            return []
        if shares_tried(self._units, len(self._boxes)) <= ALL_SHARES:
            tried = {units: self._seconds(units) for units in compositions(self._units, len(self._boxes))}
            best = [min(tried, key=tried.__getitem__)]
            fitting = [units for units in tried if self._fits(units)]
            return list(dict.fromkeys(best + ([min(fitting, key=tried.__getitem__)] if fitting else [])))
        alone = [self._alone(box) for box in self._boxes]
        start = even_shares(self._units, [1 / seconds for seconds in alone])
        found = [level_shares(self._units, start, self._seconds, self._lateness)[0]]
        if self._manner.cut is Cut.HEADS and not self._fits(found[0]):
            memory = [min(box.memory, self._model.weights) for box in self._boxes]
            found.append(even_shares(self._units, [max(room, 1.0) for room in memory]))
        return found

    def option(self, units: tuple[int, ...]) -> GroupOption:
        """Costs of every run of layers."""
        count, boxes = len(self._model.layers), self._boxes
        shares = self._shares(units)
        rows = [self._layer(layer, shares) for layer in self._distinct]

        def sums(of: Callable[[StageCosts], Sequence[float]]) -> NDArray[np.float64]:
            """[i, j, box]: summed over the layers."""
            each = [of(rows[kind]) if kind >= 0 else (0.0,) * len(boxes) for kind in self._kind]
            ahead = np.vstack([np.zeros((1, len(boxes))), np.cumsum(np.array(each, float), axis=0)])
            run: NDArray[np.float64] = ahead[None, :, :] - ahead[:, None, :]
            return run

        took = np.full((count + 1, count + 1), np.inf)
        for start in range(count):
            took[start, start] = 0.0
            for stop in range(start + 1, count + 1):
                kind = self._kind[stop - 1]
                took[start, stop] = took[start, stop - 1] + (rows[kind].seconds if kind >= 0 else math.inf)
        took[np.tril_indices(count + 1)] = np.inf
        memory = np.array([box.memory for box in boxes])
        twice = np.zeros((count + 1, count + 1, 1))
        if any(layer.again for layer in self._model.layers):
            for start in range(count):
                for stop in range(start + 1, count + 1):
                    twice[start, stop] = self._model.held_twice(range(start, stop))
        took[(sums(lambda row: row.weights) - twice > memory).any(axis=2)] = np.inf
        busy, down, up = sums(lambda r: r.busy), sums(lambda r: r.down), sums(lambda r: r.up)
        ends: dict[tuple[float, float, bool, bool], StageCosts] = {}
        occupied = np.full_like(took, np.inf)
        for start in range(count):
            for stop in range(start + 1, count + 1):
                if not math.isfinite(took[start, stop]):
                    continue
                comes = self._model.layers[start - 1].out if start else self._model.feeds
                key = (comes, self._model.layers[stop - 1].out, start == 0, stop == count)
                if key not in ends:
                    ends[key] = ends_costs(
                        self._model, range(start, stop), self._manner, boxes, shares, self._links, self._scale
                    )
                end = ends[key]
                took[start, stop] += end.seconds
                occupied[start, stop] = max(
                    max(
                        busy[start, stop, n] + end.busy[n],
                        self._links.to(box.name).busy(
                            down[start, stop, n] + end.down[n], up[start, stop, n] + end.up[n]
                        ),
                    )
                    for n, box in enumerate(boxes)
                )
        return GroupOption(self._manner, boxes, units, took, occupied)

    def _shares(self, units: tuple[int, ...]) -> tuple[float, ...]:
        total = sum(units)
        return tuple(one / total for one in units) if total else (1.0,)

    def _layer(self, layer: LayerCosts, shares: Sequence[float]) -> StageCosts:
        rows = self._model.rows
        return layer_costs(layer, rows, self._manner, self._boxes, shares, self._links, self._scale)

    def _seconds(self, units: tuple[int, ...]) -> float:
        shares = self._shares(units)
        each = [self._layer(layer, shares).seconds for layer in self._distinct]
        ends = ends_costs(
            self._model,
            range(len(self._model.layers)),
            self._manner,
            self._boxes,
            shares,
            self._links,
            self._scale,
        )
        return ends.seconds + sum(each[kind] for kind in self._kind if kind >= 0)

    def _lateness(self, units: tuple[int, ...]) -> Sequence[float]:
        """By box, its seconds of work and on its link."""
        shares = self._shares(units)
        late = [0.0] * len(self._boxes)
        for layer in self._distinct:
            row = self._layer(layer, shares)
            times = self._kind.count(self._distinct.index(layer))
            for n, box in enumerate(self._boxes):
                link = self._links.to(box.name)
                late[n] += times * (row.busy[n] + row.down[n] / link.down + row.up[n] / link.up)
        return late

    def _alone(self, box: ComputeBox) -> float:
        return sum(box.seconds(layer.work, self._model.rows) for layer in self._model.layers)

    def _fits(self, units: tuple[int, ...]) -> bool:
        shares = self._shares(units)
        if any(kind < 0 for kind in self._kind):
            return True  # some layers are elsewhere: each run of layers is looked at for itself
        every = range(len(self._model.layers))
        return all(
            self._model.held(every, self._manner.cut, share) <= box.memory
            for box, share in zip(self._boxes, shares, strict=True)
        )
