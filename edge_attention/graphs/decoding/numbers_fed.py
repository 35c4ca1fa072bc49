"""What a decoder's inputs are given where a part of it is tried: a row, a new token, so many before it."""

from __future__ import annotations

import numpy as np
from onnx import helper

from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.decoding.step_graph import DecoderInputs, StepGraph

__all__ = ["MEMORY", "NEAR", "bound_alone", "number_feed", "sizes_at"]

NEAR = 9
"""Tokens of what is tried near by."""
MEMORY = 13
"""Tokens of a memory, where a model is bound alone to see the shapes in it: nothing else is of that size."""
_SPARE = 3
"""Places of a past that new tokens are written in, beyond those that are taken, where the file leaves open
how many it has."""


def bound_alone(graph: StepGraph, inputs: DecoderInputs) -> BoundGraph:
    """The model for one row of one new token: shapes of what is in it."""
    sizes = sizes_at(graph, inputs, NEAR, MEMORY)
    return bind(graph.opened.model, sizes, graph.opened.read, fused=True)


def sizes_at(graph: StepGraph, inputs: DecoderInputs, past: int, memory: int = NEAR) -> dict[str, int]:
    """What each open dimension of the inputs is for one new token, with `past` before it, and so many of the
    memory."""
    places = graph.places(max(past + 1, NEAR) + _SPARE)
    sizes: dict[str, int] = {}
    for name, value in graph.inputs.items():
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if dim.dim_value:
                continue
            size = 1
            if name in inputs.pasts and axis == inputs.along[name]:
                size = places if name in graph.written else past
            elif name in (inputs.states, inputs.states_mask) and axis == 1:
                size = memory
            elif name == inputs.mask and axis == len(dims) - 1:
                size = places if graph.written else past + 1
            sizes[f"{name}.{axis}"] = size
    return sizes


def number_feed(graph: StepGraph, inputs: DecoderInputs, name: str, past: int, memory: int = NEAR) -> Array:
    """The input's value: of a mask, that all tokens are seen and no place without one; positions and how many
    tokens there are; of all else zeros."""
    sizes = sizes_at(graph, inputs, past, memory)
    value = graph.inputs[name].type.tensor_type
    shape = [sizes.get(f"{name}.{axis}", dim.dim_value) for axis, dim in enumerate(value.shape.dim)]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.elem_type))
    if name == inputs.states_mask:
        return np.ones(shape, dtype)
    if name == inputs.mask:
        seen = np.broadcast_to(np.arange(shape[-1]) <= past, shape)
        if dtype.kind == "f":  # it is added to scores
            return np.where(seen, 0, np.finfo(dtype).min).astype(dtype)
        return seen.astype(dtype)
    return np.full(shape, past if inputs.counts(name, len(shape)) else 0, dtype)
