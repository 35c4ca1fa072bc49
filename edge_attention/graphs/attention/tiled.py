"""Attention graphs over a context: keys and values in tiles, each query with its own range of tokens.

Shapes: N queries, Hq query heads, Hk key heads (Hk divides Hq), G = Hq / Hk, T tokens a tile. Query
head h reads key head h // G, so the G heads of one key head are stacked as rows, R = G * N, and one
product serves them all. Query i sees token j (counted over all tiles) when lo[i] <= j < hi[i]; at
least one tile and one query. What is stored past the last token may be anything finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from edge_attention.graphs.onnx_builder import FLOAT, INT64, Builder

__all__ = [
    "HIDDEN",
    "Queries",
    "attention_backward",
    "attention_decode",
    "attention_lse",
    "attention_prefill",
    "attention_scores",
    "attention_values",
    "attention_weights",
    "merge_tiles",
    "scan",
    "segment_summary",
    "softmax",
    "tile_outs",
    "tile_scores",
]

# Stands for -inf while scores are in flight: exp of it is 0, and it never makes inf - inf. Rows that
# saw nothing are put right at the end.
HIDDEN = np.float32(-1e38)


@dataclass(frozen=True)
class Queries:
    """The rows all graphs start from: `rows` [Hk, R, dk] already scaled, and where each may look."""

    rows: str
    keys: str
    lo: str
    hi: str
    n: str
    hq: str
    hk: str
    tile: str
    tiles: str
    cap: str = ""
    """c of c tanh(score / c), f32 []; empty: none."""

    def capped(self, g: Builder, scores: str) -> str:
        """The scores, none of them beyond the cap."""
        return g("Mul", g("Tanh", g("Div", scores, self.cap)), self.cap) if self.cap else scores


def _queries(g: Builder) -> Queries:
    q = g.input("q", FLOAT, ["N", "Hq", "dk"])
    keys = g.input("keys", FLOAT, ["tiles", "Hk", "T", "dk"])
    scale = g.input("scale", FLOAT, [])
    lo = g.input("lo", INT64, ["N"])
    hi = g.input("hi", INT64, ["N"])
    hk, tile, tiles = g.dim(keys, 1), g.dim(keys, 2), g.dim(keys, 0)
    by_head = g("Transpose", g("Mul", q, scale), perm=[1, 0, 2])  # [Hq, N, dk]
    rows = g("Reshape", by_head, g("Concat", hk, g.ints(-1), g.dim(q, 2), axis=0))
    return Queries(rows, keys, lo, hi, g.dim(q, 0), g.dim(q, 1), hk, tile, tiles)


def _visible(g: Builder, x: Queries, tokens: str) -> str:
    """Which of `tokens` (int64 [..., T]) each query sees: bool [..., N, T]."""
    at = g("Unsqueeze", tokens, g.ints(-2))
    above = g("GreaterOrEqual", at, g("Unsqueeze", x.lo, g.ints(1)))
    return g("And", above, g("Less", at, g("Unsqueeze", x.hi, g.ints(1))))


def _all_tokens(g: Builder, x: Queries) -> str:
    """The index of every token, int64 [tiles, T]."""
    count = g("Squeeze", g("Mul", x.tiles, x.tile))
    return g.reshape(g("Range", g.const(np.int64(0)), count, g.const(np.int64(1))), x.tiles, x.tile)


def _hide(g: Builder, x: Queries, s: str, visible: str, lead: tuple[str | int, ...]) -> str:
    """`s` [*lead, Hk, R, T] with HIDDEN added where `visible` [*lead, (1, 1,) N, T] is false."""
    bias = g("Where", visible, g.const(np.float32(0)), g.const(HIDDEN))
    split = g.reshape(s, *lead, x.hq, x.n, x.tile)
    return g.reshape(g("Add", split, bias), *lead, x.hk, -1, x.tile)


def softmax(g: Builder, s: str) -> tuple[str, str]:
    """Softmax over the last axis and the log of its sum [..., 1].

    lse = max(s) - log(max(softmax(s))): two cheap reductions, where ReduceLogSumExp would take
    longer than the products.
    """
    p = g("Softmax", s, axis=-1)
    top = g("ReduceMax", s, g.ints(-1), keepdims=1)
    return p, g("Sub", top, g("Log", g("ReduceMax", p, g.ints(-1), keepdims=1)))


def _by_query(g: Builder, x: Queries, rows: str, *last: str | int) -> str:
    """[Hk, R, *last] to [N, Hq, *last]."""
    split = g.reshape(rows, x.hq, x.n, *last)
    return g("Transpose", split, perm=[1, 0, *range(2, 2 + len(last))])


def _sees(g: Builder, x: Queries) -> str:
    """Which queries see any token: bool [N, 1]."""
    count = g("Mul", x.tiles, x.tile)
    first = g("Max", x.lo, g.ints(0))
    return g("Unsqueeze", g("Less", first, g("Min", x.hi, count)), g.ints(1))


def _finish_lse(g: Builder, x: Queries, lse: str) -> None:
    """Output `lse` [Hk, R, 1] as [N, Hq], -inf where a query saw nothing."""
    flat = g("Transpose", g.reshape(lse, x.hq, x.n), perm=[1, 0])
    nothing = g.const(np.float32(-np.inf))
    g.output("lse", g("Where", _sees(g, x), flat, nothing), FLOAT, ["N", "Hq"])


def _finish_out(g: Builder, x: Queries, out: str, dv: str) -> None:
    """Output `out` [Hk, R, dv] as [N, Hq, dv], 0 where a query saw nothing."""
    sees = g("Unsqueeze", _sees(g, x), g.ints(2))
    value = g("Where", sees, _by_query(g, x, out, dv), g.const(np.float32(0)))
    g.output("out", value, FLOAT, ["N", "Hq", "dv"])


def _values(g: Builder) -> str:
    return g.input("values", FLOAT, ["tiles", "Hk", "T", "dv"])


# --- few queries: all tiles in one batched product --------------------------------------------------


def _few(g: Builder, rows: str) -> str:
    """Whether so few rows (int64 [1]) are to be multiplied one by one.

    A vector by a matrix runs at the speed of memory, the matrix staying in cache for the next row. A
    product with a few rows first packs the whole matrix, for more than the product itself costs.
    """
    return g("LessOrEqual", rows, g.ints(8))


def tile_scores(g: Builder, x: Queries) -> str:
    """Masked scores of every tile: [tiles, Hk, R, T]."""

    def by_row(b: Builder) -> list[str]:
        keys = b("Transpose", b("Unsqueeze", x.keys, b.ints(2)), perm=[0, 1, 2, 4, 3])
        return [b("Squeeze", b("MatMul", b("Unsqueeze", x.rows, b.ints(2)), keys), b.ints(3))]

    def together(b: Builder) -> list[str]:
        # The right operand is what gets packed, so that is the rows.
        s = b("MatMul", x.keys, b("Transpose", x.rows, perm=[0, 2, 1]))
        return [b("Transpose", s, perm=[0, 1, 3, 2])]

    s = g.either(_few(g, g.dim(x.rows, 1)), by_row, together, [["tiles", "Hk", "R", "T"]])[0]
    s = x.capped(g, s)
    visible = g("Unsqueeze", _visible(g, x, _all_tokens(g, x)), g.ints(1))
    return _hide(g, x, s, visible, (x.tiles,))


def tile_outs(g: Builder, p: str, values: str) -> str:
    """p [tiles, Hk, R, T] times values: [tiles, Hk, R, dv]."""

    def by_row(b: Builder) -> list[str]:
        each = b("MatMul", b("Unsqueeze", p, b.ints(3)), b("Unsqueeze", values, b.ints(2)))
        return [b("Squeeze", each, b.ints(3))]

    rows = g.dim(p, 2)
    return g.either(_few(g, rows), by_row, lambda b: [b("MatMul", p, values)], [["tiles", "Hk", "R", "dv"]])[
        0
    ]


def merge_tiles(g: Builder, tile_lse: str) -> tuple[str, str]:
    """[tiles, Hk, R, 1] to each tile's share of the whole, the same shape, and the lse [Hk, R, 1]."""
    top = g("ReduceMax", tile_lse, g.ints(0), keepdims=1)
    weight = g("Exp", g("Sub", tile_lse, top))
    total = g("ReduceSum", weight, g.ints(0), keepdims=1)
    lse = g("Squeeze", g("Add", top, g("Log", total)), g.ints(0))
    return g("Div", weight, total), lse


