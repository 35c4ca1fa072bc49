"""The course of a schedule: what follows from it alone, found once for all its requests.

Which segments each part runs, which boundaries it is sent for them, and which of its earlier segments another
node has to run again to go on in its place. What a part keeps follows from the feeds and the boundaries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_attention.core.schedule.fold_plan import FoldPlan
from edge_attention.core.schedule.schedule import (
    Collective,
    Delivery,
    Kept,
    ModelSegment,
    Schedule,
    TensorForm,
)

__all__ = ["PEAK_BYTES", "Course", "Flow", "PartSegment", "graphs_to_follow"]

PEAK_BYTES = 512 * 1024 * 1024
"""Of the boundaries of one request at a time (Course.peak): more is not deployed."""

Flow = Mapping[str, frozenset[str]]
_NONE: Mapping[str, Flow] = {}


@dataclass(frozen=True, eq=False)
class PartSegment:
    """One segment of a part.

    Attributes:
        index: which of the part's segments it is.
        boundaries: those it is sent something of, each once; of an `lse` that of its `out`.
        contributes: whether anything of it passes the aggregator.
    """

    part: int
    index: int
    step: int
    segment: ModelSegment
    boundaries: tuple[str, ...]
    contributes: bool


class Course:
    """The course of `schedule`.

    Args:
        flows: by graph and output the inputs that it depends on, of graphs of which that is known.

    Attributes:
        parts: by part, its segments in order.
        results: the boundaries that have the model's outputs.
        peak: the most bytes that boundaries take at a time, without those that are kept in case a node goes.

    Raises:
        ValueError: the schedule does not hold together, or a part keeps two tensors under one name: what runs
            again would change what is kept.
    """

    def __init__(self, schedule: Schedule, flows: Mapping[str, Flow] = _NONE) -> None:
        schedule.check()
        self.schedule = schedule
        self._flows = flows
        self.folds = FoldPlan(schedule)
        self.parts = tuple(self._segments(part) for part in range(schedule.parts))
        self.results = frozenset(self._of(name) for name in schedule.results.values())
        self.peak = self._peak()
        self._again = tuple(
            tuple(self._closure(own, index) for index in range(len(own) + 1)) for own in self.parts
        )
        self._sent = tuple(
            tuple(
                frozenset(name for one in own[index:] for name in one.boundaries)
                for index in range(len(own) + 1)
            )
            for own in self.parts
        )
        self._recorded = tuple(
            tuple(frozenset(n for i in again for n in own[i].boundaries) for again in by_index)
            for own, by_index in zip(self.parts, self._again, strict=True)
        )

    def again(self, part: int, index: int) -> tuple[int, ...]:
        """Which of the part's segments before `index` a node that has kept nothing runs, in order."""
        return self._again[part][index]

    def sent(self, part: int, index: int) -> frozenset[str]:
        """The boundaries that the part is sent something of, from its segment `index` on."""
        return self._sent[part][index]

    def recorded(self, part: int, index: int) -> frozenset[str]:
        """The boundaries that are needed to run the part's segments `again`."""
        return self._recorded[part][index]

    def _of(self, boundary: str) -> str:
        return self.folds.of_lse.get(boundary, boundary)

    def _peak(self) -> int:
        """Of a boundary all pieces may wait for the first one, but where each has its own place."""
        steps, boundaries = len(self.schedule.steps), self.schedule.boundaries
        until = dict.fromkeys(self.results, steps)
        for own in self.parts:
            for one in own:
                until |= {name: max(until.get(name, 0), one.step) for name in one.boundaries}
        taken = [0] * (steps + 1)
        for name, pieces in self.folds.pieces.items():
            boundary = boundaries[name]
            size = form_bytes(boundary.spec)
            if boundary.collective is not Collective.GATHER:
                size *= 1 + len(pieces)
            first = min(piece.step for piece in pieces)
            for step in range(first, max(until.get(name, first), first) + 1):
                taken[step] += size
        return max(taken)

    def _segments(self, part: int) -> tuple[PartSegment, ...]:
        found: list[PartSegment] = []
        kept: set[str] = set()
        for index, (step, segment) in enumerate(self.schedule.of_part(part)):
            if both := kept & set(segment.kept.values()):
                raise ValueError(f"part {part} keeps {min(both)} twice")
            kept |= set(segment.kept.values())
            sources = [s.boundary for s in segment.inputs.values() if isinstance(s, Delivery)]
            boundaries = tuple(dict.fromkeys(self._of(name) for name in sources))
            contributes = (step, part) in self.folds.makes
            found.append(PartSegment(part, index, step, segment, boundaries, contributes))
        return tuple(found)

    def _closure(self, own: tuple[PartSegment, ...], index: int) -> tuple[int, ...]:
        """Of the segments before `index` those that keep what the later ones need, and what these need."""
        needed = {s.name for one in own[index:] for s in one.segment.inputs.values() if isinstance(s, Kept)}
        found: list[int] = []
        for one in reversed(own[:index]):
            if needed & set(one.segment.kept.values()):
                found.append(one.index)
                needed |= {s.name for s in one.segment.inputs.values() if isinstance(s, Kept)}
        return tuple(reversed(found))

    def only_merges(self, one: PartSegment, name: str) -> bool:
        """Whether all that comes of the segment's input `name` are partials of attention.

        These are row by row of the queries; what it keeps must be known not to depend on that input.
        """
        segment, flow = one.segment, self._flows.get(one.segment.graph)
        free = all(flow is not None and name not in flow.get(output, {name}) for output in segment.kept)
        return free and _merges(self.schedule, segment)


def form_bytes(form: TensorForm) -> int:
    """Bytes of a tensor of that form."""
    return math.prod(form.shape) * np.dtype(form.dtype).itemsize


def graphs_to_follow(schedule: Schedule) -> frozenset[str]:
    """The graphs of which a course wants to know what their outputs depend on."""
    return frozenset(
        segment.graph
        for step in schedule.steps
        for segment in step.segments
        if segment.kept and _merges(schedule, segment)
    )


def _merges(schedule: Schedule, segment: ModelSegment) -> bool:
    merges = [schedule.boundaries[c.boundary].collective is Collective.MERGE for c in segment.contributions]
    return bool(merges) and all(merges)
