"""Many nodes in one process, for simulations: `python -m edge_attention.cli.child edge_node.many FILE`.

FILE is JSON: where the aggregator listens, files of data, and for each node its name, its rows of each file,
how slow it is, when it fails and when it comes. Nodes share graphs, so that each is loaded once, and run them
in this process; what they are asked for leaves them. Nothing here is for data that must not leave a box.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention import loop
from edge_attention.core.messages.program import Contribution
from edge_attention.descriptors import raise_descriptors
from edge_attention.options import set_up
from edge_attention.tables.options import split_file
from edge_attention.tables.reading import read_table
from edge_attention.tables.table import Table
from edge_attention.trust.dial import Dial
from edge_node import executor, link, release, runtime
from edge_node.data.datasets import LocalDataset
from edge_node.store import store as stores

__all__ = ["main"]

log = logging.getLogger(__name__)

STORE_BYTES = 1 << 30
"""Of a node, at most: none takes it before it is needed."""


@dataclass(frozen=True)
class ManySettings:
    """What FILE says.

    Attributes:
        aggregator: `HOST:PORT`.
        threads: of a graph.
        files: dataset -> its file, as `edge-node --data` takes it.
        nodes: each node's settings.
    """

    aggregator: str
    threads: int
    files: dict[str, str]
    nodes: tuple[SimulatedNode, ...]


@dataclass(frozen=True)
class SimulatedNode:
    """One node.

    Attributes:
        rows: dataset -> its rows; None: all of the file.
        times: as long as its tasks take; 1: as they do.
        every: seconds between two failures, on average; 0: none.
        down: seconds it is away after one.
        after: seconds after the others that it comes.
        seed: of when it fails.
    """

    name: str
    rows: dict[str, list[int] | None]
    times: float = 1.0
    every: float = 0.0
    down: float = 0.0
    after: float = 0.0
    seed: int = 0


class SimulatedLink(link.NodeLink):
    """A node's link that may be slow, and may break without a word."""

    def __init__(self, settings: SimulatedNode, *args: Any) -> None:
        super().__init__(*args)
        self._times = settings.times
        self._severed = False

    async def run(self) -> tuple[int, str]:
        """As a node's; who was severed before does not begin."""
        return (1, "") if self._severed else await super().run()

    def _run(self, work: Any, seconds: float | None) -> None:
        if self._times > 1:
            self._queue(work)  # never on the loop, which all nodes share
        else:
            super()._run(work, seconds)

    def _carried_out(self, work: Any) -> tuple[Contribution, bytes, bool]:
        began = time.monotonic()
        found = super()._carried_out(work)
        time.sleep((self._times - 1) * (time.monotonic() - began))
        return found

    def sever(self) -> None:
        """Be gone at once: what runs is lost, and it does not come back."""
        self._severed = True
        if (left := self._left) is not None and not left.done():
            left.set_result((1, ""))

    def _step(self, event: Any, *args: Any, **kwargs: Any) -> None:
        # A daemon's process ends with it; in this one its session would connect again.
        if not self._severed:
            super()._step(event, *args, **kwargs)


@dataclass
class ManyNodes:
    """The nodes of this process, and what they share."""

    settings: ManySettings
    tables: dict[str, Table]
    engine: runtime.Runtime
    links: dict[str, SimulatedLink] = field(default_factory=dict)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until all have left."""
        running = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            running.add_signal_handler(signum, self.leave)
        await asyncio.gather(*map(self._live, self.settings.nodes))

    def leave(self) -> None:
        self.left.set()
        for one in list(self.links.values()):
            one.sever()

    async def _live(self, node: SimulatedNode) -> None:
        await self._pause(node.after)
        chance = random.Random(node.seed)
        while not self.left.is_set():
            held = executor.LocalNode(
                stores.Store(STORE_BYTES, None, STORE_BYTES // 2),
                {name: self._dataset(name, rows) for name, rows in node.rows.items()},
                release.Releases((), own_data=True),
            )
            one = SimulatedLink(node, Dial(self.settings.aggregator), node.name, held, self.engine)
            self.links[node.name] = one
            life = asyncio.ensure_future(one.run())
            if node.every:
                done, _ = await asyncio.wait([life], timeout=chance.expovariate(1 / node.every))
                if not done:
                    log.info("%s fails", node.name)
                    one.sever()
            code, text = await life
            if text:
                log.warning("%s: %s", node.name, text)
            if not node.every and code:
                return
            await self._pause(node.down)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.left.wait(), seconds)

    def _dataset(self, name: str, rows: list[int] | None) -> LocalDataset:
        table = self.tables[name]
        return LocalDataset(name, table if rows is None else table.take(np.array(rows, np.int64)))


def main() -> None:
    """Run the nodes of the file that is the only argument."""
    set_up("warning")
    raise_descriptors()
    said = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    nodes = tuple(SimulatedNode(**node) for node in said.pop("nodes"))
    settings = ManySettings(nodes=nodes, **said)
    tables = {name: read_table(*split_file(file)) for name, file in settings.files.items()}
    engine = runtime.Runtime("cpu", settings.threads)
    engine.limit_arena()
    loop.run(ManyNodes(settings, tables, engine).run())
