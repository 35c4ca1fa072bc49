"""Keys and values of what an encoder made: whether each is of one of its tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnx import ValueInfoProto, helper, numpy_helper

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.tensors import Array
from edge_attention.graphs.decoding.numbers_fed import MEMORY
from edge_attention.graphs.decoding.step_graph import DecoderInputs, StepGraph
from edge_attention.graphs.onnx_builder import IR_VERSION
from edge_attention.graphs.onnx_file import first_line
from edge_attention.graphs.reading.needed import reads

__all__ = ["require_token_by_token"]

_CLOSE, _CLOSE_HALF = 1e-4, 1e-2


def require_token_by_token(graph: StepGraph, inputs: DecoderInputs, names: Sequence[str]) -> None:
    """Refuse a model whose keys and values of the memory are not made of one token of it each: rows bring
    them one by one. Tried on numbers, with all tokens at once and with each in a row of its own.

    Raises:
        FailedPrecondition: says of which that is so.
    """
    tokens = graph.shape(inputs.states)[1] or MEMORY
    width = graph.shape(inputs.states)[2]
    rng = np.random.default_rng(5)
    states = rng.normal(size=(1, tokens, width)).astype(np.float32)
    for name in names:
        session, given = _session(graph, name)
        at_once = _run(session, graph, inputs, given, name, states)
        alone = _run(session, graph, inputs, given, name, states.reshape(tokens, 1, width))
        if alone.ndim != 4 or alone.shape[0] != tokens or alone.size != at_once.size:
            raise FailedPrecondition(
                f"{name[:80]!r} of {tokens} rows of what the encoder made is {list(alone.shape)}: the file "
                "fixes how many tokens that has; export it with that dimension open"
            )
        off = np.abs(alone[:, :, 0] - at_once[0].transpose(1, 0, 2)).max()
        close = _CLOSE_HALF if alone.dtype == np.float16 else _CLOSE
        if not off <= close * max(float(np.abs(at_once).max()), 1e-30):
            raise FailedPrecondition(
                f"{name[:80]!r}, keys or values of what the encoder made, is not of one token of it each: "
                "what is made of several tokens belongs into the encoder's file"
            )


def _session(graph: StepGraph, name: str) -> tuple[onnxruntime.InferenceSession, list[str]]:
    nodes = graph.before([name])
    read = {one for node in nodes for one in reads(node)}
    known = graph.inputs
    given = [one for one in known if one in read]
    infos = []
    for one in given:
        tensor = known[one].type.tensor_type
        infos.append(helper.make_tensor_value_info(one, tensor.elem_type, [None] * len(tensor.shape.dim)))
    tensors = [
        numpy_helper.from_array(graph.read(tensor.name), tensor.name)
        for tensor in graph.model.graph.initializer
        if tensor.name in read
    ]
    out = ValueInfoProto(name=name)
    model = helper.make_model(
        helper.make_graph(nodes, "memory", infos, [out], tensors),
        opset_imports=list(graph.model.opset_import),
        ir_version=min(graph.model.ir_version, IR_VERSION),
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options), given
    except Exception as error:
        raise FailedPrecondition(f"how {name[:80]!r} is made cannot be tried: {first_line(error)}") from None


def _run(
    session: onnxruntime.InferenceSession,
    graph: StepGraph,
    inputs: DecoderInputs,
    given: Sequence[str],
    name: str,
    states: Array,
) -> Array:
    """`name`, of these states [rows, tokens, width]; of other inputs only sizes matter."""
    feeds: dict[str, Array] = {}
    for one in given:
        if one == inputs.states:
            feeds[one] = states
            continue
        shape = [size or 1 for size in graph.shape(one)]
        shape[:1] = states.shape[:1]
        if one == inputs.states_mask:
            shape[1:2] = states.shape[1:2]
        dtype = helper.tensor_dtype_to_np_dtype(graph.inputs[one].type.tensor_type.elem_type)
        feeds[one] = np.ones(shape, dtype)
    try:
        (out,) = session.run(None, feeds)
    except Exception as error:
        raise FailedPrecondition(
            f"how {name[:80]!r} is made cannot be tried with {states.shape[0]} rows of {states.shape[1]} "
            f"tokens of what the encoder made: {first_line(error)}; export it with that dimension open"
        ) from None
    return np.asarray(out)
