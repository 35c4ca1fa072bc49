"""A decoder's file as tools write it, made plain before it is rewritten: one step, in its own types.

both steps in one file, and an If between                   the step with a past
how many tokens' logits are wanted, as an input             a constant: of the row that there is
pasts in float32, cast to float16 before anything is done   pasts in float16
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_attention.graphs.axes.both_steps import PAST_RANK
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.decoding.joining import branches_of, pasts_of
from edge_attention.graphs.reading.needed import reads

__all__ = ["of_one_step"]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def of_one_step(opened: OpenModel) -> OpenModel:
    """The file so. Raises FailedPrecondition: two steps in it cannot be told apart."""
    return _with_own_types(_with_all_logits(_with_past(opened), opened.given))


def _with_past(opened: OpenModel) -> OpenModel:
    """Of a file with both steps of a decoder, which an If on an input chooses between, the one with a past:
    its first step is one behind nothing."""
    steps = [branch for branch in branches_of(opened) or () if pasts_of(branch)]
    return steps[0] if len(steps) == 1 else opened


def _with_all_logits(opened: OpenModel, given: Mapping[str, int]) -> OpenModel:
    numbers = [
        value
        for value in opened.model.graph.input
        if value.name in given and value.type.tensor_type.elem_type != TensorProto.BOOL
    ]
    if not numbers:
        return opened
    model = _copy(opened.model)
    for value in numbers:
        model.graph.input.remove(value)
        kind = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        array = np.full([1] * len(kind.shape.dim), given[value.name], dtype)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    return OpenModel(opened.path, model, opened.places)


def _with_own_types(opened: OpenModel) -> OpenModel:
    """With pasts of which nothing is read but what they are cast to in that type: what is stored of them is
    what is new, in float32 whatever it was."""
    pasts = {
        value.name: value
        for value in opened.model.graph.input
        if len(value.type.tensor_type.shape.dim) == PAST_RANK and value.type.tensor_type.elem_type in _FLOATS
    }
    readers: dict[str, list[NodeProto]] = {name: [] for name in pasts}
    for node in opened.model.graph.node:
        for name in reads(node) & pasts.keys():
            readers[name].append(node)
    cast = {name: nodes[0] for name, nodes in readers.items() if len(nodes) == 1 and _to_float(nodes[0])}
    if not cast:
        return opened
    model = _copy(opened.model)
    same = {node.output[0]: name for name, node in cast.items()}
    for value in model.graph.input:
        if value.name in cast:
            value.type.tensor_type.elem_type = next(a.i for a in cast[value.name].attribute if a.name == "to")
    kept = [node for node in model.graph.node if not same.keys() & set(node.output)]
    for node in kept:
        for position, name in enumerate(node.input):
            node.input[position] = same.get(name, name)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return OpenModel(opened.path, model, opened.places)


def _to_float(node: NodeProto) -> bool:
    to = next((a.i for a in node.attribute if a.name == "to"), 0)
    return node.op_type == "Cast" and node.domain in ("", "ai.onnx") and to in _FLOATS


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy
