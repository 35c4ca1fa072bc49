"""Meetings: where contributions to the boundaries of one request fold, each once, in the parts' order.

    GATHER   placed at its extent           SUM        added, each in its extent of zeros
    MERGE    (out, lse), core/partial.py    MIN, MAX   element by element

Contributions fold in the order of their parts' numbers, whatever the order in which they come: the same
schedule gives the same bits. One that comes before its turn waits.

What comes from elsewhere is checked here: shape, dtype, and NaN, which would poison all it meets. Infinity is
let through, as activations may hold it where a mask lets nothing through; a MERGE takes no `out` with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_attention.core.errors import DuplicateContribution, InvalidTensor, NotFinite, NotFound
from edge_attention.core.partial import Partial, merge
from edge_attention.core.schedule.extents import WHOLE, Extent, place, take
from edge_attention.core.schedule.fold_plan import ExpectedPiece, FoldPlan, overlap
from edge_attention.core.schedule.schedule import Boundary, Collective, Delivery, Schedule, TensorForm
from edge_attention.core.tensors import Array, own_memory

__all__ = ["PAST_HALF", "Meetings", "require_form"]

PAST_HALF = "a number is past float16, in which it was to travel: deploy the model without halves"

OF_MESSAGE = 0.25
"""A piece that is less of its message is copied: kept alone it would keep the rest, which nobody counts."""

_UFUNC: Mapping[Collective, np.ufunc] = {
    Collective.SUM: np.add,
    Collective.MIN: np.minimum,
    Collective.MAX: np.maximum,
}


@dataclass(eq=False)
class _Met:
    """What has come to one boundary."""

    spec: TensorForm
    collective: Collective
    pieces: tuple[ExpectedPiece, ...]
    bare: bool = False
    """Whether there are places in it that no piece covers: they are 0."""
    came: set[int] = field(default_factory=set)
    left_out: set[int] = field(default_factory=set)
    early: dict[int, tuple[Array, Array | None]] = field(default_factory=dict)
    """Pieces whose turn has not come: each with its lse, of a MERGE."""
    apart: dict[int, Array] = field(default_factory=dict)
    """Of a GATHER, pieces as they came: most are sent on so, and nobody needs all of it in one array."""
    turn: int = 0
    value: Array | None = None
    lse: Array | None = None
    """Of a MERGE, without the last dimension of 1."""
    owned: bool = False
    """Whether `value` is nobody else's, and may be written to."""

    @property
    def complete(self) -> bool:
        return len(self.came) + len(self.left_out) == len(self.pieces)

    @property
    def nbytes(self) -> int:
        size = sum(array.nbytes for array in (self.value, self.lse) if array is not None)
        size += sum(piece.nbytes for piece in self.apart.values())
        return size + sum(piece.nbytes for piece, _ in self.early.values())

    def begin(self) -> Array:
        """What it is so far, in one array."""
        apart = self.apart  # before `value` is: another thread may be putting it together, too
        if self.value is None:
            self.owned = True
            shape, dtype = self.spec.shape, self.spec.dtype
            if self.collective is Collective.MERGE:
                self.value = np.zeros(shape, dtype)
                self.lse = np.full(shape[:-1], -np.inf, np.float32)
            elif self.collective is Collective.GATHER:
                whole = not (self.bare or self.left_out)
                value = np.empty(shape, dtype) if whole else np.zeros(shape, dtype)
                for index, piece in apart.items():
                    place(value, self.pieces[index].extent, piece)
                self.value, self.apart = value, {}
            else:
                self.value = _identity(self.spec, self.collective)
        return self.value

    def gather(self, index: int, piece: Array) -> None:
        if self.pieces[index].extent == WHOLE:
            self.value = piece
        else:
            self.apart[index] = piece

    def taken(self, extent: Extent) -> Array:
        """What is in `extent` of it, once it is complete."""
        for index, piece in self.apart.items():
            if self.pieces[index].extent == extent:
                return piece
        return take(self.begin(), extent)

    def combine(self, extent: Extent, piece: Array, lse: Array | None) -> None:
        """Fold the next piece in."""
        if extent == WHOLE and self.value is None:
            self.value, self.lse, self.owned = piece, lse, False
            return
        before = self.begin()
        if lse is not None:
            assert self.lse is not None
            rows = tuple(span for span in extent if span.axis < before.ndim - 1)
            merged = merge(Partial(take(before, extent), take(self.lse, rows)), Partial(piece, lse))
            if extent == WHOLE:
                self.value, self.lse = merged.out, merged.lse
            else:
                self._own()
                place(self.begin(), extent, merged.out)
                place(self.lse, rows, merged.lse)
            return
        into = _UFUNC[self.collective]
        if extent == WHOLE:
            # Of single numbers, NumPy makes no array unless it is asked to.
            self.value = np.asarray(into(before, piece, out=before if self.owned else None))
            self.owned = True
        else:
            self._own()
            now = self.begin()
            place(now, extent, into(take(now, extent), piece))

    def _own(self) -> None:
        if not self.owned:
            assert self.value is not None
            self.value = self.value.copy()
            self.lse = None if self.lse is None else self.lse.copy()
            self.owned = True


