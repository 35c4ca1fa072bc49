"""Where samples stay on their nodes: inputs are read by the first part alone, labels by the last alone.

What later parts read of the inputs as well, as a mask, is passed to them as an activation is: the first
part's graph gives it out, by a name that says so in the release that its operator allows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np
from onnx import ModelProto, helper

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.schedule import (
    Boundary,
    Contributed,
    Delivery,
    ModelInput,
    ModelSegment,
    Schedule,
)
from edge_attention.graphs.axes.emit import Emitted

__all__ = ["PASSED", "passed_on", "require_staying"]

PASSED = "passed/"
"""What boundaries of inputs that are passed on are called, and the outputs that make them."""


def passed_on(emitted: Emitted, inputs: Sequence[str], passes: Collection[str]) -> Emitted:
    """The same, with those of `inputs` that parts after the first read delivered by the first one.

    Args:
        passes: those that may be.

    Raises:
        InvalidArgument: another one is read beyond the first part; names it, and what to do.
    """
    schedule = emitted.schedule
    first = schedule.steps[0].segments[0].part
    later = {
        source.name: segment.part
        for step in schedule.steps
        for segment in step.segments
        for source in segment.inputs.values()
        if isinstance(source, ModelInput) and source.name in inputs and segment.part != first
    }
    for name, part in sorted(later.items()):
        if name not in passes:
            raise InvalidArgument(
                f"input {name!r} is read by part {part}, too, and the data is on the node of part {first}: "
                "if its rows may leave with the activations, as a mask's may, say so: data.passes = "
                f"[{name!r}]; where the model makes a mask of it, make the mask an input of its own, and let "
                "that pass; else give more layers to the first node, or use a model that reads it in its "
                "first layers alone"
            )
    if unknown := sorted(set(passes) - set(inputs)):
        raise InvalidArgument(
            f"data.passes names {unknown[0]!r}, which is no input of the data; there are {', '.join(inputs)}"
        )
    if not later:
        return emitted
    names = sorted(later)
    graphs = dict(emitted.graphs)
    digests = dict(schedule.graphs)
    steps, opened = [], False
    for step in schedule.steps:
        segments = []
        for segment in step.segments:
            if segment.part == first and not opened:
                opened = True
                given, data = _giving(segment, graphs[digests[segment.graph]], names, schedule)
                segment = given
                digests[segment.graph] = digest = sha256(data).hexdigest()
                graphs[digest] = data
            elif segment.part != first:
                segment = _reading(segment, names)
            segments.append(segment)
        steps.append(replace(step, segments=tuple(segments)))
    boundaries = dict(schedule.boundaries) | {PASSED + n: Boundary(schedule.feeds[n]) for n in names}
    used = {segment.graph for step in steps for segment in step.segments}
    named = {name: digest for name, digest in digests.items() if name in used}
    made = replace(schedule, steps=tuple(steps), boundaries=boundaries, graphs=named)
    made.check()
    return replace(emitted, schedule=made, graphs={digest: graphs[digest] for digest in named.values()})


def require_staying(schedule: Schedule, labels: Collection[str]) -> dict[int, tuple[str, ...]]:
    """By part, the inputs that its node reads itself.

    Raises:
        InvalidArgument: labels are read by several parts.
    """
    found: dict[int, dict[str, None]] = {}
    for step in schedule.steps:
        for segment in step.segments:
            for source in segment.inputs.values():
                if isinstance(source, ModelInput):
                    found.setdefault(segment.part, {})[source.name] = None
    for name in labels:
        parts = [part for part, names in found.items() if name in names]
        if len(parts) > 1:
            raise InvalidArgument(
                f"labels {name!r} are read by parts {', '.join(map(str, parts))}, and one node has them: use "
                "a loss that reads them in the last layers alone"
            )
    return {part: tuple(names) for part, names in found.items()}


def _giving(
    segment: ModelSegment, data: bytes, names: Sequence[str], schedule: Schedule
) -> tuple[ModelSegment, bytes]:
    """The first segment, whose graph gives out these inputs, too; the graph is its own from now on."""
    model = ModelProto.FromString(data)
    graph, inputs = model.graph, dict(segment.inputs)
    known = {source.name: name for name, source in inputs.items() if isinstance(source, ModelInput)}
    made: list[Contributed] = []
    for name in names:
        form = schedule.feeds[name]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
        if name not in known:
            known[name] = f"{PASSED}in/{name}"
            inputs[known[name]] = ModelInput(name)
            graph.input.append(helper.make_tensor_value_info(known[name], kind, form.shape))
        out = PASSED + name
        graph.node.append(helper.make_node("Identity", [known[name]], [out]))
        graph.output.append(helper.make_tensor_value_info(out, kind, form.shape))
        made.append(Contributed(out, out))
    found = replace(
        segment,
        graph=f"{segment.graph}+passed",
        inputs=inputs,
        contributions=(*segment.contributions, *made),
    )
    return found, model.SerializeToString(deterministic=True)


def _reading(segment: ModelSegment, names: Collection[str]) -> ModelSegment:
    inputs = {
        name: Delivery(PASSED + source.name, source.extent)
        if isinstance(source, ModelInput) and source.name in names
        else source
        for name, source in segment.inputs.items()
    }
    return replace(segment, inputs=inputs)
