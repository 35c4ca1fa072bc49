"""Folders of work under way, made and removed by threads: a disk may take its time for either."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from aggregator.engine.endings import to_the_end

SCRATCH = "plans"
"""In the state folder; what a process that was killed has left there goes at the next start."""


async def make(state: Path) -> Path:
    """A new folder in the state folder `state`; `remove` it."""

    def made() -> Path:
        (state / SCRATCH).mkdir(mode=0o700, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=state / SCRATCH))

    return await asyncio.to_thread(made)


async def remove(folder: Path) -> None:
    """Remove it with all that is in it, whoever goes away meanwhile."""
    await to_the_end(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


@contextlib.asynccontextmanager
async def folder(state: Path) -> AsyncIterator[Path]:
    """A new folder, which is there as long as the block runs."""
    made = await make(state)
    try:
        yield made
    finally:
        await remove(made)
