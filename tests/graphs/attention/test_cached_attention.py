"""Rows over one of several stored sequences: what each kernel gives, against plain float64."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.graphs.attention import library

SESSIONS = {
    name: ort.InferenceSession(library.load(name), providers=["CPUExecutionProvider"])
    for name in (
        "cached_biased",
        "cached_capped",
        "cached_capped_prefill",
        "cached_decode",
        "cached_prefill",
    )
}
ROW = ort.InferenceSession(library.load("cached_row"), providers=["CPUExecutionProvider"])


def attended(q, keys, values, lo, hi, scale, biases=0.0, cap=0.0):
    """One row [groups, shared, width] over tokens lo to hi: out and lse; nothing seen: 0 and -inf.

    `biases`: of all tokens, [groups, shared, tokens]; `cap`: c of c tanh(score / c).
    """
    groups, shared, _ = q.shape
    if lo >= hi:
        return np.zeros((groups, shared, values.shape[-1])), np.full((groups, shared, 1), -np.inf)
    k = keys.transpose(1, 0, 2, 3).reshape(groups, -1, keys.shape[-1])[:, lo:hi].astype(np.float64)
    v = values.transpose(1, 0, 2, 3).reshape(groups, -1, values.shape[-1])[:, lo:hi]
    scores = scale * np.einsum("gsd,gtd->gst", q.astype(np.float64), k)
    scores = cap * np.tanh(scores / cap) if cap else scores
    scores += biases if np.isscalar(biases) else biases[..., lo:hi]
    lse = np.log(np.exp(scores).sum(-1, keepdims=True))
    return np.einsum("gst,gte->gse", np.exp(scores - lse), v), lse


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_one_row_alone_has_the_bits_of_one_among_many(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    tiles, groups, shared = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 8))
    tile, width, value_width = (draw(st.integers(1, 70)) for _ in range(3))
    keys = rng.normal(size=(tiles, groups, tile, width)).astype(np.float32)
    values = rng.normal(size=(tiles, groups, tile, value_width)).astype(np.float32)
    hi = draw(st.integers(1, tiles * tile))
    q = rng.normal(size=(1, groups, shared, width)).astype(np.float32)
    own = {"q": q, "keys": keys, "values": values, "scale": np.array(0.3, np.float32), "hi": np.array([hi])}
    (out,) = ROW.run(["out"], own)
    first = {"before": np.zeros((1, 1, 1, 1), np.float32)}
    first |= {"before_lse": np.full((1, 1, 1, 1), -np.inf, np.float32)}
    first |= {"rows": np.array([0, 1]), "lo": np.array([0])}
    among, _ = SESSIONS["cached_decode"].run(["out", "lse"], own | first)
    np.testing.assert_array_equal(out, among)
    wanted, _ = attended(q[0], keys, values, 0, hi, 0.3)
    np.testing.assert_allclose(out[0], wanted, atol=2e-6)


@pytest.mark.parametrize("name", SESSIONS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_each_sequence_does_its_rows_and_gives_on_those_of_others(name, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    groups, shared, tile = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    width, value_width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    counts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    padding = draw(st.integers(0, 3))
    rows = sum(counts) + padding
    q = rng.normal(size=(rows, groups, shared, width)).astype(np.float32)
    out, lse = np.zeros((1, 1, 1, 1), np.float32), np.full((1, 1, 1, 1), -np.inf, np.float32)
    wanted = np.zeros((rows, groups, shared, value_width))
    wanted_lse = np.full((rows, groups, shared, 1), -np.inf)
    lo, hi = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    bias = rng.normal(size=(groups, shared, draw(st.integers(1, 5)))).astype(np.float32)
    at = rng.integers(0, 9, size=rows).astype(np.float32)
    biased, cap = name == "cached_biased", 0.7 if "capped" in name else 0.0
    sequences, first = [], 0
    for count in counts:
        tiles = draw(st.integers(1, 4))
        keys = rng.normal(size=(tiles, groups, tile, width)).astype(np.float32)
        values = rng.normal(size=(tiles, groups, tile, value_width)).astype(np.float32)
        places = rng.integers(0, 9, size=(tiles, 1, tile, 1)).astype(np.float32)
        for row in range(first, first + count):
            away = np.clip(at[row] - places.reshape(-1), 0, bias.shape[-1] - 1).astype(int)
            lo[row], hi[row] = sorted(draw(st.integers(0, tiles * tile)) for _ in range(2))
            wanted[row], wanted_lse[row] = attended(
                q[row], keys, values, lo[row], hi[row], 0.3, bias[..., away] if biased else 0.0, cap
            )
        sequences.append((keys, values, np.array([first, count]), places))
        first += count
    for keys, values, where, places in sequences:
        feeds = {"q": q, "keys": keys, "values": values, "scale": np.array(0.3, np.float32), "rows": where}
        feeds |= {"lo": lo, "hi": hi, "before": out, "before_lse": lse}
        feeds |= {"bias": bias, "where": at[:, None, None], "places": places} if biased else {}
        feeds |= {"cap": np.array(cap, np.float32)} if cap else {}
        out, lse = SESSIONS[name].run(["out", "lse"], feeds)
    np.testing.assert_allclose(out, wanted, atol=2e-6)
    np.testing.assert_array_equal(np.isinf(lse), np.isinf(wanted_lse))
    np.testing.assert_allclose(lse, wanted_lse, atol=2e-6)
