"""A model's file and boxes in; the plan for them out, its best candidates cut and predicted step by step.

`choose` predicts from layers. What it finds best is then cut, the next best as well, and each is predicted
again from its schedule: exact bytes, every segment's own work. What comes out first is picked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnxruntime

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import Choice, PlanWanted, PredictedPlan
from edge_attention.core.placement.cuts.choosing import choose, chosen_among
from edge_attention.core.placement.cuts.costs import LayerWork
from edge_attention.core.placement.cuts.scheduled import predict_schedule
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.schedule import TensorForm, Weight
from edge_attention.graphs.axes.costs import model_costs
from edge_attention.graphs.axes.cut import cut
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.axes.jumps import exact_only
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.axes.work import schedule_work
from edge_attention.graphs.onnx_builder import FLOAT, Builder
from edge_attention.graphs.onnx_file import serialize

__all__ = ["CUT_CANDIDATES", "plan_model", "reference_slowness", "repredicted", "segments_work"]

CUT_CANDIDATES = 6
"""Plans that are cut to be predicted exactly, the best by layers first."""
_CALLS = 7


def plan_model(
    opened: OpenModel,
    axes: Axes,
    boxes: Sequence[ComputeBox],
    links: BoxLinks,
    wanted: PlanWanted,
    candidates: int = CUT_CANDIDATES,
) -> Choice:
    """The choice for a bound model; as `choose`, its first candidates predicted from their schedules.

    A candidate that the model cannot be cut by after all is among the rejected with its reason. One that
    would not be exact is none, unless `wanted` names its family or halves.
    """
    costs = exact_only(model_costs(axes), axes, wanted)
    choice = choose(costs, boxes, links, wanted)
    plans = [plan for plan in (choice.chosen, choice.one_box, *choice.rejected) if plan is not None]
    plans = [plan for n, plan in enumerate(plans) if plan not in plans[:n]]
    named = {box.name: box for box in boxes}
    first = [repredicted(opened, axes, plan, named, links, wanted) for plan in plans[:candidates]]
    return chosen_among(costs, boxes, wanted, [*first, *plans[candidates:]])


def segments_work(emitted: Emitted, opened: OpenModel) -> dict[tuple[int, int], LayerWork]:
    """The work of each segment of a cut, by step and part."""

    def form(weight: Weight) -> TensorForm:
        place = opened.places.get(weight.name)
        if place is None:
            array = opened.piece(weight)
            return TensorForm(array.dtype.name, array.shape)
        return TensorForm(place.dtype, extent_shape(place.shape, weight.extent))

    constants = emitted.constants.__getitem__
    return schedule_work(emitted.schedule, emitted.graphs.__getitem__, constants, form)


def repredicted(
    opened: OpenModel,
    axes: Axes,
    plan: PredictedPlan,
    boxes: Mapping[str, ComputeBox],
    links: BoxLinks,
    wanted: PlanWanted,
) -> PredictedPlan:
    """The plan with what its schedule says of it; with a problem where the model cannot be cut so."""
    try:
        emitted = cut(axes, plan.plan)
    except EdgeAttentionError as error:
        return replace(plan, problem=error.message)

    schedule, work = emitted.schedule, segments_work(emitted, opened)
    holders = {part: boxes[names[0]] for part, names in plan.boxes.items()}
    run = predict_schedule(schedule, work, holders, links, halves=wanted.halves)
    seconds = run.seconds
    if any(len(names) > 1 for names in plan.boxes.values()):
        # Replicas: as much quicker, or slower, than by layers as the one that was cut.
        return replace(plan, seconds=seconds, each=plan.each * seconds / plan.seconds)
    by_box = {what: dict.fromkeys(plan.weights, 0.0) for what in ("busy", "down", "up")}
    for part, box in holders.items():
        by_box["busy"][box.name] += run.busy[part]
        by_box["down"][box.name] += run.down[part]
        by_box["up"][box.name] += run.up[part]
    return replace(
        plan,
        seconds=seconds,
        each=max(seconds / wanted.in_flight, run.each),
        trips=len(schedule.steps),
        busy=by_box["busy"],
        down=by_box["down"],
        up=by_box["up"],
    )


def reference_slowness(opened: OpenModel, axes: Axes) -> float:
    """How much slower the model runs here, on one thread, than its operators are taken to: measured once.

    A box whose speed is that of its products runs it as much slower: what the model's operators cost beside
    them is what this corrects.
    """
    flops = _product_flops()
    box = ComputeBox("here", flops)
    expected = sum(box.seconds(layer.work, model_costs(axes).rows) for layer in model_costs(axes).layers)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(opened.path), options, providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        form = axes.bound.specs[value.name]
        # Ones: an index that every table has, a mask in which all is seen.
        feeds[value.name] = np.ones(form.shape, form.dtype)
    return _quickest(lambda: session.run(None, feeds)) / expected


def _product_flops() -> float:
    """Flops a second of a product with a constant matrix, on one thread here."""
    rows, width = 256, 768
    write = Builder("product")
    x = write.input("x", FLOAT, ["rows", width])
    w = write.const(np.random.default_rng(0).standard_normal((width, width), np.float32))
    write.output("y", write("MatMul", x, w), FLOAT, ["rows", width])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        serialize(write.model()), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"x": np.ones((rows, width), np.float32)}
    return 2 * rows * width * width / _quickest(lambda: session.run(None, feeds))


def _quickest(call: Callable[[], object]) -> float:
    """Processor seconds of the quickest of a few calls, after one that pays for what is done once."""
    call()
    times = []
    for _ in range(_CALLS):
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return min(times)
