"""Attention graphs of training: the same queries over one shard of each of B samples.

Shapes: B samples, N queries shared by all, Hq query heads, Hk key heads, T tokens of this shard in each
sample. As in `attention_tiled`, the Hq / Hk heads that read one key head are stacked as rows R. A
sample with present = 0 has no tokens here: it contributes the identity and zero gradients. Its keys
and values may hold anything finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from edge_attention.graphs.onnx_builder import FLOAT, Builder

__all__ = ["attention_batch_backward", "attention_batch_forward"]


@dataclass(frozen=True)
class _Samples:
    """`rows` [Hk, R, dk] scaled, `keys` [B, Hk, T, dk], `values` [B, Hk, T, dv], `here` bool [B, 1, 1, 1]."""

    rows: str
    scale: str
    keys: str
    values: str
    here: str
    n: str
    hq: str
    hk: str
    batch: str


def _samples(g: Builder) -> _Samples:
    q = g.input("q", FLOAT, ["N", "Hq", "dk"])
    keys = g.input("keys", FLOAT, ["B", "T", "Hk", "dk"])
    values = g.input("values", FLOAT, ["B", "T", "Hk", "dv"])
    present = g.input("present", FLOAT, ["B"])
    scale = g.input("scale", FLOAT, [])
    hk = g.dim(keys, 2)
    by_head = g("Transpose", g("Mul", q, scale), perm=[1, 0, 2])
    here = g("Greater", g("Unsqueeze", present, g.ints(1, 2, 3)), g.const(np.float32(0)))
    return _Samples(
        rows=g("Reshape", by_head, g("Concat", hk, g.ints(-1), g.dim(q, 2), axis=0)),
        scale=scale,
        keys=_by_head(g, keys),
        values=_by_head(g, values),
        here=here,
        n=g.dim(q, 0),
        hq=g.dim(q, 1),
        hk=hk,
        batch=g.dim(keys, 0),
    )


def _by_head(g: Builder, stored: str) -> str:
    """[B, T, Hk, d] to [B, Hk, T, d]."""
    # The reshape changes nothing. It keeps ONNX Runtime from merging this transpose with the next one
    # into a slow copy, where the product would have taken its operand transposed for free.
    value = g("Transpose", stored, perm=[0, 2, 1, 3])
    return g("Reshape", value, g("Shape", value))


def _swap(g: Builder, value: str) -> str:
    return g("Transpose", value, perm=[0, 1, 3, 2])


def _to_rows(g: Builder, x: _Samples, value: str, last: str | int) -> str:
    """[B, N, Hq, last] to [B, Hk, R, last]."""
    return g.reshape(g("Transpose", value, perm=[0, 2, 1, 3]), x.batch, x.hk, -1, last)


def _from_rows(g: Builder, x: _Samples, value: str, last: str | int) -> str:
    """[B, Hk, R, last] to [B, N, Hq, last]."""
    return g("Transpose", g.reshape(value, x.batch, x.hq, x.n, last), perm=[0, 2, 1, 3])


def attention_batch_forward() -> onnx.ModelProto:
    """Partials of B samples over this shard's tokens.

    q f32 [N, Hq, dk], keys f32 [B, T, Hk, dk], values f32 [B, T, Hk, dv], present f32 [B] (1 or 0),
    scale f32 [] -> out f32 [B, N, Hq, dv], lse f32 [B, N, Hq]; (0, -inf) where not present.
    """
    g = Builder("attention_batch_forward")
    x = _samples(g)
    s = g("MatMul", x.rows, _swap(g, x.keys))  # [B, Hk, R, T]
    p = g("Softmax", s, axis=-1)
    top = g("ReduceMax", s, g.ints(-1), keepdims=1)
    # max(s) - log(max(softmax(s))): cheaper than ReduceLogSumExp.
    lse = g("Sub", top, g("Log", g("ReduceMax", p, g.ints(-1), keepdims=1)))
    out = g("Where", x.here, g("MatMul", p, x.values), g.const(np.float32(0)))
    g.output("out", _from_rows(g, x, out, g.dim(x.values, 3)), FLOAT, ["B", "N", "Hq", "dv"])
    known = _from_rows(g, x, g("Where", x.here, lse, g.const(np.float32(-np.inf))), 1)
    g.output("lse", g("Squeeze", known, g.ints(3)), FLOAT, ["B", "N", "Hq"])
    return g.model()


def attention_batch_backward() -> onnx.ModelProto:
    """Gradients of B samples over this shard's tokens, from the merged lse.

    Inputs of `attention_batch_forward` and lse f32 [B, N, Hq] (merged over all shards), dout f32
    [B, N, Hq, dv], delta f32 [B, N, Hq] = rowsum(dout * out) of the merged out -> dq f32 [N, Hq, dk]
    summed over B, dkeys f32 [B, T, Hk, dk], dvalues f32 [B, T, Hk, dv]. A sample not present, or a row
    whose lse is -inf, adds exactly 0. Formulas: FlashAttention-2 (Dao, 2023), algorithm 2, untiled.
    """
    g = Builder("attention_batch_backward")
    x = _samples(g)
    lse = g.input("lse", FLOAT, ["B", "N", "Hq"])
    dout = g.input("dout", FLOAT, ["B", "N", "Hq", "dv"])
    delta = g.input("delta", FLOAT, ["B", "N", "Hq"])
    last = g.ints(3)
    nothing = g.const(np.float32(-np.inf))
    lse_rows = _to_rows(g, x, g("Unsqueeze", lse, last), 1)
    # Rows that count for nothing get lse = +inf: exp(s - inf) is 0, where s - -inf would be NaN later.
    counts = g("And", x.here, g("Greater", lse_rows, nothing))
    lse_rows = g("Where", counts, lse_rows, g.const(np.float32(np.inf)))
    dout_rows = _to_rows(g, x, dout, g.dim(x.values, 3))
    delta_rows = _to_rows(g, x, g("Unsqueeze", delta, last), 1)

    p = g("Exp", g("Sub", g("MatMul", x.rows, _swap(g, x.keys)), lse_rows))  # [B, Hk, R, T]
    dvalues = g("MatMul", _swap(g, p), dout_rows)
    ds = g("Mul", p, g("Sub", g("MatMul", dout_rows, _swap(g, x.values)), delta_rows))
    dkeys = g("MatMul", _swap(g, ds), x.rows)  # the rows bring the scale
    dq = g("Mul", g("ReduceSum", g("MatMul", ds, x.keys), g.ints(0), keepdims=0), x.scale)
    split = g.reshape(dq, x.hq, x.n, g.dim(x.keys, 3))
    g.output("dq", g("Transpose", split, perm=[1, 0, 2]), FLOAT, ["N", "Hq", "dk"])
    g.output("dkeys", g("Transpose", dkeys, perm=[0, 2, 1, 3]), FLOAT, ["B", "T", "Hk", "dk"])
    g.output("dvalues", g("Transpose", dvalues, perm=[0, 2, 1, 3]), FLOAT, ["B", "T", "Hk", "dv"])
    return g.model()
