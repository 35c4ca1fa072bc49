"""Rate limits: a bucket of tries for each caller, which fills again with time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

BUCKETS = 4096
"""Those longest unused are forgotten."""


class Rate:
    """`burst` at once and `a_second` on average, for each key. Any thread may ask."""

    def __init__(
        self, burst: float, a_second: float, clock: Callable[[], float] | None = None, buckets: int = BUCKETS
    ) -> None:
        self._burst = burst
        self._a_second = a_second
        self._buckets = buckets
        self._clock = clock or (lambda: time.monotonic())
        self._mutex = threading.Lock()
        self._left: OrderedDict[Hashable, tuple[float, float, int]] = OrderedDict()

    def afford(self, key: Hashable) -> int | None:
        """None: not now. Otherwise how many were not afforded since the last that was."""
        with self._mutex:
            now = self._clock()
            left, at, suppressed = self._left.pop(key, (self._burst, now, 0))
            left = min(self._burst, left + (now - at) * self._a_second)
            may = left >= 1
            self._left[key] = (left - 1, now, 0) if may else (left, now, suppressed + 1)
            while len(self._left) > self._buckets:
                self._left.popitem(last=False)
            return suppressed if may else None
