"""What a fork leaves of clients: nothing that works in the child, and nothing that may end there.

A child has its parent's memory and sockets, and of its threads the one that forked. So a client that was
made before has a loop and a channel that nobody serves: a call would wait for ever. To end them would be
worse: the channel's socket is the parent's, too, the loop's selector and its wake-up socket are shared, and
gRPC waits for a thread that is not there. So in the child they are kept for ever, as they are.

gRPC's asyncio part has one thread and one queue a process, from its first channel to its last. A child that
was forked meanwhile can use neither the old ones nor make others (it waits for ever, or crashes; tried with
grpcio 1.85). One that was forked while no channel was open can. gRPC's thread ends a moment after its last
channel: a fork that comes right then waits for that.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from edge_attention.core.errors import FailedPrecondition

__all__ = [
    "closed",
    "on_fork",
    "opened",
    "pending",
    "refuse_after_fork",
    "refuse_in_child",
    "stands_still",
    "was_forked",
]

_POLLER = "(_poll_wrapper)"
"""How the name of the thread ends that gRPC's asyncio part has while it has a channel."""
_SPAWN = "start processes anew: multiprocessing.get_context('spawn')"
_REMEDY = (
    "make the client in the process that uses it, with none open in its parent when it is forked (close it "
    f"before), or {_SPAWN}"
)

END_SECONDS = 1.0
"""So long a fork waits, after the last channel was closed, for gRPC's thread to end."""
SETTLE_SECONDS = 0.005
"""So long it gives gRPC's threads, which handle what has just come, to be where they wait."""

_inherited: list[Callable[[], list[Any]]] = []
_open = 0
_closed = -math.inf
_kept: list[Any] = []
_live = False
_broken = False
_child = False


def on_fork(inherited: Callable[[], list[Any]]) -> None:
    """Have `inherited` called in every forked child: what it returns must not end there, and does not."""
    _inherited.append(inherited)


def refuse_in_child(pid: int, what: str) -> None:
    """FailedPrecondition unless this is process `pid`, in which `what` was made."""
    if (here := os.getpid()) != pid:
        raise FailedPrecondition(
            f"{what} was made in process {pid} and does not outlive the fork to process {here}; {_REMEDY}"
        )


def refuse_after_fork() -> None:
    """FailedPrecondition if this process was forked while a channel was open: no client can be made in it."""
    if _broken:
        raise FailedPrecondition(
            f"no client can be made in process {os.getpid()}: it was forked while its parent had a client "
            f"(or another channel of grpc.aio) open, which gRPC does not survive; {_REMEDY}"
        )


def was_forked() -> bool:
    """Whether this process is a forked child of one that had loaded this module."""
    return _child


def stands_still() -> FailedPrecondition:
    """What to raise where gRPC answers nobody any more, not even at a call's deadline."""
    return FailedPrecondition(
        f"gRPC stands still in process {os.getpid()}, which was forked: it may, even with none of its "
        "clients open in "
        f"the parent; end this process and fork another, or better {_SPAWN}"
    )


def opened() -> None:
    """A channel of ours was opened."""
    global _open
    _open += 1


def closed() -> None:
    """One of them was closed."""
    global _open, _closed
    _open -= 1
    _closed = time.monotonic()


def pending(loop: asyncio.AbstractEventLoop | None) -> list[Any]:
    """A loop that nobody runs here, and its tasks, which do not complain when they are destroyed."""
    tasks = [] if loop is None else list(asyncio.all_tasks(loop))
    for task in tasks:
        setattr(task, "_log_destroy_pending", False)  # noqa: B010  # no stub knows of it
    return [loop, *tasks]


def _before() -> None:
    global _live
    pollers = [thread for thread in threading.enumerate() if thread.name.endswith(_POLLER)]
    until = _closed + END_SECONDS
    while _open == 0 and any(thread.is_alive() for thread in pollers) and time.monotonic() < until:
        time.sleep(0.002)
    if _open or time.monotonic() < until:
        time.sleep(SETTLE_SECONDS)
    _live = any(thread.is_alive() for thread in pollers)


def _in_child() -> None:
    global _broken, _child
    _broken, _child = _broken or _live, True
    _kept.extend([inherited() for inherited in _inherited])
    # Nor at the interpreter's end, which empties every module.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
