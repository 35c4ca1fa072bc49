"""What nodes are asked: each segment as a call of a prepared program, made once and used by all requests.

Its weights are frozen into it, by digest; its constants and what the part keeps are stored on the node; what
it is sent comes in the call's slots, or, where that is too large for a message, is fetched by the node.

    weights    job/<deployment>/kept/w/<digest>      outlive a restart of the node
    constants  job/<deployment>/<shape>/c/<digest>
    kept       job/<deployment>/lane<k>/p<part>/<name>
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aggregator.engine.prepared import PreparedData, prepare
from aggregator.engine.trip import Wanted
from aggregator.inference.course import Course, PartSegment
from edge_attention.core.messages.program import (
    CALL_BYTES,
    MAX_SLOTS,
    Frozen,
    Instruction,
    Return,
    Run,
    Stored,
    Value,
)
from edge_attention.core.schedule.extents import extent_shape, take
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.schedule import (
    Constant,
    Delivery,
    Kept,
    ModelInput,
    TensorForm,
    Weight,
)
from edge_attention.core.schedule.traffic import halved
from edge_attention.core.tensors import Array, Encoding

__all__ = [
    "SegmentCall",
    "SegmentCalls",
    "constant_name",
    "job_scope",
    "lane_scope",
    "tensor_of",
    "weight_name",
]

FROZEN = 1024
"""Tensors that a program freezes, the largest ones; any others are bound as they are stored."""


@dataclass(frozen=True, eq=False)
class SegmentCall:
    """A segment as it is called in one lane.

    Attributes:
        slots: what comes with each call: name in the store -> what it is of.
        lent: the same, of what a call has no room for.
        wanted: what comes back, by the graph's outputs.
        down, up: bytes of tensors.
    """

    prepared: PreparedData
    instructions: tuple[Instruction, ...]
    slots: Mapping[str, ModelInput | Delivery]
    lent: Mapping[str, ModelInput | Delivery]
    wanted: Mapping[str, Wanted]
    down: int
    up: int


def job_scope(deployment: str) -> str:
    """What the names of all that a deployment has on nodes begin with."""
    return f"job/{deployment}/"


def lane_scope(deployment: str, lane: int) -> str:
    return f"{job_scope(deployment)}lane{lane}/"


def weight_name(deployment: str, digest: str) -> str:
    return f"{job_scope(deployment)}kept/w/{digest[:40]}"


def constant_name(deployment: str, shape: str, digest: str) -> str:
    return f"{job_scope(deployment)}{shape}/c/{digest[:40]}"


class SegmentCalls:
    """The calls of one deployment's segments for inputs of one shape.

    Args:
        weights: of each weight the SHA-256 of its bytes, and how many these are.
        halves: boundaries of float32 travel up in float16.
    """

    def __init__(
        self,
        deployment: str,
        shape: str,
        course: Course,
        weights: Mapping[Weight, tuple[str, int]],
        halves: bool = False,
    ) -> None:
        self._deployment = deployment
        self._shape = shape
        self._course = course
        self._weights = weights
        self._halved = halved(course.schedule) if halves else frozenset[str]()
        self._made: dict[tuple[int, int, int, bool], SegmentCall] = {}

    def call(self, one: PartSegment, lane: int, again: bool) -> SegmentCall:
        """The call of a segment in `lane`; `again`: only what it keeps is needed."""
        key = one.part, one.index, lane if _keeps(one) else 0, again
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(one, lane, again)
        return found

    def _make(self, one: PartSegment, lane: int, again: bool) -> SegmentCall:
        schedule, segment = self._course.schedule, one.segment
        kept = f"{lane_scope(self._deployment, lane)}p{one.part}/"
        inputs: dict[str, Value] = {}
        sent: dict[str, tuple[ModelInput | Delivery, TensorForm]] = {}
        weights: dict[str, tuple[str, int]] = {}
        for name, source in segment.inputs.items():
            match source:
                case Weight():
                    digest, size = self._weights[source]
                    stored = weight_name(self._deployment, digest)
                    weights[stored] = digest, size
                    inputs[name] = Stored(stored)
                case Constant(constant):
                    digest = schedule.constants[constant].digest
                    inputs[name] = Stored(constant_name(self._deployment, self._shape, digest))
                case Kept(tensor):
                    inputs[name] = Stored(kept + tensor)
                case ModelInput() | Delivery():
                    sent[name] = source, self._form(source)
        # The smallest ones go with the call.
        room, few = CALL_BYTES, MAX_SLOTS
        slots: dict[str, ModelInput | Delivery] = {}
        lent: dict[str, ModelInput | Delivery] = {}
        forms: dict[str, TensorForm] = {}
        down = 0
        for number, (name, (source, form)) in enumerate(sorted(sent.items(), key=lambda s: _bytes(s[1][1]))):
            size = _bytes(form)
            down += size
            fits = size <= room and len(slots) < few
            stored = f"task/i{number}"
            inputs[name] = Stored(stored)
            (slots if fits else lent)[stored] = source
            if fits:
                room -= size
                forms[stored] = form
        outputs: dict[str, str] = {output: kept + name for output, name in segment.kept.items()}
        returns: list[Instruction] = []
        wanted: dict[str, Wanted] = {}
        up = 0
        for made in () if again else segment.contributions:
            if made.output in wanted:
                continue  # an output that goes to several boundaries comes back once
            outputs.setdefault(made.output, f"task/o{len(outputs)}")
            spec = schedule.boundaries[made.boundary].spec
            shape, encoding = extent_shape(spec.shape, made.extent), self._encoding(made.boundary)
            wanted[made.output] = np.dtype(spec.dtype), shape
            up += _bytes(TensorForm("float16" if encoding is Encoding.FLOAT16 else spec.dtype, shape))
            returns.append(Return(outputs[made.output], made.output, encoding))
        run = Run(schedule.graphs[segment.graph], inputs, outputs)
        instructions = (run, *returns)
        largest = sorted(weights.items(), key=lambda item: -item[1][1])[:FROZEN]
        frozen = tuple(Frozen(stored, digest) for stored, (digest, _) in sorted(largest))
        empty = {name: _empty(form) for name, form in forms.items()}
        return SegmentCall(prepare(instructions, empty, frozen), instructions, slots, lent, wanted, down, up)

    def _form(self, source: ModelInput | Delivery) -> TensorForm:
        schedule = self._course.schedule
        if isinstance(source, ModelInput):
            spec = schedule.feeds[source.name]
        else:
            spec = schedule.boundaries[source.boundary].spec
        return TensorForm(spec.dtype, extent_shape(spec.shape, source.extent))

    def _encoding(self, boundary: str) -> Encoding:
        return Encoding.FLOAT16 if boundary in self._halved else Encoding.RAW


def tensor_of(source: ModelInput | Delivery, feeds: Mapping[str, Array], meetings: Meetings) -> Array:
    """What a segment is sent."""
    if isinstance(source, ModelInput):
        return take(feeds[source.name], source.extent)
    return meetings.take(source)


def _keeps(one: PartSegment) -> bool:
    """Whether its call is another one in another lane."""
    segment = one.segment
    return True if segment.kept else any(isinstance(s, Kept) for s in segment.inputs.values())


def _bytes(form: TensorForm) -> int:
    return math.prod(form.shape) * np.dtype(form.dtype).itemsize


def _empty(form: TensorForm) -> np.ndarray[Any, np.dtype[Any]]:
    """An array of that form, of which nothing is in memory."""
    return np.broadcast_to(np.zeros((), form.dtype), form.shape)
