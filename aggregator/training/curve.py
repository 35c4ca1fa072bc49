"""A series that stays short however long it runs: neighbours are averaged as it grows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

POINTS = 256
NAMES = 256


@dataclass
class _Point:
    x: int
    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, x: int, count: int, sums: Mapping[str, float], counts: Mapping[str, int]) -> None:
        self.x, self.count = x, self.count + count
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + counts[name]


class Curve:
    """Values by name over a growing x, at most `points` of them; past that each is a mean of 2, 4, 8, ...

    >>> curve = Curve(points=2)
    >>> for x in range(4): curve.add(x, {"loss": 4.0 - x})
    >>> curve.x, curve.series()
    ([1, 3], {'loss': [3.5, 1.5]})
    """

    def __init__(self, points: int = POINTS, names: int = NAMES) -> None:
        self._limit = points
        self._names = names
        self._known: dict[str, None] = {}
        self._points: list[_Point] = []
        self._stride = 1

    def add(self, x: int, values: Mapping[str, float]) -> None:
        """Add values at `x`; one that is not above the last is known already. NaN and infinity count as none.

        A name beyond the first `names` is left out: names may be made up by a peer.
        """
        if self._points and x <= self._points[-1].x:
            return
        values = {n: v for n, v in values.items() if math.isfinite(v) and self._knows(n)}
        if not self._points or self._points[-1].count >= self._stride:
            if len(self._points) >= self._limit:
                self._halve()
            if not self._points or self._points[-1].count >= self._stride:
                self._points.append(_Point(x))
        self._points[-1].add(x, 1, values, dict.fromkeys(values, 1))

    def _knows(self, name: str) -> bool:
        if name not in self._known and len(self._known) < self._names:
            self._known[name] = None
        return name in self._known

    def _halve(self) -> None:
        self._stride *= 2
        halved: list[_Point] = []
        for index, point in enumerate(self._points):
            if index % 2 == 0:
                halved.append(point)
            else:
                halved[-1].add(point.x, point.count, point.sums, point.counts)
        self._points = halved

    @property
    def x(self) -> list[int]:
        """The last x that each point stands for."""
        return [point.x for point in self._points]

    def series(self) -> dict[str, list[float | None]]:
        """name -> the mean at every x; None where there is no value."""
        return {
            name: [p.sums[name] / p.counts[name] if name in p.counts else None for p in self._points]
            for name in self._known
        }
