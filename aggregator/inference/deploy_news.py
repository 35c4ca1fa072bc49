"""What a deployment says of itself while it is made, for who reads it no more often than it can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from edge_attention.core.messages.inference import DeployProgress

__all__ = ["DeployNews"]

TOLD_SECONDS = 0.1
"""Between two words of how far a deployment is."""
ALIVE_SECONDS = 5.0
"""Without news the last word is said again so often."""


class DeployNews:
    """The last of each kind."""

    def __init__(self) -> None:
        self._news: dict[tuple[str, str], DeployProgress] = {}
        self._come = asyncio.Event()

    def say(self, progress: DeployProgress) -> None:
        self._news[progress.stage, progress.node or progress.text] = progress
        self._come.set()

    async def until(self, work: asyncio.Task[Any]) -> AsyncIterator[DeployProgress]:
        """What is said until `work` ends."""
        last: DeployProgress | None = None
        while not (work.done() and not self._news):
            waiting = asyncio.ensure_future(self._come.wait())
            try:
                await asyncio.wait(
                    [work, waiting], timeout=ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                waiting.cancel()
            self._come.clear()
            news, self._news = self._news, {}
            for progress in news.values():
                last = progress
                yield progress
            if not news and last is not None and not work.done():
                yield last  # who reads it sees that it goes on
            if not work.done():
                await asyncio.wait([work], timeout=TOLD_SECONDS)
