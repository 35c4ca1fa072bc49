"""When a collector looks at what all nodes do: now and then, as for every answer it would be their square."""

from __future__ import annotations

import math

__all__ = ["Looks"]

LOOK_SECONDS, LOOK_PART = 0.1, 20
"""How far nodes have come is looked at so often while answers come, or more seldom: looking takes no more
than so small a part of the time, however many nodes there are."""


class Looks:
    """Says when it is time. Times are of one clock, in seconds; the first look is due at once."""

    def __init__(self) -> None:
        self._next = -math.inf

    def due(self, now: float) -> bool:
        """Whether it is time to look."""
        return now >= self._next

    def looked(self, since: float, now: float) -> None:
        """It was looked, from `since` to `now`."""
        self._next = now + max(LOOK_SECONDS, LOOK_PART * (now - since))
