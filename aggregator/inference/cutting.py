"""What the process apart does with a model: looks at it, makes its plan if it has none, and cuts it.

A plan is a word, a file, or what the planner finds best over the nodes that are here. All that is asked of a
model that somebody sent is asked of the strict reader's (edge_attention/graphs/axes/model_reading.py).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import helper

from aggregator.inference.beside_encoder import require_of_one_model, write_beside
from aggregator.inference.cut_request import CutRequest
from aggregator.inference.decoder_files import decoder_files
from aggregator.inference.deployed import PlannedParts
from aggregator.inference.gained import box_of, gained, gained_whole, links_of
from aggregator.inference.generation.coders import TOKENIZER
from aggregator.inference.measured import WORK_FILE, work_text
from aggregator.inference.model_inputs import OTHERS, feeds_of, tensors_of, with_masks_of_all
from aggregator.inference.placement import GAIN, Holders, LayerSeconds, by_word, plan_word, spread
from aggregator.inference.plan_in_words import plan_in_words, share_in_words
from edge_attention.core.errors import (
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    InvalidGraph,
    ResourceExhausted,
)
from edge_attention.core.messages.inference import (
    ANY_RANK,
    ConsideredPlan,
    DeployedPart,
    ModelTensor,
)
from edge_attention.core.placement.cuts.choice import Choice, PlanWanted
from edge_attention.core.placement.cuts.choosing import choose
from edge_attention.core.placement.cuts.costs import ModelCosts
from edge_attention.core.placement.cuts.plan_toml import loads_toml
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.pieces import dumps_decoder
from edge_attention.core.schedule.plan import Crossing, CutPlan, Stage
from edge_attention.core.schedule.saved_plan import dumps_plan, loads_plan
from edge_attention.core.schedule.schedule import Schedule, TensorForm, Weight
from edge_attention.core.tensors import DataType
from edge_attention.graphs.axes.annotation import loads_annotation
from edge_attention.graphs.axes.batch_rows import rows_meet
from edge_attention.graphs.axes.costs import model_costs
from edge_attention.graphs.axes.cut import analyse, analyse_for, cut, cuts_no_layer, sizes_of
from edge_attention.graphs.axes.folder import write_cut
from edge_attention.graphs.axes.joined_inputs import joined_inputs
from edge_attention.graphs.axes.jumps import exact_only
from edge_attention.graphs.axes.looked_up import rows_looked_up
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel, open_model
from edge_attention.graphs.axes.narrow import layer_bytes, narrow_places
from edge_attention.graphs.axes.planning import segments_work
from edge_attention.graphs.axes.whole import write_whole
from edge_attention.graphs.decoding.cutting import write_decoder
from edge_attention.graphs.decoding.step_graph import both_in_one

__all__ = [
    "choice_of_nodes",
    "cut_as_asked",
    "plan_of_file",
]

CONSIDERED = 8
"""Plans not taken that are told of."""
DECODER = "decoder"
"""The folder of what a decoder is cut into for sessions."""


def cut_as_asked(request: CutRequest, opened: OpenModel | None = None) -> PlannedParts:
    """Plan the model, if it has no plan, and cut it into `request.into`; or write it there as a whole.

    `opened`: the model, where it was read before.

    Raises:
        InvalidGraph: it is no model that can be cut, or not so; says why.
        InvalidArgument: the plan, or a size, is not of this model.
        FailedPrecondition, ResourceExhausted: too few nodes, or too small ones.
    """
    model = opened or open_model(Path(request.model))
    if request.plan or request.before:
        model = replace(model, given=request.given)
    inputs, outputs = tensors_of(model)
    looked_up, joined = rows_looked_up(model), joined_inputs(model)
    planned = replace(_cut(model, inputs, outputs, request), looked_up=looked_up, joined=joined)
    if model.given and not planned.whole:
        planned = replace(
            planned, given=model.given, notes=(*planned.notes, *_known_said(model.given, inputs))
        )
    if request.plan or not Path(request.into).is_dir():  # of a model that was planned before
        return planned
    if files := decoder_files(Path(request.model).parent):
        return _with_decoder(planned, files, Path(request.into) / DECODER)
    decoder, why = _sessions(model, loads_plan(planned.plan), Path(request.into) / DECODER)
    note = "served as sessions, too: keys and values of earlier tokens stay on the nodes" if decoder else ""
    pasts = any(len(one.shape) == 4 and (one.name in joined or "past" in one.name) for one in inputs)
    if not decoder and (Path(request.model).parent / TOKENIZER).is_file():
        note = f"no sessions, so its tokenizer is not used: {why}"
    elif not decoder and (pasts or both_in_one(one.name for one in inputs)):
        note = f"no sessions: {why}"
    notes = (*planned.notes, note) if note else planned.notes
    return replace(planned, decoder=decoder, sessions=why, notes=notes)


def _cut(
    model: OpenModel, inputs: tuple[ModelTensor, ...], outputs: tuple[ModelTensor, ...], request: CutRequest
) -> PlannedParts:
    """The plan, and what is written into `request.into`, as an ordinary model. Raises as `cut_as_asked`."""
    word, crossing = ("", Crossing.GATHER) if request.plan_file else plan_word(request.word)
    if request.whole or (word == "replicate" and not request.plan):
        return _whole(model, inputs, outputs, request)
    known = loads_plan(request.plan) if request.plan else None
    try:
        feeds, axes = _analysed(model, inputs, request, known)
    except EdgeAttentionError as error:
        if word == "auto" and not request.plan:
            return _whole(model, inputs, outputs, request, note=f"it is not cut: {error.message}")
        raise
    considered: tuple[ConsideredPlan, ...] = ()
    notes: tuple[str, ...] = ()
    if known is not None:
        plan, holders = known, request.holders
    elif request.plan_file:
        plan, holders = plan_of_file(
            Path(request.plan_file).read_bytes(),
            axes,
            [node.name for node in request.nodes],
            request.replicas,
        )
    elif word == "auto":
        plan, holders, considered, said = _chosen(axes, request)
        notes = (said,)
    else:
        nodes, sizes = [node.name for node in request.nodes], layer_bytes(axes, narrow_places(axes))
        plan, holders = by_word(
            word, crossing, nodes, sizes, request.replicas,
            halves=request.halves, seconds=_layer_seconds(axes, request) if word == "layers" else None,
        )  # fmt: skip
    plan = replace(plan, halves=plan.halves or request.halves)
    gain = 0.0
    if request.before:
        gain = gained(model_costs(axes), plan, holders, request)
        if gain < GAIN:
            return _kept(inputs, outputs, gain)
    if plan.parts == 1 and not plan.mean and not request.plan:
        made = _whole(model, inputs, outputs, request, holders, plan.stages[0].layers)
        return replace(made, considered=considered, notes=notes, gain=gain)
    if cuts_no_layer(plan) and known is None:
        axes = analyse_for(model, sizes_of(model, feeds), plan)
    emitted = cut(axes, plan, known=bool(request.plan))
    write_cut(emitted, model, Path(request.into))
    schedule = emitted.schedule
    work = segments_work(emitted, model)
    (Path(request.into) / WORK_FILE).write_text(work_text(work))
    return PlannedParts(
        inputs,
        outputs,
        {name: form.shape for name, form in feeds.items()},
        dumps_plan(plan),
        plan_in_words(plan, holders),
        tuple(_parts(plan, axes, schedule, model)),
        holders,
        _node_bytes(schedule, holders, model),
        schedule.coverage,
        schedule.lacking,
        considered,
        notes,
        rows=rows_meet(model, inputs) if request.rows else "",
        gain=gain,
        nodes=_names(request),
    )


def _whole(
    model: OpenModel,
    inputs: tuple[ModelTensor, ...],
    outputs: tuple[ModelTensor, ...],
    request: CutRequest,
    holders: Holders | None = None,
    layers: range = range(1),
    note: str = "",
) -> PlannedParts:
    """The model as it is: no axis of it is looked at, but for rows of a batch that are to run together."""
    feeds, gain = feeds_of(inputs, request, OTHERS[0]), 0.0
    if holders is None:
        if request.before and (gain := gained_whole(request)) < GAIN:
            return _kept(inputs, outputs, gain)
        holders = {} if request.before else request.holders
        holders = holders or by_word("replicate", Crossing.GATHER, _names(request), [1], request.replicas)[1]
    whole = write_whole(model, Path(request.into))
    looks = request.rows or request.rows_whole
    meet = _meets(model, inputs, request) if looks else ""
    size = sum(model.places[name].nbytes for name in whole.weights)
    plan = CutPlan((Stage(layers, (0,)),))
    return PlannedParts(
        inputs,
        outputs,
        {name: form.shape for name, form in feeds.items()},
        dumps_plan(plan),
        plan_in_words(plan, holders),
        (DeployedPart(0, layers, "all", size),),
        holders,
        dict.fromkeys(holders[0], size),
        notes=(note,) if note else (),
        whole=True,
        rows=meet,
        apart=looks and not meet,
        gain=gain,
        nodes=_names(request),
    )


def _meets(model: OpenModel, inputs: tuple[ModelTensor, ...], request: CutRequest) -> str:
    """`rows_meet`. Any file is served as it is: where nobody asked for batches, one that cannot be looked at
    is, too."""
    try:
        return rows_meet(model, inputs)
    except Exception as problem:
        if request.rows:
            raise
        return f"whether its rows meet cannot be told ({problem!r:.200})"


def _sessions(model: OpenModel, plan: CutPlan, folder: Path) -> tuple[str, str]:
    """Cut a decoder for sessions, too: what serving it takes; or why that cannot be."""
    try:
        return dumps_decoder(write_decoder(model, plan, folder)), ""
    except EdgeAttentionError as error:
        shutil.rmtree(folder, ignore_errors=True)
        return "", error.message


def _with_decoder(planned: PlannedParts, files: list[Path], folder: Path) -> PlannedParts:
    """The same with the decoder beside it, for the same nodes. Raises where that cannot be served."""
    if planned.lacking:
        raise FailedPrecondition(
            f"what the encoder's parts make is not exact ({planned.lacking}), and its decoder would take it "
            "for exact: give a plan of the whole encoder, layers or replicate"
        )
    form, model, schedule = write_beside(files, loads_plan(planned.plan), folder)
    require_of_one_model(form, planned.outputs)
    more = _node_bytes(schedule, {p: planned.holders[p] for p in range(len(form.caches))}, model)
    parts = tuple(
        replace(one, bytes=one.bytes + _sizes(schedule.weights_of(one.part), model))
        if one.part < len(form.caches)
        else one
        for one in planned.parts
    )
    node_bytes = {n: planned.node_bytes.get(n, 0) + more.get(n, 0) for n in {*planned.node_bytes, *more}}
    note = "an encoder; its decoder is served as sessions, by the same plan"
    return replace(
        planned, decoder=dumps_decoder(form), parts=parts, node_bytes=node_bytes, notes=(*planned.notes, note)
    )


def _known_said(given: Mapping[str, int], inputs: Sequence[ModelTensor]) -> list[str]:
    """What is not the asker's to say where the model is cut, and why."""
    flags = {one.name for one in inputs if one.data_type is DataType.BOOL}
    return [
        f"of both steps in the file the one with a past is cut: {name} is always {str(bool(value)).lower()}, "
        "and a first step's past has 0 tokens"
        if name in flags
        else f"logits are made of all tokens: {name} is always {value}"
        for name, value in given.items()
    ]


