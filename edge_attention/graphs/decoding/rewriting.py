"""A decoder with a past, rewritten: a row for each new token, and attention over what is stored.

    input_ids, mask, past keys and values --> logits, present keys and values     as it was exported
    input_ids [rows, 1], position_ids [rows, 1] --> logits [rows, 1, vocabulary]  as it is cut and run

A decoder beside an encoder has what that made as an input, too, [rows, 1, width]: a row brings a token of it,
whose keys and values are stored, or a new token; no row does both.

Nothing but attention looks at earlier tokens, and attention does so where they are stored. So a row may be of
any session at any position, a trip takes rows of several, and what it takes does not depend on the past.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edge_attention.core.errors import FailedPrecondition
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.decoding.core_forms import CoreForm, form_of
from edge_attention.graphs.decoding.cores import cores_of, memory_cores_of
from edge_attention.graphs.decoding.file_forms import of_one_step
from edge_attention.graphs.decoding.grouped import GROUPED, rewrite_grouped
from edge_attention.graphs.decoding.input_sizes import read_sizes_off
from edge_attention.graphs.decoding.memory import require_token_by_token
from edge_attention.graphs.decoding.numbers_fed import bound_alone
from edge_attention.graphs.decoding.positions import first_row, free_of_the_past
from edge_attention.graphs.decoding.step_graph import DecoderInputs, StepGraph, label

__all__ = ["ROWS", "SCALES", "SteppedModel", "as_steps"]

ROWS = "rows"
"""The name of the one open dimension of a model that was rewritten."""
LENGTH = 1 << 20
"""Tokens of a session at most, where nothing in the model says fewer."""
SCALES = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
"""Operators that find one scale for all that they are given."""
_BETWEEN_ROWS = frozenset({*SCALES, "BatchNormalization"})


@dataclass(frozen=True, eq=False)
class SteppedModel:
    """A decoder, rewritten.

    Attributes:
        positions: the input that has them; "" of a model that knows none.
        length: the most tokens of one sequence: positions that it has.
        states: the input that has what an encoder made; "" of a model without.
        states_width: of one token of that.
        memory: tokens of that, where the file fixes how many there are; else 0.
        alone: why a trip has one row; "": it may have several.
        masked: what is not known of the model, as a mask that it is given says it; "": nothing.
    """

    model: OpenModel
    ids: str
    positions: str
    logits: str
    length: int
    states: str = ""
    states_width: int = 0
    memory: int = 0
    alone: str = ""
    masked: str = ""


def as_steps(opened: OpenModel) -> SteppedModel:
    """Rewrite a decoder.

    Raises:
        FailedPrecondition: it is none, or one that cannot be served so, with the reason.
        InvalidGraph: its functions cannot be inlined.
    """
    graph = StepGraph.of(of_one_step(opened))
    inputs = graph.decoder_inputs()
    logits, masked = _logits(graph), _masked(graph, inputs)
    if inputs.states and graph.dtype(inputs.states) != "float32":
        graph.take_float32(inputs.states)
    # A batch that is read off a past is that of the tokens, too: then it needs no past.
    read_sizes_off(graph, inputs.ids, [logits], graph.inputs.keys() - set(inputs.pasts))
    length = _grouped(graph, inputs)
    length = min(length, _plain(graph, inputs))
    graph.prune([logits])
    if inputs.states:
        graph.in_reading_order([logits])
    positions = free_of_the_past(graph, inputs, [logits])
    alone = _require_by_rows(graph, inputs)
    length = min(length, _tables(graph, inputs, positions))
    dims: tuple[int | str, ...] = (ROWS, 1)
    kept = {name: dims for name in (inputs.ids, positions) if name}
    if not inputs.states:
        finished = graph.finished(kept)
        return SteppedModel(finished, inputs.ids, positions, logits, length, alone=alone, masked=masked)
    _, memory, width = graph.shape(inputs.states)
    if not width:
        raise FailedPrecondition(f"{inputs.states[:80]!r} does not say how wide what the encoder made is")
    kept[inputs.states] = (ROWS, 1, width)
    finished = graph.finished(kept)
    return SteppedModel(
        finished, inputs.ids, positions, logits, length, inputs.states, width, memory, masked=masked
    )


def _masked(graph: StepGraph, inputs: DecoderInputs) -> str:
    """What is not known where the file is told which others each token sees: a window would be in that."""
    if not inputs.mask or len(graph.shape(inputs.mask)) < 4:
        return ""
    return (
        f"the file has {inputs.mask[:80]!r} say which tokens each sees, and here each sees all before it: of "
        "a model with a window what comes beyond that is not its own (export it with a dynamic cache)"
    )


def _logits(graph: StepGraph) -> str:
    """The output that is not keys or values: the only one of three dimensions (or of two: of the last token
    alone), or the one called so. Of float16, or of two dimensions, a new one [batch, tokens, vocabulary] in
    float32."""
    known = {value.name: value.type.tensor_type for value in graph.model.graph.output}
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    by_rank = {
        rank: [n for n, t in known.items() if len(t.shape.dim) == rank and t.elem_type in floats]
        for rank in (3, 2)
    }
    found = by_rank[3] or by_rank[2]
    named = [name for name in found if "logits" in name]
    if len(named or found) != 1:
        raise FailedPrecondition(
            f"of its outputs {', '.join(graph.outputs)[:160]} one must have the logits, float32 or float16, "
            "[batch, tokens, vocabulary] or [batch, vocabulary]"
        )
    name = (named or found)[0]
    kept, dtype = name, "float16" if known[name].elem_type == TensorProto.FLOAT16 else "float32"
    if len(known[name].shape.dim) == 2:
        name, flat = graph.name(name), name
        axis = graph.constant(np.array([1], np.int64))
        graph.nodes.append(helper.make_node("Unsqueeze", [flat, axis], [name], name=name))
    name = graph.cast(graph.nodes, name, dtype, "float32")
    if name != kept:
        graph.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return name


def _grouped(graph: StepGraph, inputs: DecoderInputs) -> int:
    """Rewrite GroupQueryAttention; for how many positions the model has tables."""
    length = LENGTH
    for node in [node for node in graph.nodes if node.op_type == GROUPED]:
        rows = rewrite_grouped(graph, node, inputs.where)
        length = min(length, rows or LENGTH)
    return length


def _plain(graph: StepGraph, inputs: DecoderInputs) -> int:
    """Rewrite attention in plain operators; the most tokens that it was tried with."""
    cores = cores_of(graph, inputs)
    if not cores and not inputs.states:
        return LENGTH
    bound = bound_alone(graph, inputs)
    if inputs.states:
        found = memory_cores_of(graph, inputs, bound)
        require_token_by_token(graph, inputs, [name for core in found for name in (core.keys, core.values)])
        cores += found
    length = LENGTH
    known: dict[bytes, CoreForm] = {}
    for core in cores:
        known_types = {name: bound.specs[name].dtype for name in bound.specs}
        # Where rows are cut out and put together by numbers, nobody knows sizes, but what they are of.
        known_types |= {one.value: graph.dtype(one.past) for one in core.laid}
        if core.laid:
            known_types.setdefault(core.out, graph.dtype(core.laid[1].past))
        if unknown := {core.queries, core.keys, core.values, core.out} - known_types.keys():
            raise FailedPrecondition(f"{label(core.node)}: the shape of {min(unknown)[:80]!r} is not known")
        form = form_of(graph, inputs, core, bound.shape(core.queries), known)
        length = length if core.memory else min(length, form.length)
        nodes: list[NodeProto] = []
        kinds = [known_types[name] for name in (core.queries, core.keys, core.values, core.out)]
        given = (core.queries, core.new_keys, core.new_values)
        queries, keys, values = (
            graph.cast(nodes, name, kind, "float32") for name, kind in zip(given, kinds, strict=False)
        )
        sinks = "" if form.sinks is None else graph.constant(form.sinks)
        out = graph.attend(
            nodes, queries, keys, values, core.groups, form.shared, core.widths,
            form.scale, form.window, core.memory, form.bias, form.cap, sinks,
        )  # fmt: skip
        out = graph.cast(nodes, out, "float32", kinds[3])
        graph.reshaped(nodes, out, -1, *form.out[1:], out=core.out)
        graph.replace(core.node, nodes)
    return length


def _require_by_rows(graph: StepGraph, inputs: DecoderInputs) -> str:
    """Refuse what makes rows depend on each other. Why rows go one by one; "": they need not.

    A scale for all activations is one for a row, where a trip has no other. Of a memory rows are brought one
    by one, and its file has one scale for all of them.
    """
    alone = ""
    for node in graph.nodes:
        if node.op_type in SCALES and not inputs.states:
            alone = alone or (
                f"the file rounds activations to int8 by a scale for all tokens that it is given at once "
                f"({label(node)}), and here they go one by one: as one box makes them one after the other, "
                "but for a prompt that is given at once, whose logits differ by about 1e-2"
            )
        elif node.op_type in _BETWEEN_ROWS:
            raise FailedPrecondition(
                f"{label(node)} looks at all rows at once: what one session is told would depend on others"
            )
    return alone


def _tables(graph: StepGraph, inputs: DecoderInputs, positions: str) -> int:
    """How many positions there are in tables that are looked up by them, and by nothing that follows from
    tokens: an expert is looked up, too."""
    if not positions:
        return LENGTH
    after = graph.behind([positions]) - graph.behind(filter(None, [inputs.ids, inputs.states]))
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.model.graph.initializer}
    length = LENGTH
    for node in graph.nodes:
        if node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in after:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if node.input[0] in sizes and axis == 0:
                rows = int(sizes[node.input[0]][0])
                length = min(length, rows - first_row(graph, positions, node.input[1]))
        if node.op_type == "RotaryEmbedding":
            length = min([length, *(int(sizes[n][0]) for n in node.input[1:4] if len(sizes.get(n, ())) == 2)])
    return length
