"""A node's rows in a round: an endless stream of epochs, cut into rounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.rounds.sampling import holdout_rows, permutation, steps_of, training_rows

SHARES = st.floats(0, 0.95)
COUNTS = st.integers(1, 40)


@given(st.integers(0, 300), st.integers(0, 2**64 - 1))
def test_a_permutation_has_every_position_once(count, seed):
    order = permutation(count, seed, "a")
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))


def test_a_permutation_depends_on_every_word_of_its_key_and_where_words_end():
    keys = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), ("0a",)]
    assert len({permutation(50, *key).tobytes() for key in keys}) == len(keys)


def test_rows_are_the_same_on_every_machine_and_release():
    # Written down once: a resumed run, on a newer NumPy even, must find the same rows.
    assert permutation(8, 7, "edge-1", "epoch", 0).tolist() == [5, 2, 7, 4, 1, 3, 0, 6]
    assert training_rows(9, 0.2, 3, 2, 7, "edge-1", 2).tolist() == [[8, 7, 1], [0, 2, 8]]
    assert holdout_rows(9, 0.2, 7, "edge-1").tolist() == [5, 6]


def test_every_order_of_three_comes_about_equally_often():
    orders = [tuple(permutation(3, seed).tolist()) for seed in range(3000)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    # Binomial(3000, 1/6): 500 with a standard deviation of 20.4.
    assert np.all(np.abs(counts - 500) < 5 * 20.5), counts


@given(COUNTS, SHARES, COUNTS, st.integers(1, 6), st.integers(0, 9), st.sampled_from("ab"))
def test_rounds_are_the_stream_of_epochs_cut_up(rows, holdout, batch, steps, seed, node):
    rounds = [training_rows(rows, holdout, batch, steps, seed, node, r) for r in range(1, 6)]
    assert {(r.shape, r.dtype) for r in rounds} == {((steps, batch), np.dtype(np.int64))}
    stream = np.concatenate([r.reshape(-1) for r in rounds])
    train = sorted(set(range(rows)) - set(holdout_rows(rows, holdout, seed, node).tolist()))
    assert len(train) >= 1
    epochs, rest = divmod(len(stream), len(train))
    for epoch in range(epochs):
        piece = stream[epoch * len(train) : (epoch + 1) * len(train)]
        assert sorted(piece.tolist()) == train, "an epoch has every row once"
    last = stream[epochs * len(train) :].tolist()
    assert len(set(last)) == rest
    assert set(last) <= set(train)


@given(COUNTS, SHARES, st.integers(1, 7))
def test_the_stream_does_not_depend_on_where_rounds_cut_it(rows, holdout, batch):
    one = training_rows(rows, holdout, batch, 6, 3, "a", 1)
    two = [training_rows(rows, holdout, batch, 2, 3, "a", r) for r in (1, 2, 3)]
    assert np.array_equal(one, np.concatenate(two))


def test_epochs_nodes_and_seeds_have_orders_of_their_own():
    def first(seed, node, number):
        return training_rows(100, 0.0, 100, 1, seed, node, number).tobytes()

    assert len({first(0, "a", 1), first(0, "a", 2), first(0, "b", 1), first(1, "a", 1)}) == 4


@pytest.mark.parametrize(("rows", "share", "held"), [(10, 0.2, 2), (10, 0.0, 0), (1, 0.9, 0), (3, 0.95, 2)])
def test_a_share_is_held_out_and_one_row_trains(rows, share, held):
    out = holdout_rows(rows, share, 5, "a")
    assert len(out) == held
    assert out.tolist() == sorted(set(out.tolist()))
    assert not set(out) & set(training_rows(rows, share, 4, 10, 5, "a", 1).reshape(-1))


def test_a_late_round_costs_no_more_than_the_first():
    # Round 10^12 of a stream: nothing may count up to it.
    late = training_rows(1000, 0.1, 10, 2, 0, "a", 10**12)
    assert np.array_equal(late, training_rows(1000, 0.1, 10, 2, 0, "a", 10**12))
    assert not np.array_equal(late, training_rows(1000, 0.1, 10, 2, 0, "a", 1))


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(7, 0.0, 7), (0, 1.0, 3), (0, 2.0, 5), (0, 0.01, 1), (0, 0.5, 1)]
)
def test_steps_are_given_or_closest_to_the_epochs(steps, epochs, expected):
    # 100 rows of which 20 are held out: 80 in batches of 32 are 2.5 steps an epoch.
    assert steps_of(100, 0.2, 32, steps, epochs * 1.04) == expected


@pytest.mark.parametrize(
    ("error", "match", "changed"),
    [
        (FailedPrecondition, "without rows", {"rows": 0}),
        (InvalidArgument, "holdout is 1", {"holdout": 1.0}),
        (InvalidArgument, "holdout is nan", {"holdout": float("nan")}),
        (InvalidArgument, "batch is 0", {"batch": 0}),
        (InvalidArgument, "0 steps", {"steps": 0}),
        (InvalidArgument, "round 0", {"number": 0}),
    ],
)
def test_what_cannot_be_sampled(error, match, changed):
    arguments = {"rows": 10, "holdout": 0.1, "batch": 2, "steps": 2, "seed": 0, "node": "a", "number": 1}
    with pytest.raises(error, match=match):
        training_rows(**(arguments | changed))
