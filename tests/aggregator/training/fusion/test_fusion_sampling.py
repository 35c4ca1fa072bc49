"""The split and the batches: pure functions of seeds, and a run keeps those it began with."""

from __future__ import annotations

import asyncio
from itertools import chain

import numpy as np
import pytest
import small_job
from house import House, until
from hypothesis import given
from hypothesis import strategies as st
from test_fusion import compare, ended, releases, started

from aggregator.training import readiness
from aggregator.training.fusion import sampling
from aggregator.training.fusion.sampling import CURRENT, Scheme, Split, scheme_of
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.training import RunState

SCHEMES = st.sampled_from(Scheme)


@given(st.integers(1, 200), st.floats(0, 0.99), st.integers(0, 2**63), SCHEMES)
def test_a_split_is_a_partition_and_the_same_for_the_same_seed(count, holdout, seed, scheme):
    parts = Split(count, holdout, seed, scheme)
    assert sorted(chain(parts.train.tolist(), parts.holdout.tolist())) == list(range(count))
    assert len(parts.holdout) == round(count * holdout)
    np.testing.assert_array_equal(parts.train, Split(count, holdout, seed, scheme).train)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**63), st.integers(0, 3), SCHEMES)
def test_the_batches_of_an_epoch_hold_each_sample_at_most_once(count, batch, seed, epoch, scheme):
    parts = Split(count, 0.25, seed, scheme)
    turns = len(parts.train) // batch
    if not turns:
        with pytest.raises(FailedPrecondition, match="do not fill a batch"):
            parts.batch(batch, 1)
        return
    rounds = [parts.batch(batch, epoch * turns + turn + 1) for turn in range(turns)]
    seen = np.concatenate(rounds).tolist()
    assert len(seen) == len(set(seen)) == turns * batch
    assert set(seen) <= set(parts.train.tolist())
    # Any round can be the first a process runs: it depends on nothing that came before.
    fresh = Split(count, 0.25, seed, scheme)
    np.testing.assert_array_equal(rounds[-1], fresh.batch(batch, epoch * turns + turns))


@pytest.mark.parametrize("scheme", Scheme)
def test_epochs_and_seeds_have_orders_of_their_own(scheme):
    orders = [Split(64, 0, seed, scheme).batch(64, epoch + 1).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_samples_are_the_same_on_every_machine_and_release():
    # Written down once: a resumed run, on a newer NumPy even, must find the same samples.
    parts = Split(10, 0.3, 7)
    assert parts.holdout.tolist() == [4, 5, 8]
    assert [parts.batch(3, n).tolist() for n in (1, 2, 3, 4)] == [[9, 7, 2], [0, 6, 1], [6, 0, 9], [7, 2, 1]]


def test_no_order_is_left_to_numpy(monkeypatch):
    """`Generator.permutation` may change with any release of NumPy."""

    def changed(*_):
        raise AssertionError("of NumPy's own")

    monkeypatch.setattr(np.random, "default_rng", changed)
    assert len(Split(100, 0.2, 3).batch(10, 50)) == 10


def test_a_scheme_of_a_newer_release_is_refused():
    assert scheme_of(CURRENT.value) is CURRENT
    with pytest.raises(FailedPrecondition, match=r"by scheme 9 .* with the release that began it"):
        scheme_of(9)


def test_a_run_of_an_earlier_release_keeps_the_split_it_began_with(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(readiness, "CURRENT", Scheme.NUMPY)
        run = begun(tmp_path)
    rounds, info = resumed(tmp_path, run)
    assert info.state is RunState.FINISHED, info.detail
    held = Split(small_job.SAMPLES, 0.2, 0, Scheme.NUMPY)
    assert [r.samples for r in rounds] == [
        tuple(held.batch(small_job.BATCH, n).tolist()) for n in range(1, 9)
    ]
    assert not set(held.holdout.tolist()) & set(chain.from_iterable(r.samples for r in rounds))
    assert set(held.holdout.tolist()) != set(Split(small_job.SAMPLES, 0.2, 0).holdout.tolist())


def test_a_run_of_an_earlier_release_ends_where_numpy_orders_otherwise(tmp_path, monkeypatch):
    """The rounds it has recorded tell: a NumPy with another order would train on what was held out."""
    with monkeypatch.context() as earlier:
        earlier.setattr(readiness, "CURRENT", Scheme.NUMPY)
        run = begun(tmp_path)
    order = sampling._order
    monkeypatch.setattr(sampling, "_order", lambda *given: order(*given)[::-1])
    before = version(tmp_path, run)
    _, info = resumed(tmp_path, run)
    assert info.state is RunState.FAILED
    assert "would train on samples that were held out" in info.detail
    assert version(tmp_path, run) == before


def begun(folder):
    """A run of eight rounds left after three, without the word for its scheme that earlier releases lack."""

    async def scenario(house):
        run, _ = await started(house, rounds=8)
        await until(lambda: house.runs.describe(run).round >= 3)
        await house.runs.close()
        return run

    with House(folder) as house:
        run = asyncio.run(scenario(house))
        zeroth = house.state.record(run, 0)
        assert zeroth.pop("sampling") == Scheme.NUMPY
        house.state.replace_record(run, 0, zeroth)
    return run


def resumed(folder, run):
    async def scenario(house):
        planned = (await house.runs.plan(small_job.job(rounds=8)[0])).graphs
        for lab in "ab":
            house.node(lab, datasets=small_job.datasets(lab), releases=releases(planned, lab))
        house.runs.resume()
        return await ended(house, run)

    with House(folder) as house:
        rounds, info = asyncio.run(scenario(house))
        if info.state is RunState.FINISHED:
            compare(house, run, rounds)
    return rounds, info


def version(folder, run):
    with House(folder) as house:
        return house.parameters.latest(run)
