"""Many nodes in one process, for simulations.

By `ManyNodes` beside an aggregator of the same process, or in a process of their own, over gRPC:
`python -m edge_attention.cli.child edge_node.many FILE`. FILE is JSON: where the aggregator listens, files of
data, and for each node its name, its rows of each file, how slow it is, when it fails and when it comes.

Nodes share graphs, so that each is loaded once, the threads that run them, and this process; what they are
asked for leaves them. Nothing here is for data that must not leave a box.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention import box, loop
from edge_attention.core.messages.box import Box
from edge_attention.core.messages.program import Program
from edge_attention.descriptors import raise_descriptors
from edge_attention.options import set_up
from edge_attention.tables.options import split_file
from edge_attention.tables.reading import read_table
from edge_attention.tables.table import Table
from edge_attention.trust.dial import Dial
from edge_node import crew, executor, link, release, runtime
from edge_node.data.datasets import LocalDataset
from edge_node.dialling import Connector
from edge_node.store import store as stores

__all__ = ["ManyNodes", "SimulatedNode", "main", "shared_runtime"]

log = logging.getLogger(__name__)

STORE_BYTES = 1 << 30
"""Of a node, at most: none takes it before it is needed."""
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""That run graphs, of all nodes together."""
KEY = b"simulated"
"""Of digests of data that is nobody's secret here."""
BRIEF_SECONDS = 0.005
"""A program that is not over in this runs in a thread the next time."""


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
    rows: Mapping[str, Sequence[int] | None]
    times: float = 1.0
    every: float = 0.0
    down: float = 0.0
    after: float = 0.0
    seed: int = 0


class _Crew:
    """The threads that all nodes share, for one of them: of a slow node what is done leaves later."""

    def __init__(self, shared: crew.Threads, threads: int, times: float) -> None:
        self._shared = shared
        self._threads = threads
        self._times = times
        self._loop = asyncio.get_running_loop()

    def put(self, job: crew.Job, waiting: int) -> None:
        self._shared.put(job if self._times <= 1 else partial(self._slowly, job), self._threads)

    def close(self) -> None:
        """They are the others', too."""

    def _slowly(self, job: crew.Job) -> Callable[[], None]:
        began = time.monotonic()
        leave = job()
        late = (self._times - 1) * (time.monotonic() - began)

        def later() -> None:
            self._loop.call_soon_threadsafe(self._loop.call_later, late, leave)

        return later


class _Brief:
    """Which kinds of programs run on the loop's thread: those that were short the last time.

    A thread would have to be woken for each, and the loop for its answer, which takes longer than a small
    graph does; nobody here waits for the loop but nodes of the same kind.
    """

    def __init__(self) -> None:
        self._short = dict[Hashable, bool]()

    def may(self, kind: Hashable | None, now: float) -> bool:
        return kind is not None and self._short.get(kind, False)

    def took(self, kind: Hashable | None, seconds: float, now: float, on_loop: bool) -> None:
        if kind is not None:
            self._short[kind] = seconds < BRIEF_SECONDS


_looked_at = lru_cache(box.describe)
"""All are on this machine: to look at it takes longer than a node's first round."""


def _machine(asked: str | None) -> Box:
    # The time besides: of one that comes later the clock would seem to be late.
    return replace(_looked_at(asked), time_seconds=time.time())


def _kind(program: Program, graphs: Mapping[str, Any]) -> Hashable | None:
    return None if program.bulk_tensors else tuple(graphs)


@dataclass
class ManyNodes:
    """The nodes of this process, and what they share.

    Args:
        dial: the way to the aggregator, one for each connection of a node.
        tables: dataset -> all rows there are.
    """

    nodes: Sequence[SimulatedNode]
    dial: Callable[[], Connector]
    tables: Mapping[str, Table]
    engine: runtime.Runtime
    links: dict[str, link.NodeLink] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    """Node -> why it has ended for good."""
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until all have left, or one of them cannot go on."""
        self._threads = crew.Threads(THREADS)
        self._loaders = ThreadPoolExecutor(THREADS, thread_name_prefix="load")
        self._brief = _Brief()
        lives = [asyncio.ensure_future(self._live(node)) for node in self.nodes]
        try:
            await asyncio.gather(*lives)
        finally:
            for life in lives:
                life.cancel()
            self._threads.close()
            self._loaders.shutdown(wait=False)

    def leave(self) -> None:
        """Have all be gone; `run` returns."""
        self.left.set()
        for one in list(self.links.values()):
            one.vanish()

    async def _live(self, node: SimulatedNode) -> None:
        await self._pause(node.after)
        hands = crew.Hands(
            _Crew(self._threads, THREADS, node.times),
            self._loaders,
            self._brief,
            _kind if node.times <= 1 else lambda program, graphs: None,
            # By the clock on the wall a program would wait for its turn among all nodes'.
            clock=time.thread_time,
            reports=False,
            machine=_machine,
        )
        chance = random.Random(node.seed)
        while not self.left.is_set():
            held = executor.LocalNode(
                stores.Store(STORE_BYTES, None, STORE_BYTES // 2),
                {name: self._dataset(name, rows) for name, rows in node.rows.items()},
                release.Releases((), own_data=True),
                sleep=lambda seconds: None,
            )
            one = link.NodeLink(self.dial(), node.name, held, self.engine, hands)
            self.links[node.name] = one
            life = asyncio.ensure_future(one.run())
            if node.every:
                done, _ = await asyncio.wait([life], timeout=chance.expovariate(1 / node.every))
                if not done:
                    log.info("%s fails", node.name)
                    one.vanish()
            code, text = await life
            if text:
                log.warning("%s: %s", node.name, text)
            if not node.every and code:
                self.ended[node.name] = text or f"exit code {code}"
                return
            await self._pause(node.down)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.left.wait(), seconds)

    def _dataset(self, name: str, rows: Sequence[int] | None) -> LocalDataset:
        table = self.tables[name]
        found = LocalDataset(name, table if rows is None else table.take(np.array(rows, np.int64)))
        # So that a run which is resumed knows whether its rows are the same.
        found.tell_changes(KEY)
        return found


def main() -> None:
    """Run the nodes of the file that is the only argument."""
    set_up("warning")
    raise_descriptors()
    said = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    nodes = tuple(SimulatedNode(**node) for node in said.pop("nodes"))
    settings = ManySettings(nodes=nodes, **said)
    tables = {name: read_table(*split_file(file)) for name, file in settings.files.items()}
    loop.run(_over_grpc(settings, tables))


async def _over_grpc(settings: ManySettings, tables: Mapping[str, Table]) -> None:
    engine = shared_runtime(settings.threads)
    many = ManyNodes(settings.nodes, lambda: Dial(settings.aggregator), tables, engine)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, many.leave)
    await many.run()


def shared_runtime(threads: int = 1) -> runtime.Runtime:
    """What all nodes of this process run graphs with; to be made once. `threads`: of a graph."""
    engine = runtime.Runtime("cpu", threads)
    engine.limit_arena()
    return engine
