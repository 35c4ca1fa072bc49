"""Counts the gRPC port's connections: gRPC turns away those past its limit without a word to anybody.

The kernel's table of TCP sockets is read (Linux); elsewhere nothing is known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from aggregator.bounds.capacity import connections

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
TELL_SECONDS = 60.0
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"


def established(port: int, tables: tuple[Path, ...] = _TABLES) -> int | None:
    """Established connections to `port` of this machine; None where that cannot be known."""
    found, known = 0, False
    ending = f":{port:04X}"
    for table in tables:
        try:
            with table.open() as lines:
                next(lines, None)
                for line in lines:
                    fields = line.split(maxsplit=4)
                    found += fields[1].endswith(ending) and fields[3] == _ESTABLISHED
            known = True
        except (OSError, IndexError):
            continue
    return found if known else None


class Warner:
    """Tells the log, at most once in TELL_SECONDS, that there is no room for more connections. Pure."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._told = -TELL_SECONDS

    def seen(self, count: int, now: float) -> str | None:
        """What to tell of `count` connections, if anything."""
        if count < self._limit or now - self._told < TELL_SECONDS:
            return None
        self._told = now
        return (
            f"the gRPC port has {count:,} connections, as many as it may have, and turns others away: see "
            "who holds them (ss -tn), let this process open more files, or put a firewall before the port"
        )


async def watch_connections(port: int, show: Callable[[float], None]) -> None:
    """Show the number of connections, and say when there is no room for more, until cancelled."""
    warner = Warner(connections())
    while True:
        count = await asyncio.to_thread(established, port)
        if count is None:
            return
        show(count)
        if (words := warner.seen(count, time.monotonic())) is not None:
            log.warning("%s", words)
        await asyncio.sleep(LOOK_SECONDS)
