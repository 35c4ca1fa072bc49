"""Norms that ONNX Runtime's optimizer fuses with what is before them; it fuses them again on the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from edge_attention.graphs.axes.lowering import Lowering, Rewrite, Unlowerable

__all__ = ["NORMS"]

_EPSILON = 1e-12


def _skip(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """`norm(input + skip + bias)`; the sum is the fourth output."""
    simplified = node.op_type.startswith("SkipSimplified")
    gamma, beta = node.input[2], "" if simplified or not write.has(node, 3) else node.input[3]
    bias_at = 3 if simplified else 4
    if write.wants(node, 1) or write.wants(node, 2):
        raise Unlowerable
    total = node.input[0]
    total_name = write.wants(node, 3)
    steps = [node.input[1], *([node.input[bias_at]] if write.has(node, bias_at) else [])]
    for place, other in enumerate(steps):
        total = write("Add", total, other, out=total_name if place == len(steps) - 1 else "")
    kind = "SimplifiedLayerNormalization" if simplified else "LayerNormalization"
    names = [total, gamma, *([beta] if beta else [])]
    write(kind, *names, out=node.output[0], axis=-1, epsilon=at.get("epsilon", _EPSILON))


def _embed(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """Word, position and segment embeddings, added and normalised; and how long each row is."""
    ids = node.input[0]
    batch, length = write.shape(ids)
    words = write("Gather", node.input[2], ids)
    if write.has(node, 8):
        places = write("Gather", node.input[3], node.input[8])
    else:
        places = write("Gather", node.input[3], write.sized(np.arange(length), np.int64))
    total = write("Add", words, places, out="" if write.has(node, 1) else write.wants(node, 2))
    if write.has(node, 1):
        segments = write("Gather", node.input[4], node.input[1])
        total = write("Add", total, segments, out=write.wants(node, 2))
    write(
        "LayerNormalization",
        total,
        node.input[5],
        node.input[6],
        out=node.output[0],
        axis=-1,
        epsilon=at.get("epsilon", _EPSILON),
    )
    lengths = write.wants(node, 1)
    if lengths and write.has(node, 7):
        dtype = write.form(node.input[7]).dtype
        one = write("Equal", node.input[7], write.const(1, dtype))
        ones = write("Cast", one, to=TensorProto.INT32)
        write("ReduceSum", ones, write.const([1], np.int64), out=lengths, keepdims=0)
    elif lengths:
        write("Identity", write.sized(np.zeros(batch), np.int32), out=lengths)


NORMS: Mapping[tuple[str, str], Rewrite] = {
    ("com.microsoft", "EmbedLayerNormalization"): _embed,
    ("com.microsoft", "SkipLayerNormalization"): _skip,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip,
}
