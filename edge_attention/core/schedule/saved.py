"""Schedules as JSON, as the aggregator keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edge_attention.core.errors import DataLoss
from edge_attention.core.schedule.extents import AxisSpan, Extent
from edge_attention.core.schedule.schedule import (
    Boundary,
    Collective,
    Constant,
    ConstantSpec,
    Contributed,
    Delivery,
    Kept,
    ModelInput,
    ModelSegment,
    Schedule,
    Source,
    Step,
    TensorForm,
    Weight,
)

__all__ = ["dumps", "loads"]

_SOURCES: Mapping[str, type[Source]] = {
    "feed": ModelInput,
    "kept": Kept,
    "delivery": Delivery,
    "weight": Weight,
    "constant": Constant,
}
_NAMES = {cls: name for name, cls in _SOURCES.items()}


def dumps(schedule: Schedule) -> str:
    """The schedule as one line of JSON."""
    data = {
        "parts": schedule.parts,
        "feeds": {name: _spec(spec) for name, spec in schedule.feeds.items()},
        "results": dict(schedule.results),
        "boundaries": {
            name: [_spec(b.spec), b.collective.value, b.lse, *([True] if b.rounded else [])]
            for name, b in schedule.boundaries.items()
        },
        "steps": [[_segment(segment) for segment in step.segments] for step in schedule.steps],
        "graphs": dict(schedule.graphs),
        "constants": {name: [c.digest, _spec(c.spec)] for name, c in schedule.constants.items()},
        "coverage": schedule.coverage,
        "lacking": schedule.lacking,
    }
    return json.dumps(data, separators=(",", ":"))


def loads(text: str) -> Schedule:
    """The schedule that `dumps` wrote.

    Raises:
        DataLoss: it is none, or does not hold together.
    """
    try:
        data = json.loads(text)
        schedule = Schedule(
            int(data["parts"]),
            {name: _to_spec(spec) for name, spec in data["feeds"].items()},
            {str(name): str(boundary) for name, boundary in data["results"].items()},
            {
                n: Boundary(_to_spec(s), Collective(c), str(lse), rounded == [True])
                for n, (s, c, lse, *rounded) in data["boundaries"].items()
            },
            tuple(Step(tuple(_to_segment(segment) for segment in step)) for step in data["steps"]),
            {str(name): str(digest) for name, digest in data["graphs"].items()},
            {name: ConstantSpec(str(d), _to_spec(spec)) for name, (d, spec) in data["constants"].items()},
            float(data["coverage"]),
            str(data["lacking"]),
        )
        schedule.check()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLoss(f"a schedule that was kept cannot be read ({error}): deploy the model again") from None
    return schedule


def _spec(spec: TensorForm) -> list[Any]:
    return [spec.dtype, list(spec.shape)]


def _to_spec(data: Any) -> TensorForm:
    dtype, shape = data
    return TensorForm(str(dtype), tuple(map(int, shape)))


def _extent(extent: Extent) -> list[list[int]]:
    return [[s.axis, s.start, s.stop, s.size, s.outer, s.inner] for s in extent]


def _to_extent(data: Any) -> Extent:
    return tuple(AxisSpan(*map(int, span)) for span in data)


def _source(source: Source) -> list[Any]:
    found: list[Any] = [_NAMES[type(source)]]
    match source:
        case Delivery(name, extent) | ModelInput(name, extent) | Weight(name, extent):
            return [*found, name, _extent(extent)] if extent else [*found, name]
        case Kept(name) | Constant(name):
            return [*found, name]


def _to_source(data: Any) -> Source:
    kind, name, *extent = data
    cls = _SOURCES[kind]
    return cls(str(name), *map(_to_extent, extent))


def _segment(segment: ModelSegment) -> list[Any]:
    return [
        segment.part,
        segment.graph,
        {name: _source(source) for name, source in segment.inputs.items()},
        dict(segment.kept),
        [[c.output, c.boundary, _extent(c.extent)] for c in segment.contributions],
    ]


def _to_segment(data: Any) -> ModelSegment:
    part, graph, inputs, kept, contributions = data
    return ModelSegment(
        int(part),
        str(graph),
        {str(name): _to_source(source) for name, source in inputs.items()},
        {str(output): str(name) for output, name in kept.items()},
        tuple(Contributed(str(output), str(to), _to_extent(extent)) for output, to, extent in contributions),
    )
