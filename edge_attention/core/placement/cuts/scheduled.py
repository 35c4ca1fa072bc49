"""What a schedule takes, exactly by its steps: bytes from the extents, work from the segments' graphs.

`choose` predicts from layers, before anything is cut; this one is for a plan that has been cut, and for
comparing what was measured with what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.costs import LayerWork
from edge_attention.core.placement.cuts.predicting import occupied
from edge_attention.core.placement.cuts.trips import StepErrand, trip_seconds
from edge_attention.core.schedule.extents import Extent, extent_shape
from edge_attention.core.schedule.schedule import Schedule, TensorForm
from edge_attention.core.schedule.traffic import halved, segment_bytes

__all__ = ["PredictedRun", "SegmentSeconds", "predict_schedule", "weights_held"]

SegmentSeconds = Mapping[tuple[int, int], float]
"""Step and part -> seconds of the segment."""


@dataclass(frozen=True)
class PredictedRun:
    """A request of a schedule.

    Attributes:
        seconds: of one that is alone.
        each: of one of many in flight: what is busiest.
        steps: seconds by step.
        busy: by part, seconds of its segments.
        down, up: bytes by part.
    """

    seconds: float
    each: float
    steps: tuple[float, ...]
    busy: tuple[float, ...]
    down: tuple[float, ...]
    up: tuple[float, ...]


def predict_schedule(
    schedule: Schedule,
    work: Mapping[tuple[int, int], LayerWork],
    boxes: Mapping[int, ComputeBox],
    links: BoxLinks,
    *,
    halves: bool = False,
    measured: SegmentSeconds | None = None,
) -> PredictedRun:
    """What a request of `schedule` takes.

    Args:
        work: of each segment, by step and part; its flops count what few rows lose.
        boxes: by part, the box that does it.
        measured: seconds of segments that ran on these boxes; they count instead of the prediction.
    """
    measured = {} if measured is None else measured
    short = halved(schedule) if halves else frozenset[str]()
    count = schedule.parts
    busy, down, up = [0.0] * count, [0.0] * count, [0.0] * count
    steps = []
    for number, step in enumerate(schedule.steps):
        errands = []
        for segment in step.segments:
            box = boxes[segment.part]
            seconds = measured.get((number, segment.part))
            if seconds is None:
                seconds = box.call_seconds + box.seconds(work[number, segment.part], math.inf)
            errand = StepErrand(box, seconds, *segment_bytes(schedule, segment, short))
            errands.append(errand)
            busy[segment.part] += seconds
            down[segment.part] += errand.down
            up[segment.part] += errand.up
        steps.append(trip_seconds(errands, links))
    by_box = {box.name: box for box in boxes.values()}

    def by_name(of: list[float]) -> dict[str, float]:
        return {name: sum(of[part] for part, box in boxes.items() if box.name == name) for name in by_box}

    calls = sum(len(step.segments) for step in schedule.steps)
    each = occupied(by_box, by_name(busy), by_name(down), by_name(up), calls, links)
    alone = links.request_seconds + sum(steps)
    return PredictedRun(alone, each, tuple(steps), tuple(busy), tuple(down), tuple(up))


def weights_held(schedule: Schedule, sizes: Mapping[str, TensorForm]) -> tuple[int, ...]:
    """Bytes of weights by part. `sizes`: of each weight of the model's file."""
    return tuple(
        sum(_bytes(sizes[weight.name], weight.extent) for weight in schedule.weights_of(part))
        for part in range(schedule.parts)
    )


def _bytes(form: TensorForm, extent: Extent) -> int:
    return math.prod(extent_shape(form.shape, extent)) * (
        2 if form.dtype == "bfloat16" else np.dtype(form.dtype).itemsize
    )
