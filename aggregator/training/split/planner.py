"""Makes the plan of a job through the split, and cuts its model: in the process of
aggregator/training/planner.py.

Left in its folder: `cut/` (the model with its loss, and what that is cut into for steps and evaluations) and
the initial parameters as `initial.safetensors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy

from aggregator.inference.course import PEAK_BYTES, Course
from aggregator.inference.cut_request import NodeTold
from aggregator.inference.cutting import plan_of_file
from aggregator.inference.gained import USABLE
from aggregator.inference.placement import Holders, by_word, even_layers, plan_word, spread
from aggregator.inference.plan_in_words import plan_in_words, share_in_words
from aggregator.training.federated.plan import DataInput
from aggregator.training.federated.planner import given_values, initial_values
from aggregator.training.split.checks import check
from aggregator.training.split.plan import (
    CUT,
    EVALUATE,
    MODEL,
    OVERWRITTEN,
    SUMS,
    SplitPart,
    SplitPlan,
    pieces_at_once,
)
from aggregator.training.split.samples import check_samples, require_batch, sample_shapes
from aggregator.training.split.staying import passed_on, require_staying
from edge_attention.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from edge_attention.core.messages.training import PlannedModel, SplitJob
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.saved import dumps
from edge_attention.core.schedule.saved_plan import dumps_plan
from edge_attention.core.schedule.schedule import Schedule, TensorForm, Weight
from edge_attention.graphs.axes.costs import model_costs
from edge_attention.graphs.axes.cut import cut
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.axes.folder import write_cut
from edge_attention.graphs.axes.looked_up import rows_looked_up
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel, open_model
from edge_attention.graphs.axes.narrow import layer_bytes, narrow_places
from edge_attention.graphs.backward.summed import summed
from edge_attention.graphs.backward.training import training_axes, training_cut
from edge_attention.graphs.models.model import Model, load_model
from edge_attention.graphs.models.training_file import tied_weights, training_file

__all__ = ["plan"]

MOVED = 0.28
"""Bytes that other operators move in the time of one operation of a product (docs/planner.md)."""
TOGETHER_PIECES, TOGETHER_BYTES = 16, 8 * 1024 * 1024
"""Pieces of a step, and bytes that a part keeps of all of them, gradients included, up to which all of a
step's pieces are under way at once, and are added by one call a part at its end: a call costs as much,
however little it adds."""


def plan(
    job: SplitJob,
    files: Mapping[str, Path],
    folder: Path,
    rows: Mapping[str, Mapping[str, tuple[int, ...]]],
    nodes: Sequence[NodeTold],
) -> SplitPlan:
    """The plan of `job`, over `nodes`.

    Args:
        files: digest -> where the file is.
        rows: node -> column -> the shape of one row, where the samples are on nodes.

    Raises:
        EdgeAttentionError: what cannot be trained so, and why.
    """
    check(job)
    spec, place = job.model, f"model of {job.name}"
    samples = files[job.data.file] if job.data.file else None
    if samples is not None:
        rows = {"data": sample_shapes(samples)}
    model = load_model(
        files[spec.graph].read_bytes(),
        loss=spec.loss,
        parameters=spec.parameters,
        metrics=spec.metrics,
        dimensions=spec.dimensions,
        rows=_by_input(job, rows),
        head=spec.head,
        seed=job.seed,
        place=place,
    )
    if spec.initial:
        given = given_values(files[spec.initial].read_bytes())
        model = replace(model, parameters=initial_values(model.parameters, given))
    _require_names(job, model)
    size = job.batch // job.micro_batches
    inputs = tuple(
        DataInput(name, dtype.name, tuple(n or 0 for n in shape[1:]))
        for name, (dtype, shape) in model.inputs.items()
    )
    labels = _labels(job, model)
    into = folder / "cut"
    into.mkdir()
    path = into / MODEL
    onnx.save(training_file(model), path)
    opened = open_model(path)
    count = 0
    if samples is not None:
        count = check_samples(samples, inputs, model.label, rows_looked_up(opened))
        require_batch(job, count)
    feeds = {one.name: TensorForm(one.dtype, (size, *one.shape)) for one in inputs}
    axes = training_axes(opened, model.names, feeds)
    cut_plan, holders = _planned(job, axes, nodes)
    emitted = training_cut(opened, model.names, cut_plan, feeds, recompute=job.recompute, axes=axes)
    read: dict[int, tuple[str, ...]] = {}
    if job.data.on_nodes:
        emitted = passed_on(emitted, [one.name for one in inputs if one.name not in labels], job.data.passes)
        read = require_staying(emitted.schedule, labels)
    trained = sum(array.nbytes for array in model.parameters.values())
    sums: Schedule | None = None
    most = job.micro_batches * (max(emitted.kept.values(), default=0) + trained)
    together = 1 < job.micro_batches <= TOGETHER_PIECES and most <= TOGETHER_BYTES
    if job.micro_batches > 1:
        emitted, sums = summed(emitted, job.micro_batches if together else 0)
        _require_modest(sums, job.batch, trained)
        (into / SUMS).write_text(dumps(sums))
    _require_modest(emitted.schedule, size, 0 if sums else trained)
    write_cut(emitted, opened, into / CUT)
    if job.holdout:
        forward = cut(axes, cut_plan)
        if job.data.on_nodes:
            forward = passed_on(forward, [n.name for n in inputs if n.name not in labels], job.data.passes)
            require_staying(forward.schedule, labels)
        _require_modest(forward.schedule, size, 0)
        write_cut(forward, opened, into / EVALUATE)
    parts = _parts(cut_plan, axes, emitted, opened, frozenset(model.names), read)
    made = SplitPlan(
        tuple(model.names),
        tuple(array.shape for array in model.parameters.values()),
        inputs,
        labels,
        tuple(model.metrics),
        model.weighted,
        dumps_plan(cut_plan),
        plan_in_words(cut_plan, holders),
        parts,
        holders,
        len(cut_plan.stages),
        count,
        PlannedModel(
            place,
            {name: math.prod(array.shape) for name, array in model.parameters.items()},
            model.frozen,
            model.cut,
            model.dimensions,
            (
                f"{plan_in_words(cut_plan, holders)}; {job.micro_batches} pieces of {size} samples a step",
                *(_part_note(part, holders) for part in parts),
                *model.notes,
                *tied_weights(opened.model, model.names),
            ),
        ),
    )

    def recomputed() -> Mapping[int, int]:
        return training_cut(opened, model.names, cut_plan, feeds, recompute=True, axes=axes).kept

    _require_room(job, made, nodes, recomputed, together)
    safetensors.numpy.save_file(
        {f"p/{i}": np.asarray(array, order="C") for i, array in enumerate(model.parameters.values())},
        folder / "initial.safetensors",
    )
    return made


def _by_input(
    job: SplitJob, rows: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of rows by the model's inputs, each called as its column where nothing binds it."""
    bound = job.model.inputs
    return {
        node: {**columns, **{name: columns[column] for name, column in bound.items() if column in columns}}
        for node, columns in rows.items()
    }


