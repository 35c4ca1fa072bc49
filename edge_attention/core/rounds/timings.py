"""How long nodes took in past rounds, and the deadline that follows from it."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

KEPT = 20
"""Latest rounds remembered of each node."""
ENOUGH = 8
"""Times of all nodes together, before which no deadline is drawn from them."""
LEAST_SECONDS = 1.0
LEAST_SHARE = 1.5
"""A deadline is never shorter than this, nor than this many medians: where all nodes take the same time to
the millisecond, the deviation says nothing, and half of them are above the median."""
NORMAL = 1.4826
"""A median absolute deviation times this estimates a normal distribution's standard deviation
(Rousseeuw and Croux, Alternatives to the Median Absolute Deviation, 1993)."""


class Timings:
    """Seconds each node took for its latest rounds. Nodes left out add none: nobody knows what they took."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}

    def add(self, node: str, seconds: float) -> None:
        """`node` finished a round within `seconds` of being asked."""
        if math.isfinite(seconds) and seconds >= 0:
            self._seconds.setdefault(node, deque(maxlen=KEPT)).append(seconds)

    def deadline(self, k: float) -> float | None:
        """Seconds: the median of what is remembered plus `k` times its deviation; None: too little is.

        A median, and a deviation by medians, are not moved by the few slow ones a deadline is there for.
        """
        seconds = np.array([s for times in self._seconds.values() for s in times])
        if len(seconds) < ENOUGH:
            return None
        median = float(np.median(seconds))
        deviation = NORMAL * float(np.median(np.abs(seconds - median)))
        return max(median + k * deviation, LEAST_SHARE * median, LEAST_SECONDS)
