"""Attention of new rows over one stored sequence, for rows that belong to several.

A trip of a decoder brings rows of several sessions, each with a stored sequence of its own. One run does the
rows of one of them and gives on what the runs before it have made of others'; after the last one all rows are
there. N rows, Hk key heads, G query heads a key head; each row sees tokens lo <= j < hi of its sequence.
"""

from __future__ import annotations

import numpy as np
import onnx

from edge_attention.graphs.attention.tiled import (
    HIDDEN,
    Queries,
    merge_tiles,
    scan,
    softmax,
    tile_outs,
    tile_scores,
)
from edge_attention.graphs.onnx_builder import FLOAT, INT64, Builder

__all__ = [
    "cached_biased",
    "cached_capped",
    "cached_capped_prefill",
    "cached_decode",
    "cached_prefill",
    "cached_row",
]


def _own_rows(g: Builder, capped: bool = False) -> tuple[Queries, str]:
    """The sequence's rows of all, and where they begin, int64 [1]."""
    q = g.input("q", FLOAT, ["N", "Hk", "G", "dk"])
    keys = g.input("keys", FLOAT, ["tiles", "Hk", "T", "dk"])
    scale = g.input("scale", FLOAT, [])
    lo, hi = g.input("lo", INT64, ["N"]), g.input("hi", INT64, ["N"])
    rows = g.input("rows", INT64, ["two"])
    first = g("Slice", rows, g.ints(0), g.ints(1), g.ints(0))
    end = g("Add", first, g("Slice", rows, g.ints(1), g.ints(2), g.ints(0)))

    def own(value: str) -> str:
        return g("Slice", value, first, end, g.ints(0))

    mine = own(q)
    hk, tile, tiles = g.dim(keys, 1), g.dim(keys, 2), g.dim(keys, 0)
    by_head = g("Transpose", g("Mul", mine, scale), perm=[1, 2, 0, 3])
    stacked = g("Reshape", by_head, g("Concat", hk, g.ints(-1), g.dim(q, 3), axis=0))
    heads = g("Mul", hk, g.dim(q, 2))
    cap = g.input("cap", FLOAT, []) if capped else ""
    return Queries(stacked, keys, own(lo), own(hi), g.dim(mine, 0), heads, hk, tile, tiles, cap), first


def _finish(g: Builder, x: Queries, first: str, out: str, lse: str, dv: str) -> None:
    """Put the rows where they belong among all N: 0 and -inf stand elsewhere; and what was there before."""
    before = g.input("before", FLOAT, ["Nb", "Hb", "Gb", "db"])
    before_lse = g.input("before_lse", FLOAT, ["Nb", "Hb", "Gb", "one"])
    behind = g("Sub", g("Sub", g.dim("q", 0), first), x.n)
    pads = g("Concat", first, g.ints(0, 0, 0), behind, g.ints(0, 0, 0), axis=0)
    count = g("Mul", x.tiles, x.tile)
    some = g("Less", g("Max", x.lo, g.ints(0)), g("Min", x.hi, count))
    sees = g("Unsqueeze", some, g.ints(1, 2, 3))

    def placed(value: str, last: str | int, nothing: np.float32) -> str:
        split = g.reshape(value, x.hk, -1, x.n, last)
        rows = g("Transpose", split, perm=[2, 0, 1, 3])  # [n, Hk, G, last]
        seen = g("Where", sees, rows, g.const(nothing))
        return g("Pad", seen, pads, g.const(nothing))

    whole = g("Add", placed(out, dv, np.float32(0)), before)
    g.output("out", whole, FLOAT, ["N", "Hk", "G", "dv"])
    top = g("Max", placed(lse, 1, np.float32(-np.inf)), before_lse)
    g.output("lse", top, FLOAT, ["N", "Hk", "G", "one"])


def cached_decode() -> onnx.ModelProto:
    """Attention of few rows: every tile at once, merged in the graph.

    q f32 [N, Hk, G, dk], keys f32 [tiles, Hk, T, dk], values f32 [tiles, Hk, T, dv], scale f32 [], rows i64
    [2] (the first row of this sequence, and how many), lo, hi i64 [N], before f32 (broadcast to out),
    before_lse f32 (broadcast to lse) -> out f32 [N, Hk, G, dv], lse f32 [N, Hk, G, 1]: those of the
    sequence's rows, where other rows have `before`, which is 0 and -inf where nobody has made them yet.
    """
    return _all_tiles(Builder("cached_decode"))


def cached_capped() -> onnx.ModelProto:
    """As `cached_decode`, with scores s as cap tanh(s / cap); cap f32 []."""
    return _all_tiles(Builder("cached_capped"), capped=True)


def _all_tiles(g: Builder, capped: bool = False) -> onnx.ModelProto:
    x, first = _own_rows(g, capped)
    values = g.input("values", FLOAT, ["tiles", "Hk", "T", "dv"])
    p, tile_lse = softmax(g, tile_scores(g, x))
    weight, lse = merge_tiles(g, tile_lse)
    part = tile_outs(g, p, values)
    out = g("ReduceSum", g("Mul", part, weight), g.ints(0), keepdims=0)
    _finish(g, x, first, out, lse, g.dim(values, 3))
    return g.model()


