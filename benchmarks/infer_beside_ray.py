"""Ray with one actor a stage beside ONNX Runtime on one box, by turns: MiniLM's sizes in two stages.

A request's milliseconds, what each process holds, and what a caller sees of the next request when an actor is
killed. Needs `ray` (the extra `bench`).
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
from onnx import ModelProto, numpy_helper

from benchmarks.infer_compute import forms_of
from benchmarks.infer_models import MINILM, feeds_of, model_file, whole_session
from edge_attention.core.schedule.plan import CutPlan, Stage
from edge_attention.core.schedule.schedule import Constant, Delivery, ModelInput, Schedule, Weight
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.cut import analyse, cut, sizes_of
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places

__all__ = ["ray_stages"]

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


def ray_stages(length: int) -> dict[str, Any]:
    """ONNX Runtime and Ray by turns, at one length."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_file(MINILM, folder)
        feeds = feeds_of(model, 1, length)
        whole = whole_session(model)
        expected = whole.run(None, feeds)[0]
        schedule, files = stage_files(model, feeds, 2, folder)
        stages = RayStages(schedule, files)
        try:
            error = float(np.abs(stages.run(feeds) - expected).max() / np.abs(expected).max())
            alone, staged = [], []
            for _ in range(TURNS):
                began = time.perf_counter()
                whole.run(None, feeds)
                alone.append(time.perf_counter() - began)
                began = time.perf_counter()
                stages.run(feeds)
                staged.append(time.perf_counter() - began)
            about = stages.about()
            os.kill(about[1][0], signal.SIGKILL)
            began = time.perf_counter()
            try:
                stages.run(feeds)
                after = "answers"
            except Exception as problem:  # whatever Ray raises: its name is what is reported
                after = type(problem).__name__
            return {
                "length": length,
                "onnxruntime_ms": 1e3 * statistics.median(alone),
                "ray_ms": 1e3 * statistics.median(staged),
                "ray_by_onnxruntime": statistics.median(s / a for s, a in zip(staged, alone, strict=True)),
                "ray_actor_resident_mb": [rss / 1e6 for _, rss in about],
                "ray_bytes": sum(value.nbytes for value in feeds.values()) + 3 * expected.nbytes,
                "ray_error": error,
                "ray_after_kill": after,
                "ray_after_kill_seconds": time.perf_counter() - began,
            }
        finally:
            stages.close()