class Meetings:
    """The boundaries of one request, as far as they have come.

    >>> import numpy as np
    >>> from edge_attention.core.schedule.schedule import Boundary, Contributed, ModelSegment, Step
    >>> segments = tuple(ModelSegment(p, "g", {}, {}, (Contributed("y", "b"),)) for p in (0, 1))
    >>> boundaries = {"b": Boundary(TensorForm("float32", (2,)), Collective.SUM)}
    >>> schedule = Schedule(2, {}, {"y": "b"}, boundaries, (Step(segments),), {"g": ""}, {})
    >>> meetings = Meetings(schedule)
    >>> meetings.add(0, 1, {"y": np.float32([1, 2])}), meetings.missing("b")
    ([], (0,))
    >>> meetings.add(0, 0, {"y": np.float32([3, 4])}), meetings.take(Delivery("b"))
    (['b'], array([4., 6.], dtype=float32))
    """

    def __init__(self, plan: FoldPlan | Schedule) -> None:
        self._plan = plan if isinstance(plan, FoldPlan) else FoldPlan(plan)
        self._all: dict[str, _Met] = {}
        self._dropped: set[str] = set()

    # What comes

    def add(self, step: int, part: int, outputs: Mapping[str, Array]) -> list[str]:
        """Fold what the segment of `part` in `step` returned, by the graph's outputs.

        The arrays are kept, and must not change. Returns the boundaries that are complete by it.

        Raises (and nothing is folded):
            NotFound: there is no such segment, or it contributes nothing.
            DuplicateContribution: it came before.
            InvalidTensor: an output is missing, or has another shape or dtype; NotFinite for NaN. Says of
                which segment.
        """
        made = self._plan.makes.get((step, part))
        if made is None:
            raise NotFound(f"part {part} contributes nothing in step {step}")
        checked: list[tuple[Array, Array | None]] = []
        for name, index in made:
            if name in self._dropped or index in self._met(name).came:
                raise DuplicateContribution(f"step {step} of part {part} came before; each counts once")
            plan = self._plan
            try:
                piece = plan.pieces[name][index]
                checked.append(_checked(plan.boundaries[name], piece, plan.forms[name][index], outputs))
            except InvalidTensor as error:
                raise type(error)(f"step {step} of part {part}: {error.message}") from None
        complete: list[str] = []
        for (name, index), one in zip(made, checked, strict=True):
            there = self._met(name)
            if index in there.left_out:
                continue  # of a part that the request went on without
            there.came.add(index)
            there.early[index] = one
            self._fold(there)
            if there.complete:
                complete += self._both(name)
        return complete

    def leave_out(self, part: int) -> list[str]:
        """Go on without what `part` has not contributed yet. Returns the boundaries complete by it.

        A MERGE is then over the others' keys, which is what attention over these alone would be; of any other
        boundary an extent is not there, and `holds` says so.
        """
        complete: list[str] = []
        for name, pieces in self._plan.pieces.items():
            if name in self._dropped:
                continue
            there = self._met(name)
            was = there.complete
            without = {i for i, piece in enumerate(pieces) if piece.part == part} - there.came
            there.left_out |= without
            self._fold(there)
            if there.complete and not was:
                complete += self._both(name)
        return complete

    # What is there

    def complete(self, boundary: str) -> bool:
        """Whether all that is to come to the boundary has come, or is left out."""
        name = self._plan.of_lse.get(boundary, boundary)
        return name not in self._dropped and self._met(name).complete

    def missing(self, boundary: str) -> tuple[int, ...]:
        """The parts that are waited for."""
        there = self._met(self._plan.of_lse.get(boundary, boundary))
        open_ = [p.part for i, p in enumerate(there.pieces) if i not in there.came | there.left_out]
        return tuple(dict.fromkeys(open_))

    def left_out(self, boundary: str) -> tuple[int, ...]:
        """The parts that the boundary is without."""
        there = self._met(self._plan.of_lse.get(boundary, boundary))
        return tuple(dict.fromkeys(there.pieces[i].part for i in sorted(there.left_out)))

    def holds(self, boundary: str, extent: Extent = WHOLE) -> bool:
        """Whether nothing of `extent` is left out. Of a MERGE, SUM, MIN or MAX all is left out with one."""
        there = self._met(self._plan.of_lse.get(boundary, boundary))
        if there.collective is not Collective.GATHER:
            return not there.left_out
        return not any(overlap(there.spec.shape, there.pieces[i].extent, extent) for i in there.left_out)

    def take(self, delivery: Delivery) -> Array:
        """What of a complete boundary a segment is sent: a view, where that can be. It must not be changed.

        Raises:
            NotFound: the boundary is not complete, or was dropped.
        """
        name = self._plan.of_lse.get(delivery.boundary, delivery.boundary)
        # Where nobody contributes, it is there without anything having come.
        there = self._all.get(name) if self._plan.pieces.get(name) else self._known(name)
        if there is None or not there.complete or name in self._dropped:
            raise NotFound(f"boundary {delivery.boundary!r} is not there")
        if name != delivery.boundary:
            there.begin()
            assert there.lse is not None
            return take(there.lse[..., None], delivery.extent)
        return there.taken(delivery.extent)

    def whole(self, boundary: str) -> Array:
        """All of a complete boundary, aligned. Raises as `take`."""
        return own_memory(self.take(Delivery(boundary)))

    def drop(self, boundary: str) -> int:
        """Forget a boundary, of an `out` its `lse`, too: it is not taken any more. Returns the bytes."""
        name = self._plan.of_lse.get(boundary, boundary)
        there = self._all.pop(name, None)
        self._dropped.add(name)
        return 0 if there is None else there.nbytes

    def size(self, boundary: str) -> int:
        """Bytes of what has come to the boundary, of an `out` with its `lse`."""
        there = self._all.get(self._plan.of_lse.get(boundary, boundary))
        return 0 if there is None else there.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(there.nbytes for there in self._all.values())

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        for name, there in self._all.items():
            assert not there.came & there.left_out, f"{name}: came, and is left out"
            assert there.turn <= len(there.pieces), name
            waiting = {i for i in there.came if i >= there.turn}
            if there.collective is not Collective.GATHER:
                assert there.early.keys() == waiting, f"{name}: what waits is not what came early"
            else:
                assert not there.early, f"{name}: a piece with a place of its own waits"
                assert there.value is None or not there.apart, f"{name}: both in one array and apart"
            if there.complete and there.collective is not Collective.GATHER:
                assert there.turn == len(there.pieces), f"{name}: complete, and not folded"

    # Inside

    def _known(self, name: str) -> _Met | None:
        return self._met(name) if name in self._plan.boundaries else None

    def _met(self, name: str) -> _Met:
        there = self._all.get(name)
        if there is None:
            boundary, pieces = self._plan.boundaries[name], self._plan.pieces.get(name, ())
            bare = not pieces or name in self._plan.bare
            there = self._all[name] = _Met(boundary.spec, boundary.collective, pieces, bare)
        return there

    def _both(self, name: str) -> list[str]:
        lse = self._plan.boundaries[name].lse
        return [name, lse] if lse else [name]

    def _fold(self, there: _Met) -> None:
        """Fold what has its turn now."""
        if there.collective is Collective.GATHER:
            for index in list(there.early):
                there.gather(index, there.early.pop(index)[0])
            return
        while there.turn in there.early or there.turn in there.left_out:
            if (came := there.early.pop(there.turn, None)) is not None:
                there.combine(there.pieces[there.turn].extent, *came)
            there.turn += 1


