"""The certificate against the exact answer: for random data and for data chosen to break it."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import attend, partial, scores

from edge_attention.core.bounds import Summary, error_bound, lse_upper_bound
from edge_attention.core.partial import Partial, identity, merge


def summary(keys, values) -> Summary:
    return Summary(np.linalg.norm(keys, axis=2).max(axis=0), values.min(axis=0), values.max(axis=0))


@st.composite
def cases(draw):
    """queries, keys, values, visible, cuts and which shards are missing; a case in two is lopsided."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    key_heads, group, queries = (
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 3])),
        draw(st.integers(1, 4)),
    )
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    tokens = sum(sizes)
    edges = np.cumsum([0, *sizes])
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    q = rng.standard_normal((queries, key_heads * group, 4)).astype(np.float32)
    k = rng.standard_normal((tokens, key_heads, 4)).astype(np.float32)
    v = rng.standard_normal((tokens, key_heads, 3)).astype(np.float32)
    missing = draw(st.sets(st.integers(0, len(parts) - 1), min_size=1))
    if draw(st.booleans()):
        # The missing keys take nearly all the weight, or nearly none, and their values are far away.
        for i in missing:
            k[parts[i]] *= draw(st.sampled_from([20.0, 0.01]))
            v[parts[i]] *= draw(st.sampled_from([1000.0, 1.0]))
    visible = rng.random((queries, tokens)) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    return q, k, v, visible, parts, sorted(missing), draw(st.sampled_from([0.5, 1.0, -2.0, 12.0]))


@given(cases(), st.booleans())
def test_the_exact_answer_lies_within_the_bound(case, tight):
    q, k, v, visible, parts, missing, scale = case
    s = scores(q, k, scale)
    pieces = [partial(s[..., p], v[p], visible[:, p]) for p in parts]
    arrived = functools.reduce(
        merge, [pieces[i] for i in range(len(parts)) if i not in missing], identity((*q.shape[:2], 3))
    )
    gone = []
    for i in missing:
        part, seen = parts[i], visible[:, parts[i]].sum(axis=1).astype(np.float32)
        about = summary(k[part], v[part])
        lse = pieces[i].lse if tight else lse_upper_bound(q, about, scale, seen)
        exact = attend(s[..., part], v[part], visible[:, part])[1]
        if not tight:
            assert (lse >= exact).all()
            assert (np.isneginf(lse) == np.isneginf(exact)).all()
        gone.append((lse, about))
    bound = error_bound(arrived, gone)
    assert bound.dtype == np.float32
    assert bound.shape == arrived.out.shape
    # What of the difference is not the missing shards': merging in float32, 1e-5 by the design.
    rounding = (
        1e-5
        * np.abs(arrived.out)
        * (1 + np.abs(np.where(np.isneginf(arrived.lse), 0, arrived.lse))[..., None])
    )
    exact_out = attend(s, v, visible)[0]
    assert (np.abs(arrived.out - exact_out) <= bound.astype(np.float64) + rounding + 1e-6).all()
    blind = ~np.any([visible[:, parts[i]].any(axis=1) for i in missing], axis=0)
    assert (bound[blind] == 0).all(), "a query that misses nothing has an exact answer"
    assert np.isfinite(bound).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(-90, 90))
def test_rounded_to_float32_it_still_holds_where_it_is_exact(seed, dim, gap):
    """One missing value: the bound is the error itself. Its inputs exact, it needs no tolerance."""
    rng = np.random.default_rng(seed)
    lse = np.float32(rng.uniform(-80, 80))
    far, out = rng.standard_normal((2, 1, dim)).astype(np.float32)
    missing_lse = np.full((1, 1), lse + gap, np.float32)
    bound = error_bound(
        Partial(out[None], np.full((1, 1), lse, np.float32)), [(missing_lse, Summary(np.ones(1), far, far))]
    )
    tau = 1 / (1 + np.exp(float(lse) - float(missing_lse.item())))
    error = np.abs(tau * (far.astype(np.float64) - out))
    assert (bound[0] >= error).all()
    assert (bound[0] <= error * (1 + 1e-4) + 1e-6).all(), "and it is no wider than it must be"