def attention_decode() -> onnx.ModelProto:
    """Attention of few queries: every tile at once, merged in the graph.

    q f32 [N, Hq, dk], keys f32 [tiles, Hk, T, dk], values f32 [tiles, Hk, T, dv], scale f32 [],
    lo, hi i64 [N] -> out f32 [N, Hq, dv], lse f32 [N, Hq]. Takes the memory of all scores.
    """
    g = Builder("attention_decode")
    x = _queries(g)
    values = _values(g)
    p, tile_lse = softmax(g, tile_scores(g, x))
    weight, lse = merge_tiles(g, tile_lse)
    part = tile_outs(g, p, values)
    _finish_out(g, x, g("ReduceSum", g("Mul", part, weight), g.ints(0), keepdims=0), g.dim(values, 3))
    _finish_lse(g, x, lse)
    return g.model()


def attention_scores() -> onnx.ModelProto:
    """The first half of `attention_decode`, so that lse can leave before out is computed.

    Inputs as `attention_decode` without values -> p f32 [tiles, Hk, G, N, T], the weights of the
    tokens, and lse f32 [N, Hq].
    """
    g = Builder("attention_scores")
    x = _queries(g)
    p, tile_lse = softmax(g, tile_scores(g, x))
    weight, lse = merge_tiles(g, tile_lse)
    sees = g("Unsqueeze", g("Cast", _sees(g, x), to=FLOAT), g.ints(0))  # [1, N, 1]
    share = g("Mul", g.reshape(weight, x.tiles, x.hq, x.n, 1), sees)
    scaled = g("Mul", g.reshape(p, x.tiles, x.hq, x.n, x.tile), share)
    split = g.reshape(scaled, x.tiles, x.hk, -1, x.n, x.tile)
    g.output("p", split, FLOAT, ["tiles", "Hk", "G", "N", "T"])
    _finish_lse(g, x, lse)
    return g.model()


