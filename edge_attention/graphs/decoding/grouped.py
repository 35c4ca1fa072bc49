"""GroupQueryAttention, as onnxruntime-genai's builder writes it, over what is stored."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edge_attention.core.errors import FailedPrecondition
from edge_attention.graphs.decoding.step_graph import StepGraph, label

__all__ = ["GROUPED", "rewrite_grouped"]

GROUPED = "GroupQueryAttention"
_MICROSOFT = "com.microsoft"


def rewrite_grouped(graph: StepGraph, node: NodeProto, positions: str) -> int:
    """Put attention over what is stored in the node's place; how many positions its tables have, or 0.

    `positions`: the input that says where each row is, used where the node is told of none.

    Raises:
        FailedPrecondition: it does what is not done here, and what.
    """
    at: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    _require_plain(node, at)
    heads, groups = int(at["num_heads"]), int(at["kv_num_heads"])
    past = node.input[3]
    if past not in graph.inputs:
        raise FailedPrecondition(f"{label(node)} is not given its past by an input of the model")
    width = graph.shape(past)[3] or _width(graph, node, heads)
    if not width or heads % groups:
        raise FailedPrecondition(f"{label(node)}: {past[:80]!r} does not say how wide a head is")
    nodes: list[NodeProto] = []
    query, key, value = node.input[:3]
    if not key:
        sizes = graph.constant(np.array([heads * width, groups * width, groups * width], np.int64))
        names = [graph.name(word) for word in ("query", "key", "value")]
        nodes.append(helper.make_node("Split", [query, sizes], names, name=names[0], axis=-1))
        query, key, value = names
    length = 0
    if at.get("do_rotary"):
        where = node.input[9] if len(node.input) > 9 and node.input[9] else positions
        cos, sin = node.input[7:9]
        length, half = _rows(graph, cos)
        query, key = (
            _turned(graph, nodes, at, (one, where, cos, sin), count, width, 2 * half)
            for one, count in ((query, heads), (key, groups))
        )
    window = at.get("local_window_size", -1)
    kind = graph.dtype(past)
    query, key, value = (graph.cast(nodes, one, kind, "float32") for one in (query, key, value))
    out = graph.attend(
        nodes, query, key, value, groups, heads // groups, (width, width),
        at.get("scale") or 1 / sqrt(width), max(window, 0), cap=at.get("softcap", 0.0),
        sinks=_sinks(graph, nodes, node, at, groups, heads // groups),
    )  # fmt: skip
    out = graph.cast(nodes, out, "float32", kind)
    graph.reshaped(nodes, out, -1, 1, heads * width, out=node.output[0])
    graph.replace(node, nodes)
    return length


def _require_plain(node: NodeProto, at: dict[str, Any]) -> None:
    slides = at.get("sliding_window_cache") and at.get("local_window_size", -1) <= 0
    if slides or at.get("causal", 1) != 1:
        raise FailedPrecondition(f"{label(node)} is not causal, or has a cache that slides without a window")
    if any(at.get(name, b"NONE") != b"NONE" for name in ("k_quant_type", "v_quant_type")):
        raise FailedPrecondition(f"{label(node)} has a quantised cache")
    if any(node.input[10:11]) or any(node.input[12:]):
        raise FailedPrecondition(f"{label(node)} has a bias beside its keys, or scales of them")
    if len(node.input) < 7 or any(not name for name in node.input[3:5]) or any(node.output[3:]):
        raise FailedPrecondition(f"{label(node)} has no past, or gives its scores away")
    if bool(node.input[1]) != bool(node.input[2]):
        raise FailedPrecondition(f"{label(node)} has keys without values")


def _sinks(
    graph: StepGraph, nodes: list[NodeProto], node: NodeProto, at: dict[str, Any], groups: int, shared: int
) -> str:
    """By head a score that takes part in the softmax and has no value, f32 [groups, shared, 1]: as the file
    gives it, 0 with a smooth softmax, "" without."""
    if len(node.input) > 11 and node.input[11]:
        wide = graph.name("sinks")
        nodes.append(helper.make_node("Cast", [node.input[11]], [wide], name=wide, to=TensorProto.FLOAT))
        return graph.reshaped(nodes, wide, groups, shared, 1)
    smooth = at.get("smooth_softmax", -1) == 1
    return graph.constant(np.zeros((groups, shared, 1), np.float32)) if smooth else ""


def _width(graph: StepGraph, node: NodeProto, heads: int) -> int:
    """How wide a head is, where the past does not say: by the tables, if all of it turns."""
    at = {a.name for a in node.attribute if a.name == "do_rotary" and a.i}
    return 2 * _rows(graph, node.input[7])[1] if at else 0


def _rows(graph: StepGraph, table: str) -> tuple[int, int]:
    for tensor in graph.model.graph.initializer:
        if tensor.name == table:
            rows, half = tensor.dims
            return int(rows), int(half)
    raise FailedPrecondition(f"the table of positions {table[:80]!r} is no constant of the model")


def _turned(
    graph: StepGraph,
    nodes: list[NodeProto],
    at: dict[str, Any],
    given: tuple[str, str, str, str],
    heads: int,
    width: int,
    rotary: int,
) -> str:
    """`given`: what is turned, positions, cosines and sines."""
    value, where, cos, sin = given
    by_head = graph.reshaped(nodes, value, -1, heads, 1, width)
    out = graph.name("turned")
    part: dict[str, Any] = {}
    if rotary < width:
        part = {"rotary_embedding_dim": rotary, "num_heads": heads}
    nodes.append(
        helper.make_node(
            "RotaryEmbedding", [by_head, where, cos, sin], [out], name=out, domain=_MICROSOFT,
            interleaved=int(at.get("rotary_interleaved", 0)), **part,
        )
    )  # fmt: skip
    return out
