"""What a call takes beside computing, kept up point by point: `fixed + each * bytes + cold * forgotten(run)`.

A link's bytes are one part of it. How long the box computed is another: the processes at both ends wait so
long, and what they do next begins with caches that others have filled. Points are gathered
(measured_bins.py) by bytes and by how much was forgotten; the fit is the least squares of relative errors in
which nothing takes less than nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.placement.cuts.boxes import forgotten
from edge_attention.core.placement.cuts.measured_bins import Bin, MeasuredBins, doubling

__all__ = ["FittedWay", "MeasuredWays"]

UNIT = 1024.0
"""Bytes up to which they count as none."""
_STEPS = 4
"""Into which `forgotten` is divided."""
_BEFORE = 0.05
"""Points as which it counts what a call was taken for before: it decides where nothing else does."""


@dataclass(frozen=True)
class FittedWay:
    """Seconds: of any call, of each byte, and of one whose box computed for long; none below 0."""

    fixed: float
    each: float = 0.0
    cold: float = 0.0

    def at(self, size: float, run: float) -> float:
        return self.fixed + self.each * size + self.cold * forgotten(run)


@dataclass
class MeasuredWays:
    """The ways to a box and back. `before`: seconds that a call is taken for."""

    before: float
    _bins: MeasuredBins = field(init=False)
    _fitted: FittedWay | None = None

    def __post_init__(self) -> None:
        self._bins = MeasuredBins(_number)

    @property
    def measured(self) -> bool:
        return len(self._bins) > 0

    def add(self, points: Iterable[tuple[float, float, float]], now: float) -> None:
        """Calls of one request: bytes, seconds that the box computed, seconds beside that; see
        `MeasuredBins.add`."""
        counted = (
            ((size if size > UNIT else min(size, 0.0), forgotten(run)), seconds)
            for size, run, seconds in points
            if 0 <= run < math.inf
        )
        self._bins.add(counted, now)
        self._fitted = None

    @property
    def fit(self) -> FittedWay:
        """What it is now."""
        if self._fitted is None:
            self._fitted = _fit(self._bins.all, self.before)
        return self._fitted

    def saved(self, now: float) -> list[list[float]]:
        """By bin: bytes, logarithm of seconds, weight, age, what was forgotten."""
        return self._bins.saved(now)

    def restore(self, bins: Sequence[Sequence[float]], aged: float, now: float) -> None:
        """What `saved` said `aged` seconds ago, in place of what is known; an earlier version, which knew of
        no forgetting, left that out.

        Raises ValueError: it is none of that; nothing is changed.
        """
        whole = [(*one, 0.0) if len(one) == 4 else one for one in bins]
        if any(len(one) != 5 or not 0 <= one[4] <= 1 for one in whole):
            raise ValueError("no measure: one has bytes, seconds, a weight, an age and a share forgotten")
        self._bins.restore(whole, aged, now)
        self._fitted = None


def _number(amounts: Sequence[float]) -> tuple[int, int]:
    size, lost = amounts
    return doubling(size, UNIT), round(_STEPS * lost)


def _fit(bins: Sequence[Bin], before: float) -> FittedWay:
    """Non-negative least squares: of so few columns every choice of those that count is tried."""
    if not bins:
        return FittedWay(before)
    last = max(one.logarithm.at for one in bins)
    seconds = np.array([one.seconds for one in bins])
    weights = np.array([one.weight(last) for one in bins])
    most = max(max(one.amounts[0] for one in bins), 1.0)
    rows = np.array([[1.0, one.amounts[0] / most, one.amounts[1]] for one in bins])
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
