"""A decoder cut by a plan, for trips of several numbers of rows, and kept in a folder.

decoder.json            core/schedule/pieces.py: what serving it takes
<rows>/schedule.json    and so on, as of every cut model (graphs/axes/folder.py); graphs are those of pieces
<rows>/pieces.json      by graph of the schedule, what it is in pieces
<rows>/tables.json      by graph of a piece, the inputs in which it only looks up rows
<rows>/ends.json        of one row: which graphs that end and begin a token are one (ends.py), if any
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.pieces import (
    AttentionPiece,
    CacheForm,
    DecoderForm,
    GraphPiece,
    SegmentPieces,
    dumps_decoder,
    dumps_ends,
    dumps_pieces,
    dumps_tables,
)
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import (
    Constant,
    Delivery,
    Kept,
    ModelInput,
    Schedule,
    Source,
    TensorForm,
    Weight,
)
from edge_attention.graphs.axes.batch_rows import rows_meet_in
from edge_attention.graphs.axes.cut import analyse, cut, cuts_no_layer, stage_cuts, stages_of
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.axes.flows import tables_of
from edge_attention.graphs.axes.folder import write_cut
from edge_attention.graphs.axes.infer import form_of
from edge_attention.graphs.axes.jumps import coarse
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.axes.narrow import layer_bytes, narrow_places
from edge_attention.graphs.decoding.ends import join_ends
from edge_attention.graphs.decoding.rewriting import ROWS, SCALES, SteppedModel, as_steps
from edge_attention.graphs.decoding.shared_tokens import shared_by_tokens
from edge_attention.graphs.decoding.splitting import made_of_memory, split, types_in
from edge_attention.graphs.decoding.step_graph import ATTENTION
from edge_attention.graphs.onnx_file import serialize

__all__ = ["ROWS_OF_TRIPS", "DecoderCut", "cut_decoder", "layers_of", "write_decoder", "write_steps"]

ROWS_OF_TRIPS = (1, 2, 4, 8, 16, 32, 64, 128)
"""For so many rows a decoder is cut: a trip takes the next larger number."""


TRIP_BYTES = 4 * 1024 * 1024
"""Of weights that a part reads in the time that a trip takes, about: a millisecond at 4 GB a second. Where it
is so many more a layer, parts that share heads each do all between two attentions: one trip, not two."""
ALONE_BYTES = 64 * 1024 * 1024
"""Of weights that each part holds for that, in all layers together."""
ENDS_BYTES = 64 * 1024 * 1024
"""Of weights that each part holds more so that all of them end a token."""
JOINED_BYTES = 16 * 1024 * 1024
"""Of weights that nodes hold once more in a graph that both ends and begins a token: more are read for longer
than the run takes that it spares."""
ROWS_APART = 3
"""Rows that a decoder is bound to, to see whether they meet."""


@dataclass(frozen=True, eq=False)
class DecoderCut:
    """A decoder cut for one number of rows: as `Emitted`, with its segments in pieces."""

    emitted: Emitted
    pieces: Mapping[str, SegmentPieces]


def write_decoder(opened: OpenModel, plan: CutPlan, folder: Path) -> DecoderForm:
    """Cut a decoder by `plan` for all numbers of rows, and write all of it.

    Raises:
        FailedPrecondition: it cannot be served as sessions, or not by this plan; says why.
        EdgeAttentionError: as `cut` does.
    """
    return write_steps(as_steps(opened), plan, folder)


def write_steps(stepped: SteppedModel, plan: CutPlan, folder: Path) -> DecoderForm:
    """As `write_decoder`, of one that was rewritten."""
    _require_rows_apart(stepped)
    form: DecoderForm | None = None
    ends_alike: bool | None = None
    known: dict[bytes, list[tuple[str, ModelProto]]] = {}
    files: dict[str, bytes] = {}
    for rows in reversed(_rows_of(stepped)):
        made, form = cut_decoder(stepped, plan, rows, ends_alike)
        ends_alike = len(made.emitted.schedule.steps[-1].segments) > 1
        made = _with_known(made, known, files)
        into = folder / str(rows)
        own = made.emitted.graphs
        if rows == 1 and ends_alike and _few_at_ends(made.emitted.schedule, stepped.model):
            ends, more = join_ends(made.emitted.schedule, made.pieces, own, form.ids, form.logits)
            into.mkdir(parents=True, exist_ok=True)
            (into / "ends.json").write_text(dumps_ends(ends))
            made = replace(made, emitted=replace(made.emitted, graphs={**own, **more}))
        write_cut(made.emitted, stepped.model, into)
        (into / "pieces.json").write_text(dumps_pieces(made.pieces))
        tables = {digest: tables_of(data) for digest, data in own.items()}
        (into / "tables.json").write_text(dumps_tables(tables))
    assert form is not None
    (folder / "decoder.json").write_text(dumps_decoder(form))
    return form


def layers_of(stepped: SteppedModel) -> tuple[int, ...]:
    """Bytes of the weights of each layer that a plan may name."""
    axes = analyse(stepped.model, {ROWS: ROWS_APART})
    return layer_bytes(axes, narrow_places(axes))


def _rows_of(stepped: SteppedModel) -> tuple[int, ...]:
    """The numbers of rows that trips have."""
    return (1,) if stepped.alone else ROWS_OF_TRIPS


def _require_rows_apart(stepped: SteppedModel) -> None:
    """Refuse a model in which rows meet but in attention, which looks at each row's own sequence."""
    apart = (ATTENTION, *SCALES) if stepped.alone else (ATTENTION,)
    if why := rows_meet_in(analyse(stepped.model, {ROWS: ROWS_APART}), apart):
        raise FailedPrecondition(f"what one session is told would depend on others: {why}; replicate it")


