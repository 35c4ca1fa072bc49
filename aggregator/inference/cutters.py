"""Cuts deployed models for further shapes of inputs, in processes apart that are kept, one a model.

A process that has begun, imported what it needs and read the model cuts it for another length in a
fraction of the time that a new one takes. Which of them are kept is bounded by number, by memory, and by how
long nobody asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aggregator.bounds.bounds import CUTTING_PROCESS
from aggregator.engine.kept_process import KeptProcess, serve
from aggregator.inference import planner
from aggregator.inference.cut_request import CutRequest
from aggregator.inference.deployed import PlannedParts
from edge_attention.core.errors import EdgeAttentionError

__all__ = ["KEPT_CUTTERS", "Cutters"]

log = logging.getLogger(__name__)

KEPT_CUTTERS = 4
"""Processes that are kept; then the one asked longest ago ends."""
KEPT_BYTES = 384 * 1024 * 1024
"""Of memory that one has used at its most; one that took more ends when it has answered."""


class Cutters:
    """Of all deployments."""

    def __init__(self, most: int = KEPT_CUTTERS) -> None:
        self._most = most
        self._kept: OrderedDict[str, KeptProcess] = OrderedDict()
        self._ending: set[asyncio.Task[None]] = set()

    async def cut(self, deployment: str, request: CutRequest, folder: Path) -> PlannedParts:
        """As `planner.make`, for a model that is deployed."""
        await asyncio.to_thread(planner.ask, request, folder)
        process = self._of(deployment, request.model)
        try:
            used = await process.ask(str(folder))
        except EdgeAttentionError as error:
            # Another one, by itself, says what is wrong: its bounds, or the model.
            log.info(
                "a model is cut by a process of its own, as the one that is kept says: %s", error.message
            )
            if self._kept.get(deployment) is process:
                del self._kept[deployment]
                await process.close()
            return await planner.make(request, folder)
        # Others may have taken its place meanwhile, and one of its own model may have begun anew.
        if (not isinstance(used, int) or used > KEPT_BYTES) and self._kept.get(deployment) is process:
            self._end(deployment)
        return await asyncio.to_thread(planner.said, folder)

    async def begin(self, deployment: str, model: str) -> None:
        """Have a process ready for the model, as requests of other shapes may come."""
        with contextlib.suppress(EdgeAttentionError):
            await self._of(deployment, model).ask("")

    async def forget(self, deployment: str) -> None:
        """The model is not deployed any more."""
        process = self._kept.pop(deployment, None)
        if process is not None:
            await process.close()

    async def close(self) -> None:
        """End all of them."""
        for deployment in list(self._kept):
            self._end(deployment)
        if self._ending:
            await asyncio.wait(self._ending)

    def _of(self, deployment: str, model: str) -> KeptProcess:
        found = self._kept.get(deployment)
        if found is None:
            found = self._kept[deployment] = KeptProcess(
                CUTTING_PROCESS, "aggregator.inference.cutters", model, what=planner.WHAT,
                environment=planner.ENVIRONMENT,
            )  # fmt: skip
        self._kept.move_to_end(deployment)
        while len(self._kept) > self._most:
            self._end(next(iter(self._kept)))
        return found

    def _end(self, deployment: str) -> None:
        task = asyncio.create_task(self._kept.pop(deployment).close(), name="end a cutter")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _hello(model: Path) -> Callable[[Any], Any]:
    """In the process: what answers a folder with a request in it, by the memory that it took at its most."""
    from aggregator.inference.cutting import cut_as_asked
    from edge_attention.graphs.axes.model_reading import open_model

    # What a cut makes goes all at once, before the next one: to look for it in between takes its time.
    gc.disable()
    opened = open_model(model)
    gc.freeze()

    def answer(question: Any) -> Any:
        gc.collect()  # of the one before
        folder = Path(str(question))
        if question:
            planner.answer(folder, lambda request: cut_as_asked(request, opened))
        return _most_memory()

    return answer


def _most_memory() -> int:
    """Bytes of memory that this process has used at its most, since its program began.

    Linux's `ru_maxrss` is no answer: what started the process, an aggregator of any size, counts there, too.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(serve(lambda: _hello(Path(sys.argv[1]))))
