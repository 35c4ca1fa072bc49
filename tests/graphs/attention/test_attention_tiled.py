"""The tiled graphs against attention written out in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.graphs.attention import library

FORWARD = ["attention_decode", "attention_prefill"]


@cache
def session(name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(library.load(name), options, providers=["CPUExecutionProvider"])


def run(name: str, **feeds: Any) -> list[np.ndarray]:
    return list(session(name).run(None, feeds))


@dataclass(frozen=True)
class Case:
    q: np.ndarray  # [N, Hq, dk]
    keys: np.ndarray  # [tiles, Hk, T, dk]
    values: np.ndarray  # [tiles, Hk, T, dv]
    scale: np.ndarray
    lo: np.ndarray
    hi: np.ndarray

    def feeds(self, *names: str) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in names or ("q", "keys", "values", "scale", "lo", "hi")}

    @property
    def asked(self) -> dict[str, np.ndarray]:
        return self.feeds("q", "keys", "scale", "lo", "hi")

    @property
    def tokens(self) -> int:
        return int(self.keys.shape[0] * self.keys.shape[2])

    @property
    def visible(self) -> np.ndarray:
        """bool [N, tokens]"""
        at = np.arange(self.tokens)
        return (at >= self.lo[:, None]) & (at < self.hi[:, None])


def make(
    seed: int,
    n: int = 3,
    hk: int = 2,
    group: int = 2,
    tiles: int = 3,
    tile: int = 4,
    dk: int = 8,
    dv: int = 6,
) -> Case:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    lo = rng.integers(-3, tiles * tile, n)
    return Case(
        q=2 * normal(n, hk * group, dk),
        keys=normal(tiles, hk, tile, dk),
        values=normal(tiles, hk, tile, dv),
        scale=np.array(dk**-0.5, np.float32),
        lo=lo,
        hi=lo + rng.integers(-1, tiles * tile + 4, n),
    )


def by_token(stored: np.ndarray, group: int) -> np.ndarray:
    """[tiles, Hk, T, d] to float64 [Hq, tokens, d]."""
    tiles, heads, tile, d = stored.shape
    flat = stored.astype(np.float64).transpose(1, 0, 2, 3).reshape(heads, tiles * tile, d)
    return np.repeat(flat, group, axis=0)


def reference(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(out [N, Hq, dv], lse [N, Hq], weights [N, Hq, tokens]) in float64."""
    group = case.q.shape[1] // case.keys.shape[1]
    s = np.einsum("nhd,hjd->nhj", case.q.astype(np.float64), by_token(case.keys, group)) * float(case.scale)
    s = np.where(case.visible[:, None], s, -np.inf)
    lse = np.logaddexp.reduce(s, axis=-1)
    weights = np.where(np.isneginf(s), 0.0, np.exp(s - np.where(np.isneginf(lse), 0.0, lse)[..., None]))
    return np.einsum("nhj,hjd->nhd", weights, by_token(case.values, group)), lse, weights


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


cases = st.builds(
    make,
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    hk=st.integers(1, 3),
    group=st.integers(1, 3),
    tiles=st.integers(1, 4),
    tile=st.integers(1, 9),
    dk=st.integers(1, 9),
    dv=st.integers(1, 9),
)
many = settings(max_examples=60, deadline=None)


@many
@given(cases)
def test_every_graph_equals_attention_in_float64(case: Case) -> None:
    out, lse, weights = reference(case)
    for name in FORWARD:
        actual_out, actual_lse = run(name, **case.feeds())
        close(actual_out, out)
        close(actual_lse, lse)
        nothing = ~case.visible.any(1)
        assert (actual_out[nothing] == 0).all()
        assert np.isneginf(actual_lse[nothing]).all()
    p, early = run("attention_scores", **case.asked)
    close(early, lse)
    close(run("attention_values", p=p, values=case.values)[0], out)
    close(run("attention_lse", **case.asked)[0], lse)
    actual = run("attention_weights", lse=lse.astype(np.float32), **case.asked)[0]
    close(actual, weights)
    assert (actual[~np.broadcast_to(case.visible[:, None], actual.shape)] == 0).all()