def attention_values() -> onnx.ModelProto:
    """The second half of `attention_decode`.

    p f32 [tiles, Hk, G, N, T] of `attention_scores`, values f32 [tiles, Hk, T, dv] -> out f32
    [N, Hq, dv].
    """
    g = Builder("attention_values")
    p = g.input("p", FLOAT, ["tiles", "Hk", "G", "N", "T"])
    values = _values(g)
    n, dv = g.dim(p, 3), g.dim(values, 3)
    rows = g.reshape(p, 0, 0, -1, g.dim(p, 4))
    out = g("ReduceSum", tile_outs(g, rows, values), g.ints(0), keepdims=0)
    by_query = g("Transpose", g.reshape(out, -1, n, dv), perm=[1, 0, 2])
    g.output("out", by_query, FLOAT, ["N", "Hq", "dv"])
    return g.model()


def attention_weights() -> onnx.ModelProto:
    """The global attention weights of a shard's tokens: exp(score - lse), the merged lse given.

    q, keys, scale, lo, hi as `attention_decode`, lse f32 [N, Hq] -> weights f32 [N, Hq, tiles * T],
    0 outside a query's range. Takes the memory of all scores.
    """
    g = Builder("attention_weights")
    x = _queries(g)
    lse = g.input("lse", FLOAT, ["N", "Hq"])
    s = g("MatMul", x.rows, g("Transpose", x.keys, perm=[0, 1, 3, 2]))
    split = g("Transpose", g.reshape(s, x.tiles, x.hq, x.n, x.tile), perm=[2, 1, 0, 3])
    flat = g.reshape(split, x.n, x.hq, -1)  # [N, Hq, tokens]
    # A query that nobody's tokens answered has lse -inf; s - -inf would be inf.
    known = g("Greater", lse, g.const(np.float32(-np.inf)))
    p = g("Exp", g("Sub", flat, g("Unsqueeze", g("Where", known, lse, g.const(-HIDDEN)), g.ints(2))))
    visible = g("Unsqueeze", _visible(g, x, g.reshape(_all_tokens(g, x), -1)), g.ints(1))
    shown = g("And", visible, g("Unsqueeze", known, g.ints(2)))
    weights = g("Where", shown, p, g.const(np.float32(0)))
    g.output("weights", weights, FLOAT, ["N", "Hq", "tokens"])
    return g.model()