def test_nothing_arrived_means_the_whole_range_of_values():
    values = np.array([[[-3.0, 2.0]], [[1.0, 5.0]]], np.float32)
    about = summary(np.ones((2, 1, 4), np.float32), values)
    bound = error_bound(identity((1, 1, 2)), [(np.zeros((1, 1), np.float32), about)])
    np.testing.assert_allclose(bound, [[[3, 5]]], rtol=1e-6)


def test_a_shard_a_query_does_not_see_does_not_widen_its_range():
    near, far = (
        Summary(np.ones(1), np.full((1, 1), v, np.float32), np.full((1, 1), v, np.float32))
        for v in (1.0, 1e6)
    )
    arrived = Partial(np.zeros((2, 1, 1), np.float32), np.zeros((2, 1), np.float32))
    sees_near = np.zeros((2, 1), np.float32)
    sees_far = np.array([[-np.inf], [0]], np.float32)
    bound = error_bound(arrived, [(sees_near, near), (sees_far, far)])
    assert bound[0].item() == pytest.approx(0.5, rel=1e-5)
    assert bound[1].item() == pytest.approx(2e6 / 3, rel=1e-5)


@pytest.mark.parametrize("arrived_lse", [0.0, -np.inf])
def test_a_useless_upper_bound_is_taken_for_all_the_weight_not_for_none(arrived_lse):
    """Norms whose product overflows: a NaN made here would pass as an error of zero."""
    about = Summary(
        np.full(1, 3e38, np.float32), np.full((1, 1), -2, np.float32), np.full((1, 1), 7, np.float32)
    )
    queries = np.full((1, 1, 4), 3e38, np.float32)
    lse = lse_upper_bound(queries, about, 1.0, np.ones(1, np.float32))
    assert np.isposinf(lse).all()
    arrived = Partial(np.zeros((1, 1, 1), np.float32), np.full((1, 1), arrived_lse, np.float32))
    bound = error_bound(arrived, [(lse, about), (lse, about)])
    assert bound.item() == pytest.approx(7, rel=1e-6)


def test_an_lse_that_is_nan_gives_no_certificate():
    about = Summary(np.ones(1), np.zeros((1, 1)), np.ones((1, 1)))
    arrived = Partial(np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32))
    assert np.isnan(error_bound(arrived, [(np.full((1, 1), np.nan, np.float32), about)])).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 512), st.floats(0.01, 30))
def test_norms_bound_the_lse_even_of_parallel_keys(seed, dim, size):
    """Cauchy-Schwarz is an equality there, so that any rounding down would show."""
    rng = np.random.default_rng(seed)
    q = (rng.standard_normal((1, 1, dim)) * size).astype(np.float32)
    k = (q[0, 0] * np.float32(rng.uniform(0.1, 3)))[None, None]
    v = np.zeros((1, 1, 1), np.float32)
    exact = attend(scores(q, k, 0.7), v)[1]
    bound = lse_upper_bound(q, summary(k, v), 0.7, np.ones(1, np.float32))
    assert (bound >= exact).all()
    assert (bound <= exact * (1 + 1e-4) + 1e-6).all()


def test_joined_summaries_are_the_summary_of_both():
    rng = np.random.default_rng(1)
    k, v = (
        rng.standard_normal((7, 2, 4)).astype(np.float32),
        rng.standard_normal((7, 2, 3)).astype(np.float32),
    )
    both, whole = summary(k[:3], v[:3]).joined(summary(k[3:], v[3:])), summary(k, v)
    for name in ("key_norm", "value_min", "value_max"):
        np.testing.assert_array_equal(getattr(both, name), getattr(whole, name))
