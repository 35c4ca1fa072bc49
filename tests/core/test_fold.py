"""The fold: each once, nothing else, in memory that does not grow with what came in order."""

from __future__ import annotations

import functools
import itertools
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import (
    DuplicateContribution,
    EdgeAttentionError,
    InvalidArgument,
    InvalidTensor,
    NotFound,
)
from edge_attention.core.fold import Fold, add_tensors, join


def plan(n: int) -> dict[str, range]:
    return {f"s{i}": range(10 * i, 10 * i + 10) for i in range(n)}


@given(st.integers(1, 40), st.data())
def test_what_arrived_is_combined_once_each_and_in_shard_order(n, data):
    shards = plan(n)
    arriving = data.draw(st.permutations(range(n)))[: data.draw(st.integers(0, n))]
    fold = Fold[str](shards, operator.add)
    for count, i in enumerate(arriving):
        assert len(fold.arrived) == count
        fold.add(f"s{i}", shards[f"s{i}"], f"<{i}>")
        # At any time: a string concatenation that is neither commutative nor forgiving.
        assert fold.result() == "".join(f"<{j}>" for j in sorted(arriving[: count + 1]))
    assert fold.arrived == {f"s{i}" for i in arriving}
    assert fold.missing == tuple(f"s{i}" for i in range(n) if i not in arriving)
    assert fold.coverage == join(shards[f"s{i}"] for i in arriving)
    if not arriving:
        assert fold.result() is None
    if len(arriving) == n:
        assert fold.held == 1


@given(st.integers(1, 200))
def test_arrival_in_order_holds_one_value_a_level(n):
    shards, fold, most = plan(n), Fold[int](plan(n), operator.add), 0
    for name, part in shards.items():
        fold.add(name, part, 1)
        most = max(most, fold.held)
    assert most <= n.bit_length()
    assert fold.result() == n


@given(st.integers(1, 33), st.data())
def test_a_result_with_holes_depends_on_what_arrived_and_not_on_when(n, data):
    arriving = data.draw(st.lists(st.integers(0, n - 1), unique=True))
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(n).astype(np.float32)

    def run(order):
        fold = Fold[np.float32](plan(n), operator.add)
        for i in order:
            fold.add(f"s{i}", plan(n)[f"s{i}"], numbers[i])
        return fold.result()

    assert run(arriving) == run(data.draw(st.permutations(arriving)))


def test_asking_for_the_result_ends_nothing():
    fold = Fold[str](plan(3), operator.add)
    fold.add("s2", range(20, 30), "c")
    assert fold.result() == fold.result() == "c"
    fold.add("s0", range(0, 10), "a")
    assert fold.result() == "ac"
    fold.add("s1", range(10, 20), "b")
    assert fold.result() == "abc"


@pytest.mark.parametrize(
    ("shard", "coverage", "error"),
    [
        ("s9", range(0, 10), NotFound),
        ("s1", range(10, 19), InvalidArgument),
        ("s1", range(0, 10), InvalidArgument),
        ("s1", range(0, 20), InvalidArgument),
        ("s0", range(0, 10), DuplicateContribution),
    ],
)
def test_what_is_refused_leaves_the_fold_as_it_was(shard, coverage, error):
    fold = Fold[str](plan(3), operator.add)
    fold.add("s0", range(0, 10), "a")
    with pytest.raises(error) as caught:
        fold.add(shard, coverage, "x")
    assert shard in caught.value.message
    assert (fold.result(), fold.arrived, fold.held) == ("a", {"s0"}, 1)


def test_a_duplicate_is_refused_after_it_was_merged_away():
    fold = Fold[str](plan(2), operator.add)
    fold.add("s0", range(0, 10), "a")
    fold.add("s1", range(10, 20), "b")
    with pytest.raises(DuplicateContribution):
        fold.add("s0", range(0, 10), "a")
    assert fold.result() == "ab"


@pytest.mark.parametrize("second", [range(5, 15), range(0, 10), range(2, 3), range(9, 10)])
def test_a_plan_whose_shards_overlap_is_refused(second):
    with pytest.raises(InvalidArgument, match="overlap"):
        Fold[str]({"a": range(0, 10), "c": range(20, 30), "b": second}, operator.add)


def test_shards_may_cover_nothing_and_leave_gaps():
    fold = Fold[str]({"a": range(10, 20), "empty": range(0), "b": range(0, 5)}, operator.add)
    for shard, part in [("empty", range(0)), ("b", range(0, 5)), ("a", range(10, 20))]:
        fold.add(shard, part, shard)
    assert fold.result() == "aemptyb"
    assert fold.coverage == (range(0, 5), range(10, 20))


def test_a_plan_of_no_shards_has_no_result():
    fold = Fold[str]({}, operator.add)
    assert (fold.result(), fold.missing, fold.coverage, fold.held) == (None, (), (), 0)


def test_a_contribution_that_cannot_be_combined_costs_no_other():
    fold = Fold(plan(2), add_tensors)
    good = {"w": np.ones(2, np.float32)}
    fold.add("s0", range(0, 10), good)
    with pytest.raises(InvalidTensor):
        fold.add("s1", range(10, 20), {"other": np.ones(2, np.float32)})
    assert fold.result() is good
    assert fold.missing == ("s1",)
    fold.add("s1", range(10, 20), good)
    np.testing.assert_array_equal(fold.result()["w"], [2, 2])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)).map(lambda t: range(t[0], t[0] + t[1]))))
def test_join_covers_the_same_positions_with_gaps_between(ranges):
    joined = join(ranges)
    assert {p for r in joined for p in r} == {p for r in ranges for p in r}
    assert all(a.stop < b.start for a, b in itertools.pairwise(joined))
    assert all(len(r) for r in joined)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_gradients_fold_by_addition(n, seed):
    rng = np.random.default_rng(seed)
    parts = [
        {"w": rng.standard_normal((2, 3)).astype(np.float32), "b": rng.standard_normal(3)} for _ in range(n)
    ]
    total = functools.reduce(add_tensors, parts)
    np.testing.assert_allclose(total["w"], np.sum([p["w"] for p in parts], 0, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(total["b"], np.sum([p["b"] for p in parts], 0), atol=1e-12)
    assert (total["w"].dtype, total["b"].dtype) == (np.float32, np.float64)


@pytest.mark.parametrize(
    "other", [{"v": np.ones(2)}, {}, {"w": np.ones(2), "v": np.ones(2)}, {"w": np.ones(1)}]
)
def test_tensors_that_do_not_match_are_refused_not_broadcast(other):
    with pytest.raises(EdgeAttentionError) as caught:
        add_tensors({"w": np.ones(2)}, other)
    assert isinstance(caught.value, InvalidTensor)


@pytest.mark.parametrize("broken", [
    lambda fold: fold._arrived.add("s2"),
    lambda fold: fold._nodes.update({(0, 0): "again"}),
    lambda fold: fold._nodes.clear(),
])  # fmt: skip
def test_check_finds_a_state_that_cannot_be(broken):
    fold = Fold(plan(4), operator.add)
    shards = list(plan(4).items())
    for shard, coverage in shards[:2]:
        fold.add(shard, coverage, shard)
    fold.check()
    broken(fold)
    with pytest.raises(AssertionError):
        fold.check()
