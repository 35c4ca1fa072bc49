"""Boundaries that are gathered pass in float16: segments round what they contribute, and widen what they get.

ONNX Runtime converts 30 times as fast as NumPy does, and the aggregator, which puts pieces side by side, has
nothing to convert. What is added or merged it folds in float32, and converts it for that (`calls.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace
from typing import TypeVar

from google.protobuf.message import Message
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from edge_attention.core.schedule.schedule import Collective, Delivery, ModelSegment, Step, TensorForm
from edge_attention.core.schedule.traffic import halved
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.onnx_file import all_nodes, serialize

__all__ = ["in_halves"]


def in_halves(one: Emitted) -> Emitted:
    """The same schedule, whose gathered boundaries of float32 are float16, but for the model's results."""
    schedule = one.schedule
    gathered = {
        name for name in halved(schedule) if schedule.boundaries[name].collective is Collective.GATHER
    }
    graphs, names = dict(one.graphs), dict(schedule.graphs)
    steps = tuple(
        Step(tuple(_halved(segment, gathered, graphs, names) for segment in step.segments))
        for step in schedule.steps
    )
    used = {segment.graph for step in steps for segment in step.segments}
    kept = {name: digest for name, digest in names.items() if name in used}
    boundaries = {
        name: replace(boundary, spec=TensorForm("float16", boundary.spec.shape), rounded=True)
        if name in gathered
        else boundary
        for name, boundary in schedule.boundaries.items()
    }
    made = replace(schedule, boundaries=boundaries, steps=steps, graphs=kept)
    made.check()
    return replace(one, schedule=made, graphs={digest: graphs[digest] for digest in kept.values()})


def _halved(
    segment: ModelSegment, gathered: Collection[str], graphs: dict[str, bytes], names: dict[str, str]
) -> ModelSegment:
    """The segment with another graph, which is added to `graphs` and `names`, if a boundary of it is."""
    wide = {name for name, s in segment.inputs.items() if isinstance(s, Delivery) and s.boundary in gathered}
    rounded = {made.output for made in segment.contributions if made.boundary in gathered}
    if not wide and not rounded:
        return segment
    alone = rounded - {made.output for made in segment.contributions if made.boundary not in gathered}
    alone -= set(segment.kept)
    data, renamed = _converting(graphs[names[segment.graph]], wide, rounded, alone)
    digest = hashlib.sha256(data).hexdigest()
    # A name for each way in which segments of one graph are halved.
    graph = f"{segment.graph}h{digest[:12]}"
    graphs[digest], names[graph] = data, digest
    return replace(
        segment,
        graph=graph,
        inputs={renamed[name] if name in wide else name: source for name, source in segment.inputs.items()},
        contributions=tuple(
            replace(made, output=renamed[made.output]) if made.boundary in gathered else made
            for made in segment.contributions
        ),
    )


def _converting(
    data: bytes, wide: Collection[str], rounded: Collection[str], alone: Collection[str]
) -> tuple[bytes, dict[str, str]]:
    """The graph that takes `wide` and gives `rounded` in float16, under other names, which are returned, too.
    Of its outputs those in `alone` are given in float16 only."""
    model = ModelProto.FromString(data)
    graph = model.graph
    taken = {name for node in all_nodes(graph) for name in (*node.input, *node.output)}
    suffix = "_half"
    while any(name.endswith(suffix) for name in taken):
        suffix += "_"
    renamed: dict[str, str] = {}
    widening: list[NodeProto] = []
    for value in graph.input:
        if value.name in wide:  # what reads it reads the widened one by the name it had
            name = renamed[value.name] = f"{value.name}{suffix}"
            widening.append(helper.make_node("Cast", [name], [value.name], to=TensorProto.FLOAT))
            value.name, value.type.tensor_type.elem_type = name, TensorProto.FLOAT16
    outputs: list[ValueInfoProto] = []
    for value in graph.output:
        if value.name not in alone:
            outputs.append(_copy(value))
        if value.name in rounded:
            half = _copy(value)
            half.name = renamed[value.name] = f"{value.name}{suffix}"
            half.type.tensor_type.elem_type = TensorProto.FLOAT16
            graph.node.append(helper.make_node("Cast", [value.name], [half.name], to=TensorProto.FLOAT16))
            outputs.append(half)
    nodes = [*widening, *map(_copy, graph.node)]
    del graph.output[:], graph.node[:]
    graph.output.extend(outputs)
    graph.node.extend(nodes)
    return serialize(model), renamed


M = TypeVar("M", bound=Message)


def _copy(message: M) -> M:
    made = type(message)()
    made.CopyFrom(message)
    return made