def _with_known(
    made: DecoderCut, known: dict[bytes, list[tuple[str, ModelProto]]], files: dict[str, bytes]
) -> DecoderCut:
    """The cut with graphs of an earlier one where they are the same but for sizes that they declare: of one
    row a size is fixed that is open of more, and weights would be packed twice.

    `known`: gets, by what a graph is without sizes, those that there are; `files`: by digest its bytes.
    """
    instead: dict[str, str] = {}
    for digest, data in made.emitted.graphs.items():
        model, bare = ModelProto.FromString(data), ModelProto.FromString(data)
        for value in (*bare.graph.input, *bare.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
        alike = known.setdefault(serialize(bare), [])
        fits = next((of for of, one in alike if _takes(one, model)), None)
        if fits is None:  # of parts with other shares, say, that differ in nothing else
            alike.append((digest, model))
        instead[digest] = fits or digest
        files.setdefault(digest, data)
    graphs = {digest: files[digest] for digest in instead.values()}
    pieces = {
        name: tuple(
            replace(piece, graph=instead[piece.graph]) if isinstance(piece, GraphPiece) else piece
            for piece in of
        )
        for name, of in made.pieces.items()
    }
    return DecoderCut(replace(made.emitted, graphs=graphs), pieces)


def _takes(one: ModelProto, other: ModelProto) -> bool:
    """Whether a graph takes and gives whatever another one does, which is the same but for sizes."""
    mine_and_theirs = (
        *zip(one.graph.input, other.graph.input, strict=True),
        *zip(one.graph.output, other.graph.output, strict=True),
    )
    return all(
        not mine.HasField("dim_value") or mine.dim_value == theirs.dim_value
        for value, than in mine_and_theirs
        for mine, theirs in zip(
            value.type.tensor_type.shape.dim, than.type.tensor_type.shape.dim, strict=True
        )
    )


def cut_decoder(
    stepped: SteppedModel, plan: CutPlan, rows: int, ends_alike: bool | None = None
) -> tuple[DecoderCut, DecoderForm]:
    """A decoder cut for trips of `rows`, and what serving it takes. Raises as `write_decoder`.

    `ends_alike`: of parts that share attention alone, whether all end a token; None: it is found out.
    """
    kinds = {stage.cut for stage in plan.stages}
    if plan.mean or Cut.BATCH in kinds:
        raise FailedPrecondition("by batch, or by averaging, no part has a session of its own: replicate it")
    if plan.halves:
        raise FailedPrecondition("with halves what passes between parts is rounded, and tokens would differ")
    by_tokens = Cut.TOKENS in kinds
    if by_tokens and len(plan.stages) > 1:
        raise FailedPrecondition(
            "stages that share tokens have one past each: use one stage, heads or layers"
        )
    if by_tokens:
        whole = CutPlan((Stage(plan.stages[0].layers, (0,)),))
    fused = by_tokens or cuts_no_layer(plan)
    axes = analyse(stepped.model, {ROWS: rows}, fused=fused)
    layers = len(narrow_places(axes)) + 1
    last = max(stage.layers.stop for stage in plan.stages)
    if len(plan.stages) > 1 and last != layers:
        raise FailedPrecondition(
            f"without its past the model has {layers} layers, and the plan is for {last}: deploy it by "
            "heads, tokens or replicate"
        )
    alone = _attention_alone(axes, plan)
    ends_alike = ends_alike if alone and len(plan.stages) == 1 and not by_tokens else False
    emitted = cut(axes, whole if by_tokens else plan, attention=alone, everywhere=bool(ends_alike))
    if ends_alike is None and _ends_alike(emitted.schedule, stepped.model):
        emitted = cut(axes, plan, attention=True, everywhere=True)
    made = _in_pieces(emitted, stepped.model, by_tokens, stepped.states)
    if by_tokens:
        schedule, pieces = shared_by_tokens(
            made.emitted.schedule, made.pieces, len(plan.stages[0].parts), stepped.logits, _attended(axes)
        )
        made = DecoderCut(replace(made.emitted, schedule=schedule), pieces)
        caches = tuple(tuple(_caches(axes)) for _ in plan.stages[0].parts)
    else:
        caches = _caches_of_parts(axes, plan)
    _require_all(made, caches)
    shares = plan.stages[0].shares or (1.0,) * len(plan.stages[0].parts) if by_tokens else ()
    rounded, close = coarse(axes)
    if rounded:
        made = _labelled(
            made,
            f"{rounded}, and attention over what is stored is not the file's own operators, which differ by "
            f"1e-7 before that: logits agree to about {close} only, and where two tokens are that close the "
            "other one may come",
        )
    if stepped.alone:
        made = _labelled(made, stepped.alone)
    if stepped.masked:
        said = made.emitted.schedule.lacking
        made = _labelled(made, f"{said}; {stepped.masked}" if said else stepped.masked)
    vocabulary = axes.bound.shape(stepped.logits)[-1]
    return made, DecoderForm(
        stepped.ids, stepped.positions, stepped.logits, vocabulary, stepped.length, _rows_of(stepped),
        by_tokens, tuple(shares), caches, stepped.states, stepped.states_width,
    )  # fmt: skip


def _attention_alone(axes: Axes, plan: CutPlan) -> bool:
    """Whether parts that share heads share attention alone, as the rest takes no longer than a trip."""
    parts = max(len(stage.parts) for stage in plan.stages)
    if any(name.startswith("feedforward") for stage in plan.stages for name in stage.ranges):
        return False  # it is said who does what of it
    bound, nodes = axes.bound, axes.bound.nodes
    widths = {axis for name, ids in axes.named.items() if name.startswith("feedforward") for axis in ids}
    folds = {n for name, at in axes.crossed.items() if name.startswith("heads") for n in at}
    folded = {name for n in folds if nodes[n].op_type != ATTENTION for name in nodes[n].input}
    size = sum(
        math.prod(bound.shape(name)) * np.dtype(bound.specs[name].dtype).itemsize
        for name in bound.weights
        if name in folded or any(axis in widths for dim in axes.dims[name] for axis, _ in dim)
    )
    attentions = sum(node.op_type == ATTENTION for node in nodes)
    more = size * (parts - 1) / parts
    return more <= ALONE_BYTES and more <= TRIP_BYTES * attentions


def _ends_alike(schedule: Schedule, model: OpenModel) -> bool:
    """Whether the parts that begin a token might all end the one before, of what that takes of weights: each
    then knows the next token by itself (aggregator/inference/decoding/ahead.py)."""
    first, last = schedule.steps[0].segments, schedule.steps[-1].segments
    if len(schedule.steps) < 2 or len(first) < 2 or len(last) != 1:
        return False
    others = [schedule.weights_of(one.part) for one in first if one.part != last[0].part]
    own = {source for source in last[0].inputs.values() if isinstance(source, Weight)}
    more = [source for source in own if any(source not in held for held in others)]
    return _weight_bytes(more, model) <= ENDS_BYTES


def _few_at_ends(schedule: Schedule, model: OpenModel) -> bool:
    """Whether what ends and begins a token has so few weights that nodes may pack them once more, in one
    graph of both (ends.py)."""
    own = {
        source
        for step in (schedule.steps[0], schedule.steps[-1])
        for segment in step.segments
        for source in segment.inputs.values()
        if isinstance(source, Weight)
    }
    return _weight_bytes(own, model) <= JOINED_BYTES


def _weight_bytes(weights: Iterable[Weight], model: OpenModel) -> int:
    forms = [(_weight_form(model, one.name), one.extent) for one in weights]
    return sum(math.prod(extent_shape(f.shape, e)) * np.dtype(f.dtype).itemsize for f, e in forms)


def _in_pieces(emitted: Emitted, model: OpenModel, with_lse: bool, states: str) -> DecoderCut:
    schedule = emitted.schedule
    graphs: dict[str, bytes] = {}
    pieces: dict[str, SegmentPieces] = {}
    kept: dict[tuple[int, str], TensorForm] = {}
    kept_memory: set[tuple[int, str]] = set()
    memories: dict[str, frozenset[str]] = {}
    for step in schedule.steps:
        for segment in step.segments:
            digest = schedule.graphs[segment.graph]
            proto = ModelProto.FromString(emitted.graphs[digest])
            forms = {n: _form(s, segment.part, emitted, model, kept) for n, s in segment.inputs.items()}
            values = {
                name: emitted.constants[schedule.constants[source.name].digest]
                for name, source in segment.inputs.items()
                if isinstance(source, Constant)
            }
            types = types_in(proto, forms, values)
            for output, name in segment.kept.items():
                found = form_of(types[output]) if output in types else None
                if found is not None:
                    kept[segment.part, name] = found
            memory = frozenset(
                name
                for name, source in segment.inputs.items()
                if (isinstance(source, ModelInput) and source.name == states)
                or (isinstance(source, Kept) and (segment.part, source.name) in kept_memory)
            )
            if memory:
                of_memory = made_of_memory(proto, memory)
                kept_memory |= {(segment.part, n) for out, n in segment.kept.items() if out in of_memory}
                if any(one.output in of_memory for one in segment.contributions):
                    raise FailedPrecondition(
                        "parts meet in what is made of the encoder's states: use layers, or replicate it"
                    )
            if memories.setdefault(segment.graph, memory) != memory:
                raise FailedPrecondition("parts that are alike have what the encoder made in other places")
            if segment.graph in pieces:
                continue
            made = split(proto, types, with_lse, memory)
            if made is None:
                graphs[digest] = emitted.graphs[digest]
                pieces[segment.graph] = (GraphPiece(digest, {}, {}),)
            else:
                graphs |= made.graphs
                pieces[segment.graph] = made.pieces
    whole = {name: _known(pieces[name], schedule, name) for name in pieces}
    return DecoderCut(replace(emitted, graphs=graphs), whole)


def _form(
    source: Source, part: int, emitted: Emitted, model: OpenModel, kept: Mapping[tuple[int, str], TensorForm]
) -> TensorForm:
    """Of an input of a part's segment.

    Raises FailedPrecondition where it is not known.
    """
    schedule = emitted.schedule
    match source:
        case ModelInput(name, extent):
            form = schedule.feeds[name]
        case Delivery(name, extent):
            form = schedule.boundaries[name].spec
        case Weight(name, extent):
            form = _weight_form(model, name)
        case Constant(name):
            return schedule.constants[name].spec
        case Kept(name):
            if (part, name) not in kept:
                raise FailedPrecondition(f"the form of what part {part} keeps as {name} is not known")
            return kept[part, name]
    return TensorForm(form.dtype, extent_shape(form.shape, extent))


def _weight_form(model: OpenModel, name: str) -> TensorForm:
    place = model.places.get(name)
    if place is not None:
        return TensorForm(place.dtype, place.shape)
    array = model.read(name)
    return TensorForm(array.dtype.name, array.shape)


def _known(pieces: SegmentPieces, schedule: Schedule, graph: str) -> SegmentPieces:
    """A graph as it is: its inputs and outputs are called as the segment calls them."""
    if len(pieces) > 1 or not isinstance(pieces[0], GraphPiece) or pieces[0].outputs:
        return pieces
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for step in schedule.steps:
        for segment in step.segments:
            if segment.graph == graph:
                inputs |= {name: name for name in segment.inputs}
                outputs |= {name: name for name in segment.kept}
                outputs |= {one.output: one.output for one in segment.contributions}
    return (replace(pieces[0], inputs=inputs, outputs=outputs),)


def _caches(axes: Axes) -> list[CacheForm]:
    """What is stored for each attention, in order, of all heads."""
    found = []
    for node in axes.bound.nodes:
        if node.op_type == ATTENTION:
            _, heads, key_width = axes.bound.shape(node.input[1])
            at = {a.name: a.i for a in node.attribute}
            value_width = axes.bound.shape(node.input[2])[2]
            memory, biased = bool(at.get("memory", 0)), len(node.input) > 3
            found.append(CacheForm(heads, key_width, value_width, at["window"], memory, biased))
    return found


def _attended(axes: Axes) -> list[TensorForm]:
    """The form of what each attention makes."""
    return [axes.bound.specs[n.output[0]] for n in axes.bound.nodes if n.op_type == ATTENTION]


def _caches_of_parts(axes: Axes, plan: CutPlan) -> tuple[tuple[CacheForm, ...], ...]:
    """By part what it stores: of each attention the key heads that it has."""
    stages, stage_of = stage_cuts(axes, plan), stages_of(axes, plan)
    found: list[list[CacheForm]] = [[] for _ in range(plan.parts)]
    attentions = [(at, node) for at, node in enumerate(axes.bound.nodes) if node.op_type == ATTENTION]
    for (at, node), cache in zip(attentions, _caches(axes), strict=True):
        stage = stages[stage_of[at]]
        dims = axes.dims[node.input[0]][1:3]
        cut_by = [(d, axis) for d, dim in enumerate(dims) for axis, _ in dim if axis in stage.ranges]
        for number, part in enumerate(stage.parts):
            own = cache.heads
            if cut_by:
                d, axis = cut_by[0]
                start, stop = stage.ranges[axis][number]
                own = (stop - start if d == 0 else cache.heads) if stop > start else 0
            if own:
                found[part].append(replace(cache, heads=own))
    return tuple(map(tuple, found))


def _require_all(made: DecoderCut, caches: tuple[tuple[CacheForm, ...], ...]) -> None:
    """Raises FailedPrecondition unless each part attends as often as it has something stored."""
    for part, forms in enumerate(caches):
        attends = sum(
            isinstance(piece, AttentionPiece)
            for _, segment in made.emitted.schedule.of_part(part)
            for piece in made.pieces[segment.graph]
        )
        if attends != len(forms):
            raise FailedPrecondition(
                f"part {part} attends {attends} times and would store keys of {len(forms)} attentions: the "
                "plan does not cut this decoder by its heads"
            )


def _labelled(made: DecoderCut, lacking: str) -> DecoderCut:
    schedule = replace(made.emitted.schedule, lacking=lacking)
    return replace(made, emitted=replace(made.emitted, schedule=schedule))
