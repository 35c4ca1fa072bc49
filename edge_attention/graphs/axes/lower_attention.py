"""ONNX's Attention, and ONNX Runtime's Attention, QAttention and MultiHeadAttention, as plain operators."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.attention_form import LOWEST, AttentionForm, attention
from edge_attention.graphs.axes.lowering import Lowering, Rewrite, Unlowerable

__all__ = ["ATTENTIONS"]


def causal(queries: int, keys: int, offset: int) -> Array:
    """What is added to scores `[1, 1, t, s]` so that query i sees keys up to i + offset."""
    seen = np.arange(keys) <= np.arange(queries)[:, None] + offset
    return np.where(seen, 0.0, LOWEST).astype(np.float32)[None, None]


def _float32(write: Lowering, *names: str) -> None:
    if any(write.form(name).dtype != "float32" for name in names):
        raise Unlowerable


def _standard(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """ONNX's own, of opset 23 and 24: a row that sees nothing is 0."""
    query, key, value = node.input[:3]
    _float32(write, query, key, value)
    write.refuse(node, 6)  # how many keys each row has, where the caller keeps them
    if write.wants(node, 3):
        raise Unlowerable
    q, k, v = write.shape(query), write.shape(key), write.shape(value)
    past = write.shape(node.input[4])[2] if write.has(node, 4) else 0
    flat = len(q) == 3
    heads = at["q_num_heads"] if flat else q[1]
    groups = at["kv_num_heads"] if flat else k[1]
    new = k[-2]
    form = AttentionForm(
        q[0],
        q[-2],
        past + new,
        heads,
        groups,
        q[-1] // (heads if flat else 1),
        v[-1] // (groups if flat else 1),
    )
    if flat:
        query = form.query_heads(write, query)
        key = _by_head(write, key, (q[0], new, groups, form.width))
        value = _by_head(write, value, (q[0], new, groups, form.value_width))
    else:
        query = form.grouped(write, query)
    key = _after(write, node, 4, key, write.wants(node, 1))
    value = _after(write, node, 5, value, write.wants(node, 2))
    biases: list[str] = []
    alive = ""
    if write.has(node, 3):
        bias, shape = _added(write, node.input[3])
        if shape[-1] != form.keys:
            raise Unlowerable
        biases.append(form.bias(write, bias, shape))
        # A row that is masked as a whole: what is seen of it is no number, and its result 0.
        most = write("ReduceMax", biases[0], write.const([-1], np.int64), keepdims=1)
        alive = write("Greater", most, write.const(LOWEST, np.float32))
    if at.get("is_causal") and form.keys > 1 and form.queries + past > 1:
        mask = causal(form.queries, form.keys, past)
        biases.append(form.bias(write, write.sized(mask), mask.shape))
    out = attention(
        write,
        form,
        query,
        key,
        value,
        scale=at.get("scale") or 1 / sqrt(form.width),
        biases=biases,
        softcap=at.get("softcap", 0.0),
    )
    if alive:
        out = write("Where", alive, out, write.const(0.0, np.float32))
    (form.joined if flat else form.by_head)(write, out, node.output[0])


def _by_head(write: Lowering, x: str, shape: tuple[int, int, int, int]) -> str:
    """`[b, s, g * d]` as `[b, g, s, d]`; `shape` is `(b, s, g, d)`."""
    return write("Transpose", write.reshape(x, *shape), perm=[0, 2, 1, 3])


def _after(write: Lowering, node: NodeProto, past: int, new: str, out: str) -> str:
    """What is kept from before, and the new behind it, along the tokens of `[b, g, s, d]`."""
    if not write.has(node, past):
        return write("Identity", new, out=out) if out else new
    return write("Concat", node.input[past], new, out=out, axis=2)


def _added(write: Lowering, mask: str) -> tuple[str, tuple[int, ...]]:
    """A mask as what is added to scores, never below LOWEST; and its shape."""
    form = write.form(mask)
    if form.dtype == "bool":
        zero, lowest = write.const(0.0, np.float32), write.const(LOWEST, np.float32)
        return write("Where", mask, zero, lowest), form.shape
    if form.dtype != "float32":
        raise Unlowerable
    return write("Max", mask, write.const(LOWEST, np.float32)), form.shape