def _kept(inputs: tuple[ModelTensor, ...], outputs: tuple[ModelTensor, ...], gain: float) -> PlannedParts:
    """Of a plan made anew that gains too little: nothing was made of it."""
    return PlannedParts(inputs, outputs, {}, "", "", (), {}, {}, gain=gain)


def _names(request: CutRequest) -> tuple[str, ...]:
    return tuple(node.name for node in request.nodes)


def _analysed(
    model: OpenModel, inputs: Sequence[ModelTensor], request: CutRequest, plan: CutPlan | None
) -> tuple[dict[str, TensorForm], Axes]:
    """The inputs' forms, and the model's axes for them; for a plan, where there is one already."""
    for one in inputs:
        if one.shape == (ANY_RANK,):
            raise InvalidGraph(
                f"the model does not say how many dimensions {one.name!r} has: replicate it, or export it "
                "with its dimensions"
            )
    refused: EdgeAttentionError | None = None
    tried: list[dict[str, TensorForm]] = []
    for others in OTHERS:
        plainly = feeds_of(inputs, request, others)
        if plainly in tried:
            break  # all sizes were said
        for feeds in (plainly, with_masks_of_all(inputs, plainly, joined_inputs(model), request)):
            if feeds in tried:
                continue
            tried.append(feeds)
            try:
                sizes = sizes_of(model, feeds)
                return feeds, analyse(model, sizes) if plan is None else analyse_for(model, sizes, plan)
            except InvalidArgument as error:
                refused = refused or error
    assert refused is not None
    raise refused


