"""The merge against float64 attention over the whole: partitions, groupings, orders, extremes."""

from __future__ import annotations

import doctest
import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import attend, partial, scores

from edge_attention.core import partial as partials
from edge_attention.core.errors import InvalidTensor
from edge_attention.core.fold import Fold
from edge_attention.core.partial import Partial, identity, log_sum_exp, mass, merge


@st.composite
def problems(draw, spread=None):
    """(scores [queries, query_heads, tokens], values, visible, cuts): a whole and a partition of it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = draw(st.integers(1, 24))
    key_heads, group, queries = (
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 2, 4])),
        draw(st.integers(1, 3)),
    )
    # 1: an everyday softmax. 80: exp overflows in float32. 4,000: all but one key vanish.
    spread = spread or draw(st.sampled_from([1.0, 80.0, 4000.0]))
    q = rng.standard_normal((queries, key_heads * group, 4)).astype(np.float32)
    k = rng.standard_normal((tokens, key_heads, 4)).astype(np.float32)
    s = scores(q, k, 1.0)
    s = s / np.abs(s).max() * spread + draw(st.sampled_from([-spread, 0.0, spread]))
    values = rng.standard_normal((tokens, key_heads, 3)).astype(np.float32)
    visible = rng.random((queries, tokens)) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    cuts = sorted(draw(st.lists(st.integers(0, tokens), max_size=6)))
    return s, values, visible, [range(a, b) for a, b in zip([0, *cuts], [*cuts, tokens], strict=True)]


def shards(s, values, visible, parts) -> list[Partial]:
    return [
        partial(s[..., p.start : p.stop], values[p.start : p.stop], visible[:, p.start : p.stop])
        for p in parts
    ]


def assert_is_whole(merged: Partial, s, values, visible) -> None:
    out, lse = attend(s, values, visible)
    assert merged.out.dtype == merged.lse.dtype == np.float32
    # The shards' lses are float32, so that the weights are known to the lses' rounding and no better.
    seen = ~np.isneginf(lse)
    tolerance = 1e-5 + 4 * np.finfo(np.float32).eps * np.abs(lse, where=seen, out=np.zeros_like(lse))
    assert (np.isneginf(merged.lse) == ~seen).all()
    assert (np.abs(merged.lse[seen] - lse[seen]) <= tolerance[seen]).all()
    assert (np.abs(merged.out - out) <= tolerance[..., None] * max(1.0, np.abs(values).max())).all()


@given(problems(), st.randoms(use_true_random=False))
def test_any_grouping_in_any_order_is_attention_over_the_whole(problem, random):
    s, values, visible, _parts = problem
    pool = shards(*problem)
    while len(pool) > 1:
        a = pool.pop(random.randrange(len(pool)))
        b = pool.pop(random.randrange(len(pool)))
        pool.append(merge(a, b))
    assert_is_whole(pool[0], s, values, visible)


@given(problems(spread=1.0))
def test_everyday_scores_merge_to_1e5(problem):
    s, values, visible, _parts = problem
    merged = functools.reduce(merge, shards(*problem))
    out, lse = attend(s, values, visible)
    np.testing.assert_allclose(merged.out, out, rtol=0, atol=1e-5)
    np.testing.assert_allclose(merged.lse, lse, rtol=0, atol=1e-5)


@given(problems(), st.data())
def test_same_plan_same_bits_whatever_arrives_first(problem, data):
    s, values, visible, parts = problem
    contributions = list(enumerate(shards(*problem)))
    plan = {str(i): p for i, p in enumerate(parts)}

    def run(order) -> Partial:
        fold = Fold[Partial](plan, merge)
        for i, value in order:
            fold.add(str(i), parts[i], value)
        result = fold.result()
        assert result is not None
        return result

    one, two = run(contributions), run(data.draw(st.permutations(contributions)))
    assert one.out.tobytes() == two.out.tobytes()
    assert one.lse.tobytes() == two.lse.tobytes()
    assert_is_whole(one, s, values, visible)


@given(problems())
def test_the_identity_changes_no_bit_on_either_side(problem):
    s, values, visible, _parts = problem
    whole = partial(s, values, visible)
    nothing = identity(whole.out.shape)
    for merged in (merge(whole, nothing), merge(nothing, whole)):
        np.testing.assert_array_equal(merged.out, whole.out)
        np.testing.assert_array_equal(merged.lse, whole.lse)


@given(problems())
def test_what_is_known_to_be_finite_merges_to_the_same_bits(problem):
    s, values, visible, parts = problem
    given = [p for p in shards(s, values, visible, parts) if len(p.lse)]
    known = [p.check(p.out.shape, "it") for p in given]
    assert [p.full for p in known] == [bool(np.isfinite(p.lse).all()) for p in given]
    slow = functools.reduce(merge, [Partial(p.out, p.lse) for p in known])
    fast = functools.reduce(merge, known)
    assert slow.lse.tobytes() == fast.lse.tobytes()
    assert slow.out.tobytes() == fast.out.tobytes()
    assert fast.lse.dtype == fast.out.dtype == np.float32
    for p in known:
        assert mass(p.lse, fast.lse, fast.full).tobytes() == mass(p.lse, fast.lse).tobytes()


def test_two_identities_are_the_identity_without_a_warning():
    with np.errstate(all="raise"):
        merged = merge(identity((2, 3, 4)), identity((2, 3, 4)))
    assert (merged.out == 0).all()
    assert np.isneginf(merged.lse).all()


def test_lses_a_float32_range_apart_neither_warn_nor_mix():
    far = [
        Partial(np.full((1, 1, 1), v, np.float32), np.full((1, 1), lse, np.float32))
        for v, lse in [(1.0, -3.4e38), (2.0, 3.4e38)]
    ]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        merged = merge(*far)
    assert merged.out.item() == 2.0
    assert merged.lse.item() == np.float32(3.4e38)


@given(problems())
def test_masses_sum_to_one_where_a_query_sees_anything(problem):
    s, values, visible, _parts = problem
    pieces = shards(*problem)
    lse = log_sum_exp([p.lse for p in pieces])
    total = sum(mass(p.lse, lse).astype(np.float64) for p in pieces)
    exact = attend(s, values, visible)[1]
    seen = ~np.isneginf(exact)
    tolerance = 1e-5 + 4 * np.finfo(np.float32).eps * np.abs(exact[seen])
    assert (np.abs(total[seen] - 1) <= tolerance).all()
    assert (total[~seen] == 0).all()
    assert (np.isneginf(lse) == ~seen).all()


def test_log_sum_exp_keeps_both_infinities():
    inf = np.float32(np.inf)
    a, b = np.array([-inf, inf, inf, 1], np.float32), np.array([-inf, inf, 0, -inf], np.float32)
    np.testing.assert_array_equal(log_sum_exp([a, b]), np.array([-inf, inf, inf, 1], np.float32))


def test_check_normalises_what_a_backend_leaves_in_empty_rows():
    out = np.array([[np.nan, np.inf], [1, 2]], np.float32)
    checked = Partial(out, np.array([-np.inf, 0], np.float32)).check((2, 2), "shard s0")
    np.testing.assert_array_equal(checked.out, np.array([[0, 0], [1, 2]], np.float32))
    assert np.isnan(out[0, 0]), "what came is not written to"


@pytest.mark.parametrize(
    ("out", "lse", "says"),
    [
        (np.zeros((2, 3), np.float32), np.zeros(2, np.float32), "out"),
        (np.zeros((2, 2), np.float64), np.zeros(2, np.float32), "float64"),
        (np.zeros((2, 2), np.float64), np.full(2, -np.inf, np.float32), "float64"),
        (np.zeros((2, 2), np.float32), np.zeros(3, np.float32), "lse"),
        (np.zeros((2, 2), np.float32), np.zeros(2, np.float64), "lse"),
        (np.zeros((2, 2), np.float32), np.array([0, np.nan], np.float32), "lse holds nan at [1]"),
        (np.zeros((2, 2), np.float32), np.array([np.inf, -np.inf], np.float32), "lse holds inf at [0]"),
        (np.array([[0, 0], [0, np.inf]], np.float32), np.zeros(2, np.float32), "out holds inf at [1, 1]"),
        (np.array([[0, np.nan], [0, 0]], np.float32), np.zeros(2, np.float32), "out holds nan at [0, 1]"),
        (np.zeros((3, 2), np.float32), np.full(2, -np.inf, np.float32), "out"),
    ],
)
def test_check_refuses_and_says_where(out, lse, says):
    with pytest.raises(InvalidTensor) as caught:
        Partial(out, lse).check((2, 2), "shard s0")
    assert "shard s0" in caught.value.message
    assert says in caught.value.message


def test_the_example_runs():
    done = doctest.testmod(partials)
    assert done.attempted >= 8
    assert not done.failed
