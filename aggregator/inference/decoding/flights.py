"""What one trip of rows through a decoder is: whose rows, and where nodes store and look for each.

A **flight** takes new tokens of one or several sessions through all parts once. A **chunk** is what is in it
of one session. Parts that share the stored tokens have **spans** of them: who stores which.

A flight is of tokens, or of rows of memories, which are only stored: what encoders made of sessions' inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_attention.core.schedule.pieces import DecoderForm
from edge_attention.core.schedule.shares import shared_ranges
from edge_attention.core.tensors import Array, Float32

__all__ = ["Flight", "SessionRows", "TokenSpan", "memory_range", "owned_before", "part_places", "row_inputs"]


@dataclass(frozen=True)
class TokenSpan:
    """A part stores these tokens of a session, one after the other."""

    part: int
    start: int
    stop: int


def owned_before(spans: Iterable[TokenSpan], part: int, token: int) -> int:
    """How many of the tokens before `token` the part stores."""
    return sum(max(min(s.stop, token) - s.start, 0) for s in spans if s.part == part)


@dataclass(frozen=True)
class SessionRows:
    """New tokens of one session.

    Attributes:
        session: its number, and `slot` what nodes call it by.
        start: the position of the first.
        spans: who stores what, these tokens included; empty where each part stores all that it attends to.
        memory: tokens of its memory.
        states: rows of its memory, float32 [tokens, width], the first of which is token `start` of that; then
            there are no ids. None: new tokens.
    """

    session: int
    slot: int
    start: int
    ids: tuple[int, ...]
    spans: tuple[TokenSpan, ...] = ()
    memory: int = 0
    states: Float32 | None = field(default=None, compare=False)

    @property
    def count(self) -> int:
        return len(self.ids) if self.states is None else len(self.states)

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(frozen=True)
class Flight:
    """One trip.

    Attributes:
        lane: apart from other flights under way.
        rows: for how many rows it is cut: at least as many as there are.
        place: by part, the node that has what its sessions store.
        chunks: by their slots, in order: the same sessions have one program, in whatever order they came.
        ahead: its nodes go on with the token after it (ahead.py).
    """

    number: int
    lane: int
    rows: int
    place: tuple[str, ...]
    chunks: tuple[SessionRows, ...]
    ahead: bool = False

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(chunk.slot for chunk in self.chunks)

    @property
    def memory(self) -> bool:
        """Whether it is of rows of memories."""
        return any(chunk.states is not None for chunk in self.chunks)


def memory_range(form: DecoderForm, part: int, tokens: int) -> tuple[int, int]:
    """Which of the tokens of a memory the part stores."""
    return shared_ranges(tokens, form.shares)[part] if form.by_tokens else (0, tokens)


def row_inputs(flight: Flight, form: DecoderForm, dtypes: Mapping[str, str]) -> dict[str, Array]:
    """The model's inputs, [rows, 1] each; rows that nobody asked for are token 0 at position 0.

    Of rows of memories float32 [rows, 1, width].
    """
    if flight.memory:
        states = np.zeros((flight.rows, 1, form.states_width), np.float32)
        rows = [chunk.states for chunk in flight.chunks if chunk.states is not None]
        found_rows = np.concatenate(rows)
        states[: len(found_rows), 0] = found_rows
        return {form.states: states}
    ids = [token for chunk in flight.chunks for token in chunk.ids]
    found = {form.ids: ids}
    if form.positions:
        found[form.positions] = [at for chunk in flight.chunks for at in range(chunk.start, chunk.stop)]
    return {name: _padded(of, flight.rows, dtypes[name])[:, None] for name, of in found.items()}


def part_places(flight: Flight, form: DecoderForm, part: int, window: int) -> dict[str, Array]:
    """Where a part appends and looks, as slots of its programs.

    `lo`, `hi`: int64 [rows], the range of its stored tokens that each row sees. Of chunk i `rows.i`, int64
    [2]: its first row and how many; and `at.i`, int64 [3]: what of the rows it stores, and behind how many. A
    part that stores none of them writes one where its next one will be, which nobody sees: so there is always
    something to look at. `mlo`, `mhi`: as `lo` and `hi`, of the memory; `where`: float32 [rows, 1, 1], the
    position of each row.
    """
    if flight.memory:
        return _memory_places(flight, form, part)
    lo: list[int] = []
    hi: list[int] = []
    where: list[int] = []
    remembered: list[int] = []
    found: dict[str, Array] = {}
    first = 0
    for number, chunk in enumerate(flight.chunks):
        count = len(chunk.ids)
        places = range(chunk.start, chunk.stop)
        where += places
        begin, end = memory_range(form, part, chunk.memory)
        remembered += [end - begin] * count
        if form.by_tokens:
            before = owned_before(chunk.spans, part, chunk.start)
            mine = owned_before(chunk.spans, part, chunk.stop) - before
            hi += [owned_before(chunk.spans, part, at + 1) for at in places]
            lo += [owned_before(chunk.spans, part, max(at + 1 - window, 0)) if window else 0 for at in places]
        else:
            before, mine = chunk.start, count
            hi += [at + 1 for at in places]
            lo += [max(at + 1 - window, 0) if window else 0 for at in places]
        found[f"rows.{number}"] = np.array([first, count], np.int64)
        found[f"at.{number}"] = np.array([first, mine or 1, before], np.int64)
        first += count
    found["lo"], found["hi"] = (_padded(of, flight.rows, "int64") for of in (lo, hi))
    found["mlo"], found["mhi"] = (_padded(of, flight.rows, "int64") for of in ((), remembered))
    found["where"] = _padded(where, flight.rows, "float32")[:, None, None]
    return found


def _memory_places(flight: Flight, form: DecoderForm, part: int) -> dict[str, Array]:
    found: dict[str, Array] = {}
    first = 0
    for number, chunk in enumerate(flight.chunks):
        begin, end = memory_range(form, part, chunk.memory)
        start, stop = max(chunk.start, begin), min(chunk.stop, end)
        mine = max(stop - start, 0)
        at = first + (start - chunk.start if mine else 0)
        before = min(max(chunk.start - begin, 0), end - begin)
        found[f"at.{number}"] = np.array([at, mine or 1, before], np.int64)
        first += chunk.count
    return found


def _padded(values: Sequence[int], rows: int, dtype: str) -> Array:
    array = np.zeros(rows, dtype)
    array[: len(values)] = values
    return array
