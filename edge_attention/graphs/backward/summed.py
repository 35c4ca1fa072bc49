"""Gradients that stay where they were made, and are added there: what a step of several pieces sends of them
is their sum, once.

    a piece    ... segments; of their gradients nothing is sent, they are kept, grad/<i>
               then, on each part's node, in the pieces' order:   sum = sum + count * grad
    the end    each part sends its sums, which fold as the gradients of one piece did

Where pieces are small, all of their gradients are kept to the end, and one graph adds them, in the same order
and to the same bits. The graphs that add are among the schedule's, as `sum/<part>/first` and
`sum/<part>/next`, or `sum/<part>/all`: no segment's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np
from onnx import ModelProto, TensorProto, helper

from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.schedule import (
    Boundary,
    Contributed,
    ModelSegment,
    Schedule,
    Step,
    TensorForm,
)
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.backward.transpose import GRADIENT
from edge_attention.graphs.onnx_builder import FLOAT, Builder
from edge_attention.graphs.onnx_file import serialize

__all__ = ["COUNT", "KEPT", "MADE", "adding_all", "adding_graph", "all_of", "first_of", "next_of", "summed"]

KEPT = "grad/"
"""What a part's gradients are kept as begin so."""
MADE = "made/"
"""Results, one a part, of nothing but that its last segment has run: a request is over with its results."""
COUNT = "count"
"""The input of graphs that add: what the piece counts, or each of all pieces."""


def first_of(part: int) -> str:
    """The graph, by its name in the schedule, that begins a part's sums."""
    return f"sum/{part}/first"


def next_of(part: int) -> str:
    """The one that adds to them."""
    return f"sum/{part}/next"


def all_of(part: int) -> str:
    """The one that adds all pieces."""
    return f"sum/{part}/all"


def summed(emitted: Emitted, together: int = 0) -> tuple[Emitted, Schedule]:
    """A training schedule whose gradients are kept, and the schedule of what is sent of their sums.

    `together`: so many pieces are added by one graph; 0: each by one of its own.

    Of the latter each part has one segment, without inputs: its contributions' outputs are called as what is
    kept.
    """
    schedule = emitted.schedule
    gradients = {b for name, b in schedule.results.items() if name.startswith(GRADIENT)}
    last = {s.part: number for number, step in enumerate(schedule.steps) for s in step.segments}
    graphs, digests = dict(emitted.graphs), dict(schedule.graphs)
    sums: dict[int, list[Contributed]] = {}
    steps = []
    for number, step in enumerate(schedule.steps):
        segments = []
        for segment in step.segments:
            kept, sent = dict(segment.kept), []
            own = sums.setdefault(segment.part, [])
            for one in segment.contributions:
                if one.boundary not in gradients:
                    sent.append(one)
                    continue
                name = kept.setdefault(one.output, f"{KEPT}{len(own)}")
                own.append(replace(one, output=name))
            changed = replace(segment, kept=kept, contributions=tuple(sent))
            if last[segment.part] == number:
                changed = _telling(changed, graphs, digests)
            segments.append(changed)
        steps.append(Step(tuple(segments)))
    made = {f"{MADE}{part}": f"{MADE}{part}" for part in sorted(last)}
    boundaries = {name: one for name, one in schedule.boundaries.items() if name not in gradients}
    boundaries |= {name: Boundary(TensorForm("float32", ())) for name in made}
    used = {segment.graph for step in steps for segment in step.segments}
    digests = {name: digest for name, digest in digests.items() if name in used}
    folds = []
    for part, own in sorted(sums.items()):
        if not own:
            continue
        shapes = [extent_shape(schedule.boundaries[one.boundary].spec.shape, one.extent) for one in own]
        adding = (
            {all_of(part): adding_all(shapes, together)}
            if together
            else {first_of(part): adding_graph(shapes, True), next_of(part): adding_graph(shapes, False)}
        )
        for name, graph in adding.items():
            data = serialize(graph)
            digests[name] = sha256(data).hexdigest()
            graphs[digests[name]] = data
        sends = all_of(part) if together else next_of(part)
        folds.append(ModelSegment(part, sends, {}, {}, tuple(own)))
    results = {name: b for name, b in schedule.results.items() if b not in gradients} | made
    piece = replace(schedule, results=results, boundaries=boundaries, steps=tuple(steps), graphs=digests)
    piece.check()
    of_sums = Schedule(
        schedule.parts,
        {},
        {name: b for name, b in schedule.results.items() if b in gradients},
        {name: schedule.boundaries[name] for name in gradients},
        (Step(tuple(folds)),),
        {one.graph: digests[one.graph] for one in folds},
        {},
    )
    of_sums.check()
    return (
        replace(emitted, schedule=piece, graphs={digest: graphs[digest] for digest in digests.values()}),
        of_sums,
    )


def _telling(segment: ModelSegment, graphs: dict[str, bytes], digests: dict[str, str]) -> ModelSegment:
    """The segment, whose graph gives out a number, too, that says it has run."""
    name = f"{segment.graph}+made"
    output = "made"
    if name not in digests:
        model = ModelProto.FromString(graphs[digests[segment.graph]])
        model.graph.initializer.append(helper.make_tensor("made/one", FLOAT, (), [1.0]))
        model.graph.node.append(helper.make_node("Identity", ["made/one"], [output]))
        model.graph.output.append(helper.make_tensor_value_info(output, FLOAT, ()))
        data = serialize(model)
        digests[name] = sha256(data).hexdigest()
        graphs[digests[name]] = data
    told = Contributed(output, f"{MADE}{segment.part}")
    return replace(segment, graph=name, contributions=(*segment.contributions, told))


def adding_graph(shapes: Sequence[tuple[int, ...]], begins: bool) -> ModelProto:
    """t/<i> = s/<i> + count * g/<i>, without the s/<i> where a sum begins."""
    g = Builder("sums")
    count = g.input(COUNT, TensorProto.FLOAT, ())
    for i, shape in enumerate(shapes):
        value = g("Mul", g.input(f"g/{i}", FLOAT, shape), count)
        if not begins:
            value = g("Add", g.input(f"s/{i}", FLOAT, shape), value)
        g.output(f"t/{i}", value, FLOAT, shape)
    return g.model()


def adding_all(shapes: Sequence[tuple[int, ...]], pieces: int) -> ModelProto:
    """t/<i> = (count[0] * g/0/<i> + count[1] * g/1/<i>) + ...: what `adding_graph`s make one by one."""
    g = Builder("sums")
    counts = g.input(COUNT, TensorProto.FLOAT, (pieces,))
    each = [g("Gather", counts, g.const(np.int64(k)), axis=0) for k in range(pieces)]
    for i, shape in enumerate(shapes):
        value = ""
        for k, count in enumerate(each):
            more = g("Mul", g.input(f"g/{k}/{i}", FLOAT, shape), count)
            value = g("Add", value, more) if k else more
        g.output(f"t/{i}", value, FLOAT, shape)
    return g.model()
