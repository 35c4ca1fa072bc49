"""Ours beside what else one would take: MiniLM's sizes over two nodes, by turns with ONNX Runtime.

A fleet of its own for each plan, so that what its processes hold is the plan's. One of the nodes is killed in
the end, and the request after it is answered by the other.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from aggregator.inference.runner import ModelRunner
from benchmarks.infer_compute import forms_of
from benchmarks.infer_fleet import node_fleet
from benchmarks.infer_models import feeds_of, whole_session
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.graphs.axes.cut import analyse, cut_model, sizes_of
from edge_attention.graphs.axes.folder import CutFolder
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places

__all__ = ["ours"]

WARM, TURNS = 3, 15


def ours(model: Path, length: int) -> dict[str, Any]:
    """By plan: what it took, by ONNX Runtime too; bytes; what each process holds; what comes after a kill."""
    opened = open_model(model)
    axes = analyse(opened, sizes_of(opened, forms_of(feeds_of(model, 1, length))))
    layers = len(narrow_places(axes)) + 1
    plans = {
        "tokens": CutPlan((Stage(range(layers), (0, 1), Cut.TOKENS, Crossing.GATHER),)),
        "layers": CutPlan((Stage(range(layers // 2), (0,)), Stage(range(layers // 2, layers), (1,)))),
    }
    return {name: asyncio.run(_ran(model, length, plan)) for name, plan in plans.items()}


async def _ran(model: Path, length: int, plan: CutPlan) -> dict[str, Any]:
    feeds, whole = feeds_of(model, 1, length), whole_session(model)
    expected = whole.run(None, feeds)[0]
    result = whole.get_outputs()[0].name
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with node_fleet({"a": 1.0, "b": 1.0}, folder) as (engine, processes):
            runner = ModelRunner(engine)
            schedule = await asyncio.to_thread(cut_model, model, plan, forms_of(feeds), folder / "cut")
            files = CutFolder(model, folder / "cut")
            await runner.prepare("m", "s", schedule, files, {0: ("a",), 1: ("b",)}, seconds=60.0)
            alone, taken = [], []
            for turn in range(-WARM, TURNS):
                began = time.perf_counter()
                await asyncio.to_thread(whole.run, None, feeds)
                between = time.perf_counter()
                answer = await runner.infer("m", "s", feeds, 60.0)
                if turn >= 0:
                    alone.append(between - began)
                    taken.append(time.perf_counter() - between)
            error = float(np.abs(answer.results[result] - expected).max() / np.abs(expected).max())
            held = {node: _held(process.pid) for node, process in processes.items()}
            processes["b"].kill()
            began = time.perf_counter()
            after = await runner.infer("m", "s", feeds, 60.0)
            return {
                "ms": 1e3 * statistics.median(taken),
                "by_onnxruntime": statistics.median(t / a for t, a in zip(taken, alone, strict=True)),
                "bytes": sum(answer.sent.values()) + sum(answer.received.values()),
                "error": error,
                "daemon_and_cells_mb": held,
                "after_kill": "exact" if after.exact else after.lacking,
                "after_kill_seconds": time.perf_counter() - began,
                "same_bits_after_kill": bool((after.results[result] == answer.results[result]).all()),
            }


def _held(pid: int) -> list[float]:
    """Megabytes of the daemon and of its cells; what they share, by share."""
    daemon = psutil.Process(pid)
    processes = [daemon, *daemon.children(recursive=True)]
    return [round(process.memory_full_info().pss / 1e6, 1) for process in processes]
