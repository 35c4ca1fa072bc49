"""How many files a process may have open: the soft limit is often 1,024; raising it costs nothing."""

from __future__ import annotations

import contextlib
import resource

DESCRIPTORS = 1 << 20


def raise_descriptors() -> None:
    """Let this process open as many files as its hard limit allows, DESCRIPTORS at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):  # it goes on with what it has
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