def attention_backward() -> onnx.ModelProto:
    """Gradients over a shard's tokens, from the merged lse: the tokens' whole, of the queries' a share.

    q, keys, values, scale, lo, hi as `attention_decode`, lse f32 [N, Hq] (merged over all shards), dout f32
    [N, Hq, dv], delta f32 [N, Hq] = rowsum(dout * out) of the merged out -> dq f32 [N, Hq, dk], summed over
    these tokens, dkeys f32 [tiles * T, Hk, dk], dvalues f32 [tiles * T, Hk, dv]. A token out of a query's
    range, and a query whose lse is -inf, add exactly 0. Takes the memory of all scores. Formulas:
    FlashAttention-2 (Dao, 2023), algorithm 2, untiled.
    """
    g = Builder("attention_backward")
    x = _queries(g)
    values = _values(g)
    lse = g.input("lse", FLOAT, ["N", "Hq"])
    dout = g.input("dout", FLOAT, ["N", "Hq", "dv"])
    delta = g.input("delta", FLOAT, ["N", "Hq"])
    dk, dv = g.dim(x.keys, 3), g.dim(values, 3)
    last = g.ints(2)

    def rows(value: str, width: str | int) -> str:
        """[N, Hq, width] to [Hk, R, width]."""
        return g.reshape(g("Transpose", value, perm=[1, 0, 2]), x.hk, -1, width)

    def swap(value: str) -> str:
        return g("Transpose", value, perm=[0, 1, 3, 2])

    # As in `attention_weights`: s - -inf would be inf.
    known = g("Greater", lse, g.const(np.float32(-np.inf)))
    against = g("Transpose", g("Where", known, lse, g.const(-HIDDEN)), perm=[1, 0])  # [Hq, N]
    s = g.reshape(g("MatMul", x.rows, swap(x.keys)), x.tiles, x.hq, x.n, x.tile)
    p = g("Exp", g("Sub", s, g("Unsqueeze", against, last)))
    visible = g("Unsqueeze", _visible(g, x, _all_tokens(g, x)), g.ints(1))  # [tiles, 1, N, T]
    sees = g("Unsqueeze", g("Transpose", known, perm=[1, 0]), last)  # [Hq, N, 1]
    # What is stored past the last token may be anything: its p is chosen away, not multiplied.
    p = g("Where", g("And", visible, sees), p, g.const(np.float32(0)))
    p = g.reshape(p, x.tiles, x.hk, -1, x.tile)
    dout_rows = rows(dout, dv)
    dvalues = g("MatMul", swap(p), dout_rows)  # [tiles, Hk, T, dv]
    dp = g("MatMul", dout_rows, swap(values))
    ds = g("Mul", p, g("Sub", dp, rows(g("Unsqueeze", delta, last), 1)))
    dkeys = g("MatMul", swap(ds), x.rows)  # the rows bring the scale
    dq = g("Mul", g("ReduceSum", g("MatMul", ds, x.keys), g.ints(0), keepdims=0), "scale")
    g.output("dq", _by_query(g, x, dq, dk), FLOAT, ["N", "Hq", "dk"])
    for name, value, width, of in (("dkeys", dkeys, dk, "dk"), ("dvalues", dvalues, dv, "dv")):
        by_token = g.reshape(g("Transpose", value, perm=[0, 2, 1, 3]), -1, x.hk, width)
        g.output(name, by_token, FLOAT, ["tokens", "Hk", of])
    return g.model()


# --- many queries: one tile after the other ---------------------------------------------------------


def _tile_partial(
    g: Builder, x: Queries, keys: str, values: str | None, start: str, masked: bool
) -> list[str]:
    """(lse, out) of one tile: keys [Hk, T, dk], values [Hk, T, dv]."""
    s = x.capped(g, g("MatMul", x.rows, g("Transpose", keys, perm=[0, 2, 1])))
    if masked:
        offsets = g("Range", g.const(np.int64(0)), g("Squeeze", x.tile), g.const(np.int64(1)))
        s = _hide(g, x, s, _visible(g, x, g("Add", offsets, start)), ())
    p, lse = softmax(g, s)
    return [lse] if values is None else [lse, g("MatMul", p, values)]


def _merge_two(g: Builder, a: list[str], b: list[str]) -> list[str]:
    """Merge two partials (lse [Hk, R, 1] and, where given, out [Hk, R, dv])."""
    top = g("Max", a[0], b[0])
    wa, wb = (g("Exp", g("Sub", part[0], top)) for part in (a, b))
    total = g("Add", wa, wb)
    merged = [g("Add", top, g("Log", total))]
    for left, right in zip(a[1:], b[1:], strict=True):
        both = g("Add", g("Mul", left, g("Div", wa, total)), g("Mul", right, g("Div", wb, total)))
        merged.append(both)
    return merged


