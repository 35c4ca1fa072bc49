"""Weights frozen into a prepared program against weights as inputs: a [768, 3072] product over a real node.

An aggregator in this process, its trip, a node in another, and the graph in the node's cell, as any graph of
somebody else. Both programs are called, turn by turn, with the same rows; what comes back is a number a row,
so that the way is short. Seconds in graphs are the node's; `whole` is the aggregator's clock around the trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from aggregator.engine.recipe import Engine, Recipe
from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand
from aggregator.server import ServerSettings, running
from benchmarks.report import Figure, Report
from edge_attention.core.errors import Unavailable
from edge_attention.core.messages.program import Frozen, Return, Run, Stored
from edge_attention.core.tensors import Array

WIDTH, OUT = 768, 3072
ROWS = (16, 128)
BOUND = 1 / 1.3
"""Frozen by as inputs, seconds in graphs."""
WARM = 5
WEIGHTS = "job/frozen/w"


def report(quick: bool) -> Report:
    """Medians of both ways, and their ratio, for each number of rows."""
    figures: list[Figure] = []
    found = asyncio.run(_measured(40 if quick else 200))
    for rows, ways in found.items():
        for what, bound in (("graphs", BOUND), ("whole", None)):
            inputs, frozen = (ways[f"{way}, {what}"] for way in ("inputs", "frozen"))
            ratio = statistics.median(f / i for f, i in zip(frozen, inputs, strict=True))
            figures.append(Figure(f"{rows} rows: frozen by as inputs, {what}", ratio, "x", bound))
        figures += (Figure(f"{rows} rows: {way}", 1e3 * statistics.median(ways[way]), "ms") for way in ways)
    return Report("Weights frozen into a prepared program", tuple(figures))


def _product() -> tuple[str, bytes]:
    """y = the largest of each row of x w."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("ReduceMax", ["xw"], ["y"], axes=[1], keepdims=0),
        ],
        "product",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [WIDTH, OUT]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows"])],
    )
    opset = [helper.make_opsetid("", 17)]
    data = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    return hashlib.sha256(data).hexdigest(), data


async def _measured(turns: int) -> dict[int, dict[str, list[float]]]:
    """Rows -> way and what of it -> seconds of each turn."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((WIDTH, OUT)).astype(np.float32)
    digest, data = _product()
    found: dict[int, dict[str, list[float]]] = {}
    async with _fleet() as engine:
        file = engine.state.directory / "product.onnx"
        file.write_bytes(data)
        engine.bulk.lend_file(digest, file, 0, len(data))
        placed = Errand("store", ("n",), range(1), (), tensors={WEIGHTS: weights})
        await _answer(engine, placed)
        steps = (
            Run(digest, {"x": Stored("task/x"), "w": Stored(WEIGHTS)}, {"y": "task/y"}),
            Return("task/y", "y"),
        )
        for rows in ROWS:
            x = rng.standard_normal((rows, WIDTH)).astype(np.float32)
            wanted = (x.astype(np.float64) @ weights.astype(np.float64)).max(axis=1)
            seconds: dict[str, list[float]] = {}
            for turn in range(turns + WARM):
                for way, frozen in (("inputs", ()), ("frozen", (Frozen(WEIGHTS, version=1),))):
                    errand = Errand(
                        "product", ("n",), range(1), steps,
                        {"y": (np.dtype(np.float32), (rows,))}, {"task/x": x}, frozen=frozen,
                    )  # fmt: skip
                    began = time.perf_counter()
                    y, in_graphs = await _answer(engine, errand)
                    whole = time.perf_counter() - began
                    assert y is not None
                    assert np.abs(y - wanted).max() < 1e-5 * np.abs(wanted).max()
                    if turn >= WARM:
                        seconds.setdefault(f"{way}, graphs", []).append(in_graphs)
                        seconds.setdefault(f"{way}, whole", []).append(whole)
            found[rows] = seconds
    return found


async def _answer(engine: Engine, errand: Errand) -> tuple[Array | None, float]:
    """What comes back as y, and seconds in graphs."""
    answers: list[Returned] = []
    outcome = await engine.trips.make([errand], 60.0, answers.append)
    if outcome.missing:
        raise Unavailable(outcome.why)
    (answer,) = answers
    return (answer.array("y") if answer.tensors else None), outcome.run_seconds[errand.shard]


@contextlib.asynccontextmanager
async def _fleet() -> AsyncIterator[Engine]:
    """An aggregator here and a node of one thread beside it."""
    engines: list[Engine] = []

    def capture(engine: Engine) -> Recipe:
        engines.append(engine)
        return Recipe("benchmark")

    with tempfile.TemporaryDirectory() as folder:
        settings = ServerSettings("127.0.0.1", 0, Path(folder), "127.0.0.1", None, 10.0, 60.0)
        async with running(settings, (capture,)) as port:
            node = await asyncio.to_thread(_node, port)
            try:
                if not await engines[0].trips.all_live(["n"], 60.0, lambda sentence: None):
                    raise Unavailable("the node has not come")
                yield engines[0]
            finally:
                node.kill()
                await asyncio.to_thread(node.wait)


def _node(port: int) -> subprocess.Popen[bytes]:
    command = ["--aggregator", f"127.0.0.1:{port}", "--name", "n", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", "from edge_node.main import main; main()", *command], stderr=subprocess.DEVNULL
    )