def plan_of_file(data: bytes, axes: Axes, names: Sequence[str], replicas: int) -> tuple[CutPlan, Holders]:
    """The plan of a file (JSON, TOML, annotated ONNX), and who of `names` holds what, which it may say
    itself.

    Raises:
        InvalidArgument: it is none, or not of this model.
        FailedPrecondition: a node that it names is not here, or there are too few.
    """
    layers = len(narrow_places(axes)) + 1
    holders: Mapping[int, tuple[str, ...]] = {}
    if data.lstrip()[:1] == b"{":
        plan = loads_plan(data, layers)
    elif data[:1] == b"\x08":  # the first field of an ONNX file, and no text
        plan = loads_annotation(data, axes)
    else:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise InvalidArgument(
                "the plan's file is neither JSON, TOML nor ONNX; see docs/plans.md"
            ) from None
        plan, holders = loads_toml(text, layers)
    if not holders:
        holders = spread(plan.parts, names, max(replicas, 1))
    away = sorted({node for nodes in holders.values() for node in nodes} - set(names))
    if away:
        raise FailedPrecondition(
            f"the plan has node {', '.join(away)} hold parts; the nodes that are here, and may, are "
            f"{', '.join(names)}"
        )
    return plan, holders


def _layer_seconds(axes: Axes, request: CutRequest) -> dict[str, LayerSeconds]:
    """Node -> what each layer of the model takes there, as is predicted of what was measured of it."""
    costs = model_costs(axes)
    found = {}
    for node in request.nodes:
        box = box_of(node)
        took = tuple(box.seconds(layer.work, costs.rows) for layer in costs.layers)
        stated = tuple(one / box.slowness for one in took)
        found[node.name] = LayerSeconds(took, stated, box.memory)
    return found