def scan(g: Builder, x: Queries, values: str | None) -> list[str]:
    """Fold the tiles in order: (lse [Hk, R, 1], out [Hk, R, dv]), in the memory of one tile's scores."""
    dims: list[list[str | int]] = [["Hk", "R", 1]]
    row_count = g.dim(x.rows, 1)
    state = [g("Expand", g.const(HIDDEN), g("Concat", x.hk, row_count, g.ints(1), axis=0))]
    if values is not None:
        dims.append(["Hk", "R", "dv"])
        shape = g("Concat", x.hk, row_count, g.dim(values, 3), axis=0)
        state.append(g("Expand", g.const(np.float32(0)), shape))
    # Scalars that let a tile tell, without looking at its scores, what of it is seen.
    lowest, low = (g(kind, x.lo, keepdims=0) for kind in ("ReduceMin", "ReduceMax"))
    high, highest = (g(kind, x.hi, keepdims=0) for kind in ("ReduceMin", "ReduceMax"))

    body = g.body("tile")
    start = body.input("start", INT64, [])
    before = [body.input(f"before_{i}", FLOAT, dims[i]) for i in range(len(state))]
    keys = body.input("tile_keys", FLOAT, ["Hk", "T", "dk"])
    tile_values = None if values is None else body.input("tile_values", FLOAT, ["Hk", "T", "dv"])
    end = body("Add", start, body("Squeeze", x.tile))

    def look(masked: bool) -> Callable[[Builder], list[str]]:
        return lambda b: _merge_two(b, before, _tile_partial(b, x, keys, tile_values, start, masked))

    def seen(b: Builder) -> list[str]:
        whole = b("And", b("LessOrEqual", low, start), b("GreaterOrEqual", high, end))
        return b.either(whole, look(masked=False), look(masked=True), dims)

    some = body("And", body("Less", lowest, end), body("Greater", highest, start))
    after = body.either(some, seen, lambda b: before, dims)
    body.output("next", end, INT64, [])
    for i, value in enumerate(after):
        body.output(f"after_{i}", value, FLOAT, dims[i])

    scanned = [x.keys] if values is None else [x.keys, values]
    inputs = [g.const(np.int64(0)), *state, *scanned]
    results = g.nodes("Scan", 1 + len(state), *inputs, body=body.graph(), num_scan_inputs=len(scanned))
    return results[1:]


def attention_prefill() -> onnx.ModelProto:
    """Attention of many queries: tiles in order, so the memory is that of one tile's scores.

    Inputs and outputs as `attention_decode`. A tile that every query sees whole pays for no mask, and
    one that no query sees is skipped.
    """
    g = Builder("attention_prefill")
    x = _queries(g)
    values = _values(g)
    lse, out = scan(g, x, values)
    _finish_out(g, x, out, g.dim(values, 3))
    _finish_lse(g, x, lse)
    return g.model()


def attention_lse() -> onnx.ModelProto:
    """The lse of many queries alone: inputs as `attention_decode` without values -> lse f32 [N, Hq]."""
    g = Builder("attention_lse")
    x = _queries(g)
    _finish_lse(g, x, scan(g, x, None)[0])
    return g.model()


# --- what is recorded when a segment is stored ------------------------------------------------------


def segment_summary() -> onnx.ModelProto:
    """What bounds a segment's share and error before it is asked.

    keys f32 [n, Hk, dk], values f32 [n, Hk, dv], n >= 1 -> key_norm f32 [Hk], the largest L2 norm of a
    key, and value_min, value_max f32 [Hk, dv].
    """
    g = Builder("segment_summary")
    keys = g.input("keys", FLOAT, ["n", "Hk", "dk"])
    values = g.input("values", FLOAT, ["n", "Hk", "dv"])
    norms = g("ReduceL2", keys, g.ints(2), keepdims=0)
    g.output("key_norm", g("ReduceMax", norms, g.ints(0), keepdims=0), FLOAT, ["Hk"])
    g.output("value_min", g("ReduceMin", values, g.ints(0), keepdims=0), FLOAT, ["Hk", "dv"])
    g.output("value_max", g("ReduceMax", values, g.ints(0), keepdims=0), FLOAT, ["Hk", "dv"])
    return g.model()


# --- what is stored, as it is -----------------------------------------------------------------------


def stored_tiles() -> onnx.ModelProto:
    """Some tiles of a sequence, to be returned: an export or a copy reads them a few at a time.

    tiles f32 [n, H, t, d] -> out, the same. No release has it: of private tiles nothing leaves.
    """
    g = Builder("stored_tiles")
    dims = ["n", "H", "t", "d"]
    g.output("out", g.input("tiles", FLOAT, dims), FLOAT, dims)
    return g.model()