def _hidden(
    write: Lowering, form: AttentionForm, seen: str, shape: tuple[int, ...], by: float = LOWEST
) -> str:
    """What is added where a condition does not hold."""
    zero, low = write.const(0.0, np.float32), write.const(by, np.float32)
    return form.bias(write, write("Where", seen, zero, low), shape)


def _fused(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """ONNX Runtime's: weights `[i, q + k + v]`, and what is masked by position."""
    x, weights = node.input[:2]
    _float32(write, x, weights)
    product = write("MatMul", x, weights)
    if write.has(node, 2):
        product = write("Add", product, node.input[2])
    if at.get("do_rotary"):
        raise Unlowerable
    _packed(node, at, write, product, mask=3, past=4, bias=5, width=write.shape(weights)[1])


def _quantized(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    x, weights, bias, scale, weight_scale = node.input[:5]
    if at.get("do_rotary"):
        raise Unlowerable
    zero = [node.input[p] if write.has(node, p) else "" for p in (6, 7)]
    product = write(
        "MatMulIntegerToFloat", x, weights, scale, weight_scale, *zero, bias, domain="com.microsoft"
    )
    _packed(node, at, write, product, mask=5, past=8, bias=-1, width=write.shape(weights)[1])


def _packed(
    node: NodeProto,
    at: Mapping[str, Any],
    write: Lowering,
    product: str,
    *,
    mask: int,
    past: int,
    bias: int,
    width: int,
) -> None:
    """Attention of a product `[b, t, q + k + v]`."""
    batch, length, _ = write.shape(node.input[0])
    sizes = list(at.get("qkv_hidden_sizes") or [width // 3] * 3)
    heads = at["num_heads"]
    before = write.shape(node.input[past])[3] if write.has(node, past) else 0
    if at.get("past_present_share_buffer") or (before and write.wants(node, 1) == ""):
        raise Unlowerable
    form = AttentionForm(batch, length, before + length, heads, heads, sizes[0] // heads, sizes[2] // heads)
    if sizes[0] != sizes[1] or (write.wants(node, 1) and sizes[2] != sizes[0]):
        raise Unlowerable
    split = write.const(sizes, np.int64)
    q, k, v = write.several("Split", 3, product, split, axis=-1)
    query = form.query_heads(write, q)
    key = _by_head(write, k, (batch, length, heads, form.width))
    value = _by_head(write, v, (batch, length, heads, form.value_width))
    if write.has(node, past):  # keys and values in one, [2, b, h, s, d]
        old = write.several("Split", 2, node.input[past], axis=0, num_outputs=2)
        axis = write.const([0], np.int64)
        key = write("Concat", write("Squeeze", old[0], axis), key, axis=2)
        value = write("Concat", write("Squeeze", old[1], axis), value, axis=2)
    if present := write.wants(node, 1):
        axis = write.const([0], np.int64)
        pair = [write("Unsqueeze", one, axis) for one in (key, value)]
        write("Concat", *pair, out=present, axis=0)
    low = at.get("mask_filter_value", -10000.0)
    biases = _masks(node, write, form, mask, low)
    if at.get("unidirectional"):
        seen = causal(length, form.keys, before)
        biases.append(form.bias(write, write.sized(seen), seen.shape))
    if bias >= 0 and write.has(node, bias):
        biases.append(form.bias(write, node.input[bias], write.shape(node.input[bias])))
    out = attention(
        write, form, query, key, value, scale=at.get("scale") or 1 / sqrt(form.width), biases=biases
    )
    form.joined(write, out, node.output[0])


def _masks(node: NodeProto, write: Lowering, form: AttentionForm, at: int, low: float) -> list[str]:
    """The masks of ONNX Runtime's attentions: how long each row is, or which keys may be seen."""
    if not write.has(node, at):
        return []
    name = node.input[at]
    shape = write.shape(name)
    if len(shape) == 1 and shape[0] == form.batch:
        lengths = write.reshape(name, form.batch, 1, 1, 1)
        places = write.sized(np.arange(form.keys).reshape(1, 1, 1, -1), write.form(name).dtype)
        return [_hidden(write, form, write("Less", places, lengths), (form.batch, 1, 1, form.keys), low)]
    if len(shape) not in (2, 3) or shape[0] != form.batch or shape[-1] != form.keys:
        raise Unlowerable
    rows = shape[1] if len(shape) == 3 else 1
    seen = write("Cast", write.reshape(name, form.batch, 1, rows, form.keys), to=TensorProto.BOOL)
    return [_hidden(write, form, seen, (form.batch, 1, rows, form.keys), low)]


def _multi_head(node: NodeProto, at: Mapping[str, Any], write: Lowering) -> None:
    """Queries `[b, t, h d]`, packed `[b, t, h, 3, d]`; keys so, packed `[b, s, h, 2, d]`, or by head."""
    write.refuse(node, 8, 9)
    if write.wants(node, 3) or bool(write.wants(node, 1)) != bool(write.wants(node, 2)):
        raise Unlowerable
    heads, shape = at["num_heads"], write.shape(node.input[0])
    _float32(write, node.input[0])
    query, key, value, new, width, value_width = _query_key_value(node, write, heads, shape)
    past = write.shape(node.input[6])[2] if write.has(node, 6) else 0
    form = AttentionForm(shape[0], shape[1], past + new, heads, heads, width, value_width)
    key = _after(write, node, 6, key, write.wants(node, 1))
    value = _after(write, node, 7, value, write.wants(node, 2))
    biases = _masks(node, write, form, 4, at.get("mask_filter_value", -10000.0))
    if at.get("unidirectional"):
        seen = causal(form.queries, form.keys, past)
        biases.append(form.bias(write, write.sized(seen), seen.shape))
    if write.has(node, 5):
        biases.append(form.bias(write, node.input[5], write.shape(node.input[5])))
    scale = at.get("scale") or 1 / sqrt(width)
    out = attention(write, form, query, key, value, scale=scale, biases=biases)
    form.joined(write, out, node.output[0])


def _query_key_value(
    node: NodeProto, write: Lowering, heads: int, shape: tuple[int, ...]
) -> tuple[str, str, str, int, int, int]:
    """Queries, keys and values by head, with the bias of their products; tokens of keys, widths."""
    batch, length = shape[:2]
    if len(shape) == 5:
        if write.has(node, 3):
            raise Unlowerable
        turned = write("Transpose", node.input[0], perm=[3, 0, 2, 1, 4])
        query, key, value = _unpacked(write, turned, 3)
        return query, key, value, length, shape[4], shape[4]
    width = shape[2] // heads
    biases = ["", "", ""]
    k_shape = write.shape(node.input[1])
    if len(k_shape) == 5:
        value_width = width
    else:
        v_shape = write.shape(node.input[2])
        value_width = v_shape[3] if len(v_shape) == 4 else v_shape[2] // heads
    if write.has(node, 3):
        sizes = [heads * width, heads * width, heads * value_width]
        biases = write.several("Split", 3, node.input[3], write.const(sizes, np.int64), axis=0)
    query = _by_head(write, _plus(write, node.input[0], biases[0]), (batch, length, heads, width))
    if len(k_shape) == 5:
        if write.has(node, 3):
            raise Unlowerable
        turned = write("Transpose", node.input[1], perm=[3, 0, 2, 1, 4])
        key, value = _unpacked(write, turned, 2)
        return query, key, value, k_shape[1], width, width
    if len(k_shape) == 4:  # of another attention, by head already
        return query, node.input[1], node.input[2], k_shape[2], width, value_width
    key = _by_head(write, _plus(write, node.input[1], biases[1]), (batch, k_shape[1], heads, width))
    value = _by_head(write, _plus(write, node.input[2], biases[2]), (batch, k_shape[1], heads, value_width))
    return query, key, value, k_shape[1], width, value_width


def _plus(write: Lowering, x: str, bias: str) -> str:
    return write("Add", x, bias) if bias else x


def _unpacked(write: Lowering, x: str, parts: int) -> list[str]:
    """The parts of the first dimension."""
    found = write.several("Split", parts, x, axis=0, num_outputs=parts)
    return [write("Squeeze", one, write.const([0], np.int64)) for one in found]


ATTENTIONS: Mapping[tuple[str, str], Rewrite] = {
    ("", "Attention"): _standard,
    ("com.microsoft", "Attention"): _fused,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "QAttention"): _quantized,
}
