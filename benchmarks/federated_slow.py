"""A node slowed tenfold: what it costs synchronous rounds, rounds with a deadline, and FedBuff.

Five nodes train the digits. One of them is stopped and continued by signals so that it runs a tenth of the
time, in slices of tens of milliseconds: it is slow in everything, as a busy or a small machine is. Each way
to train is timed with and without it in turn, by the mean wall time of its rounds. FedBuff takes five updates
a step, as many as a synchronous round has. Of five machines one of which is ten times as slow, 4.1 are left,
18% fewer updates a second; here nodes share the cores, and those of the slow one are free for the others.
"""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.report import Figure, Report
from edge_attention import Client
from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.core.messages.training import (
    LocalSpec,
    LossSpec,
    OptimizerSpec,
    SelectionSpec,
    StrategySpec,
)
from edge_attention.demo.digits import CLASSES, DATASET, NODES, SIDE, Digits
from edge_attention.graphs.builders import attention_patches
from edge_attention.jobs.federated_job import FederatedJob, FederatedModel

SLOW = NODES[-1]
RUNS, SLEEPS = 0.02, 0.18
"""Seconds the slow node runs, and then does not."""
WARM = 5
ENDLESS = 1_000_000
LOST = 0.2
"""FedBuff may lose a fifth of its rounds a second."""


def report(quick: bool) -> Report:
    """A round's mean wall time, usually and with one slow node, for each way to train."""
    turns, rounds = (2, 20) if quick else (5, 60)
    base = FederatedJob(
        name="slow",
        model=FederatedModel(
            attention_patches(SIDE, SIDE, 4, CLASSES),
            LossSpec("cross_entropy", "logits", "labels"),
            {"labels": "label"},
        ),
        dataset=DATASET,
        nodes=NODES,
        strategy="fedavg",
        local=LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=16, steps=10),
        rounds=ENDLESS,
    )
    with tempfile.TemporaryDirectory() as name, LocalFleet() as fleet:
        digits = Digits.load()
        fleet.start_aggregator("--lease", "60")
        with Client(fleet.address) as client:
            releases = sorted({graph.release for graph in client.plan(base) if graph.release})
            for node, images in digits.nodes.items():
                data = {DATASET: images.write(Path(name) / f"{node}.npz")}
                fleet.start_node(node, "--threads", "1", data=data, allow_release=releases)
            pid = fleet.child(SLOW).pid
            usual = statistics.fmean(_rounds(client, base, rounds))
            # Twice what a round takes, so that rounds of five nodes end before it.
            deadline = replace(base, selection=SelectionSpec(quorum=0.8, deadline_seconds=2 * usual))
            buffered = replace(base, strategy=StrategySpec("fedbuff", {"buffer": len(NODES)}))
            figures: list[Figure] = []
            for way, job in (("waits for all", base), ("deadline", deadline), ("fedbuff", buffered)):
                without: list[float] = []
                slowed: list[float] = []
                for _ in range(turns):
                    without += _rounds(client, job, rounds)
                    with _slow(pid):
                        slowed += _rounds(client, job, max(10, rounds // 4) if job is base else rounds)
                usually, slowly = statistics.fmean(without), statistics.fmean(slowed)
                figures += (
                    Figure(f"{way}: usual", 1e3 * usually, "ms"),
                    Figure(f"{way}: with a slow node", 1e3 * slowly, "ms"),
                )
                if job is buffered:
                    figures.append(
                        Figure(f"{way}: rounds a second lost", 1 - usually / slowly, "share", LOST)
                    )
    return Report("A round where one node of five is ten times as slow", tuple(figures))


def _rounds(client: Client, job: FederatedJob, count: int) -> list[float]:
    """Seconds of `count` rounds of a run, the first few left out."""
    run = client.train(job)
    found = list(itertools.islice(run, WARM + count))
    run.stop()
    return [one.seconds["all"] for one in found[WARM:]]


@contextmanager
def _slow(pid: int) -> Iterator[None]:
    """The process runs a tenth of the time."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(SLEEPS)
            os.kill(pid, signal.SIGCONT)
            done.wait(RUNS)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
