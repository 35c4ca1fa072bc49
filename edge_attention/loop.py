"""The event loop of a daemon: uvloop's where it is installed (`pip install 'edge-attention[fast]'`)."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

SWITCH_SECONDS = 0.0005
"""So long a thread that computes in Python, as one that reads a graph, keeps the interpreter from the loop,
which needs it several times an answer. Python's own is 5 ms."""

FREEZE_SECONDS = 0.002
"""A full collection of garbage that takes longer leaves the objects that it found alive to themselves. It
looks at all there are, with every thread waiting: with 3,000 contexts it held the loop for 30 to 60 ms."""
THRESHOLDS = (700, 10, 3)
"""When Python collects: the last one has a full collection after 21,000 objects more, not 70,000."""

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a loop of its own, as `asyncio.run`.

    Without uvloop, or where it cannot be loaded, that is asyncio's own. From now on threads of this process
    take turns every SWITCH_SECONDS.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    freeze_what_lives()
    try:
        from uvloop import new_event_loop as factory
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def freeze_what_lives() -> None:
    """Have full collections of garbage stay short, however much this process keeps.

    One that takes over FREEZE_SECONDS sets apart what it found alive (`gc.freeze`), so the next looks at what
    has come since. Those objects are freed as all are, when nobody refers to them; only circles among them
    stay, and those are of objects that were in use at one of these few moments.
    """
    began = 0.0
    gc.set_threshold(*THRESHOLDS)
    gc.collect()
    gc.freeze()  # what was loaded is not looked at again
    gc.collect()  # a full collection waits for a quarter of what the last one has left: that is nothing now

    def collected(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if info["generation"] != 2:
            return
        if phase == "start":
            began = time.thread_time()
        elif time.thread_time() - began > FREEZE_SECONDS:
            gc.freeze()

    gc.callbacks.append(collected)
