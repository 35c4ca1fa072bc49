"""What a request of a schedule sends over the network, counted from the schedule alone.

Bytes of tensors: headers of messages, and what is sent once (weights, constants, graphs), are not in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge_attention.core.schedule.extents import Extent, extent_shape
from edge_attention.core.schedule.schedule import (
    Collective,
    Delivery,
    ModelInput,
    ModelSegment,
    Schedule,
    TensorForm,
)

__all__ = ["PartTraffic", "Traffic", "halved", "segment_bytes", "traffic_of"]


@dataclass(frozen=True)
class PartTraffic:
    """Of one part, in one request.

    Attributes:
        received: bytes of boundaries and of the model's inputs that are sent to it.
        sent: bytes that it contributes.
        trips: steps in which it has a segment: each is a message there and one back.
    """

    received: int = 0
    sent: int = 0
    trips: int = 0


@dataclass(frozen=True)
class Traffic:
    """Of one request.

    Attributes:
        parts: by part.
        steps: by step: the largest any one part receives, and sends, in it.
    """

    parts: tuple[PartTraffic, ...]
    steps: tuple[tuple[int, int], ...]

    @property
    def down(self) -> int:
        """Bytes that leave the aggregator."""
        return sum(part.received for part in self.parts)

    @property
    def up(self) -> int:
        """Bytes that reach the aggregator."""
        return sum(part.sent for part in self.parts)


def traffic_of(schedule: Schedule, *, halves: bool = False) -> Traffic:
    """What a request sends; with `halves`, `halved` boundaries take half."""
    small = halved(schedule) if halves else frozenset[str]()
    received, sent, trips = ([0] * schedule.parts for _ in range(3))
    steps: list[tuple[int, int]] = []
    for step in schedule.steps:
        most = (0, 0)
        for segment in step.segments:
            down, up = segment_bytes(schedule, segment, small)
            received[segment.part] += down
            sent[segment.part] += up
            trips[segment.part] += 1
            most = max(most[0], down), max(most[1], up)
        steps.append(most)
    return Traffic(tuple(map(PartTraffic, received, sent, trips)), tuple(steps))


def halved(schedule: Schedule) -> frozenset[str]:
    """Boundaries that may pass in float16: float32 that is gathered, added or merged. An `lse` never is, nor
    what a quantisation rests on, nor what the model answers: a caller may round that as they like."""
    exact = {boundary.lse for boundary in schedule.boundaries.values()} | set(schedule.results.values())
    return frozenset(
        name
        for name, boundary in schedule.boundaries.items()
        if boundary.spec.dtype == "float32"
        and boundary.collective not in (Collective.MIN, Collective.MAX)
        and name not in exact
    )


def segment_bytes(schedule: Schedule, segment: ModelSegment, small: frozenset[str]) -> tuple[int, int]:
    """Bytes a segment is sent, and sends; boundaries in `small` take half."""
    down = 0
    for source in segment.inputs.values():
        match source:
            case ModelInput(name, extent):
                down += _bytes(schedule.feeds[name], extent)
            case Delivery(name, extent):
                down += _bytes(schedule.boundaries[name].spec, extent) // (1 + (name in small))
            case _:
                pass
    outputs: dict[str, int] = {}  # an output goes up once, as the most exact of its boundaries wants it
    for one in segment.contributions:
        size = _bytes(schedule.boundaries[one.boundary].spec, one.extent) // (1 + (one.boundary in small))
        outputs[one.output] = max(outputs.get(one.output, 0), size)
    return down, sum(outputs.values())


def _bytes(spec: TensorForm, extent: Extent) -> int:
    return math.prod(extent_shape(spec.shape, extent)) * np.dtype(spec.dtype).itemsize