@many
@given(cases, st.integers(0, 4), st.sampled_from(FORWARD))
def test_tiles_on_two_machines_merge_to_the_whole(case: Case, cut: int, name: str) -> None:
    cut = min(cut, len(case.keys) - 1)
    if cut == 0:
        return
    first = cut * case.keys.shape[2]
    left = replace(case, keys=case.keys[:cut], values=case.values[:cut])
    right = replace(
        case, keys=case.keys[cut:], values=case.values[cut:], lo=case.lo - first, hi=case.hi - first
    )
    parts = [run(name, **part.feeds()) for part in (left, right)]
    top = np.maximum(parts[0][1], parts[1][1])
    weight = [
        np.where(np.isneginf(lse), 0, np.exp(lse - np.where(np.isneginf(top), 0, top))) for _, lse in parts
    ]
    total = np.maximum(weight[0] + weight[1], 1e-30)
    merged = sum(w[..., None] * out for w, (out, _) in zip(weight, parts, strict=True)) / total[..., None]
    close(merged.astype(np.float32), reference(case)[0])
    # Each machine's weights, from the lse of both, are the whole's weights.
    lse = reference(case)[1].astype(np.float32)
    weights = [run("attention_weights", lse=lse, **part.asked)[0] for part in (left, right)]
    close(np.concatenate(weights, axis=2), reference(case)[2])


@many
@given(cases, st.floats(-1e4, 1e4), st.sampled_from(FORWARD))
def test_what_lies_outside_the_range_changes_no_bit(case: Case, junk: float, name: str) -> None:
    tiles, _, tile, _ = case.keys.shape
    unseen = ~case.visible.any(0).reshape(tiles, 1, tile, 1)
    dirty = replace(
        case,
        keys=np.where(unseen, np.float32(junk), case.keys),
        values=np.where(unseen, np.float32(junk), case.values),
    )
    for clean, other in zip(run(name, **case.feeds()), run(name, **dirty.feeds()), strict=True):
        np.testing.assert_array_equal(clean, other)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("n", [1, 5, 40])
def test_causal_and_window_ranges(name: str, n: int) -> None:
    case = make(1, n=n, tiles=10, tile=8)
    position = np.arange(n) + 30
    causal = replace(case, lo=np.zeros(n, np.int64), hi=position + 1)
    window = replace(case, lo=position - 20, hi=position + 1)
    for some in (causal, window):
        out, lse, _ = reference(some)
        actual = run(name, **some.feeds())
        close(actual[0], out)
        close(actual[1], lse)


@pytest.mark.parametrize("name", ["attention_prefill", "attention_lse"])
def test_a_tile_nobody_sees_is_not_computed(name: str) -> None:
    case = make(2, tiles=4, tile=4)
    case = replace(case, lo=np.full(3, 4), hi=np.full(3, 9))
    out, lse, _ = reference(case)
    keys, values = case.keys.copy(), case.values.copy()
    keys[[0, 3]] = values[[0, 3]] = np.nan  # would spread, were it multiplied by anything
    feeds = replace(case, keys=keys, values=values)
    if name == "attention_lse":
        close(run(name, **feeds.asked)[0], lse)
    else:
        close(run(name, **feeds.feeds())[0], out)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("size", [30.0, 3000.0])
def test_large_scores_neither_overflow_nor_vanish(name: str, size: float) -> None:
    case = make(3)
    case = replace(case, q=np.float32(size) * case.q, lo=np.zeros(3, np.int64), hi=np.full(3, 12))
    out, lse, _ = reference(case)
    actual_out, actual_lse = run(name, **case.feeds())
    np.testing.assert_allclose(actual_lse, lse, rtol=1e-6)
    # A float32 score is off by its own rounding, and the weights by that much.
    np.testing.assert_allclose(actual_out, out, atol=3e-6 * size)


def test_weights_are_zero_where_the_merged_lse_says_nobody_saw_anything() -> None:
    case = make(5)
    case = replace(case, lo=np.zeros(3, np.int64), hi=np.full(3, 12))
    lse = reference(case)[1].astype(np.float32)
    lse[1] = -np.inf
    weights = run("attention_weights", lse=lse, **case.asked)[0]
    assert (weights[1] == 0).all()
    close(weights[[0, 2]], reference(case)[2][[0, 2]])


@pytest.mark.parametrize("name", FORWARD)
def test_the_same_call_gives_the_same_bits(name: str) -> None:
    case = make(4, n=9, tiles=5, tile=16)
    for first, second in zip(run(name, **case.feeds()), run(name, **case.feeds()), strict=True):
        np.testing.assert_array_equal(first, second)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_segment_summary(seed: int, n: int, heads: int) -> None:
    rng = np.random.default_rng(seed)
    keys, values = (rng.normal(size=(n, heads, d)).astype(np.float32) for d in (5, 4))
    norm, low, high = run("segment_summary", keys=keys, values=values)
    close(norm, np.sqrt((keys.astype(np.float64) ** 2).sum(2)).max(0))
    np.testing.assert_array_equal(low, values.min(0))
    np.testing.assert_array_equal(high, values.max(0))
