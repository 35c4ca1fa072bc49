"""The year itself: runs, contexts that come and go, nodes that come and go; and what it has come to."""

from __future__ import annotations

import time
from collections.abc import Callable
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


@dataclass(frozen=True)
class Year:
    """What there is to be: runs of so many rounds each, and contexts. `kept`: runs that stay at its end."""

    runs: int
    rounds: int
    contexts: int
    kept: int = KEEPING


@dataclass(frozen=True)
class Found:
    """What there was at one moment: seconds of the aggregator's start; its memory and its state, in bytes."""

    runs: int
    start_seconds: float
    memory: int
    state: int
    by_kind: dict[str, int]


def memory(fleet: LocalFleet) -> int:
    """Resident bytes of the aggregator."""
    return int(psutil.Process(fleet.child(AGGREGATOR).pid).memory_info().rss)


def live(fleet: LocalFleet, folder: Path, year: Year, say: Callable[[str], None]) -> None:
    """Let it pass."""
    file = data(folder)
    with Client(fleet.address, patience=120) as client:
        releases = sorted({graph.release for graph in client.plan(one(year)) if graph.release})

        def start(name: str) -> None:
            fleet.start_node(
                name, "--threads", "1", "--store", str(folder / f"store-{name}"), "--memory-limit", "256MB",
                data={"rows": file}, allow_release=releases,
            )  # fmt: skip

        for name in NODES:
            start(name)
        keys, values = tokens()
        began, made = time.monotonic(), 0
        for number in range(year.runs):
            run = client.train(one(year))
            due = (number + 1) * year.contexts // year.runs
            while made < due:
                context = client.create_context(f"day-{made}", **CONTEXT, replicas=2)
                context.append(keys, values)
                if made >= 2:  # some stay for a while
                    client.context(f"day-{made - 2}").drop()
                made += 1
            if number % 10 == 9:  # one that does not take part goes, and comes back with what it stored
                name = NODES[1 + number // 10 % 2]
                fleet.kill(name) if number % 20 == 9 else fleet.terminate(name)
                start(name)
            finished(run)
            if (number + 1) % max(1, year.runs // 10) == 0:
                sizes = state_bytes(folder / "state")
                say(
                    f"{number + 1} runs, {(number + 1) * year.rounds:,} rounds, {made} contexts in "
                    f"{time.monotonic() - began:.0f} s: memory {memory(fleet) >> 20} MiB, state "
                    f"{sum(sizes.values()) >> 10:,} KiB {sizes}"
                )


def one(year: Year) -> object:
    return job(year.rounds)


def restarted(fleet: LocalFleet, folder: Path, *flags: str) -> Found:
    """kill -9 of the aggregator, and how it comes back."""
    fleet.kill(AGGREGATOR)
    began = time.monotonic()
    fleet.start_aggregator(*flags)
    took = time.monotonic() - began
    with Client(fleet.address, patience=60) as client:
        runs = len(client.runs())
    sizes = state_bytes(folder / "state")
    return Found(runs, took, memory(fleet), sum(sizes.values()), sizes)


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
