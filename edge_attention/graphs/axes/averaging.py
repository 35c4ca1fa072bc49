"""Plans by averaging: each part does all of the model, and the answer is the plain mean of theirs.

What the article calls fusion by averaging. Of parts with the same weights it is the model's own answer, and
costs as many boxes as there are parts: it makes no model faster, and fits none into smaller boxes.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.schedule import Collective, ModelSegment, Schedule, Step
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.onnx_file import serialize

__all__ = ["averaged"]


def averaged(one: Emitted, parts: int) -> Emitted:
    """The schedule of `one` part that does all, done by `parts`, whose answers are averaged.

    Raises:
        InvalidArgument: an output is of whole numbers, which have no mean.
    """
    schedule = one.schedule
    results = set(schedule.results.values())
    for name, boundary in schedule.results.items():
        dtype = schedule.boundaries[boundary].spec.dtype
        if not dtype.startswith("float"):
            raise InvalidArgument(f"output '{name}' is {dtype}, which has no mean; leave it out of the plan")
    graphs, names = dict(one.graphs), dict(schedule.graphs)
    steps = []
    for step in schedule.steps:
        segments: list[ModelSegment] = []
        for segment in step.segments:
            outputs = {c.output for c in segment.contributions if c.boundary in results}
            graph = segment.graph
            if outputs:
                data = _scaled(graphs[names[graph]], outputs, parts)
                digest = hashlib.sha256(data).hexdigest()
                graphs[digest], graph = data, f"{graph}m"
                names[graph] = digest
            segments += [replace(segment, part=part, graph=graph) for part in range(parts)]
        steps.append(Step(tuple(segments)))
    used = {segment.graph for step in steps for segment in step.segments}
    kept = {name: digest for name, digest in names.items() if name in used}
    boundaries = {
        name: replace(boundary, collective=Collective.SUM) if name in results else boundary
        for name, boundary in schedule.boundaries.items()
    }
    made: Schedule = replace(schedule, parts=parts, boundaries=boundaries, steps=tuple(steps), graphs=kept)
    made.check()
    return Emitted(made, {digest: graphs[digest] for digest in kept.values()}, one.constants)


def _scaled(data: bytes, outputs: set[str], parts: int) -> bytes:
    """The graph with these outputs divided by the number of parts."""
    model = ModelProto.FromString(data)
    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    for node in graph.node:
        for number, name in enumerate(node.output):
            if name in outputs:
                node.output[number] = f"{name}_all"
        for number, name in enumerate(node.input):
            if name in outputs:
                node.input[number] = f"{name}_all"
    for number, name in enumerate(sorted(outputs)):
        share = np.array(parts, helper.tensor_dtype_to_np_dtype(kinds[name]))
        graph.initializer.append(numpy_helper.from_array(share, f"parts_{number}"))
        graph.node.append(helper.make_node("Div", [f"{name}_all", f"parts_{number}"], [name]))
    return serialize(model)
