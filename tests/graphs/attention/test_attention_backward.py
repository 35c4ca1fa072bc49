"""Gradients over tiles against those of attention written out in float64."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.graphs.attention import library

Arrays = dict[str, np.ndarray]


@cache
def session() -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        library.load("attention_backward"), options, providers=["CPUExecutionProvider"]
    )


def expected(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, sees: np.ndarray, scale: float, dout: np.ndarray
):
    """lse, delta, dq, dkeys, dvalues in float64, of keys and values [tokens, heads, dim]."""
    group = q.shape[1] // keys.shape[1]
    q, k, v, dout = (np.asarray(a, np.float64) for a in (q, keys, values, dout))
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    s = np.where(sees[:, None], scale * np.einsum("nhd,thd->nht", q, k), -np.inf)
    lse = np.logaddexp.reduce(s, axis=2)
    p = np.exp(s - np.where(np.isneginf(lse), 0, lse)[..., None])
    out = np.einsum("nht,thd->nhd", p, v)
    delta = (dout * out).sum(2)
    ds = p * (np.einsum("nhd,thd->nht", dout, v) - delta[..., None])
    split = lambda a: a.reshape(len(a), -1, group, a.shape[2]).sum(2)  # noqa: E731
    dk = split(scale * np.einsum("nht,nhd->thd", ds, q))
    return lse, delta, scale * np.einsum("nht,thd->nhd", ds, k), dk, split(np.einsum("nht,nhd->thd", p, dout))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    *(st.integers(1, most) for most in (4, 3, 3, 3, 4, 5, 6)),
)
def test_gradients_are_those_of_attention_whatever_is_masked(seed, n, hk, group, tiles, tile, dk, dv):
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    q, dout = normal(n, hk * group, dk), normal(n, hk * group, dv)
    keys, values = normal(tiles, hk, tile, dk), normal(tiles, hk, tile, dv)
    lo = random.integers(0, tiles * tile + 1, n)
    hi = random.integers(0, tiles * tile + 1, n)  # some see nothing
    at = np.arange(tiles * tile)
    sees = (at >= lo[:, None]) & (at < hi[:, None])
    flat = [np.moveaxis(a, 1, 2).reshape(-1, hk, a.shape[3]) for a in (keys, values)]
    lse, delta, *gradients = expected(q, *flat, sees, dk**-0.5, dout)
    unseen = ~sees.any(0)
    # What nobody sees may be anything finite.
    for stored, fill in ((keys, 1e30), (values, -1e30)):
        by_token = np.moveaxis(stored, 1, 2).reshape(-1, hk, stored.shape[3])
        by_token[unseen] = fill
        stored[...] = np.moveaxis(by_token.reshape(tiles, tile, hk, -1), 2, 1)
    feeds = {
        "q": q, "keys": keys, "values": values, "scale": np.array(dk**-0.5, np.float32), "lo": lo, "hi": hi,
        "lse": lse.astype(np.float32), "dout": dout, "delta": delta.astype(np.float32),
    }  # fmt: skip
    found = session().run(["dq", "dkeys", "dvalues"], feeds)
    for one, other in zip(found, gradients, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)
    assert not found[1][unseen].any()
    assert not found[2][unseen].any()
