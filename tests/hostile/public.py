"""Graphs as a user sends them, through a real aggregator to real nodes, beside somebody who means well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from fleets import Fleet

from edge_attention.cli.local_fleet import AGGREGATOR
from tests.fuzz.corpus import METHODS
from tests.fuzz.tap import Tap
from tests.hostile import callers, witness
from tests.hostile.direct import DATASET

ROOT = Path(__file__).resolve().parent.parent.parent
CALLERS = 2
SEEDS = {"a": 3, "b": 4}
"""Of the nodes' private numbers."""


class Public:
    """Nodes a and b, whose operator allows no release.

    `heard`: every message to and from the aggregator is listened to, in this process, on its way.
    """

    def __init__(self, folder: Path, canary: witness.Canary, flags: list[str], *, heard: bool = True) -> None:
        self._folder, self.canary, self._flags = folder, canary, flags
        self._tap: Tap | None = None
        self._listens = heard
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._private = [witness.Private(seed) for seed in SEEDS.values()]

    def _heard(self, number: int, path: str, request: bool, data: bytes) -> None:
        # What nodes send, and what clients are answered; what they say of themselves is theirs to say.
        if request != path.startswith("/edge_attention.v1.EdgeLinkService/"):
            return
        message = METHODS[path][0 if request else 1].FromString(data)
        for private in self._private:
            if found := private.leak(message):
                self.wrong.append(f"a private number went through {path}: {found}")
        if any(needle in data for needle in self.canary.needles):
            self.wrong.append(f"what is in a file of the box went through {path}")

    async def start(self) -> None:
        (self._folder / "fleet").mkdir()
        self.fleet = Fleet(self._folder / "fleet", "--lease", "30", state=True)
        self._direct = self.fleet.address
        if self._listens:
            self._tap = await Tap(self.fleet.address, self._heard).start()
            self.fleet._port = self._tap.port
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        files = {name: witness.write(self._folder / f"{name}.npz", seed) for name, seed in SEEDS.items()}
        with contextlib.chdir(self.canary.folder):
            for name in "ab":
                store = ("--store", str(self._folder / f"store-{name}"))
                self.fleet.start_node(
                    name, "--threads", "1", *store, *self._flags, data={DATASET: files[name]}, wait=False
                )
        for name in "ab":
            self.fleet.wait_ready(name)
        self.good = GoodCaller(self._direct)

    async def stop(self) -> None:
        await asyncio.to_thread(self.good.close)
        await asyncio.to_thread(self.fleet.stop)
        if self._tap is not None:
            await self._tap.stop()

    def attack(self, graphs: Iterable[Any]) -> None:
        """All of them, by a few callers at a time: processes of their own, as callers are."""
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(CALLERS, spawn, callers.begin, (self.fleet.address,)) as pool:
            tried: dict[Future[list[str]], Any] = {}
            for number, graph in enumerate(graphs):
                tried[pool.submit(callers.attack, number, graph)] = graph
                # No more wait than are tried: graphs are made as they are needed.
                if len(tried) > CALLERS:
                    self._take(tried, wait(tried, return_when=FIRST_COMPLETED).done)
            self._take(tried, wait(tried).done)

    def _take(self, tried: dict[Future[list[str]], Any], done: set[Future[list[str]]]) -> None:
        for future in done:
            name = tried.pop(future).name
            if error := future.exception():
                self.wrong.append(f"{name}: {type(error).__name__}: {error}")
            else:
                self.outcomes.update(future.result())
            if self.canary.opened():
                self.wrong.append(f"{name}: a file of the box was opened")

    def well(self) -> list[str]:
        wrong = []
        for name in (AGGREGATOR, "a", "b"):
            child = self.fleet.child(name)
            if not child.running:
                wrong.append(f"{name} ended with {child.process.poll()}:{child.last_lines(30)}")
            elif any("Traceback (most recent call last)" in line for line in child.lines):
                wrong.append(f"{name} logged a traceback:{child.last_lines(40)}")
                child.lines.clear()
        return wrong


class GoodCaller:
    """Attends in a process of its own, as a caller elsewhere: others' calls cost it nothing here."""

    def __init__(self, address: str) -> None:
        self.wrong: list[str] = []
        command = [sys.executable, "-m", "tests.hostile.good", address]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._said()

    def quiet(self, seconds: float) -> list[float]:
        """The seconds that attends take while nobody else asks."""
        self.start()
        time.sleep(seconds)
        return self.stop()

    def start(self) -> None:
        self._tell()

    def stop(self) -> list[float]:
        """The seconds that attends took since `start`, in order."""
        self._tell()
        seconds, wrong = self._said()
        self.wrong += wrong
        return seconds

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(180)

    def _tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")

    def _said(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())