def cached_row() -> onnx.ModelProto:
    """Attention of one row over all of one sequence before a token: most trips are of one.

    q f32 [1, Hk, G, dk], keys f32 [tiles, Hk, T, dk], values f32 [tiles, Hk, T, dv], scale f32 [], hi i64 [1]
    (1 or more: the row sees tokens before it) -> out f32 [1, Hk, G, dv]. The same bits as `cached_decode`,
    for up to 8 query heads a key head, with a third of its operators: of few tokens they are all it takes.
    """
    g = Builder("cached_row")
    q = g.input("q", FLOAT, ["one", "Hk", "G", "dk"])
    keys = g.input("keys", FLOAT, ["tiles", "Hk", "T", "dk"])
    values = g.input("values", FLOAT, ["tiles", "Hk", "T", "dv"])
    scale = g.input("scale", FLOAT, [])
    hi = g.input("hi", INT64, ["one"])
    tiles, tile = g.dim(keys, 0), g.dim(keys, 2)
    by_key = g("Transpose", g("Unsqueeze", keys, g.ints(2)), perm=[0, 1, 2, 4, 3])
    row = g("Squeeze", g("Unsqueeze", g("Mul", q, scale), g.ints(3)), g.ints(0))  # [Hk, G, 1, dk]
    scores = g("MatMul", row, by_key)  # [tiles, Hk, G, 1, T]
    count = g("Squeeze", g("Mul", tiles, tile))
    token = g.reshape(g("Range", g.const(np.int64(0)), count, g.const(np.int64(1))), tiles, 1, 1, 1, tile)
    p, tile_lse = softmax(g, g("Where", g("Less", token, hi), scores, g.const(HIDDEN)))
    weight = g("Exp", g("Sub", tile_lse, g("ReduceMax", tile_lse, g.ints(0), keepdims=1)))
    share = g("Div", weight, g("ReduceSum", weight, g.ints(0), keepdims=1))
    part = g("MatMul", p, g("Unsqueeze", values, g.ints(2)))
    out = g("ReduceSum", g("Mul", part, share), g.ints(0), keepdims=1)
    g.output("out", g("Squeeze", out, g.ints(3)), FLOAT, ["one", "Hk", "G", "dv"])
    return g.model()


def cached_prefill() -> onnx.ModelProto:
    """Attention of many rows: tiles in order, in the memory of one tile's scores. As `cached_decode`."""
    return _tiles_in_order(Builder("cached_prefill"))


def cached_capped_prefill() -> onnx.ModelProto:
    """As `cached_prefill`, with scores s as cap tanh(s / cap); cap f32 []."""
    return _tiles_in_order(Builder("cached_capped_prefill"), capped=True)


def _tiles_in_order(g: Builder, capped: bool = False) -> onnx.ModelProto:
    x, first = _own_rows(g, capped)
    values = g.input("values", FLOAT, ["tiles", "Hk", "T", "dv"])
    lse, out = scan(g, x, values)
    _finish(g, x, first, out, lse, g.dim(values, 3))
    return g.model()


def cached_biased() -> onnx.ModelProto:
    """As `cached_decode`, with what is added to scores by distance.

    bias f32 [Hk, G, D], the last for all distances from D - 1 on; where f32 [N, 1, 1], the position of each
    row; places f32 [tiles, 1, T, 1], that of each token. Takes the memory of all scores.
    """
    g = Builder("cached_biased")
    x, first = _own_rows(g)
    values = g.input("values", FLOAT, ["tiles", "Hk", "T", "dv"])
    bias = g.input("bias", FLOAT, ["Hk", "G", "D"])
    where, places = (g.input(name, FLOAT, dims) for name, dims in _POSITIONS.items())
    own = g("Slice", where, first, g("Add", first, x.n), g.ints(0))  # [n, 1, 1]
    token = g.reshape(places, x.tiles, 1, x.tile)
    away = g("Sub", g.reshape(own, 1, x.n, 1), token)  # [tiles, n, T]
    last = g("Cast", g("Sub", g.dim(bias, 2), g.ints(1)), to=FLOAT)
    near = g("Max", g("Min", away, last), g.const(np.zeros(1, np.float32)))
    added = g("Gather", bias, g("Cast", near, to=INT64), axis=2)  # [Hk, G, tiles, n, T]
    by_tile = g.reshape(g("Transpose", added, perm=[2, 0, 1, 3, 4]), x.tiles, x.hk, -1, x.tile)
    p, tile_lse = softmax(g, g("Add", tile_scores(g, x), by_tile))
    weight, lse = merge_tiles(g, tile_lse)
    out = g("ReduceSum", g("Mul", tile_outs(g, p, values), weight), g.ints(0), keepdims=0)
    _finish(g, x, first, out, lse, g.dim(values, 3))
    return g.model()


_POSITIONS: dict[str, list[str | int]] = {
    "where": ["N", "one", "wide"],
    "places": ["tiles", "one", "T", "wide"],
}
