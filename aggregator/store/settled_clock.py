"""The time of day for what is deleted by age: a clock set far off deletes nothing until it has stayed so.

A time server that errs, or a battery that was changed, may put a clock a year ahead for an hour; a run that
was deleted in that hour does not come back with the right time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["SettledClock"]

log = logging.getLogger(__name__)

JUMP_SECONDS = 3600.0
"""By which a clock may be set and is believed at once."""
SETTLED_SECONDS = 86_400.0
"""After which a clock is believed that was set by more."""


class SettledClock:
    """Seconds since 1970. `wall`: as the machine has them; `steady`: seconds that nobody can set."""

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()
        self._new: tuple[float, float] | None = None
        """What the offset would be by the clock as it is now, and since when it has been so."""

    def __call__(self) -> float:
        steady = self._steady()
        offset = self._wall() - steady
        jump = offset - self._offset
        if abs(jump) <= JUMP_SECONDS:
            self._offset, self._new = offset, None
        elif self._new is None or abs(offset - self._new[0]) > JUMP_SECONDS:
            self._new = offset, steady
            log.warning(
                "the clock was set by %+.1f hours: what is deleted by its age goes by the time before, until "
                "the clock has stayed so for a day",
                jump / 3600,
            )
        elif steady - self._new[1] >= SETTLED_SECONDS:
            self._offset, self._new = offset, None
        return self._offset + steady
