"""What meets at each boundary of a schedule, and in which order it folds: found once for all requests."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edge_attention.core.schedule.extents import AxisSpan, Extent, extent_shape
from edge_attention.core.schedule.schedule import Collective, Schedule, TensorForm
from edge_attention.core.tensors import Array

__all__ = ["ExpectedPiece", "FoldPlan", "overlap"]


@dataclass(frozen=True)
class ExpectedPiece:
    """One contribution to a boundary. `lse`: of a MERGE, the output that has the partial's."""

    step: int
    part: int
    output: str
    extent: Extent
    lse: str = ""


class FoldPlan:
    """What meets at each boundary of a schedule, found once for all requests.

    Attributes:
        pieces: boundary -> its contributions, in the order in which they fold. The boundary of an `lse` is
            not in it: it is made with its `out`.
        forms: boundary -> what each of these is.
        makes: (step, part) -> what that segment contributes: boundary and place in `pieces` of it.
        of_lse: boundary of an `lse` -> that of its `out`.

    Raises:
        ValueError: pieces of a GATHER overlap, or a partial lacks its `lse`.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.boundaries = schedule.boundaries
        self.of_lse = {b.lse: name for name, b in schedule.boundaries.items() if b.lse}
        found: dict[str, list[ExpectedPiece]] = {}
        for number, step in enumerate(schedule.steps):
            for segment in step.segments:
                lses: dict[str, list[tuple[str, Extent]]] = {}
                for one in segment.contributions:
                    if one.boundary in self.of_lse:
                        lses.setdefault(self.of_lse[one.boundary], []).append((one.output, one.extent))
                for one in segment.contributions:
                    if one.boundary in self.of_lse:
                        continue
                    lse = ""
                    if schedule.boundaries[one.boundary].collective is Collective.MERGE:
                        mine = lses.get(one.boundary)
                        if not mine or mine[0][1] != one.extent:
                            raise ValueError(
                                f"step {number}, part {segment.part}: {one.boundary} lacks its lse"
                            )
                        lse = mine.pop(0)[0]
                    piece = ExpectedPiece(number, segment.part, one.output, one.extent, lse)
                    found.setdefault(one.boundary, []).append(piece)
        # Sorting keeps the order in which one segment names several.
        self.pieces = {n: tuple(sorted(p, key=lambda one: (one.part, one.step))) for n, p in found.items()}
        self.forms = {
            name: tuple(_form_of(schedule.boundaries[name].spec, piece.extent) for piece in pieces)
            for name, pieces in self.pieces.items()
        }
        self.makes: dict[tuple[int, int], list[tuple[str, int]]] = {}
        self.bare: set[str] = set()
        """Boundaries of which some is nobody's: it is zeros."""
        for name, pieces in self.pieces.items():
            for index, piece in enumerate(pieces):
                self.makes.setdefault((piece.step, piece.part), []).append((name, index))
            boundary = schedule.boundaries[name]
            if boundary.collective is Collective.GATHER:
                self._require_apart(name, boundary.spec, pieces)

    def _require_apart(self, name: str, spec: TensorForm, pieces: tuple[ExpectedPiece, ...]) -> None:
        for index, one in enumerate(pieces):
            for other in pieces[:index]:
                if overlap(spec.shape, one.extent, other.extent):
                    raise ValueError(f"parts {other.part} and {one.part} both have some of {name}")
        there = sum(_size(extent_shape(spec.shape, piece.extent)) for piece in pieces)
        if there < _size(spec.shape):
            self.bare.add(name)


def overlap(shape: tuple[int, ...], one: Extent, other: Extent) -> bool:
    """Whether some element of a tensor of `shape` is in both extents."""
    mine, theirs = ({span.axis: span for span in extent} for extent in (one, other))
    if not all(n for extent in (one, other) for n in extent_shape(shape, extent)):
        return False
    return all((_within(mine[axis]) & _within(theirs[axis])).any() for axis in mine.keys() & theirs.keys())


@lru_cache(4096)
def _within(span: AxisSpan) -> Array:
    """Which places of the tensor's axis are in the span: bool [axis]."""
    inside = np.zeros((span.outer, span.size, span.inner), np.bool_)
    inside[:, span.start : span.stop] = True
    return inside.reshape(-1)


def _form_of(spec: TensorForm, extent: Extent) -> TensorForm:
    """The form of a piece of a boundary."""
    return TensorForm(spec.dtype, extent_shape(spec.shape, extent))


def _size(shape: Iterable[int]) -> int:
    return math.prod(shape)
