"""The year itself: runs, contexts that come and go, nodes that come and go; and what it has come to."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from aggregator.store.disk import state_bytes
from edge_attention import Client
from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet
from tests.compat.state import CONTEXT, data, finished, job, tokens

NODES = ("a", "b", "c")
KEEPING = 100
"""Runs that are kept once the year is over."""
AT_ONCE = 4
"""Runs that are planned or go on at the same time: so many plans one caller may ask for at once."""
PATIENCE = 120.0
"""Seconds that a process may take to start or to end."""


@dataclass(frozen=True)
class Year:
    """What there is to be: runs of so many rounds each, and contexts. `kept`: runs that stay at its end."""

    runs: int
    rounds: int
    contexts: int
    kept: int = KEEPING


@dataclass(frozen=True)
class Found:
    """What there was at one moment: what the aggregator's start took; its memory and its state, in bytes.

    `start_processor`: seconds of processor; `start_seconds`: by the clock, which work of others prolongs.
    """

    runs: int
    start_processor: float
    start_seconds: float
    memory: int
    state: int
    by_kind: dict[str, int]


def memory(fleet: LocalFleet) -> int:
    """Resident bytes of the aggregator."""
    return int(psutil.Process(fleet.child(AGGREGATOR).pid).memory_info().rss)


def processor(fleet: LocalFleet, name: str) -> float:
    """Seconds of processor that it has used since its start."""
    used = psutil.Process(fleet.child(name).pid).cpu_times()
    return float(used.user + used.system)


def live(fleet: LocalFleet, folder: Path, year: Year, say: Callable[[str], None]) -> None:
    """Let it pass."""
    file = data(folder)
    with Client(fleet.address, patience=120) as client:
        releases = sorted({graph.release for graph in client.plan(one(year)) if graph.release})

        def start(name: str) -> None:
            fleet.start_node(
                name, "--threads", "1", "--store", str(folder / f"store-{name}"), "--memory-limit", "256MB",
                data={"rows": file}, allow_release=releases, timeout=PATIENCE,
            )  # fmt: skip

        for name in NODES:
            start(name)
        began, days = time.monotonic(), Days(client)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            runs = [pool.submit(lambda: finished(client.train(one(year)))) for _ in range(year.runs)]
            try:
                for number, run in enumerate(runs, 1):
                    run.result()
                    days.to(number * year.contexts // year.runs)
                    if (
                        number % 10 == 0
                    ):  # one that does not take part goes, and comes back with what it stored
                        name = NODES[1 + number // 10 % 2]
                        fleet.terminate(name, PATIENCE) if number % 20 else fleet.kill(name)
                        start(name)
                    if number % max(1, year.runs // 10) == 0:
                        say(f"{number} runs in {time.monotonic() - began:.0f} s: {sizes(fleet, folder)}")
            finally:
                pool.shutdown(cancel_futures=True)


class Days:
    """Contexts that come, and of which all but the last two have gone."""

    def __init__(self, client: Client) -> None:
        self._client, self._made = client, 0
        self._keys, self._values = tokens()

    def to(self, count: int) -> None:
        for number in range(self._made, count):
            context = self._client.create_context(f"day-{number}", **CONTEXT, replicas=2)
            context.append(self._keys, self._values)
            if number >= 2:
                self._client.context(f"day-{number - 2}").drop()
        self._made = max(self._made, count)


def sizes(fleet: LocalFleet, folder: Path) -> str:
    by_kind = state_bytes(folder / "state")
    return (
        f"{processor(fleet, AGGREGATOR):.0f} s of processor, memory {memory(fleet) >> 20} MiB, "
        f"state {sum(by_kind.values()) >> 10:,} KiB {by_kind}"
    )


def one(year: Year) -> object:
    return job(year.rounds)


def restarted(fleet: LocalFleet, folder: Path, *flags: str) -> Found:
    """kill -9 of the aggregator, and how it comes back."""
    fleet.kill(AGGREGATOR)
    began = time.monotonic()
    fleet.start_aggregator(*flags, timeout=PATIENCE)
    took, used = time.monotonic() - began, processor(fleet, AGGREGATOR)
    with Client(fleet.address, patience=60) as client:
        runs = len(client.runs())
    sizes = state_bytes(folder / "state")
    return Found(runs, used, took, memory(fleet), sum(sizes.values()), sizes)


def settled(fleet: LocalFleet, year: Year, seconds: float) -> None:
    """Wait until no more runs are kept than the setting says."""
    end = time.monotonic() + seconds
    with Client(fleet.address, patience=60) as client:
        while len(client.runs()) > year.kept:
            assert time.monotonic() < end, f"{len(client.runs())} runs are kept after {seconds:.0f} s"
            time.sleep(0.2)


def works(fleet: LocalFleet) -> None:
    """What is left is whole: each run's parameters, and the contexts that stayed."""
    with Client(fleet.address, patience=60) as client:
        for name in NODES:
            fleet.wait_ready(name)
        for info in client.runs():
            run = client.run(info.id)
            assert len(list(run)) == info.rounds, info
            assert all(np.isfinite(array).all() for array in run.parameters().values())
        for context in client.contexts():
            name = getattr(context, "name", "") or context.spec.name
            answer = client.context(name).attend(np.ones((1, 2, 4), np.float32), deadline=30)
            assert answer.exact, answer.missing
