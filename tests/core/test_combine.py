"""Combines against plain float64 references, in any pieces and any order, and with a node that lies."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_attention.core.combine import (
    ClippedMean,
    Combine,
    Krum,
    Mean,
    Median,
    MultiKrum,
    TrimmedMean,
    base,
    from_config,
    to_config,
)
from edge_attention.core.combine.ordered import sorted_rows
from edge_attention.core.errors import InvalidArgument, InvalidTensor

EVERY: list[Combine] = [
    Mean(),
    Median(),
    TrimmedMean(),
    TrimmedMean(trim=0.0),
    Krum(),
    MultiKrum(),
    MultiKrum(byzantine=0, m=3),
    ClippedMean(),
    ClippedMean(max_norm=0.7),
]
every = pytest.mark.parametrize("combine", EVERY, ids=repr)

Array = np.ndarray


def draw(seed: int, n: int, c: int) -> Array:
    rng = np.random.default_rng(seed)
    # Repeated values and both zeros, so that ties and signs of zero are met.
    coarse = np.round(rng.standard_normal((n, c)) * 2) / 2
    return np.where(rng.random((n, c)) < 0.3, coarse, rng.standard_normal((n, c))).astype(np.float32)


def measures(updates: Array) -> tuple[Array, Array]:
    """Norms [n] and squared distances [n, n]."""
    wide = updates.astype(np.float64)
    return np.linalg.norm(wide, axis=1), np.square(wide[:, None] - wide[None]).sum(axis=2)


def apply(combine: Combine, updates: Array, given_: Array) -> Array:
    return combine.fold(updates, combine.weights(given_, *measures(updates)))


def reference(o: Combine, updates: Array, given_: Array) -> Array:
    u, n = updates.astype(np.float64), len(updates)
    norms, distances = measures(updates)
    if isinstance(o, Median):
        return np.median(u, axis=0)
    if isinstance(o, TrimmedMean):
        k = int(np.ceil(round(o.trim * n, 6)))
        return np.sort(u, axis=0)[k : n - k].mean(axis=0)
    if isinstance(o, Krum):
        scores = [sorted(np.delete(distances[i], i))[: n - o.byzantine - 2] for i in range(n)]
        order = sorted(range(n), key=lambda i: (float(np.sum(scores[i])), i))
        m = (o.m or n - o.byzantine - 2) if isinstance(o, MultiKrum) else 1
        return u[order[:m]].mean(axis=0)
    if isinstance(o, ClippedMean):
        bound = o.max_norm or o.factor * np.median(norms)
        u = u * np.minimum(1, bound / np.maximum(norms, 1e-300))[:, None]
    return (u * given_[:, None]).sum(axis=0) / given_.sum()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(EVERY), st.integers(5, 23), st.integers(1, 40), st.integers(0, 2**31))
def test_folds_follow_their_formula(combine: Combine, n: int, c: int, seed: int) -> None:
    updates = draw(seed, n, c)
    given_ = np.random.default_rng(seed + 1).uniform(0.1, 100, n)
    made = apply(combine, updates, given_)
    assert (made.dtype, made.shape) == (np.float32, (c,))
    np.testing.assert_allclose(made, reference(combine, updates, given_), rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 6)), elements=st.floats(width=32)),
    st.data(),
)
def test_the_mean_of_any_finite_updates_is_that_of_float64(updates: Array, data: st.DataObject) -> None:
    given_ = np.array(
        data.draw(st.lists(st.floats(0, 1.7e308), min_size=len(updates), max_size=len(updates)))
    )
    if not np.isfinite(updates).all():
        with pytest.raises(InvalidTensor, match="holds NaN or Inf"):
            Mean().fold(updates, np.ones(len(updates)))
    elif not given_.any():
        with pytest.raises(InvalidArgument, match="every update weighs 0"):
            Mean().weights(given_, None, None)
    else:
        share = given_ / given_.max()
        expected = (updates.astype(np.float64) * (share / share.sum())[:, None]).sum(axis=0)
        made = Mean().fold(updates, Mean().weights(given_, None, None))
        np.testing.assert_array_equal(made, expected.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EVERY), st.lists(st.integers(0, 100), max_size=4), st.integers(0, 2**31))
def test_any_pieces_give_the_same_bits(combine: Combine, cuts: list[int], seed: int) -> None:
    updates = draw(seed, 7, 100)
    weights = combine.weights(np.arange(1.0, 8), *measures(updates))
    whole = combine.fold(updates, weights)
    pieces = [combine.fold(updates[:, a:b], weights) for a, b in pairwise([0, *sorted(cuts), 100])]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@every
def test_more_than_a_block(combine: Combine) -> None:
    updates = draw(3, 6, base.BLOCK * 2 + 5)
    weights = combine.weights(np.ones(6), *measures(updates))
    middle = slice(base.BLOCK - 7, base.BLOCK + 9)
    assert (
        combine.fold(updates, weights)[middle].tobytes()
        == combine.fold(updates[:, middle], weights).tobytes()
    )
    np.testing.assert_allclose(
        combine.fold(updates, weights), reference(combine, updates, np.ones(6)), rtol=1e-5, atol=1e-6
    )


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(EVERY), st.integers(5, 12), st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(combine: Combine, n: int, seed: int, random: object) -> None:
    updates = draw(seed, n, 30)
    given_ = np.random.default_rng(seed).uniform(1, 9, n)
    order = np.array(random.sample(range(n), n))  # type: ignore[attr-defined]
    one, other = apply(combine, updates, given_), apply(combine, updates[order], given_[order])
    if isinstance(combine, Median | TrimmedMean):
        assert one.tobytes() == other.tobytes()
    else:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([Median(), TrimmedMean(), TrimmedMean(0.4), Krum(), MultiKrum()]), st.integers(0, 2**31)
)
def test_robust_folds_ignore_claimed_samples(combine: Combine, seed: int) -> None:
    updates = draw(seed, 7, 20)
    claimed = np.array([1, 1, 1, 1e9, 1, 1, 1], np.float64)
    assert apply(combine, updates, claimed).tobytes() == apply(combine, updates, np.ones(7)).tobytes()


@pytest.mark.parametrize("n", [*range(1, 34), 50, 64])
def test_medians_of_any_number_of_updates(n: int) -> None:
    """The sorting network, for every n that matters: 0-1 columns prove it (Knuth's 0-1 principle)."""
    rng = np.random.default_rng(n)
    updates = (rng.random((n, 4000)) < rng.random(4000)).astype(np.float32)
    np.testing.assert_array_equal(Median().fold(updates, np.ones(n)), np.median(updates, axis=0))
    values = rng.standard_normal((n, 500)).astype(np.float32)
    np.testing.assert_array_equal(sorted_rows(values), np.sort(values, axis=0))


def test_median_neither_overflows_nor_keeps_a_sign_of_zero() -> None:
    huge = np.float32(3.4e38)
    assert Median().fold(np.array([[huge, -0.0]] * 2, np.float32), np.ones(2)).tolist() == [huge, 0.0]
    assert not np.signbit(Median().fold(np.full((3, 1), -0.0, np.float32), np.ones(3))).any()


def test_one_hostile_of_five() -> None:
    """Sign-flipped, times ten: the mean goes the wrong way, the robust folds stay near the honest mean."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(2000)
    updates = (truth + 0.3 * rng.standard_normal((5, 2000))).astype(np.float32)
    honest = updates[[0, 1, 3, 4]].mean(axis=0)
    updates[2] *= -10
    away = {
        combine.name: float(
            np.linalg.norm(apply(combine, updates, np.ones(5)) - honest) / np.linalg.norm(honest)
        )
        for combine in (Mean(), Median(), TrimmedMean(), Krum(), MultiKrum(), ClippedMean())
    }
    assert away["mean"] > 2
    assert away["clipped_mean"] < 0.5
    assert max(away[name] for name in ("median", "trimmed_mean", "krum", "multi_krum")) < 0.35
    krum = Krum().weights(np.ones(5), *measures(updates))
    multi = MultiKrum().weights(np.ones(5), *measures(updates))
    assert krum[2] == multi[2] == 0
    assert sorted(krum) == [0, 0, 0, 0, 1]
    assert sorted(multi) == [0, 0, 0, 0.5, 0.5]


def test_a_lie_counts_however_few_answered() -> None:
    """trim 0.2 of four is less than one: rounded down it would cut nobody and protect nothing."""
    assert [TrimmedMean(trim=0.2).cut(n) for n in (3, 4, 5, 6, 10)] == [1, 1, 1, 2, 2]
    assert TrimmedMean(trim=0.07).cut(100) == 7  # 0.07 * 100 is a little above 7
    assert TrimmedMean(trim=0.29).cut(100) == 29
    assert TrimmedMean(trim=0).cut(30) == 0


def test_clipping() -> None:
    updates = np.array([[3, 4], [0, 0.5], [0, 0], [6, 8]], np.float32)
    weights = ClippedMean(max_norm=2).weights(np.array([1.0, 1, 1, 5]), *measures(updates))
    np.testing.assert_allclose(weights, np.array([1 * 0.4, 1, 1, 5 * 0.2]) / 8)
    half = ClippedMean(factor=2).weights(np.ones(4), *measures(updates))  # the median of norms is 2.75
    np.testing.assert_allclose(half, np.array([1, 1, 1, 0.55]) / 4)
    zeros = ClippedMean().weights(np.ones(3), np.zeros(3), None)
    np.testing.assert_allclose(zeros, np.ones(3) / 3)


@pytest.mark.parametrize(
    ("combine", "n", "message"),
    [
        (Krum(), 4, r"byzantine f = 1 needs n = 5 updates or more and has 4; lower byzantine to 0 or have 5"),
        (Krum(byzantine=0), 2, "f = 0 needs n = 3 updates or more and has 2; have 3 nodes answer"),
        (MultiKrum(byzantine=3), 8, "multi_krum with byzantine f = 3 needs n = 9 .* lower byzantine to 2"),
        (MultiKrum(m=5), 5, "can trust 4 of n = 5 updates, not m = 5; lower m to 4"),
        (TrimmedMean(), 2, "trim 0.2 cuts 1 at each end and leaves none of 2 updates; have 3 nodes"),
        (TrimmedMean(trim=0.49), 4, "cuts 2 at each end and leaves none of 4"),
        (Mean(), 0, "mean has no update to fold"),
    ],
)
def test_too_few_updates_are_refused(combine: Combine, n: int, message: str) -> None:
    for refuse in (
        lambda: combine.require(n),
        lambda: combine.weights(np.ones(n), np.ones(n), np.zeros((n, n))),
    ):
        with pytest.raises(InvalidArgument, match=message):
            refuse()


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(combine: Combine, bad: float) -> None:
    updates = draw(0, 5, 20)
    weights = combine.weights(np.ones(5), *measures(updates))
    for row in range(5):  # also one that Krum gives no weight
        broken = updates.copy()
        broken[row, 7] = bad
        with pytest.raises(InvalidTensor, match=f"update {row} of 5 holds NaN or Inf; leave its node out"):
            combine.fold(broken, weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(5), None, None), "squared distances are missing"),
        ((np.ones(5), None, np.zeros((5, 4))), r"float64 \[5, 4\], not float64 \[5, 5\]"),
        ((np.ones(5), None, np.full((5, 5), np.nan)), "must be finite and 0 or above"),
        ((np.array([1, 1, -1, 1, 1.0]), None, np.zeros((5, 5))), "weights must be finite and 0 or above"),
        ((np.ones(5, np.float32), None, np.zeros((5, 5))), "weights are float32"),
    ],
)
def test_measures_that_do_not_fit_are_refused(
    arguments: tuple[Array, Array | None, Array | None], message: str
) -> None:
    with pytest.raises(InvalidTensor, match=message):
        Krum().weights(*arguments)


def test_updates_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidTensor, match=r"updates are float64 \[2, 3\]; they must be float32 \[n, c\]"):
        Mean().fold(np.zeros((2, 3)), np.ones(2))
    with pytest.raises(InvalidTensor, match=r"updates are float32 \[3\]"):
        Mean().fold(np.zeros(3, np.float32), np.ones(3))
    with pytest.raises(InvalidTensor, match=r"weights are float64 \[3\], not float64 \[2\]"):
        Mean().fold(np.zeros((2, 3), np.float32), np.ones(3))


@every
def test_folding_takes_little_memory_and_changes_nothing(combine: Combine) -> None:
    updates = draw(0, 8, 1 << 17)
    weights = combine.weights(np.ones(8), *measures(updates[:, :100]))
    before = updates.tobytes()
    tracemalloc.start()
    combine.fold(updates, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < updates.nbytes
    assert updates.tobytes() == before


def test_configurations() -> None:
    for combine in EVERY:
        config = json.loads(json.dumps(to_config(combine)))
        assert from_config(config["name"], **config["options"]) == combine
        assert "arXiv:" in combine.paper
    assert from_config("multi_krum", byzantine=2.0, m=3.0) == MultiKrum(byzantine=2, m=3)
    with pytest.raises(InvalidArgument, match="clipped_mean, krum, mean, median, multi_krum, trimmed_mean"):
        from_config("bulyan")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("median", {"trim": 0.1}, "combine median has no option 'trim'; it has none"),
        ("trimmed_mean", {"trim": 0.5}, r"trim .* in \[0, 0.5\)"),
        ("krum", {"byzantine": -1}, "byzantine .* a whole number, 0 or above"),
        ("krum", {"m": 2}, "no option 'm'; it has byzantine"),
        ("clipped_mean", {"factor": 0}, "factor .* above 0"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        from_config(name, **options)
