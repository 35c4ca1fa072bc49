"""How many files a process may have open, raised as far as can be; and whether it may have threads."""

from __future__ import annotations

import contextlib
import resource
import threading

from edge_attention.core.errors import FailedPrecondition

DESCRIPTORS = 1 << 20
THREADS = 24
"""That a daemon needs as it starts; work needs more, as many as processors."""


def raise_descriptors() -> None:
    """Let this process open as many files as its hard limit allows, DESCRIPTORS at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):  # it goes on with what it has
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def require_threads(count: int = THREADS) -> None:
    """See that so many threads can be started: libraries that find they cannot crash, or wait for ever.

    To be called before any of these is loaded. Takes 2 ms.

    Raises:
        FailedPrecondition: they cannot.
    """
    end, started = threading.Event(), list[threading.Thread]()
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise FailedPrecondition(
            f"this process can start {len(started)} threads, and needs {count} to begin with: let it have "
            "more (ulimit -u, TasksMax= of systemd, --pids-limit of Docker, pids.max of its control group)"
        ) from None
    finally:
        end.set()
        for thread in started:
            thread.join()
