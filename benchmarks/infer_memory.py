"""A model of 400 MB by layers over boxes of 120 MB each, and what each process really takes: Show 6.

    python -m benchmarks infer_memory

The model is a BERT encoder with random weights, made, cut and run whole in processes of their own; the
aggregator is a process that only runs it. A box is an `edge-node` with `--memory-limit` and a `--store`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Figure, Report

__all__ = ["report"]

LIMIT = 120_000_000
"""Bytes of a box."""
FROZEN = 0.87 * LIMIT
"""Of these what a part's weights may take: a little less than a node freezes, for its sessions."""
WIDTH, HEADS, LAYERS, WORDS, TOKENS = 768, 12, 12, 19_500, 64
REQUESTS = 5
MB = 1e6


def report(quick: bool) -> Report:
    """`quick`: a model of a sixth, and boxes of a sixth."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _apart("make", folder, quick)
        cut = _apart("cut", folder, quick)
        ran = _apart("run", folder, quick)
    boxes = ran["boxes"]
    segment = max(cut["bytes"])
    grown = ran["peak"] - ran["base"]
    bound = None if quick else 1.5  # what a chunk a node takes is no less for a small model
    figures = (
        Figure("the model's weights", cut["weights"] / MB, "MB"),
        Figure("boxes of 120 MB" if not quick else "boxes of 20 MB", len(boxes), ""),
        Figure("the largest part's weights", segment / MB, "MB"),
        Figure("the aggregator beyond its base, of the largest part", grown / segment, "", bound),
        Figure("the aggregator's base", ran["base"] / MB, "MB"),
        Figure("a box's daemon at its peak, of what it has at its start", ran["daemon"], ""),
        Figure("what a box counts, of its limit", ran["counted"] / ran["limit"], "", 1.0),
        Figure("a cell's own memory, of the part's weights", ran["cell"], ""),
        Figure("largest error, of the largest value (1e-5)", ran["error"] / 1e-5, "", 1.0),
        Figure("a request", ran["seconds"], "s"),
    )
    return Report("A model of 400 MB over boxes of 120 MB, by layers", figures, (), {"boxes": boxes})


def _apart(what: str, folder: Path, quick: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.infer_memory", what, str(folder), str(int(quick))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _make(folder: Path, quick: bool) -> dict[str, Any]:
    """The model's file, an input, and what the whole model answers."""
    import onnxruntime

    from edge_attention.graphs.builders.encoder import attention_encoder

    width, words, layers = (WIDTH, WORDS, LAYERS) if not quick else (WIDTH // 2, WORDS // 3, LAYERS // 2)
    rng = np.random.default_rng(0)

    def of(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape, np.float32) * np.float32(1.5 * shape[-1] ** -0.5)

    weights = {
        "embeddings.word_embeddings.weight": of(words, width),
        "embeddings.position_embeddings.weight": of(512, width),
        "embeddings.token_type_embeddings.weight": of(2, width),
    }
    for name in ("embeddings.LayerNorm",):
        weights |= {f"{name}.weight": 1 + of(width), f"{name}.bias": of(width)}
    for layer in range(layers):
        for name, rows, columns in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", 4 * width, width),
            ("output.dense", width, 4 * width),
        ):
            place = f"encoder.layer.{layer}.{name}"
            weights |= {f"{place}.weight": of(rows, columns), f"{place}.bias": of(rows)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            place = f"encoder.layer.{layer}.{name}"
            weights |= {f"{place}.weight": 1 + of(width), f"{place}.bias": of(width)}
    data = attention_encoder(weights, HEADS)
    (folder / "model.onnx").write_bytes(data)
    feeds = {
        "input_ids": rng.integers(0, words, (1, TOKENS)),
        "attention_mask": np.ones((1, TOKENS), np.int64),
    }
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    (answer,) = session.run(None, feeds)
    np.savez(folder / "known.npz", answer=answer, **feeds)
    return {}


def _cut(folder: Path, quick: bool) -> dict[str, Any]:
    """The cut by layers with the fewest parts of which each fits a box."""
    from benchmarks.infer_compute import forms_of
    from edge_attention.core.schedule.plan import CutPlan, Stage
    from edge_attention.graphs.axes.cut import analyse, cut_model, sizes_of
    from edge_attention.graphs.axes.model_reading import open_model
    from edge_attention.graphs.axes.narrow import layer_bytes, narrow_places

    known = np.load(folder / "known.npz")
    forms = forms_of({name: known[name] for name in known.files if name != "answer"})
    opened = open_model(folder / "model.onnx")
    axes = analyse(opened, sizes_of(opened, forms))
    sizes = layer_bytes(axes, narrow_places(axes))
    stages = _stages(sizes, FROZEN / 6 if quick else FROZEN)
    plan = CutPlan(tuple(Stage(layers, (part,)) for part, layers in enumerate(stages)))
    cut_model(folder / "model.onnx", plan, forms, folder / "cut")
    return {"weights": sum(sizes), "bytes": [sum(sizes[i] for i in layers) for layers in stages]}


def _stages(sizes: Sequence[int], most: float) -> list[range]:
    """Consecutive layers of `most` bytes at most: as few stages as can be."""
    found, start, size = list[range](), 0, 0
    for number, one in enumerate(sizes):
        if size + one > most:
            found.append(range(start, number))
            start, size = number, 0
        size += one
    return [*found, range(start, len(sizes))]


def _status(pid: int | str) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)
            if key in ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem")}  # fmt: skip


