"""What a call takes beside computing, kept up point by point: `fixed + each * bytes + cold * forgotten(run)`.

A link's bytes are one part of it. How long the box computed is another: the processes at both ends wait so
long, and what they do next begins with caches that others have filled. Points are gathered as those of a
line are (measured_lines.py), by bytes and by how much was forgotten; the fit is the least squares of relative
errors in which nothing takes less than nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.placement.cuts.boxes import forgotten
from edge_attention.core.placement.cuts.measured_lines import FULL_WEIGHT, HALF_LIFE, MOST_BINS, DecayedMean

__all__ = ["FittedWay", "MeasuredWays"]

UNIT = 1024.0
"""Bytes up to which they count as none."""
_STEPS = 4
"""Into which `forgotten` is divided."""
_BEFORE = 0.05
"""Points as which it counts what a call was taken for before: it decides where nothing else does."""
_MOST = 1e15


@dataclass(frozen=True)
class FittedWay:
    """Seconds: of any call, of each byte, and of one whose box computed for long; none below 0."""

    fixed: float
    each: float = 0.0
    cold: float = 0.0

    def at(self, size: float, run: float) -> float:
        return self.fixed + self.each * size + self.cold * forgotten(run)


@dataclass(frozen=True)
class _WayBin:
    """Means: of bytes, of what was forgotten, and of the logarithm of seconds."""

    size: float
    forgotten: float
    seconds: DecayedMean


@dataclass
class MeasuredWays:
    """The ways to a box and back. `before`: seconds that a call is taken for."""

    before: float
    _bins: dict[tuple[int, int], _WayBin] = field(default_factory=dict)
    _fitted: FittedWay | None = None

    @property
    def measured(self) -> bool:
        return bool(self._bins)

    def add(self, points: Iterable[tuple[float, float, float]], now: float) -> None:
        """Calls of one request: bytes, seconds that the box computed, seconds beside that.

        Of those of one bin the plain mean is one value. What is no measure is left out.
        """
        together: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
        for size, run, seconds in points:
            if 0 <= size < _MOST and 0 <= run < _MOST and 0 < seconds < _MOST:
                point = (size if size > UNIT else 0.0, forgotten(run), seconds)
                together.setdefault(_number(*point[:2]), []).append(point)
        for number, alike in together.items():
            size, lost, seconds = (sum(values) / len(alike) for values in zip(*alike, strict=True))
            found = self._bins.get(number)
            if found is None:
                self._bins[number] = _WayBin(size, lost, DecayedMean(math.log(seconds), 1.0, now))
            else:
                mean = found.seconds.near(math.log(seconds), now)
                share = 1 / mean.weight if mean.weight > 1 else 1.0
                self._bins[number] = _WayBin(
                    found.size + share * (size - found.size),
                    found.forgotten + share * (lost - found.forgotten),
                    mean,
                )
        self._fitted = None

    @property
    def fit(self) -> FittedWay:
        """What it is now."""
        if self._fitted is None:
            self._fitted = _fit(list(self._bins.values()), self.before)
        return self._fitted

    def saved(self, now: float) -> list[list[float]]:
        """By bin: bytes, logarithm of seconds, weight, age, what was forgotten."""
        return [
            [one.size, one.seconds.value, one.seconds.weight, max(now - one.seconds.at, 0.0), one.forgotten]
            for one in self._bins.values()
        ]

    def restore(self, bins: Sequence[Sequence[float]], aged: float, now: float) -> None:
        """What `saved` said `aged` seconds ago, in place of what is known; an earlier version, which knew of
        no forgetting, left that out.

        Raises ValueError: it is none of that; nothing is changed.
        """
        found: dict[tuple[int, int], _WayBin] = {}
        for size, value, weight, age, *rest in bins:
            lost = float(rest[0]) if rest else 0.0
            sound = all(map(math.isfinite, (size, value, weight, age, lost)))
            if not sound or not 0 <= size < _MOST or abs(value) > 40 or weight <= 0 or age < 0:
                raise ValueError(f"no measure: {size}, {value}, {weight}, {age}")
            if not 0 <= lost <= 1:
                raise ValueError(f"no measure: {lost} of 1 forgotten")
            mean = DecayedMean(float(value), float(weight), now - age - aged)
            found[_number(size, lost)] = _WayBin(float(size), lost, mean)
        self._bins, self._fitted = found, None


def _number(size: float, lost: float) -> tuple[int, int]:
    by_size = math.ceil(math.log2(size / UNIT)) if size > UNIT else 0
    return min(by_size, MOST_BINS - 1), round(_STEPS * lost)


def _fit(bins: Sequence[_WayBin], before: float) -> FittedWay:
    """Non-negative least squares: of so few columns every choice of those that count is tried."""
    if not bins:
        return FittedWay(before)
    last = max(one.seconds.at for one in bins)
    seconds = np.array([math.exp(one.seconds.value) for one in bins])
    weights = np.array(
        [
            min(one.seconds.weight * math.pow(0.5, (last - one.seconds.at) / HALF_LIFE), FULL_WEIGHT)
            for one in bins
        ]
    )
    most = max(max(one.size for one in bins), 1.0)
    rows = np.array([[1.0, one.size / most, one.forgotten] for one in bins])
    if np.ptp(rows[:, 2]) < 1 / _STEPS:
        rows[:, 2] = 0.0  # where all computed about as long, how long says nothing
    # What was taken before, of a call of nothing; and that nothing is forgotten.
    least = float(seconds.min())
    rows = np.vstack([rows, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    wanted = np.append(seconds, [min(before, least), 0.0])
    scale = np.sqrt(np.append(weights, [_BEFORE, _BEFORE])) / np.append(seconds, [least, seconds.max()])
    fixed, each, cold = _non_negative(rows * scale[:, None], wanted * scale)
    return FittedWay(fixed, each / most, cold)


def _non_negative(rows: NDArray[np.float64], wanted: NDArray[np.float64]) -> list[float]:
    columns = rows.shape[1]
    best, found = math.inf, [0.0] * columns
    for count in range(1, columns + 1):
        for chosen in combinations(range(columns), count):
            values, *_ = np.linalg.lstsq(rows[:, chosen], wanted, rcond=None)
            if values.min() < 0:
                continue
            error = float(np.square(rows[:, chosen] @ values - wanted).sum())
            if error < best * (1 - 1e-9):
                best, found = error, [0.0] * columns
                for column, value in zip(chosen, values, strict=True):
                    found[column] = float(value)
    return found
