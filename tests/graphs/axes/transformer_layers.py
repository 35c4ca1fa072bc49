"""Attention, norms and residuals of a random transformer, in the ways exporters write them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.graphs.axes.transformer_writer import BOOL, FLOAT, ModelWriter

if TYPE_CHECKING:
    from random_transformers import TransformerRecipe

MASKED = -1e4
LONGEST = 16


def block(w: ModelWriter, recipe: TransformerRecipe, x: str, name: str, inner: Callable[[str], str]) -> str:
    """x + inner(norm(x)), or norm(x + inner(x))."""
    if recipe.placement == "pre":
        return w("Add", x, inner(normalised(w, recipe, x, f"{name}.norm")))
    return normalised(w, recipe, w("Add", inner(x), x), f"{name}.norm")


def normalised(w: ModelWriter, recipe: TransformerRecipe, x: str, name: str, size: int = 0) -> str:
    """Over the last axis, of `size`: the hidden one unless said."""
    size = size or recipe.width
    scale = w.weight(f"{name}.weight", size, value=1.0)
    if recipe.norm == "node":
        return w(
            "LayerNormalization", x, scale, w.weight(f"{name}.bias", size, value=0.0), axis=-1, epsilon=1e-5
        )
    small, two = w.const(np.float32(1e-5)), w.const(np.float32(2))
    if recipe.norm == "rms":
        root = w("Sqrt", w("Add", w.reduced("ReduceMean", w("Pow", x, two), -1), small))
        return w("Mul", scale, w("Mul", x, w("Reciprocal", root)))
    apart = w("Sub", x, w.reduced("ReduceMean", x, -1))
    root = w("Sqrt", w("Add", w.reduced("ReduceMean", w("Pow", apart, two), -1), small))
    return w("Add", w("Mul", w("Div", apart, root), scale), w.weight(f"{name}.bias", size, value=0.0))


def attended(
    w: ModelWriter,
    recipe: TransformerRecipe,
    x: str,
    source: str,
    name: str,
    mask: str | None,
    bias: str | None,
) -> str:
    """Attention of `x` [batch, tokens, width] to `source`, with its projections."""
    q, k, v = _projected(w, recipe, x, source, name)
    if recipe.head_norm:
        q = normalised(w, recipe, q, f"{name}.q.norm", recipe.dim)
        k = normalised(w, recipe, k, f"{name}.k.norm", recipe.dim)
    if recipe.positions.startswith("rotary"):
        turns = _turns(w, recipe, x)
        q, k = _turned(w, recipe, q, *turns), _turned(w, recipe, k, *turns)
    if recipe.softmax == "attention":
        out = _one_node(w, recipe, q, k, v, mask, bias)
    else:
        out = _by_products(w, recipe, q, k, v, name, mask, bias)
    width = recipe.heads * recipe.value_dim
    flat = _reshaped(w, recipe, w("Transpose", out, perm=[0, 2, 1, 3]), x, width)
    return w.linear(recipe.linear, flat, f"{name}.out", width, recipe.width, recipe.bias)


def _reshaped(w: ModelWriter, recipe: TransformerRecipe, y: str, x: str, *last: int) -> str:
    """`y` as [batch, tokens of x, *last]."""
    if recipe.arithmetic:
        return w.reshape(y, w.size(x, 0), w.size(x, 1), *last)
    return w.reshape(y, 0, 0, *last) if recipe.dynamic else w.reshape(y, recipe.batch, -1, *last)


def _projected(
    w: ModelWriter, recipe: TransformerRecipe, x: str, source: str, name: str
) -> tuple[str, str, str]:
    """Queries, keys and values, each [batch, heads, tokens, dim]."""
    heads = (recipe.heads, recipe.key_heads, recipe.key_heads)
    dims = (recipe.dim, recipe.dim, recipe.value_dim)
    sizes = [n * d for n, d in zip(heads, dims, strict=True)]
    if recipe.qkv == "separate":
        flat = [
            w.linear(recipe.linear, y, f"{name}.{letter}", recipe.width, size, recipe.bias)
            for y, letter, size in zip((x, source, source), "qkv", sizes, strict=True)
        ]
    else:
        packed = w.linear(recipe.linear, x, f"{name}.qkv", recipe.width, sum(sizes), recipe.bias)
        if recipe.qkv == "gather":  # [3, batch, heads, tokens, dim], as ViTs do
            parts = _reshaped(w, recipe, packed, x, 3, recipe.heads, recipe.dim)
            parts = w("Transpose", parts, perm=[2, 0, 3, 1, 4])
            q, k, v = (w("Gather", parts, w.const(np.int64(i)), axis=0) for i in range(3))
            return q, k, v
        if recipe.qkv == "inner":  # each head has its own three, as GPT-NeoX
            parts = w(
                "Transpose", _reshaped(w, recipe, packed, x, recipe.heads, 3 * recipe.dim), perm=[0, 2, 1, 3]
            )
            q, k, v = w.split(parts, [recipe.dim] * 3, axis=-1)
            return q, k, v
        if recipe.qkv == "split":
            flat = w.split(packed, sizes, axis=-1)
        else:
            ends = np.cumsum([0, *sizes])
            flat = [w.sliced(packed, 2, str(a), str(b)) for a, b in itertools.pairwise(ends)]
    q, k, v = (
        w("Transpose", _reshaped(w, recipe, y, around, n, d), perm=[0, 2, 1, 3])
        for y, around, n, d in zip(flat, (x, source, source), heads, dims, strict=True)
    )
    return q, k, v


def _turns(w: ModelWriter, recipe: TransformerRecipe, x: str) -> tuple[str, str]:
    """Cosines and sines of rotary positions, [tokens, dim]."""
    half = recipe.dim // 2
    speeds = (10.0 ** -np.arange(half)).astype(np.float32)
    if recipe.positions == "rotary table":
        angles = np.arange(LONGEST, dtype=np.float32)[:, None] * np.concatenate([speeds, speeds])
        length = w.size(x, 1)
        cos, sin = (w.sliced(w.const(table), 0, "0", length) for table in (np.cos(angles), np.sin(angles)))
        return cos, sin
    positions = w.cast(w("Unsqueeze", w.range(w.size(x, 1)), w.ints(1)), FLOAT)
    turned = w("MatMul", positions, w.const(speeds[None]))
    both = w("Concat", turned, turned, axis=-1)
    return w("Cos", both), w("Sin", both)


def _turned(w: ModelWriter, recipe: TransformerRecipe, y: str, cos: str, sin: str) -> str:
    half = recipe.dim // 2
    if recipe.qkv == "split":
        low, high = w.split(y, [half, half], axis=-1)
    else:
        low, high = w.sliced(y, 3, "0", str(half)), w.sliced(y, 3, str(half), str(2 * half))
    turned = w("Concat", w("Neg", high), low, axis=-1)
    return w("Add", w("Mul", y, cos), w("Mul", turned, sin))


def _repeated(w: ModelWriter, recipe: TransformerRecipe, y: str, dim: int) -> str:
    """Key heads as often as query heads ask for them."""
    if recipe.group == 1:
        return y
    more = w("Unsqueeze", y, w.ints(2))  # [batch, key heads, 1, tokens, dim]
    if recipe.grouping == "tile":
        more = w("Tile", more, w.ints(1, 1, recipe.group, 1, 1))
    else:
        ones = [w("Unsqueeze", w.size(y, axis), w.ints(0)) for axis in range(4)]
        more = w("Expand", more, w("Concat", *ones[:2], w.ints(recipe.group), *ones[2:], axis=0))
    return w.reshape(more, 0, recipe.heads, -1, dim)


def _by_products(
    w: ModelWriter,
    recipe: TransformerRecipe,
    q: str,
    k: str,
    v: str,
    name: str,
    mask: str | None,
    bias: str | None,
) -> str:
    """softmax(scale q k + bias) v, product by product."""
    tokens, sources = w.size(q, 2), w.size(k, 2)
    scale = recipe.dim**-0.5
    grouped = recipe.group > 1 and recipe.grouping == "broadcast"
    content = _by_content(w, recipe, q, name) if recipe.positions == "content" else ""
    if grouped:  # [batch, key heads, group, tokens, dim] by [batch, key heads, 1, dim, tokens]
        q = w.reshape(q, 0, recipe.key_heads, recipe.group, -1, recipe.dim)
        k, v = w("Unsqueeze", k, w.ints(2)), w("Unsqueeze", v, w.ints(2))
    else:
        k, v = _repeated(w, recipe, k, recipe.dim), _repeated(w, recipe, v, recipe.value_dim)
    if recipe.scale == "roots":
        q, k = (w("Mul", y, w.const(np.float32(scale**0.5))) for y in (q, k))
    if grouped:
        k = w("Transpose", k, perm=[0, 1, 2, 4, 3])
    elif recipe.keys == "perm":
        k = w("Transpose", k, perm=[0, 1, 3, 2])
    else:  # back to tokens first, then all in one
        k = w("Transpose", w("Transpose", k, perm=[0, 2, 1, 3]), perm=[0, 2, 3, 1])
    scores = w("MatMul", q, k)
    if grouped:
        scores = w("Reshape", scores, w("Concat", w.ints(0, recipe.heads), *(
            w("Unsqueeze", size, w.ints(0)) for size in (tokens, sources)), axis=0))  # fmt: skip
    if recipe.scale == "mul":
        scores = w("Mul", scores, w.const(np.float32(scale)))
    elif recipe.scale == "div":
        scores = w("Div", scores, w.const(np.float32(1 / scale)))
    if content:
        scores = w("Add", scores, content)
    if bias is not None:
        scores = w("Add", scores, bias)
    weights = _softmax(w, recipe, _masked(w, recipe, scores, mask, tokens, sources))
    if not grouped:
        return w("MatMul", weights, v)
    sizes = (w("Unsqueeze", size, w.ints(0)) for size in (tokens, sources))
    weights = w("Reshape", weights, w("Concat", w.ints(0, recipe.key_heads, recipe.group), *sizes, axis=0))
    return w.reshape(w("MatMul", weights, v), 0, recipe.heads, -1, recipe.value_dim)


def _by_content(w: ModelWriter, recipe: TransformerRecipe, q: str, name: str) -> str:
    """DeBERTa's: each query by an embedding of the distance, picked by a table of distances."""
    embedded = w.linear("matmul", w.weight("distances", 7, recipe.width), f"{name}.distance",
                        recipe.width, recipe.heads * recipe.dim, False)  # fmt: skip
    keys = w("Transpose", w.reshape(embedded, 7, recipe.heads, recipe.dim), perm=[1, 2, 0])
    by_distance = w("MatMul", q, w("Unsqueeze", keys, w.ints(0)))  # [batch, heads, tokens, 7]
    row = w.range(w.size(q, 2))
    apart = w("Sub", w("Unsqueeze", row, w.ints(0)), w("Unsqueeze", row, w.ints(1)))
    index = w(
        "Add", w("Min", w("Max", apart, w.const(np.int64(-3))), w.const(np.int64(3))), w.const(np.int64(3))
    )
    sizes = [w("Unsqueeze", w.size(q, axis), w.ints(0)) for axis in (0, 1, 2, 2)]
    index = w("Expand", w("Unsqueeze", index, w.ints(0, 1)), w("Concat", *sizes, axis=0))
    return w("GatherElements", by_distance, index, axis=3)


