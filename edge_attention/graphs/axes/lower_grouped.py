"""GroupQueryAttention, as onnxruntime-genai's builder writes it, and rotary positions, as plain operators."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from edge_attention.graphs.axes.attention_form import LOWEST, AttentionForm, attention
from edge_attention.graphs.axes.lowering import Lowering, Rewrite, Unlowerable

__all__ = ["GROUPED"]


def rotated(write: Lowering, x: str, width: int, cos: str, sin: str, rotary: int, interleaved: bool) -> str:
    """`x [..., d]` turned by positions: pairs `(i, i + r / 2)` of its first r elements, or `(2 i, 2 i + 1)`.

    Args:
        cos, sin: `[..., r / 2]`, of shapes that are broadcast to x's.
    """
    rest = ""
    if rotary < width:
        x, rest = write.several("Split", 2, x, write.const([rotary, width - rotary], np.int64), axis=-1)
    if interleaved:
        last = write.const([-1], np.int64)
        stop, step = write.const([rotary], np.int64), write.const([2], np.int64)
        one, two = (write("Slice", x, write.const([k], np.int64), stop, last, step) for k in (0, 1))
    else:
        one, two = write.several("Split", 2, x, write.const([rotary // 2] * 2, np.int64), axis=-1)
    real = write("Sub", write("Mul", one, cos), write("Mul", two, sin))
    other = write("Add", write("Mul", one, sin), write("Mul", two, cos))
    if interleaved:
        last = write.const([-1], np.int64)
        pair = write("Concat", write("Unsqueeze", real, last), write("Unsqueeze", other, last), axis=-1)
        shape = write.const([0, 0, 0, -1], np.int64)
        turned = write("Reshape", pair, shape)
    else:
        turned = write("Concat", real, other, axis=-1)
    return write("Concat", turned, rest, axis=-1) if rest else turned


def _rotary(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """Both ONNX's (x, cos, sin, positions) and ONNX Runtime's (x, positions, cos, sin)."""
    own = not node.domain
    x = node.input[0]
    cos, sin = (node.input[1], node.input[2]) if own else (node.input[2], node.input[3])
    places_at = 3 if own else 1
    shape = write.shape(x)
    if at.get("is_packed_batching") or at.get("scale", 1.0) != 1.0:
        raise Unlowerable
    half = write.shape(cos)[-1]
    heads = at.get("num_heads", 0)
    flat = len(shape) == 3
    batch, length = shape[0], shape[1] if flat else shape[2]
    if flat and not heads:
        rotary = at.get("rotary_embedding_dim", 0)
        if rotary:
            raise Unlowerable
        heads = shape[2] // (2 * half)
    width = shape[2] // heads if flat else shape[3]
    if write.has(node, places_at):
        places = node.input[places_at]
        rows = write.shape(places)[0]
        if write.shape(places) == (1,):  # the first position
            places = write("Add", places, write.sized(np.arange(length), np.int64))
        cos, sin = (write("Gather", table, places) for table in (cos, sin))
    else:
        rows = batch
    tables = [
        write.reshape(table, rows, length, 1, half) if flat else write.reshape(table, rows, 1, length, half)
        for table in (cos, sin)
    ]
    by_head = write.reshape(x, batch, length, heads, width) if flat else x
    turned = rotated(write, by_head, width, tables[0], tables[1], 2 * half, bool(at.get("interleaved")))
    if flat:
        write.reshape(turned, *shape, out=node.output[0])
    else:
        write("Identity", turned, out=node.output[0])


def _grouped(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """Causal attention over keys kept from before and new ones, of rows that are of different lengths."""
    write.refuse(node, 11, 12, 13, 14, 15, 16)
    switched = at.get("smooth_softmax", -1) == 1 or at.get("sliding_window_cache")
    if switched or at.get("causal", 1) != 1 or write.wants(node, 3):
        raise Unlowerable
    query = node.input[0]
    shape = write.shape(query)
    if write.form(query).dtype != "float32" or len(shape) != 3 or at.get("k_quant_type", b"NONE") != b"NONE":
        raise Unlowerable
    total = write.value_of(node.input[6]) if write.has(node, 6) else None
    if total is None or total.size != 1:
        raise Unlowerable
    batch, length = shape[:2]
    heads, groups = at["num_heads"], at["kv_num_heads"]
    packed = not write.has(node, 1)
    width = shape[2] // (heads + 2 * groups if packed else heads)
    key, value = ("", "") if packed else node.input[1:3]
    if packed:
        sizes = write.const([heads * width, groups * width, groups * width], np.int64)
        query, key, value = write.several("Split", 3, query, sizes, axis=-1)
    elif len(write.shape(key)) != 3:
        raise Unlowerable
    first = int(total.reshape(())) == length
    past = write.shape(node.input[3])[2] if write.has(node, 3) else 0
    if first and past > length:  # what is kept is longer than what is in it
        raise Unlowerable
    kept = 0 if first else past
    form = AttentionForm(batch, length, kept + length, heads, groups, width, width)
    before = "" if first else _before(node, write, length)
    q = form.query_heads(write, query)
    k = write("Transpose", write.reshape(key, batch, length, groups, width), perm=[0, 2, 1, 3])
    v = write("Transpose", write.reshape(value, batch, length, groups, width), perm=[0, 2, 1, 3])
    if at.get("do_rotary"):
        q, k = _turned(node, at, write, form, before, q, k)
    window = at.get("local_window_size", -1)
    biases = _masks(write, form, kept, before, window)
    if write.has(node, 10):
        bias_shape = write.shape(node.input[10])
        if bias_shape[-1] != form.keys:
            raise Unlowerable
        biases.append(form.bias(write, node.input[10], bias_shape))
    keys, values = k, v
    if kept:
        keys = write("Concat", node.input[3], k, axis=2)
        values = write("Concat", node.input[4], v, axis=2)
    for position, (joined, new) in enumerate(((keys, k), (values, v)), start=1):
        if name := write.wants(node, position):
            if kept:
                _present(write, form, joined, kept, before, max(past, int(total.reshape(()))), name)
            else:
                write("Identity", new, out=name)
    out = attention(
        write,
        form,
        q,
        keys,
        values,
        scale=at.get("scale") or 1 / sqrt(width),
        biases=biases,
        softcap=at.get("softcap", 0.0),
    )
    form.joined(write, out, node.output[0])


def _before(node: NodeProto, write: Lowering, length: int) -> str:
    """How many keys each row has from before, int64 [b, 1, 1, 1]."""
    last = write("Cast", node.input[5], to=TensorProto.INT64)
    batch = int(np.prod(write.shape(node.input[5])))
    return write.reshape(write("Add", last, write.sized(1 - length, np.int64)), batch, 1, 1, 1)


def _turned(
    node: NodeProto, at: Mapping[str, Any], write: Lowering, form: AttentionForm, before: str, q: str, k: str
) -> tuple[str, str]:
    """Queries and new keys turned by their positions."""
    cos, sin = node.input[7:9]
    half = write.shape(cos)[-1]
    steps = np.arange(form.queries)
    rows = form.batch
    if write.has(node, 9):
        places = write.reshape(node.input[9], form.batch, form.queries)
    elif before:
        start = write.reshape(before, form.batch, 1)
        places = write("Add", start, write.sized(steps, np.int64))
    else:
        places, rows = write.sized(steps, np.int64), 1
    found = []
    for table in (cos, sin):
        taken = write("Gather", table, places)
        middle = (1,) if form.shared == 1 else (1, 1)
        found.append(
            (
                write.reshape(taken, rows, *middle, form.queries, half),
                write.reshape(taken, rows, 1, form.queries, half),
            )
        )
    (cos_q, cos_k), (sin_q, sin_k) = found
    interleaved = bool(at.get("rotary_interleaved"))
    if interleaved and form.shared > 1:
        raise Unlowerable
    return (
        rotated(write, q, form.width, cos_q, sin_q, 2 * half, interleaved),
        rotated(write, k, form.width, cos_k, sin_k, 2 * half, interleaved),
    )


def _masks(write: Lowering, form: AttentionForm, kept: int, before: str, window: int) -> list[str]:
    """New keys: those up to the query's own. Kept ones: as many as the row has. None further back."""
    length = form.queries
    new = np.arange(length)
    seen = new <= new[:, None]
    if window >= 0:
        seen &= new > new[:, None] - window
    if kept:
        seen = np.concatenate([np.ones((length, kept), bool), seen], axis=1)
    biases = []
    if not seen.all():
        mask = np.where(seen, 0.0, LOWEST).astype(np.float32)[None, None]
        biases.append(form.bias(write, write.sized(mask), mask.shape))
    if kept:
        places = write.sized(np.r_[np.arange(kept), np.full(length, -1)].reshape(1, 1, 1, -1), np.int64)
        there = write("Less", places, before)
        rows = 1
        if window >= 0:
            rows = length
            far = write("Add", before, write.sized(new.reshape(1, 1, -1, 1) - window, np.int64))
            late = write.sized(
                np.r_[np.arange(kept), np.full(length, 1 << 40)].reshape(1, 1, 1, -1), np.int64
            )
            there = write("And", there, write("Greater", late, far))
        zero, low = write.const(0.0, np.float32), write.const(LOWEST, np.float32)
        biases.append(form.bias(write, write("Where", there, zero, low), (form.batch, 1, rows, form.keys)))
    return biases


def _present(
    write: Lowering, form: AttentionForm, joined: str, kept: int, before: str, length: int, out: str
) -> None:
    """What is kept for the next step: of each row its old tokens and behind them, without a gap, the new."""
    places = write.sized(np.arange(length).reshape(1, 1, -1, 1), np.int64)
    gap = write("Sub", write.sized(kept, np.int64), before)
    behind = write("Min", write("Add", places, gap), write.sized(form.keys - 1, np.int64))
    row = write("Where", write("Less", places, before), places, behind)
    size = write.sized([form.batch, form.groups, length, 1], np.int64)
    write("GatherND", joined, write("Expand", row, size), out=out, batch_dims=2)


GROUPED: Mapping[tuple[str, str], Rewrite] = {
    ("", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "GroupQueryAttention"): _grouped,
    ("com.microsoft", "RotaryEmbedding"): _rotary,
}
