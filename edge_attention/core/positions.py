"""The positions of tokens that are stored one after another: they ascend, in one stretch or in many.

A segment that is appended to in turn with others holds every second token of a context, or every tenth: what
a query sees of it is still one range of what is stored, because positions ascend.

    positions of a segment    0 1 2   7   9
    stored as token           0 1 2   3   4        before(8) == 4
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Int64

_INT64 = np.dtype("<i8")


class Positions:
    """Positions in ascending order. Never changes; `and_` makes another.

    Raises:
        InvalidArgument: stretches that are empty, overlap or are out of order.
    """

    __slots__ = ("_before", "_starts", "_stops", "count", "start", "stop")

    count: int
    start: int
    stop: int

    def __init__(self, starts: Int64, stops: Int64) -> None:
        """`starts`, `stops`: int64 [stretches], each from its first position to past its last."""
        if not len(starts) or (starts >= stops).any() or (starts[1:] < stops[:-1]).any() or starts[0] < 0:
            raise InvalidArgument("stretches of positions are not empty, and in order without overlaps")
        self._starts = starts
        self._stops = stops
        ends = np.cumsum(stops - starts)
        self._before = ends - (stops - starts)
        self.count = int(ends[-1])
        self.start = int(starts[0])
        self.stop = int(stops[-1])

    @classmethod
    def of(cls, tokens: range) -> Positions:
        """All of `tokens`, which are not none."""
        return cls(np.array([tokens.start], np.int64), np.array([tokens.stop], np.int64))

    def __len__(self) -> int:
        return self.count

    @property
    def hull(self) -> range:
        """From the first to past the last."""
        return range(self.start, self.stop)

    @property
    def stretches(self) -> tuple[range, ...]:
        """The ranges they are, which do not touch."""
        return tuple(map(range, self._starts.tolist(), self._stops.tolist()))

    def coarse(self, gap: int) -> list[range]:
        """The stretches, those with at most `gap` positions between them as one."""
        apart = self._starts[1:] - self._stops[:-1] > gap
        first, last = self._starts[np.append(True, apart)], self._stops[np.append(apart, True)]
        return list(map(range, first.tolist(), last.tolist()))

    @property
    def number(self) -> int:
        """How many stretches there are."""
        return len(self._starts)

    @property
    def bounds(self) -> tuple[int, ...]:
        """Each stretch's first position and the one past its last, one after the other."""
        return tuple(np.stack([self._starts, self._stops], 1).ravel().tolist())

    @property
    def nbytes(self) -> int:
        return 3 * 8 * len(self._starts)

    def and_(self, tokens: range) -> Positions:
        """These and `tokens`, which come after them."""
        if tokens.start == self.stop:
            stops = self._stops.copy()
            stops[-1] = tokens.stop
            return Positions(self._starts, stops)
        return Positions(np.append(self._starts, tokens.start), np.append(self._stops, tokens.stop))

    def without(self, gone: range) -> Positions | None:
        """These but for the positions `gone`; None: nothing is left."""
        left, right = self._starts < gone.start, self._stops > gone.stop
        starts = np.concatenate([self._starts[left], np.maximum(self._starts[right], gone.stop)])
        stops = np.concatenate([np.minimum(self._stops[left], gone.start), self._stops[right]])
        return Positions(starts, stops) if len(starts) else None

    def before(self, positions: Int64) -> Int64:
        """How many of these are below each of `positions`, int64 of the same shape."""
        if len(self._starts) == 1:
            return np.clip(positions, self.start, self.stop) - self.start
        # In the stretch that begins at or before it; of none of them the first, which counts for nothing.
        at = np.maximum(np.searchsorted(self._starts, positions, side="right") - 1, 0)
        start = self._starts[at]
        found: Int64 = self._before[at] + np.clip(positions, start, self._stops[at]) - start
        return found

    def within(self, others: Positions) -> Positions:
        """Those of these that are among `others`, which some are.

        Raises:
            InvalidArgument: none is.
        """
        if others.number == 1 and others.start <= self.start and self.stop <= others.stop:
            return self
        # Each stretch meets a run of the others' stretches.
        first = np.searchsorted(others._stops, self._starts, side="right")
        met = np.searchsorted(others._starts, self._stops, side="left") - first
        mine = np.repeat(np.arange(len(met)), met)
        theirs = np.arange(len(mine)) - np.repeat(np.cumsum(met) - met, met) + np.repeat(first, met)
        starts = np.maximum(self._starts[mine], others._starts[theirs])
        return Positions(starts, np.minimum(self._stops[mine], others._stops[theirs]))

    def at(self, stored: range) -> Int64:
        """The positions of the tokens that are stored as numbers `stored`, which are all there."""
        numbers = np.arange(stored.start, stored.stop, dtype=np.int64)
        of = np.searchsorted(self._before, numbers, side="right") - 1
        found: Int64 = self._starts[of] + numbers - self._before[of]
        return found

    def to_json(self) -> dict[str, Any]:
        if len(self._starts) == 1:
            return {"tokens": [self.start, self.stop]}
        # Not `tokens`: an earlier release must not take them for one range. Mostly the same again and again.
        steps = np.diff(np.stack([self._starts, self._stops], 1).ravel(), prepend=0).astype(_INT64)
        return {"stretches": base64.b64encode(zlib.compress(steps.tobytes(), 1)).decode()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Positions:
        if "tokens" in stored:
            return cls.of(range(*stored["tokens"]))
        steps = np.frombuffer(zlib.decompress(base64.b64decode(stored["stretches"])), _INT64)
        edges = np.cumsum(steps).reshape(-1, 2)
        return cls(np.ascontiguousarray(edges[:, 0]), np.ascontiguousarray(edges[:, 1]))


def joined(parts: list[Positions]) -> tuple[range, ...]:
    """The stretches of all of them in order, those that touch as one. No two hold the same position."""
    if not parts:
        return ()
    starts = np.concatenate([part._starts for part in parts])
    stops = np.concatenate([part._stops for part in parts])
    order = np.argsort(starts)
    starts, stops = starts[order], stops[order]
    apart = starts[1:] != stops[:-1]
    first = starts[np.append(True, apart)]
    last = stops[np.append(apart, True)]
    return tuple(map(range, first.tolist(), last.tolist()))