def _chosen(axes: Axes, request: CutRequest) -> tuple[CutPlan, Holders, tuple[ConsideredPlan, ...], str]:
    """What the planner finds best; who holds what; what it did not take; why, in a sentence."""
    costs = exact_only(model_costs(axes), axes, PlanWanted(halves=request.halves))
    choice = choice_of_nodes(costs, request)
    if choice.chosen is None:
        raise ResourceExhausted(choice.says)
    plan, holders = choice.chosen.plan, choice.chosen.boxes
    names = [node.name for node in request.nodes]
    if request.replicas > 1:
        if request.replicas > len(names):
            raise FailedPrecondition(
                f"{request.replicas} replicas need as many nodes, and {len(names)} are here"
            )
        holders = {
            part: tuple(dict.fromkeys((*held, *names)))[: request.replicas] for part, held in holders.items()
        }
    rejected = tuple(
        ConsideredPlan(one.name, one.seconds, one.problem) for one in choice.rejected[:CONSIDERED]
    )
    return plan, holders, rejected, choice.says


def choice_of_nodes(costs: ModelCosts, request: CutRequest) -> Choice:
    """What is best over the nodes that may hold parts; nothing is chosen where nothing fits.

    Of nodes that were not measured it takes one at most, if there is any other way.
    """
    links = links_of(request.nodes, request.hub)
    wanted = PlanWanted(halves=request.halves, gain=GAIN)
    known = [box_of(node) for node in request.nodes if node.measured]
    others = [[box_of(node)] for node in request.nodes if not node.measured]
    for boxes in [known, *others] if known else others:
        choice = choose(costs, boxes, links, wanted)
        if choice.chosen is not None:
            says = f"{choice.says} (not measured: {len(others)})" if others else choice.says
            return replace(choice, says=says)
    return choose(costs, [box_of(node) for node in request.nodes], links, wanted)


def _bytes(weight: Weight, model: OpenModel, small: Mapping[str, TensorForm]) -> int:
    place = model.places.get(weight.name)
    shape, dtype = (
        (place.shape, place.dtype) if place else (small[weight.name].shape, small[weight.name].dtype)
    )
    return math.prod(extent_shape(shape, weight.extent)) * np.dtype(dtype).itemsize


def _sizes(weights: set[Weight], model: OpenModel) -> int:
    small = {
        tensor.name: TensorForm(
            np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).name, tuple(tensor.dims)
        )
        for tensor in model.model.graph.initializer
        if tensor.name not in model.places
    }
    return sum(_bytes(weight, model, small) for weight in weights)


def _node_bytes(schedule: Schedule, holders: Holders, model: OpenModel) -> dict[str, int]:
    """Bytes of weights that each node is to hold: what several of its parts need it holds once."""
    needed: dict[str, set[Weight]] = {}
    for part, nodes in holders.items():
        for node in nodes:
            needed.setdefault(node, set()).update(schedule.weights_of(part))
    return {node: _sizes(weights, model) for node, weights in needed.items()}


def _parts(plan: CutPlan, axes: Axes, schedule: Schedule, model: OpenModel) -> list[DeployedPart]:
    found = []
    for stage in plan.stages:
        for at, part in enumerate(stage.parts):
            size = _sizes(schedule.weights_of(part), model)
            found.append(DeployedPart(part, stage.layers, share_in_words(stage, at, axes), size))
    return sorted(found, key=lambda part: part.part)