def _labels(job: SplitJob, model: Model) -> tuple[str, ...]:
    """The inputs that say what is right, and what a row counts."""
    loss = job.model.loss
    if loss.name == "output":  # whatever the file calls so
        return tuple(name for name in (loss.labels,) if name in model.inputs)
    return tuple(name for name in (loss.labels or "labels", loss.weights) if name)


def _require_names(job: SplitJob, model: Model) -> None:
    if unknown := sorted({*job.model.inputs, *job.table.inputs} - model.inputs.keys()):
        raise InvalidArgument(
            f"model.inputs binds {unknown[0]!r}, which is no input of the model; it has "
            f"{', '.join(sorted(model.inputs))}"
        )
    if unknown := sorted(set(job.stop.metrics) - set(model.metrics)):
        raise InvalidArgument(
            f"stop.metrics names {unknown[0]!r}, which is no metric of the model; it has "
            f"{', '.join(model.metrics) or 'none'}"
        )


def _planned(job: SplitJob, axes: Axes, nodes: Sequence[NodeTold]) -> tuple[CutPlan, Holders]:
    """The plan, and which node holds which part."""
    names = [node.name for node in nodes]
    if not names:
        raise FailedPrecondition("no node is here to hold a part of the model; start some with edge-node")
    if job.plan:
        cut_plan, holders = plan_of_file(job.plan, axes, names, 1)
    else:
        word, crossing = plan_word(job.split)
        if word == "layers":
            cut_plan = _by_layers(axes, nodes)
            holders = spread(cut_plan.parts, names, 1)
        else:
            sizes = layer_bytes(axes, narrow_places(axes))
            cut_plan, holders = by_word(word, crossing, names, sizes)
    if job.data.on_nodes and any(stage.cut is not Cut.NONE for stage in cut_plan.stages):
        raise InvalidArgument(
            "the data is on nodes, and the plan shares a layer between parts: by layers alone one node has "
            "all of the inputs and one all of the labels"
        )
    return cut_plan, holders


def _by_layers(axes: Axes, nodes: Sequence[NodeTold]) -> CutPlan:
    """As many stages as nodes, of about equal work; of about equal weights where those do not fit so."""
    places = narrow_places(axes)
    costs = model_costs(axes, places)
    sizes = layer_bytes(axes, places)
    work = [math.ceil(one.work.flops + one.work.moved / MOVED) for one in costs.layers]
    rows = even_layers(work, len(nodes))
    for row, node in zip(rows, nodes, strict=False):
        # With its gradient, which is as large, on its way.
        if node.memory_limit and 2 * sum(sizes[i] for i in row) > USABLE * node.memory_limit - node.taken:
            rows = even_layers(sizes, len(nodes))
            break
    return CutPlan(tuple(Stage(row, (part,)) for part, row in enumerate(rows)))


