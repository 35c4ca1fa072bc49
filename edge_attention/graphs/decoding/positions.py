"""Positions that a file computes itself, from how long a past or a mask is, become an input."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.tensors import Array
from edge_attention.graphs.decoding.numbers_fed import number_feed
from edge_attention.graphs.decoding.step_graph import DecoderInputs, StepGraph
from edge_attention.graphs.onnx_builder import IR_VERSION
from edge_attention.graphs.onnx_file import first_line
from edge_attention.graphs.reading.needed import reads

__all__ = ["first_row", "free_of_the_past"]

_TRIED = (5, 9)


def free_of_the_past(graph: StepGraph, inputs: DecoderInputs, outputs: Collection[str]) -> str:
    """Have what depends on the past's length take positions as an input: its name, or "" if nothing does.

    Raises:
        FailedPrecondition: something else of the past is needed where no attention is.
    """
    ours = inputs.where
    allowed = {inputs.ids, ours, *filter(None, (inputs.states,))}
    if set(graph.needed_inputs()) <= allowed:
        return ours if any(ours in reads(node) for node in graph.nodes) else ""
    aside = _aside(graph, inputs)
    values = _values(graph, inputs, aside)
    order = [name for node in graph.nodes for name in node.output if name in values]
    at_rows = [
        name
        for name in order
        if all(
            array.dtype.kind in "i" and array.shape == (1, 1) and int(array[0, 0]) == past
            for past, array in zip(_TRIED, values[name], strict=True)
        )
    ]
    # The last first: what is repeated by the batch before it is looked up has rows as it is.
    for name in reversed(at_rows):
        nodes = list(graph.nodes)
        kind = values[name][0].dtype
        if kind == np.int64 and not inputs.positions:
            new = ours
            graph.nodes = []
        else:
            new = graph.name("positions")
            number = int(helper.np_dtype_to_tensor_dtype(kind))
            graph.nodes = [helper.make_node("Cast", [ours], [new], name=new, to=number)]
        for node in nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            for position, read in enumerate(copy.input):
                if read == name:
                    copy.input[position] = new
            graph.nodes.append(copy)
        graph.nodes = graph.before(outputs)
        if set(graph.needed_inputs()) <= allowed:
            return ours
        graph.nodes = nodes
    left = sorted(set(graph.needed_inputs()) - allowed)
    raise FailedPrecondition(
        f"{', '.join(left)[:200]} is needed beside attention, and not as positions [batch, tokens] of the "
        "new tokens, of which rows of several sessions have each its own: export it with position_ids"
    )


def first_row(graph: StepGraph, positions: str, index: str) -> int:
    """Which row of a table is looked up for the first token: some files begin with the third. 0 where that
    depends on more than `positions`."""
    nodes = graph.before([index], [positions])
    read = {name for node in nodes for name in reads(node)}
    tensors = [t for t in graph.model.graph.initializer if t.name in read]
    known = graph.inputs.get(positions)
    kind = known.type.tensor_type.elem_type if known is not None else TensorProto.INT64
    given = helper.make_tensor_value_info(positions, kind, [1, 1])
    model = helper.make_model(
        helper.make_graph(nodes, "row", [given], [ValueInfoProto(name=index)], tensors),
        opset_imports=list(graph.model.opset_import),
        ir_version=min(graph.model.ir_version, IR_VERSION),
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        zero = np.zeros((1, 1), helper.tensor_dtype_to_np_dtype(kind))
        (found,) = session.run(None, {positions: zero})
        return max(int(np.max(found)), 0)
    except Exception:  # it takes more, or is no number
        return 0


def _aside(graph: StepGraph, inputs: DecoderInputs) -> list[NodeProto]:
    """The nodes on nothing but sizes, the mask, positions and small constants."""
    there = set(graph.inputs) - {inputs.ids, inputs.states, *inputs.pasts}
    there |= {name for name in graph.initializers if name not in graph.opened.places}
    found = []
    large = {inputs.ids, inputs.states, *inputs.pasts}
    for node in graph.nodes:
        sized = node.op_type in ("Shape", "Size") and node.input[0] in {*large, *there}
        if sized or (reads(node) <= there and not node.op_type.startswith("Random")):
            found.append(node)
            there.update(name for name in node.output if name)
    return found


def _values(graph: StepGraph, inputs: DecoderInputs, nodes: list[NodeProto]) -> dict[str, list[Array]]:
    """What these nodes make, for each past that is tried."""
    if not nodes:
        return {}
    read = {name for node in nodes for name in reads(node)}
    made = [name for node in nodes for name in node.output if name]
    infos = [value for name, value in graph.inputs.items() if name in read]
    tensors = [t for t in graph.model.graph.initializer if t.name in read]
    outs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in made]
    model = helper.make_model(
        helper.make_graph(nodes, "aside", infos, outs, tensors),
        opset_imports=list(graph.model.opset_import),
        ir_version=min(graph.model.ir_version, IR_VERSION),
    )
    for value in model.graph.output:
        value.ClearField("type")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    found: dict[str, list[Array]] = {name: [] for name in made}
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        for past in _TRIED:
            feeds = {value.name: number_feed(graph, inputs, value.name, past) for value in infos}
            for name, array in zip(made, session.run(made, feeds), strict=True):
                found[name].append(np.asarray(array))
    except Exception as error:
        raise FailedPrecondition(
            f"what the model computes of its past's length cannot be tried: {first_line(error)}"
        ) from None
    return found
