"""What goes on with each model, a second: requests, failures and tokens of the last seconds. Pure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

__all__ = ["ModelTraffic"]

SECONDS = 10
"""Over which what goes on is counted."""
MODELS = 256
KINDS = ("requests", "failures", "tokens")


class ModelTraffic:
    """By model. `clock`: seconds of any steady clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, dict[str, deque[tuple[int, float]]]] = {}

    def add(self, model: str, kind: str, amount: float = 1.0) -> None:
        """So much of `kind`, which is one of KINDS, has just happened."""
        if model not in self._of and len(self._of) >= MODELS:
            return
        counted = self._of.setdefault(model, {one: deque() for one in KINDS})[kind]
        now = int(self._clock())
        if counted and counted[-1][0] == now:
            counted[-1] = now, counted[-1][1] + amount
        else:
            counted.append((now, amount))
        _forget(counted, now)

    def rates(self, model: str) -> Mapping[str, float]:
        """How many a second there were of each kind, in the whole seconds before this one."""
        now = int(self._clock())
        found = {}
        for kind, counted in self._of.get(model, {}).items():
            _forget(counted, now)
            found[kind] = sum(amount for second, amount in counted if second < now) / SECONDS
        return found

    def forget(self, model: str) -> None:
        """The model is no longer deployed."""
        self._of.pop(model, None)


def _forget(counted: deque[tuple[int, float]], now: int) -> None:
    while counted and counted[0][0] < now - SECONDS:
        counted.popleft()
