"""Inputs for models as others export them, made up by the names and shapes of their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from edge_attention.core.tensors import Array

__all__ = ["LENGTHS", "Lengths", "feeds_for"]


@dataclass(frozen=True)
class Lengths:
    """Sizes of what a file leaves open.

    Attributes:
        batch: texts or pictures.
        tokens: of each, that are new.
        past: tokens whose keys and values a decoder is given.
        source: what a decoder attends to beside its own.
    """

    batch: int
    tokens: int
    past: int
    source: int


LENGTHS = (Lengths(2, 19, 12, 17), Lengths(1, 26, 21, 9))
"""What every model is tried at: neither divides by the parts there are."""

_PATCH, _HOP = 16, 160
"""What pictures and waves of open sizes have a multiple of."""


def feeds_for(graph: onnx.GraphProto, lengths: Lengths, seed: int = 0) -> dict[str, Array]:
    """By input of the graph, values that it could be given."""
    rng = np.random.default_rng(seed)
    weights = {one.name for one in graph.initializer}
    inputs = {v.name: v.type.tensor_type for v in graph.input if v.name not in weights}
    cached = any("past" in name for name in inputs)
    # Of several texts, a decoder that is given keys and values makes a token a time.
    one = _fixed(inputs, "input_ids", 1) == 1 or (cached and lengths.batch > 1)
    tokens = 1 if one else lengths.tokens // 3 if cached else lengths.tokens
    every = tokens + lengths.past if cached else tokens
    names = {
        "batch": lengths.batch,
        "batch_size": lengths.batch,
        "sequence": tokens,
        "sequence_length": tokens,
        "seq_len": tokens,
        "source": lengths.source,
        "past_sequence_length": lengths.past,
        "total_sequence_length": every,
    }
    found: dict[str, Array] = {}
    for name, form in inputs.items():
        shape = tuple(
            dim.dim_value
            or names.get(dim.dim_param, 0)
            or _place(name, place, graph, (lengths.batch, tokens, lengths.past, every, lengths.source))
            for place, dim in enumerate(form.shape.dim)
        )
        dtype = helper.tensor_dtype_to_np_dtype(form.elem_type)
        if dtype.kind in "iub":
            found[name] = _integers(name, shape, every - tokens, rng).astype(dtype)
        else:
            found[name] = rng.standard_normal(shape).astype(dtype)
    return found


def _integers(name: str, shape: tuple[int, ...], past: int, rng: np.random.Generator) -> Array:
    match name:
        case "attention_mask":
            seen = np.ones(shape, np.int64)
            if not past:
                seen[1:, shape[1] // 2 :] = 0  # the later texts are shorter
            return seen
        case "position_ids":
            return np.broadcast_to(np.arange(past, past + shape[1]), shape)
        case "token_type_ids":
            return np.broadcast_to(np.arange(shape[1]) > shape[1] // 2, shape)
        case "roles":
            return np.broadcast_to(2 + (np.arange(shape[1]) > shape[1] // 2), shape)
        case "distances" | "neighbors":
            return rng.integers(1, 6, shape)
        case _:
            return rng.integers(3, 38, shape)


def _fixed(inputs: Mapping[str, onnx.TypeProto.Tensor], name: str, place: int) -> int:
    return inputs[name].shape.dim[place].dim_value if name in inputs else 0


def _place(name: str, place: int, graph: onnx.GraphProto, sizes: tuple[int, int, int, int, int]) -> int:
    """A size that has no name worth anything, by where it is: exporters number some."""
    batch, tokens, past, every, source = sizes
    if place == 0:
        return batch
    if name.startswith("past"):
        return past if place == 2 else _head_size(graph)
    if name == "pixel_values":
        return _PATCH * (2 + batch)
    if name == "input_values":
        return _HOP * tokens
    if name in ("encoder_hidden_states", "decoder_input_ids"):
        return source
    return every if name == "attention_mask" else tokens


def _head_size(graph: onnx.GraphProto) -> int:
    """Of a file that leaves it open: twice the width of its rotary table."""
    (cos,) = (one for one in graph.initializer if one.name == "cos_cache")
    return 2 * int(cos.dims[1])
