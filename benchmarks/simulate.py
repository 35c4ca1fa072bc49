"""The digits job over 100 nodes: simulated, and by a daemon each, start to end.

Both have the same rows by node, the same aggregator and rounds, and come to the same losses, or it fails. The
time of the daemons has their start and registration in it, and the aggregator's, as that of the simulation
has its command's own: what somebody waits for who tries a strategy. Modules are compiled before, as pip does
with what it installs. Needs scikit-learn for the images.
"""

from __future__ import annotations

import compileall
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, Report
from edge_attention import Client
from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.demo.digits import Digits
from edge_attention.demo.federated_jobs import digit_model
from edge_attention.jobs.job_file import read_job
from edge_attention.simulation.partition import RowSharing, partition
from edge_attention.tables.reading import read_table

BOUND = 1 / 20
"""A simulation's time by that of a process a node."""
READY_SECONDS = 600.0
ROOT = Path(__file__).parents[1]
JOB = """
name = "digits"
dataset = "digits"
strategy = "fedavg"
rounds = {rounds}
[model]
file = "model.onnx"
loss = {{ name = "cross_entropy", output = "logits" }}
inputs = {{ labels = "label" }}
[local]
optimizer = {{ name = "sgd", lr = 0.1 }}
batch = 16
epochs = 1
"""


def report(quick: bool) -> Report:
    """100 nodes and ten rounds; with `quick` ten and three."""
    nodes, rounds = (10, 3) if quick else (100, 10)
    for package in ("protos", "edge_attention", "edge_node", "aggregator"):
        compileall.compile_dir(ROOT / package, quiet=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Digits.load().train.write(folder / "digits.npz")
        (folder / "model.onnx").write_bytes(digit_model())
        (folder / "job.toml").write_text(JOB.format(rounds=rounds))
        simulated = _simulated(folder, nodes)
        apart = _apart(folder, nodes)
    if simulated.losses != apart.losses:
        raise SystemExit(f"they differ: losses {simulated.losses} simulated, {apart.losses} by daemons")
    figures = (
        Figure("simulated", simulated.seconds, "s"),
        Figure("simulated, a round", simulated.rounds, "s"),
        Figure("a daemon a node", apart.seconds, "s"),
        Figure("a daemon a node, a round", apart.rounds, "s"),
        Figure("a round simulated by one of daemons", simulated.rounds / apart.rounds, ""),
        Figure(
            "simulated by a daemon a node", simulated.seconds / apart.seconds, "", None if quick else BOUND
        ),
    )
    return Report(f"The digits job over {nodes} nodes, {rounds} rounds, start to end", figures)


@dataclass(frozen=True)
class Took:
    """Seconds from the start to the end, those of a round in the middle, and the rounds' losses."""

    seconds: float
    rounds: float
    losses: tuple[float, ...]


def _simulated(folder: Path, nodes: int) -> Took:
    words = ["simulate", "job.toml", "--data", "digits.npz", "--nodes", str(nodes), "--json"]
    began = time.perf_counter()
    command = [sys.executable, "-m", "edge_attention.cli.main", *words]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    took = time.perf_counter() - began
    rounds = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"run"')]
    seconds = [record["seconds"]["all"] for record in rounds]
    return Took(took, statistics.median(seconds), tuple(record["loss"] for record in rounds))


def _apart(folder: Path, nodes: int) -> Took:
    table = read_table(folder / "digits.npz")
    with np.load(folder / "digits.npz") as file:
        arrays = dict(file)
    for number, rows in enumerate(partition(table, RowSharing(), nodes, 0), 1):
        np.savez(folder / f"{number}.npz", **{column: array[rows] for column, array in arrays.items()})
    began = time.perf_counter()
    with LocalFleet() as fleet:
        fleet.start_aggregator("--lease", "60")
        flags = ("--threads", "1", "--allow-own-data")
        for number in range(1, nodes + 1):
            data = {"digits": folder / f"{number}.npz"}
            fleet.start_node(f"node-{number}", *flags, data=data, wait=False)
        for number in range(1, nodes + 1):
            fleet.wait_ready(f"node-{number}", READY_SECONDS)
        with Client(fleet.address, timeout=READY_SECONDS) as client:
            run = client.train(read_job(folder / "job.toml"))
            rounds = list(run)
    took = time.perf_counter() - began
    seconds = [record.seconds["all"] for record in rounds]
    return Took(took, statistics.median(seconds), tuple(record.loss for record in rounds))