def _new_peak() -> None:
    """VmHWM is the peak of this process from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _children(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


async def _run(folder: Path, quick: bool) -> dict[str, Any]:
    from aggregator.engine.recipe import Engine, Recipe
    from aggregator.inference.runner import ModelRunner
    from aggregator.server import ServerSettings, running
    from edge_attention.graphs.axes.folder import CutFolder

    known = np.load(folder / "known.npz")
    feeds = {name: known[name] for name in known.files if name != "answer"}
    files = CutFolder(folder / "model.onnx", folder / "cut")
    schedule = files.schedule()
    limit = LIMIT // 6 if quick else LIMIT
    names = [f"box{part}" for part in range(schedule.parts)]
    engines: list[Engine] = []

    def capture(engine: Engine) -> Recipe:
        engines.append(engine)
        return Recipe("benchmark")

    settings = ServerSettings("127.0.0.1", 0, folder / "state", "127.0.0.1", None, 10.0, 60.0)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    async with running(settings, (capture,)) as port:
        (engine,) = engines
        try:
            for name in names:
                command = [sys.executable, "-c", "from edge_node.main import main; main()"]
                command += ["--aggregator", f"127.0.0.1:{port}", "--store", str(folder / name)]
                command += ["--name", name, "--threads", "1", "--memory-limit", f"{limit}"]
                processes[name] = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
            if not await engine.trips.all_live(names, 60.0, lambda sentence: None):
                raise SystemExit("a box of the benchmark did not come")
            await asyncio.sleep(2)
            runner = ModelRunner(engine)
            starts = {name: _status(process.pid)["VmRSS"] for name, process in processes.items()}
            base = _status("self")["VmRSS"]
            _new_peak()
            holders = {part: (name,) for part, name in enumerate(names)}
            await runner.prepare("m", "s", schedule, files, holders, seconds=300.0)
            seconds, error = [], 0.0
            for _ in range(REQUESTS):
                began = time.perf_counter()
                answer = await runner.infer("m", "s", feeds, 60.0)
                seconds.append(time.perf_counter() - began)
                (result,) = answer.results.values()
                whole = known["answer"]
                error = max(error, float(np.abs(result - whole).max() / np.abs(whole).max()))
            peak = _status("self")["VmHWM"]
            weights = [_weights(files, schedule, part) for part in range(schedule.parts)]
            boxes = {}
            for part, (name, process) in enumerate(processes.items()):
                (cell,) = _children(process.pid)
                boxes[name] = {"weights": weights[part], "start": starts[name]}
                boxes[name] |= {"daemon": _status(process.pid), "cell": _status(cell)}
            await asyncio.sleep(4)  # a heartbeat
            counted = max(member.memory for member in engine.membership.members())
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
    daemon = max(one["daemon"]["VmHWM"] / one["start"] for one in boxes.values())
    cell = max(one["cell"]["RssAnon"] / one["weights"] for one in boxes.values())
    return {
        "base": base, "peak": peak, "boxes": boxes, "daemon": daemon, "cell": cell, "error": error,
        "seconds": float(np.median(seconds)), "counted": counted, "limit": limit,
    }  # fmt: skip


def _weights(files: Any, schedule: Any, part: int) -> int:
    return sum(files.weight(weight).nbytes for weight in schedule.weights_of(part))


def main() -> None:
    what, folder, quick = sys.argv[1], Path(sys.argv[2]), bool(int(sys.argv[3]))
    if what == "run":
        found = asyncio.run(_run(folder, quick))
    else:
        found = {"make": _make, "cut": _cut}[what](folder, quick)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
