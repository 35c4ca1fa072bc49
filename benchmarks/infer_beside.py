"""Beside what else one would take: `python -m benchmarks.infer_beside`, MiniLM's sizes, 128 and 512 tokens.

ONNX Runtime on one box and Ray with one actor a stage, two stages, in turns: a request's milliseconds, what
each process holds, and what a caller sees of the next request when an actor is killed; and ours over two
nodes by tokens and by layers (infer_beside_ours.py). Needs `ray` (the extra `bench`). With
`--llama-cpp FOLDER --gguf FILE` llama.cpp over RPC as well (infer_beside_llama.py).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
from onnx import ModelProto, numpy_helper

from benchmarks.infer_beside_llama import llama_cpp
from benchmarks.infer_beside_ours import ours
from benchmarks.infer_compute import forms_of
from benchmarks.infer_models import MINILM, feeds_of, model_file, whole_session
from edge_attention.core.schedule.plan import CutPlan, Stage
from edge_attention.core.schedule.schedule import Constant, Delivery, ModelInput, Schedule, Weight
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.cut import analyse, cut, sizes_of
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places

TURNS = 15


def stage_files(
    model: Path, feeds: Mapping[str, Array], stages: int, folder: Path
) -> tuple[Schedule, list[Path]]:
    """The model as one ONNX file a stage, each whole in itself."""
    opened = open_model(model)
    axes = analyse(opened, sizes_of(opened, forms_of(feeds)))
    borders = np.linspace(0, len(narrow_places(axes)) + 1, stages + 1).astype(int).tolist()
    plan = CutPlan(tuple(Stage(range(borders[n], borders[n + 1]), (n,)) for n in range(stages)))
    emitted = cut(axes, plan)
    files = []
    for step in emitted.schedule.steps:
        (segment,) = step.segments
        data = ModelProto.FromString(emitted.graphs[emitted.schedule.graphs[segment.graph]])
        inputs = list(data.graph.input)
        del data.graph.input[:]
        for value in inputs:
            source = segment.inputs[value.name]
            if isinstance(source, Weight):
                data.graph.initializer.append(numpy_helper.from_array(opened.piece(source), value.name))
            elif isinstance(source, Constant):
                known = emitted.schedule.constants[source.name]
                array = emitted.constants[known.digest]
                data.graph.initializer.append(numpy_helper.from_array(array, value.name))
            else:
                data.graph.input.append(value)
        files.append(folder / f"stage-{len(files)}.onnx")
        files[-1].write_bytes(data.SerializeToString())
    return emitted.schedule, files


class RayStages:
    """Ray with one actor a stage, what a user would write."""

    def __init__(self, schedule: Schedule, files: list[Path]) -> None:
        import ray

        self._ray = ray
        ray.init(num_cpus=len(files) + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

        class StageActor:
            def __init__(self, path: str) -> None:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = 1
                self.session = onnxruntime.InferenceSession(path, options)

            def run(self, given: dict[str, Any]) -> list[Any]:
                found: list[Any] = self.session.run(None, given)
                return found

            def about(self) -> tuple[int, int]:
                return os.getpid(), psutil.Process().memory_info().rss

            def outputs(self) -> list[str]:
                return [value.name for value in self.session.get_outputs()]

        remote: Any = ray.remote(num_cpus=1)(StageActor)
        self.actors = [remote.remote(str(path)) for path in files]
        self._schedule = schedule
        self._outputs = [ray.get(actor.outputs.remote()) for actor in self.actors]

    def run(self, feeds: Mapping[str, Array]) -> Array:
        made: dict[str, Array] = {}
        for actor, names, step in zip(self.actors, self._outputs, self._schedule.steps, strict=True):
            (segment,) = step.segments
            given = {}
            for name, source in segment.inputs.items():
                if isinstance(source, ModelInput):
                    given[name] = feeds[source.name]
                elif isinstance(source, Delivery):
                    given[name] = made[source.boundary]
            out = dict(zip(names, self._ray.get(actor.run.remote(given)), strict=True))
            made |= {one.boundary: out[one.output] for one in segment.contributions}
        return made[next(iter(self._schedule.results.values()))]

    def about(self) -> list[tuple[int, int]]:
        """Process id and resident bytes of each actor."""
        found: list[tuple[int, int]] = self._ray.get([actor.about.remote() for actor in self.actors])
        return found

    def close(self) -> None:
        self._ray.shutdown()


def compared(length: int) -> dict[str, Any]:
    """ONNX Runtime and Ray by turns, at one length."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_file(MINILM, folder)
        feeds = feeds_of(model, 1, length)
        whole = whole_session(model)
        expected = whole.run(None, feeds)[0]
        schedule, files = stage_files(model, feeds, 2, folder)
        ray_stages = RayStages(schedule, files)
        try:
            error = float(np.abs(ray_stages.run(feeds) - expected).max() / np.abs(expected).max())
            alone, staged = [], []
            for _ in range(TURNS):
                began = time.perf_counter()
                whole.run(None, feeds)
                alone.append(time.perf_counter() - began)
                began = time.perf_counter()
                ray_stages.run(feeds)
                staged.append(time.perf_counter() - began)
            about = ray_stages.about()
            os.kill(about[1][0], signal.SIGKILL)
            began = time.perf_counter()
            try:
                ray_stages.run(feeds)
                after = "answers"
            except Exception as problem:  # whatever Ray raises: its name is what is reported
                after = type(problem).__name__
            return {
                "length": length,
                "onnxruntime_ms": 1e3 * statistics.median(alone),
                "onnxruntime_resident_mb": psutil.Process().memory_info().rss / 1e6,
                "ray_ms": 1e3 * statistics.median(staged),
                "ray_by_onnxruntime": statistics.median(s / a for s, a in zip(staged, alone, strict=True)),
                "ray_actor_resident_mb": [rss / 1e6 for _, rss in about],
                "ray_bytes": sum(value.nbytes for value in feeds.values()) + 3 * expected.nbytes,
                "ray_error": error,
                "ray_after_kill": after,
                "ray_after_kill_seconds": time.perf_counter() - began,
            }
        finally:
            ray_stages.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="MiniLM over two processes: ours, Ray, llama.cpp, by turns.")
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama-bench and ggml-rpc-server")
    parser.add_argument("--gguf", type=Path, help="MiniLM as llama.cpp reads it, float32")
    wanted = parser.parse_args()
    if (wanted.llama_cpp is None) != (wanted.gguf is None):
        parser.error("--llama-cpp and --gguf go together: programs and the model that they run")
    for length in (128, 512):
        if wanted.llama_cpp is not None:
            print(json.dumps({"llama.cpp": llama_cpp(wanted.llama_cpp, wanted.gguf, length)}, indent=1))
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"length": length, **ours(model_file(MINILM, Path(folder)), length)}, indent=1))
        print(json.dumps(compared(length), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