def require_form(array: Array | None, form: TensorForm, what: str) -> None:
    """Refuse `array` unless it has that dtype and shape, and no NaN.

    Raises:
        InvalidTensor: it is None, or has another form; NotFinite for NaN.
    """
    if array is None:
        raise InvalidTensor(f"{what} was not returned")
    if array.shape != form.shape or array.dtype != form.dtype:
        raise InvalidTensor(
            f"{what} is {array.dtype} {list(array.shape)}; it must be {form.dtype} {list(form.shape)}"
        )
    if array.dtype.kind == "f" and array.size and _has_nan(array):
        index = np.argwhere(np.isnan(array))[0].tolist()
        raise NotFinite(f"{what} holds nan at {index}, and would make NaN of what it meets")


def _has_nan(array: Array) -> bool:
    if array.dtype == np.float16:  # NumPy widens each to compare it: 30 times as slow as its bits
        return _largest_half(array) > _HALF_INF
    if array.size <= _FEW:  # the quickest: squares past float32 are infinite, and NaN stays
        square = np.vdot(array, array)
        return bool(square != square)
    # NaN makes a minimum NaN; nothing is written down for it.
    return bool(np.isnan(np.minimum.reduce(array, axis=None)))


_HALF_INF = 0xF800
_FEW = 4096
"""Elements of what is squared to look for NaN: of more, BLAS would use threads."""


