"""The time of day for what is deleted by age: a clock set far off deletes nothing until it has stayed so.

A time server that errs, or a battery that was changed, may put a clock a year ahead for an hour; a run that
was deleted in that hour does not come back with the right time.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from aggregator.store.folder import write_durably
from edge_attention.core.errors import EdgeAttentionError

__all__ = ["FolderClock", "SettledClock"]

log = logging.getLogger(__name__)

JUMP_SECONDS = 3600.0
"""By which a clock may be set and is believed at once."""
SETTLED_SECONDS = 86_400.0
"""After which a clock is believed that was set by more."""
AWAY_SECONDS = 86_400.0
"""For which a process may have been away and its clock is believed as it starts."""
KEEP_SECONDS = 600.0
"""Between two times that are written down."""


class SettledClock:
    """Seconds since 1970.

    `wall`: as the machine has them; `steady`: seconds that nobody can set. `last`: what it was when it was
    last asked, in an earlier process; None: that is not known.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        last: float | None = None,
    ) -> None:
        self._wall, self._steady = wall, steady
        now = steady()
        self._offset = wall() - now
        self._new: tuple[float, float] | None = None
        """What the offset would be by the clock as it is now, and since when it has been so."""
        if last is None or -JUMP_SECONDS <= (away := self._offset + now - last) <= AWAY_SECONDS:
            return
        self._new, self._offset = (self._offset, now), last - now
        log.warning(
            "the clock is %+.1f days from when this was last looked after: it was away so long, or the clock "
            "is wrong; what is deleted by its age goes by the time then until the clock has stayed so for a "
            "day",
            away / 86_400,
        )

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


class FolderClock(SettledClock):
    """One whose time is written down in a folder: a clock that is far off as a process starts is seen.

    Blocks on the disk now and then.
    """

    def __init__(
        self,
        folder: Path,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = folder / "clock"
        self._kept = -math.inf
        last: float | None = None
        with contextlib.suppress(OSError, ValueError):  # new, or of an earlier release
            last = float(self._file.read_text())
        super().__init__(wall, steady, last if last is not None and math.isfinite(last) else None)

    def __call__(self) -> float:
        now, steady = super().__call__(), self._steady()
        if steady - self._kept >= KEEP_SECONDS:
            try:
                write_durably(self._file, f"{now:.0f}\n".encode())
                self._kept = steady
            except EdgeAttentionError as error:  # of a disk that others speak of, too
                log.debug("%s", error.message)
        return now