def _seen(w: ModelWriter, recipe: TransformerRecipe, tokens: str, sources: str) -> str:
    """Which sources a token sees if it sees none behind it; bool [tokens, sources]."""
    if recipe.mask == "buffer":
        buffer = w.const(np.tril(np.ones((1, 1, LONGEST, LONGEST), bool)))
        return w.sliced(w.sliced(buffer, 2, "0", tokens), 3, "0", sources)
    row, column = w.range(sources), w.range(tokens)
    return w("Not", w("Less", w("Unsqueeze", column, w.ints(1)), w("Unsqueeze", row, w.ints(0))))


def _masked(
    w: ModelWriter, recipe: TransformerRecipe, scores: str, mask: str | None, tokens: str, sources: str
) -> str:
    low = w.const(np.float32(MASKED))
    if recipe.mask == "given":
        return w("Add", scores, str(mask))
    if recipe.mask in ("row", "square"):
        there = w.cast(w("Unsqueeze", str(mask), w.ints(1, 2)), FLOAT)  # [batch, 1, 1, sources]
        if recipe.mask == "square":
            sizes = [w("Unsqueeze", size, w.ints(0)) for size in (w.size(scores, 0), tokens, sources)]
            there = w("Expand", there, w("Concat", sizes[0], w.ints(1), *sizes[1:], axis=0))
        return w("Add", scores, w("Mul", w("Sub", w.const(np.float32(1)), there), low))
    if recipe.mask == "trilu":
        sizes = w("Concat", *(w("Unsqueeze", size, w.ints(0)) for size in (tokens, sources)), axis=0)
        return w("Add", scores, w("Trilu", w("Expand", low, sizes), w.const(np.int64(1)), upper=1))
    if recipe.mask in ("less", "buffer"):
        return w("Where", _seen(w, recipe, tokens, sources), scores, low)
    if recipe.mask in ("where", "less and where"):
        there = w.cast(w("Unsqueeze", str(mask), w.ints(1, 2)), BOOL)
        if recipe.mask != "where":
            there = w("And", there, _seen(w, recipe, tokens, sources))
        return w("Where", there, scores, low)
    return scores


def _softmax(w: ModelWriter, recipe: TransformerRecipe, scores: str) -> str:
    if recipe.softmax == "parts":
        raised = w("Exp", w("Sub", scores, w.reduced("ReduceMax", scores, -1)))
        return w("Div", raised, w.reduced("ReduceSum", raised, -1))
    weights = w("Softmax", scores, axis=-1)
    if recipe.softmax == "guarded":
        return w("Where", w("IsNaN", weights), w.const(np.float32(0)), weights)
    return weights


def _one_node(
    w: ModelWriter, recipe: TransformerRecipe, q: str, k: str, v: str, mask: str | None, bias: str | None
) -> str:
    """ONNX's own Attention, with the mask as one tensor that is added."""
    tokens, sources = w.size(q, 2), w.size(k, 2)
    sizes = [w("Unsqueeze", size, w.ints(0)) for size in (w.size(q, 0), tokens, sources)]
    if recipe.mask == "none" and bias is None:
        return w("Attention", q, k, v)
    none = w("Expand", w.const(np.float32(0)), w("Concat", sizes[0], w.ints(1), *sizes[1:], axis=0))
    added = _masked(w, recipe, none, mask, tokens, sources)
    return w("Attention", q, k, v, added if bias is None else w("Add", added, bias))
