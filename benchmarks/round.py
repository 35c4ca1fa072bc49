"""A fusion training round's wall time by the time that its graphs take.

The demo's model (three labs, ten tokens each, batch 64) and a larger one (two nodes, 64 tokens each, dims
of 64, batch 256). `all` is the aggregator's clock over a round, the commit aside. Two sums over all nodes of
a round's graphs:

`graphs`: as nodes report it, the trip to a cell included, and of tasks on private data in steps of 2 ms.
`kernels`: what ONNX Runtime itself ran, in daemons and in cells (round_node.py); no node tells that.

Nodes that run at the same time bring the ratios under 1. Beside them the processor time of a round, by whose
it is: on two cores a round cannot take less than half of all of it.
"""

from __future__ import annotations

import signal
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.metrics import processor_seconds
from benchmarks.report import Figure, Report
from edge_attention import Client
from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet
from edge_attention.core.messages.training import OptimizerSpec
from edge_attention.demo import patients
from edge_attention.graphs.builders.tabular import classifier_head, tabular_encoder
from edge_attention.jobs.job import Encoder, FusionJob, Head, QueriesSpec

NODES = ("left", "right")
FEATURES, SAMPLES, BATCH, DIM = 64, 1024, 256, 64
WARM = 5
NODE = "benchmarks.round_node"
WALL_BOUND = 2.0
"""Times that a round may take what ONNX Runtime runs for it, on a machine with nothing else to do."""
STAGES = ("all", "graphs", "forward", "head", "backward", "merge", "optimizer")


def report(quick: bool) -> Report:
    """Median ratio of a round's wall time by its graphs' time; medians of both, and of every stage."""
    figures: list[Figure] = []
    seconds_of, spent_of = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = replace(patients.job(), rounds=40 if quick else 150, holdout=0.0)
        seconds_of["demo"], spent_of["demo"] = _train(demo, patients.Patients.load().write(folder))
        seconds_of["larger"], spent_of["larger"] = _train(_larger(15 if quick else 40), _write(folder))
    for model, seconds in seconds_of.items():
        ratio = statistics.median(a / g for a, g in zip(seconds["all"], seconds["graphs"], strict=True))
        bound = WALL_BOUND if model == "demo" else None
        wall = statistics.mean(seconds["all"])
        spent = spent_of[model]
        figures.append(Figure(f"{model}: wall by kernels", wall / spent["kernels"], "times", bound))
        figures.append(Figure(f"{model}: wall by graphs", ratio, "times"))
        figures.append(Figure(f"{model}: kernels, mean", 1e3 * spent.pop("kernels"), "ms"))
        figures.append(Figure(f"{model}: all, mean", 1e3 * wall, "ms"))
        figures += (
            Figure(f"{model}: {stage}", 1e3 * statistics.median(values), "ms")
            for stage, values in seconds.items()
        )
        figures += (
            Figure(f"{model}: processor time of the {whose}", 1e3 * value, "ms")
            for whose, value in spent.items()
        )
    return Report("One training round by fusion", tuple(figures))


def _train(
    job: FusionJob, files: Mapping[str, Mapping[str, Path]]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Stage -> seconds of each round, the first few left out; and of these what a round takes on average.

    That is seconds of `kernels`, and of processors by whose they are.
    """
    fleet = LocalFleet()
    fleet.node_module = NODE
    with fleet:
        fleet.start_aggregator()
        with Client(fleet.address) as client:
            planned = client.plan(job)
            for node, data in files.items():
                releases = sorted(
                    {graph.release for graph in planned if graph.node == node and graph.release}
                )
                fleet.start_node(node, "--threads", "1", data=data, allow_release=releases)
            rounds, began = [], dict[str, float]()
            for number, done in enumerate(client.train(job), 1):
                rounds.append(done.seconds)
                if number == WARM:
                    began = _spent(fleet, files, 1)
            ended = _spent(fleet, files, 2)
    rounds = rounds[WARM:]
    spent = {name: (ended[name] - began[name]) / len(rounds) for name in ended}
    return {stage: [seconds[stage] for seconds in rounds] for stage in STAGES}, spent


def _spent(fleet: LocalFleet, nodes: Iterable[str], turn: int) -> dict[str, float]:
    """Seconds so far: what ONNX Runtime ran, and of processors by whose. Asked for the `turn`th time."""
    pids = [fleet.child(node).pid for node in nodes]
    cells = [cell.pid for pid in pids for cell in psutil.Process(pid).children()]
    return {
        "kernels": sum(_kernel_seconds(fleet, node, turn) for node in nodes),
        "aggregator": processor_seconds(fleet.child(AGGREGATOR).pid),
        "nodes": sum(map(processor_seconds, pids)),
        "cells": sum(map(processor_seconds, cells)),
    }


def _kernel_seconds(fleet: LocalFleet, node: str, turn: int) -> float:
    """What ONNX Runtime has run on a node so far; it is asked for the `turn`th time."""
    child = fleet.child(node)
    child.process.send_signal(signal.SIGUSR1)
    return float(child.wait_for(rf"KERNELS {turn} (\S+)")[1])


def _larger(rounds: int) -> FusionJob:
    def encoder(seed: int) -> bytes:
        return tabular_encoder(FEATURES, key_heads=1, key_dim=DIM, value_dim=DIM, width=DIM, seed=seed)

    return FusionJob(
        name="larger",
        encoders=tuple(Encoder(node, "data", encoder(seed), {"x": "x"}) for seed, node in enumerate(NODES)),
        head=Head(
            NODES[0], "data", classifier_head(queries=2, query_heads=1, value_dim=DIM, classes=2), {"y": "y"}
        ),
        queries=QueriesSpec(count=2, heads=1, dim=DIM),
        optimizer=OptimizerSpec("adam", {"lr": 1e-3}),
        rounds=rounds,
        batch=BATCH,
    )


def _write(folder: Path) -> dict[str, dict[str, Path]]:
    files: dict[str, dict[str, Path]] = {}
    rng = np.random.default_rng(0)
    for node in NODES:
        files[node] = {"data": folder / f"{node}.npz"}
        x, y = rng.standard_normal((SAMPLES, FEATURES), np.float32), rng.integers(0, 2, SAMPLES)
        np.savez(files[node]["data"], id=np.arange(SAMPLES), x=x, y=y)
    return files
