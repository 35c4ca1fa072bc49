"""What is done in steps, so that an event loop need not wait in it: a generator that says before it waits.

`Steps[T]` yields, before each wait, the descriptor that can be read from when the wait is over, or ANYTHING.
Whoever goes on earlier waits inside; in whatever thread: between two steps no lock is held.
"""

from __future__ import annotations

import select
from collections.abc import Generator
from typing import TypeVar

__all__ = ["ANYTHING", "Steps", "at_once", "readable"]

T = TypeVar("T")
Steps = Generator[int, None, T]
ANYTHING = -1
"""What is waited for has no descriptor."""


def at_once(steps: Steps[T]) -> T:
    """What the steps come to, with all their waits."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


def readable(descriptor: int, seconds: float) -> bool:
    """Whether it can be read from, or has ended, within so many seconds: rounded up to milliseconds."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))
