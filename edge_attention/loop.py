"""The event loop of a daemon: uvloop's where it is installed (`pip install 'edge-attention[fast]'`)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

SWITCH_SECONDS = 0.0005
"""So long a thread that computes in Python, as one that reads a graph, keeps the interpreter from the loop,
which needs it several times an answer. Python's own is 5 ms."""

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a loop of its own, as `asyncio.run`.

    Without uvloop, or where it cannot be loaded, that is asyncio's own. From now on threads of this process
    take turns every SWITCH_SECONDS.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        from uvloop import new_event_loop as factory
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
