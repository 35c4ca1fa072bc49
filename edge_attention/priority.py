"""How a process that works for others' graphs gives way to the daemon that answers calls."""

from __future__ import annotations

import contextlib
import os

__all__ = ["give_way"]


def give_way(niceness: int) -> None:
    """Lower this process's share of the processors, and its session's where it leads one.

    Linux with `sched_autogroup_enabled` shares processors out among sessions first, so that a niceness alone
    means nothing outside the process's own session: the session is given the same. What a system does not
    have is left out.
    """
    with contextlib.suppress(OSError):
        os.nice(niceness)
    if os.getsid(0) == os.getpid():  # the session is this process's to lower
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
            file.write(str(niceness))
