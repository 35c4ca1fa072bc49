"""The digits job over 100 nodes: simulated in a few processes, and in a process a node, start to end.

Both have the same rows by node, the same aggregator, the same rounds. Needs scikit-learn for the images.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Digits.load().train.write(folder / "digits.npz")
        (folder / "model.onnx").write_bytes(digit_model())
        (folder / "job.toml").write_text(JOB.format(rounds=rounds))
        simulated = _simulated(folder, nodes)
        apart = _apart(folder, nodes)
    figures = (
        Figure("simulated", simulated, "s"),
        Figure("a process a node", apart, "s"),
        Figure("simulated by a process a node", simulated / apart, "", None if quick else BOUND),
    )
    return Report(f"The digits job over {nodes} nodes, {rounds} rounds, start to end", figures)


def _simulated(folder: Path, nodes: int) -> float:
    words = ["simulate", "job.toml", "--data", "digits.npz", "--nodes", str(nodes), "--json"]
    began = time.perf_counter()
    command = [sys.executable, "-m", "edge_attention.cli.main", *words]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _apart(folder: Path, nodes: int) -> float:
    table = read_table(folder / "digits.npz")
    with np.load(folder / "digits.npz") as file:
        arrays = dict(file)
    for number, rows in enumerate(partition(table, RowSharing(), nodes, 0)):
        np.savez(folder / f"{number}.npz", **{column: array[rows] for column, array in arrays.items()})
    began = time.perf_counter()
    with LocalFleet() as fleet:
        fleet.start_aggregator("--lease", "60")
        flags = ("--threads", "1", "--allow-own-data")
        for number in range(nodes):
            data = {"digits": folder / f"{number}.npz"}
            fleet.start_node(f"node-{number}", *flags, data=data, wait=False)
        for number in range(nodes):
            fleet.wait_ready(f"node-{number}", READY_SECONDS)
        with Client(fleet.address, timeout=READY_SECONDS) as client:
            run = client.train(read_job(folder / "job.toml"))
            for _ in run:
                pass
    return time.perf_counter() - began
