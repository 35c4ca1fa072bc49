"""A run that finds the state's disk full waits for room, and goes on from its last version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from aggregator.store.folder import FULL
from aggregator.training.active import ActiveRun
from aggregator.training.metrics import RunMetrics
from edge_attention.core.errors import DiskFull

ROOM_SECONDS = 600.0
"""How long a run waits for room on the state's disk without a round between, before it has failed."""
ROOM_RETRY_SECONDS = (0.5, 10.0)
"""Between two tries meanwhile, first and at most."""


async def train_with_room(
    train: Callable[[ActiveRun], Awaitable[str]], active: ActiveRun, directory: Path, metrics: RunMetrics
) -> str:
    """What `train` returns; it is called again, with pauses, while the disk of `directory` is full.

    Raises:
        DiskFull: for ROOM_SECONDS there was no room.
        OSError, EdgeAttentionError: `train` raised it for another reason.
    """
    progress, since, tries = -1, 0.0, 0
    while True:
        try:
            return await train(active)
        except DiskFull as error:
            full = error
        except OSError as error:
            if error.errno not in FULL:
                raise
            full = DiskFull(f"{directory}: {error.strerror}; free space there")
        now = time.monotonic()
        if active.info.version != progress:
            progress, since, tries = active.info.version, now, 0
        left = since + ROOM_SECONDS - now
        if left <= 0:
            raise DiskFull(f"{full.message} (waited {ROOM_SECONDS:.0f} s for room)")
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        active.say(f"room on the disk, until {clock}: {full.message}", metrics, "room on the disk")
        first, most = ROOM_RETRY_SECONDS
        await asyncio.sleep(min(most, first * 2**tries, left))
        tries += 1
        active.say("", metrics)
