"""What every process says of itself: memory, processor, open files; by Prometheus' names."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

from edge_attention.metrics.families import Family, counted, measured

__all__ = ["Process"]


class Process:
    """This one, by /proc; where there is none it says nothing."""

    def __init__(self) -> None:
        self._booted: float | None = None
        with contextlib.suppress(OSError), open("/proc/stat", encoding="ascii") as file:
            self._booted = next((float(line.split()[1]) for line in file if line.startswith("btime ")), None)

    def collect(self) -> Iterator[Family]:
        if self._booted is None:
            return
        with contextlib.suppress(OSError):
            with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks = os.sysconf("SC_CLK_TCK")
            user, system, start = (int(fields[n]) / ticks for n in (11, 12, 19))
            rss = int(fields[21]) * resource.getpagesize()
            yield measured("process_virtual_memory_bytes", "Virtual memory size in bytes.", int(fields[20]))
            yield measured("process_resident_memory_bytes", "Resident memory size in bytes.", rss)
            yield measured(
                "process_start_time_seconds",
                "Start time of the process since 1970 in seconds.",
                start + self._booted,
            )
            yield counted(
                "process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", user + system
            )
        with contextlib.suppress(OSError):
            count = len(os.listdir("/proc/self/fd"))
            yield measured("process_open_fds", "Number of open file descriptors.", count)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = float("inf") if soft == resource.RLIM_INFINITY else soft
        yield measured("process_max_fds", "Maximum number of open file descriptors.", most)
