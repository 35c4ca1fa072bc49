"""Runs a schedule in this process, its parts one after the other, with ONNX Runtime.

What tests and measurements of computing alone use. Boundaries fold as they do on the aggregator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnxruntime
from onnx import ModelProto, numpy_helper

from edge_attention.core.schedule.extents import take
from edge_attention.core.schedule.fold_plan import FoldPlan
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.schedule import (
    Constant,
    Delivery,
    Kept,
    ModelInput,
    ModelSegment,
    Schedule,
    Weight,
)
from edge_attention.core.tensors import Array
from edge_attention.graphs.onnx_file import serialize

__all__ = ["InProcess", "Ran"]


@dataclass(frozen=True, eq=False)
class Ran:
    """What a request came to.

    Attributes:
        results: by output of the model.
        seconds: by step and part, of ONNX Runtime alone; processor time of its one thread.
        received, sent: by part, bytes.
        kept: by part, bytes that lie on its node at the request's end.
    """

    results: Mapping[str, Array]
    seconds: Mapping[tuple[int, int], float]
    received: Mapping[int, int]
    sent: Mapping[int, int]
    kept: Mapping[int, int]

    @property
    def slowest(self) -> float:
        """Seconds of the slowest part of each step, added up."""
        steps: dict[int, float] = {}
        for (step, _), seconds in self.seconds.items():
            steps[step] = max(steps.get(step, 0.0), seconds)
        return sum(steps.values())


@dataclass(eq=False)
class InProcess:
    """A schedule with its sessions made.

    Args:
        graph: the bytes of a graph by digest.
        constant: an array by digest.
        weight: a piece of a weight.
        freeze: weights become constants of their sessions, as on a node.
        fused: with ONNX Runtime's fusions. Some round otherwise than what they fuse, and are made where it
            happens to know shapes; without them each operator rounds as it does alone.
    """

    schedule: Schedule
    graph: Callable[[str], bytes]
    constant: Callable[[str], Array]
    weight: Callable[[Weight], Array]
    freeze: bool = True
    fused: bool = True
    _sessions: dict[tuple[int, int], onnxruntime.InferenceSession] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.schedule.check()
        self._plan = FoldPlan(self.schedule)
        for number, step in enumerate(self.schedule.steps):
            for segment in step.segments:
                self._sessions[number, segment.part] = self._session(segment)

    def _session(self, segment: ModelSegment) -> onnxruntime.InferenceSession:
        data = self.graph(self.schedule.graphs[segment.graph])
        if self.freeze:
            model = ModelProto.FromString(data)
            kept = [v for v in model.graph.input if not isinstance(segment.inputs[v.name], Weight)]
            del model.graph.input[:]
            model.graph.input.extend(kept)
            for name, source in segment.inputs.items():
                if isinstance(source, Weight):
                    model.graph.initializer.append(numpy_helper.from_array(self.weight(source), name))
            data = serialize(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if not self.fused:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Mapping[str, Array]) -> Ran:
        """One request."""
        meetings = Meetings(self._plan)
        kept: dict[tuple[int, str], Array] = {}
        seconds: dict[tuple[int, int], float] = {}
        received = dict.fromkeys(range(self.schedule.parts), 0)
        sent = dict.fromkeys(range(self.schedule.parts), 0)
        for number, step in enumerate(self.schedule.steps):
            for segment in step.segments:
                given = self._given(segment, feeds, kept, meetings, received)
                session = self._sessions[number, segment.part]
                names = [value.name for value in session.get_outputs()]
                began = time.thread_time()
                made = dict(zip(names, session.run(names, given), strict=True))
                seconds[number, segment.part] = time.thread_time() - began
                kept |= {(segment.part, name): made[output] for output, name in segment.kept.items()}
                if segment.contributions:
                    meetings.add(number, segment.part, made)
                    sent[segment.part] += sum(made[one.output].nbytes for one in segment.contributions)
        results = {name: np.array(meetings.whole(b)) for name, b in self.schedule.results.items()}
        held = dict.fromkeys(range(self.schedule.parts), 0)
        for (part, _), value in kept.items():
            held[part] += value.nbytes
        return Ran(results, seconds, received, sent, held)

    def _given(
        self,
        segment: ModelSegment,
        feeds: Mapping[str, Array],
        kept: Mapping[tuple[int, str], Array],
        meetings: Meetings,
        received: dict[int, int],
    ) -> dict[str, Array]:
        given: dict[str, Array] = {}
        for name, source in segment.inputs.items():
            match source:
                case ModelInput(of, extent):
                    given[name] = np.array(take(feeds[of], extent), order="C")
                    received[segment.part] += given[name].nbytes
                case Delivery():
                    given[name] = np.array(meetings.take(source), order="C")
                    received[segment.part] += given[name].nbytes
                case Kept(of):
                    given[name] = kept[segment.part, of]
                case Constant(of):
                    known = self.schedule.constants[of]
                    data = self.constant(known.digest).tobytes()
                    given[name] = np.frombuffer(data, known.spec.dtype).reshape(known.spec.shape)
                case Weight():
                    if not self.freeze:
                        given[name] = self.weight(source)
        return given