def _largest_half(array: Array) -> int:
    """The largest magnitude in a float16 array, as bits without the sign: NaN is above `_HALF_INF`."""
    return int((array.view(np.uint16) << 1).max(initial=0))


def _checked(
    boundary: Boundary, piece: ExpectedPiece, form: TensorForm, outputs: Mapping[str, Array]
) -> tuple[Array, Array | None]:
    """The piece, which is to be of this form, and the lse of a partial, without its last dimension of 1."""
    shape = form.shape
    if not piece.lse:
        array = outputs.get(piece.output)
        require_form(array, form, piece.output)
        assert array is not None
        if boundary.rounded and _largest_half(array) == _HALF_INF:
            raise NotFinite(f"{piece.output}: {PAST_HALF}")
        return own_memory(array, OF_MESSAGE), None
    out, lse = outputs.get(piece.output), outputs.get(piece.lse)
    if out is None or lse is None or lse.shape != (*shape[:-1], 1):
        what = piece.output if out is None else piece.lse
        found = "nothing" if lse is None or out is None else f"{list(lse.shape)}"
        raise InvalidTensor(f"{what} came as {found}; partials are {list(shape)} and {[*shape[:-1], 1]}")
    # Several passes are made over them.
    partial = Partial(own_memory(out), own_memory(lse)[..., 0]).check(
        shape, f"{piece.output} and {piece.lse}"
    )
    return partial.out, partial.lse


def _identity(spec: TensorForm, collective: Collective) -> Array:
    """What an element is where nobody contributes, of SUM, MIN and MAX."""
    dtype, least = np.dtype(spec.dtype), collective is Collective.MAX
    if collective is Collective.SUM:
        return np.zeros(spec.shape, dtype)
    if dtype.kind == "f":
        return np.full(spec.shape, -np.inf if least else np.inf, dtype)
    if dtype.kind == "b":
        return np.full(spec.shape, not least)
    limits = np.iinfo(dtype)
    return np.full(spec.shape, limits.min if least else limits.max, dtype)
