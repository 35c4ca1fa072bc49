"""The aggregator and all nodes of a simulation, in this process and on one event loop.

What is elsewhere in processes of their own is here beside each other, and no network lies between: the
aggregator, its recipes and exchanges, each node's session, store and programs are those of a fleet, and so
are the bytes that pass between them. Only the client speaks gRPC.

It needs both daemons: nobody imports it, `edge-attention simulate` loads it by its name.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aggregator.engine.recipe import Engine, Recipe
from aggregator.server import ServerSettings, running
from aggregator.training.planner import make_here
from aggregator.training.recipe import training
from edge_attention.client.background import BACKGROUND
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition
from edge_attention.loop import SWITCH_SECONDS, freeze_what_lives
from edge_attention.tables.table import Table
from edge_node.here import Here
from edge_node.many import ManyNodes, SimulatedNode, shared_runtime

__all__ = ["hosted"]

START_SECONDS = 60.0
END_SECONDS = 30.0
PATIENCE_SECONDS = 600.0
"""The aggregator's own default."""


class _HostedNodes:
    """The nodes as the aggregator's server begins and ends them: as a recipe."""

    def __init__(self, nodes: Sequence[SimulatedNode], tables: Mapping[str, Table]) -> None:
        self._nodes = nodes
        self._tables = tables
        self._many: ManyNodes | None = None
        self._life: asyncio.Task[None] | None = None

    def recipe(self, engine: Engine) -> Recipe:
        dial = partial(Here, engine.link)
        self._many = ManyNodes(self._nodes, dial, self._tables, shared_runtime())
        return Recipe("simulated nodes", resume=self._begin, close=self._end)

    def _begin(self) -> None:
        assert self._many is not None
        self._life = asyncio.create_task(self._many.run(), name="simulated nodes")

    def require(self) -> None:
        """Return where the nodes are there, or may come yet.

        Raises:
            FailedPrecondition: one has ended, or all have: why.
        """
        many, life = self._many, self._life
        if many is None or life is None:
            return
        if life.done() and not life.cancelled() and (error := life.exception()) is not None:
            own = isinstance(error, EdgeAttentionError)
            why = str(error) if own else f"{type(error).__name__}: {error}"
            raise FailedPrecondition(f"the simulated nodes have ended: {why}") from error
        if many.ended:
            name, why = next(iter(many.ended.items()))
            raise FailedPrecondition(f"{name} has ended: {why}")

    async def _end(self) -> None:
        if self._many is not None and self._life is not None:
            self._many.leave()
            await asyncio.wait([self._life], timeout=END_SECONDS)


class _Serving:
    """The aggregator's task on the client's event loop."""

    def __init__(self, settings: ServerSettings, fleet: _HostedNodes) -> None:
        self._settings = settings
        self._fleet = fleet
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> int:
        """The port it listens on."""
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._serve(port), name="aggregator")
        waited: list[asyncio.Future[Any]] = [port, self._task]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not port.done():
            await self._task
        return await port

    async def end(self) -> None:
        self._stop.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=END_SECONDS)

    async def _serve(self, port: asyncio.Future[int]) -> None:
        # The nodes last: what they do ends before what asks them.
        recipes = (partial(training, plan=make_here), self._fleet.recipe)
        async with running(self._settings, recipes) as number:
            port.set_result(number)
            await self._stop.wait()


@contextmanager
def hosted(
    nodes: Sequence[Mapping[str, Any]], tables: Mapping[str, Table], state: Path | None, lease: float
) -> Iterator[tuple[str, Callable[[], None]]]:
    """An aggregator with these nodes, while the block runs.

    Its address, for a client of this process; and what raises once nodes have ended, with why.

    Args:
        nodes: each node's fields of `SimulatedNode`.
        tables: dataset -> all rows there are.
        state: the aggregator's folder; None: one that goes with it.
        lease: seconds, as the aggregator's `--lease`.
    """
    # What a person is to know of a run is in its records and notes; these would come between its lines.
    for daemon in ("aggregator", "edge_node"):
        logging.getLogger(daemon).setLevel(logging.ERROR)
    sys.setswitchinterval(SWITCH_SECONDS)
    freeze_what_lives()
    settings = ServerSettings("127.0.0.1", 0, state, "127.0.0.1", None, lease, PATIENCE_SECONDS)
    fleet = _HostedNodes([SimulatedNode(**node) for node in nodes], tables)
    serving = _Serving(settings, fleet)
    key = BACKGROUND.acquire(serving.end)
    try:
        yield f"127.0.0.1:{BACKGROUND.run(serving.begin(), START_SECONDS)}", fleet.require
    finally:
        BACKGROUND.close(key)
