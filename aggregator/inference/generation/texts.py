"""The words of all deployments that have a tokenizer: read once, and kept while they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aggregator.inference.generation.coders import (
    TOKENIZER,
    BytesCoder,
    TextCoder,
    TextFiles,
    read_begins,
    read_text_files,
)
from aggregator.inference.generation.tokenizer_process import TokenizerProcess

__all__ = ["DeploymentText", "DeploymentTexts"]

_ANY_VOCABULARY = 1 << 31
CODERS = 16
"""Tokenizers that have a process at a time; then the one used longest ago ends."""


@dataclass(frozen=True)
class DeploymentText:
    """What one deployment's files say, and who encodes by them. `ends`: tokens that end a text."""

    files: TextFiles
    coder: TextCoder
    ends: frozenset[int]


class DeploymentTexts:
    """By deployment. `folder`: of a name's deployment that serves, its id and the folder of its files."""

    def __init__(self, folder: Callable[[str], tuple[str, Path]]) -> None:
        self._folder = folder
        self._known: dict[str, asyncio.Future[DeploymentText | None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def get(self, model: str, vocabulary: int) -> DeploymentText | None:
        """Those of the deployment; None: it has no tokenizer.

        Raises:
            NotFound: no model of that name is deployed.
            InvalidArgument: its files are not what they should be, and why.
        """
        id, folder = self._folder(model)
        reading = self._known.pop(id, None)
        if reading is None or (reading.done() and (reading.cancelled() or reading.exception() is not None)):
            reading = asyncio.ensure_future(_read(folder, vocabulary))
        self._known[id] = reading  # now the last one
        found = await asyncio.shield(reading)
        # What is being read somebody waits for; and who is one too many does not wait for others' ends.
        over = [id for id, one in self._known.items() if one.done()][: max(len(self._known) - CODERS, 0)]
        for id in over:
            ending = asyncio.create_task(_ended(self._known.pop(id)), name="end a tokenizer")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        return found

    async def there(self, model: str) -> bool:
        """Whether the deployment has a tokenizer. Raises NotFound."""
        _, folder = self._folder(model)
        return await asyncio.to_thread((folder / TOKENIZER).is_file)

    async def begins(self, model: str) -> tuple[int, ...]:
        """The tokens that the deployment's decoder begins with, where it is beside an encoder; () if none is
        said. Raises as `get`."""
        _, folder = self._folder(model)
        return await asyncio.to_thread(read_begins, folder)

    @staticmethod
    async def check(folder: Path) -> None:
        """Look whether the files beside a model that is being deployed are what they should be.

        Raises:
            InvalidArgument: they are not, and why.
        """
        await asyncio.to_thread(read_begins, folder)
        found = await _read(folder, _ANY_VOCABULARY)
        if found is not None and isinstance(found.coder, TokenizerProcess):
            try:
                await found.coder.token("")
            finally:
                await found.coder.close()

    async def close(self) -> None:
        """End their processes."""
        while self._known:
            await _ended(self._known.popitem()[1])
        if self._ending:
            await asyncio.wait(self._ending)


async def _ended(reading: asyncio.Future[DeploymentText | None]) -> None:
    """Nothing of it goes on: its process has ended."""
    reading.cancel()
    await asyncio.wait([reading])
    found = None if reading.cancelled() or reading.exception() is not None else reading.result()
    if found is not None and isinstance(found.coder, TokenizerProcess):
        await found.coder.close()


async def _read(folder: Path, vocabulary: int) -> DeploymentText | None:
    files = await asyncio.to_thread(read_text_files, folder)
    if files is None:
        return None
    coder = BytesCoder() if files.tokenizer is None else TokenizerProcess(files.tokenizer, vocabulary)
    ends = set(files.ends)
    if not ends and "eos_token" in files.special:
        end = await coder.token(files.special["eos_token"])
        ends |= set() if end is None else {end}
    return DeploymentText(files, coder, frozenset(ends))
