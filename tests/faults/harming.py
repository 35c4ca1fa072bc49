"""What is done to nodes while callers ask: they are killed, or their cells are, or they stand still."""

from __future__ import annotations

import asyncio
import contextlib
import random

import psutil
from fleets import Fleet

__all__ = ["NODES", "killing", "start"]

NODES = ("a", "b", "c")
PAUSE = 0.5
"""Until a node that was killed is started again."""
STILL = (0.5, 8.0)
"""Seconds for which one stands still: past its lease, or not."""
HARM = ("node", "cell", "still", "cell", "cell")
"""What is done, in turn."""


async def killing(fleet: Fleet, kills: int, seconds: float, seed: int) -> None:
    """Do harm so many times in that time, as HARM says; what was killed is started again."""
    chosen = random.Random(seed)
    for number in range(kills):
        await asyncio.sleep(seconds / (kills + 1))
        name, how = chosen.choice(NODES), HARM[number % len(HARM)]
        if how == "cell":
            for cell in psutil.Process(fleet.child(name).pid).children():
                with contextlib.suppress(psutil.Error):
                    cell.kill()
        elif how == "still":
            fleet.freeze(name)
            try:
                await asyncio.sleep(chosen.uniform(*STILL))
            finally:
                fleet.thaw(name)
        else:
            await asyncio.to_thread(fleet.kill, name)
            await asyncio.sleep(PAUSE)
            await asyncio.to_thread(start, fleet, name)


def start(fleet: Fleet, name: str) -> None:
    store = str(fleet.folder / "stores" / name)
    fleet.start_node(name, "--threads", "1", "--store", store, wait=False)