def _parts(
    cut_plan: CutPlan,
    axes: Axes,
    emitted: Emitted,
    model: OpenModel,
    trained: frozenset[str],
    read: Mapping[int, tuple[str, ...]],
) -> tuple[SplitPart, ...]:
    found: dict[int, SplitPart] = {}
    for stage in cut_plan.stages:
        for at, part in enumerate(stage.parts):
            weights = emitted.schedule.weights_of(part)
            own = {weight for weight in weights if weight.name in trained}
            layers = stage.layers.start, stage.layers.stop
            if part in found:  # of several stages
                layers = found[part].layers[0], layers[1]
            found[part] = SplitPart(
                part,
                layers,
                share_in_words(stage, at, axes),
                _bytes(weights, model),
                _bytes(own, model),
                read.get(part, ()),
                emitted.kept.get(part, 0),
            )
    return tuple(found[part] for part in sorted(found))


def _bytes(weights: set[Weight], model: OpenModel) -> int:
    shapes: dict[str, Any] = {t.name: (tuple(t.dims), t.data_type) for t in model.model.graph.initializer}
    size = 0
    for weight in weights:
        dims, kind = shapes[weight.name]
        size += (
            math.prod(extent_shape(dims, weight.extent))
            * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize
        )
    return size


def _part_note(part: SplitPart, holders: Holders) -> str:
    first, last = part.layers
    layers = f"layer {first}" if last == first + 1 else f"layers {first}-{last - 1}"
    read = f", reads {', '.join(part.read)} there" if part.read else ""
    return (
        f"part {part.part} on {', '.join(holders.get(part.part, ())) or 'any node'}: {layers}, {part.share}; "
        f"{part.weights:,} bytes of weights, {part.trained:,} of them train; of a piece it keeps "
        f"{part.kept:,}{read}"
    )


def _require_modest(schedule: Schedule, size: int, trained: int) -> None:
    """Refuse a cut of which more passes the aggregator at a time than it would run. `trained`: bytes of
    parameters whose gradients are among that."""
    peak = Course(schedule).peak
    if peak <= PEAK_BYTES:
        return
    gradients = f", gradients of {trained:,} bytes of parameters among them" if trained else ""
    fewer = "train fewer parameters (model.parameters), " if trained else ""
    raise ResourceExhausted(
        f"bound request-boundaries: what passes the aggregator for a piece of {size} samples takes {peak:,} "
        f"bytes at a time{gradients}, and {PEAK_BYTES:,} is the most: {fewer}have smaller pieces (more "
        "micro_batches), or split it by layers"
    )


def _require_room(
    job: SplitJob,
    made: SplitPlan,
    nodes: Sequence[NodeTold],
    recomputed: Callable[[], Mapping[int, int]],
    together: bool,
) -> None:
    """Refuse a plan whose weights, with gradients and activations of the pieces under way, are past a node's
    memory limit; what a graph takes besides while it runs, nodes say.

    `recomputed`: by part what is kept of a piece where activations are computed again. `together`: all pieces
    are under way at once.
    """
    pieces = job.micro_batches if together else pieces_at_once(made.stages, job.micro_batches)
    limits = {node.name: node for node in nodes}

    def lacking(kept: Mapping[int, int]) -> list[str]:
        needs: dict[str, int] = {}
        for part in made.parts:
            for node in made.holders.get(part.part, ()):
                # Of sums the one before goes when the next is made, or, where small, when the one after is.
                gradients = pieces + (1 if together else 2 if job.micro_batches > 1 else 0)
                size = part.weights + gradients * part.trained + pieces * kept[part.part]
                if job.micro_batches > 1 and not together and part.trained <= OVERWRITTEN:
                    size += part.trained
                needs[node] = needs.get(node, 0) + size
        return [
            f"{name} would hold {size:,} bytes of weights, gradients and activations and has "
            f"{limits[name].memory_limit:,}"
            + (f", {limits[name].taken:,} of them taken" if limits[name].taken else "")
            for name, size in needs.items()
            if limits[name].memory_limit and size > limits[name].memory_limit - limits[name].taken
        ]

    kept = {part.part: part.kept for part in made.parts}
    if not (found := lacking(kept)):
        return
    said = f"the model does not fit so ({'; '.join(found[:8])}), with {pieces} pieces under way"
    if not job.recompute and any(kept.values()) and not lacking(recomputed()):
        raise ResourceExhausted(
            f"{said}: it does where activations are computed again: set recompute = true, or have smaller "
            "pieces (more micro_batches)"
        )
    raise ResourceExhausted(
        f"{said}: name more nodes, split it by layers or heads, have smaller pieces (more micro_batches), or "
        "train fewer parameters"
    )
