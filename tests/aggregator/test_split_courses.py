"""Runs through the split: learning-rate schedules, clipped gradients, early ends, the best version, and
losses that are no number. As tests/aggregator/test_schedules.py has them of the other ways to train."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
import small_split
from house import House, until
from test_fusion import ended

from aggregator.training.remedies import remedy_of
from aggregator.training.split import planner
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.training import OptimizerSpec, RunState, ScheduleSpec, StopSpec
from edge_attention.jobs.federated_job import FederatedModel

COSINE = ScheduleSpec("cosine", {"warmup": 2, "floor": 0.1})
STEP = ScheduleSpec("step", {"every": 2, "gamma": 0.5})


def sgd(lr):
    return OptimizerSpec("sgd", {"lr": lr})


def trained(look=lambda house, run: None, **changed):
    """The run's rounds, the run, and what `look` finds."""

    async def scenario(house):
        run = await small_split.started(house, **changed)
        return run, *await ended(house, run)

    with House() as house:
        run, rounds, info = asyncio.run(scenario(house))
        return rounds, info, look(house, run)


@pytest.mark.parametrize("split", ["layers", "heads"])
@pytest.mark.parametrize(("schedule", "clip"), [(COSINE, 0.0), (STEP, 0.05), (ScheduleSpec(), 0.5)])
def test_a_run_follows_its_schedule_and_clips(split, schedule, clip):
    def look(house, run):
        return small_split.parameters(house, run, 0), small_split.parameters(house, run, 6)

    rounds, info, (initial, final) = trained(
        look, split=split, schedule=schedule, clip=clip, optimizer=sgd(0.5)
    )
    assert info.state is RunState.FINISHED, info.detail
    expected, clips = small_split.trained(rounds, initial, schedule, clip, 0.5)
    assert bool(clips) == bool(clip), "or the test shows nothing"
    for name, array in expected.items():
        np.testing.assert_allclose(final[name], array, atol=2e-5, err_msg=name)
    for record in rounds:
        norms = {node.norm for node in record.nodes.values()}
        assert len(norms) == 1, "of all parameters, before it is clipped"
        assert norms.pop() > clip or not clip


@pytest.mark.parametrize(
    ("stop", "rounds", "said"),
    [
        (StopSpec(patience=2, min_delta=1e3), 3, "2 evaluations without a loss below"),
        (StopSpec(loss=1e3), 1, "at most 1000 was wanted"),
        (StopSpec(metrics={"correct": 0.0}), 1, "correct is"),
        (StopSpec(seconds=1e-9), 1, "it has trained for 1e-09 s"),
    ],
)
def test_a_run_ends_early_and_says_so(stop, rounds, said):
    found, info, _ = trained(rounds=50, holdout=0.25, evaluate_every=1, stop=stop)
    assert info.state is RunState.FINISHED
    assert len(found) == rounds
    assert said in info.detail


def test_without_held_out_samples_steps_count_and_no_version_is_the_best():
    found, info, _ = trained(rounds=50, stop=StopSpec(patience=2, min_delta=1e3))
    assert len(found) == 3
    assert "2 rounds without a loss below" in info.detail
    assert info.best_version is None


def test_the_best_version_is_kept_however_old_it_is():
    """A learning rate at which it gets worse: after the last step of all the first version is still there."""
    best = []

    def look(house, run):
        best.append(small_split.parameters(house, run, house.runs.describe(run).best_version))
        kept = {version.version for version in house.state.list_versions()}
        stream = house.runs.parameters(run, None, best=True)
        return kept, stream.version

    found, info, (kept, streamed) = trained(
        look, rounds=9, holdout=0.25, evaluate_every=1, keep_versions=2, optimizer=sgd(30.0)
    )
    losses = [record.evaluation.loss for record in found]
    assert info.best_version == 1 + int(np.argmin(losses)) == streamed
    assert info.best_loss == min(losses)
    assert info.best_version <= 7, "or the test shows nothing"
    assert kept == {0, info.best_version, 8, 9}


OPTIONS = {
    "rounds": 8,
    "holdout": 0.25,
    "evaluate_every": 1,
    "schedule": COSINE,
    "clip": 0.5,
    "stop": StopSpec(patience=6),
    "keep_versions": 2,
}


def test_a_run_that_was_stopped_goes_on_bit_for_bit():
    async def whole(house):
        run = await small_split.started(house, **OPTIONS)
        return run, *await ended(house, run)

    async def halted(house):
        run = await small_split.started(house, **OPTIONS)
        await until(lambda: house.runs.describe(run).round >= 3)
        await house.runs.stop(run)
        await house.runs.resume_run(run)
        return run, *await ended(house, run)

    found = []
    for scenario in (whole, halted):
        with House() as house:
            run, rounds, info = asyncio.run(scenario(house))
            assert info.state is RunState.FINISHED, info.detail
            final = small_split.parameters(house, run, info.version)
            losses = [(record.loss, record.evaluation.loss) for record in rounds]
            bits = {name: array.tobytes() for name, array in final.items()}
            found.append((losses, bits, info.best_version, info.best_loss, info.detail))
    assert found[0] == found[1]


def test_a_loss_that_is_no_number_any_more_is_the_learning_rates():
    def look(house, run):
        return remedy_of(house.runs.describe(run), house.runs.error_of(run))

    rounds, info, remedy = trained(look, optimizer=sgd(1e30))
    assert info.state is RunState.FAILED
    last = rounds[-1]
    assert f"is not finite from step {last.number + 1} on" in info.detail
    assert "a learning rate of 1e+30 is likely too high" in info.detail
    assert f"the last finite loss was {last.loss:.6g}, of step {last.number}" in info.detail
    assert info.detail.endswith("To mend it: lower optimizer.lr, or set clip")
    assert "start it anew with the job mended" in remedy, "resumed, it would end so again"


def test_a_step_past_float32_is_the_learning_rates_too():
    """The loss of that very step was a number; of the one that it makes there is none."""
    rounds, info, _ = trained(optimizer=sgd(1e39), clip=1.0)
    assert not rounds
    assert info.state is RunState.FAILED
    assert "what sgd makes of" in info.detail
    assert "is not finite from step 1 on: a learning rate of 1e+39 is likely too high" in info.detail
    assert "the last finite loss was" in info.detail
    assert info.detail.endswith(", of step 1. To mend it: lower optimizer.lr")


def test_a_rate_that_falls_is_named_as_it_was():
    schedule = ScheduleSpec("step", {"every": 1, "gamma": 0.5})
    rounds, info, _ = trained(optimizer=sgd(1e30), schedule=schedule)
    rate = 1e30 * 0.5 ** (len(rounds) - 1)
    assert f"a learning rate of {rate:g} is likely too high" in info.detail


def test_held_out_samples_that_have_no_loss_any_more_end_it():
    rounds, info, _ = trained(optimizer=sgd(1e30), holdout=0.25, evaluate_every=1)
    assert info.state is RunState.FAILED
    assert f"is not finite after step {len(rounds)}, whose loss was {rounds[-1].loss:.6g}" in info.detail
    assert "held-out samples" in info.detail
    assert "1e+30, is too high: lower optimizer.lr, or set clip" in info.detail


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schedule": ScheduleSpec("cosin")}, "did you mean 'cosine'"),
        ({"schedule": ScheduleSpec("step", {"every": 0})}, "every"),
        ({"raw": {"clip": -1.0}}, "clip is -1"),
        ({"raw": {"clip": math.inf}}, "clip is inf"),
        ({"raw": {"stop": StopSpec(min_delta=math.nan)}}, "stop.min_delta is nan"),
        ({"raw": {"stop": StopSpec(loss=math.nan)}}, "stop.loss is nan"),
        ({"raw": {"stop": StopSpec(seconds=0.0)}}, "stop.seconds is 0"),
        ({"stop": StopSpec(metrics={"correct": 0.9})}, "there are none: set holdout"),
        ({"stop": StopSpec(patience=3), "holdout": 0.25}, "evaluate_every is 0"),
        ({"stop": StopSpec(loss=0.1), "holdout": 0.25}, "evaluate_every is 0"),
        (
            {"stop": StopSpec(metrics={"wrong": 0.5}), "holdout": 0.25, "evaluate_every": 1},
            "no metric of the model; it has correct",
        ),
    ],
)
def test_a_job_that_asks_for_what_there_is_not(changed, said):
    with House() as house, pytest.raises(InvalidArgument, match=said):
        asyncio.run(small_split.started(house, **changed))


def test_a_run_that_ended_early_and_could_not_say_so_says_it_in_its_next_life(tmp_path):
    """Killed after its cut had gone, and before its end was written down."""
    stop = StopSpec(patience=2, min_delta=1e3)

    async def scenario(house):
        run = await small_split.started(house, rounds=50, holdout=0.25, evaluate_every=1, stop=stop)
        _, info = await ended(house, run)
        house.state.set_run_status(run, RunState.STOPPED.value, "")
        return info, run

    async def again(house, run):
        await house.runs.resume_run(run)
        return await ended(house, run)

    with House(tmp_path) as house:
        info, run = asyncio.run(scenario(house))
    with House(tmp_path) as house:
        rounds, after = asyncio.run(again(house, run))
    assert len(rounds) == 3
    assert (after.state, after.detail, after.version) == (RunState.FINISHED, info.detail, 3)
    assert (after.best_version, after.best_loss) == (info.best_version, info.best_loss)


@pytest.mark.parametrize("split", ["layers", "heads", "tokens"])
def test_pieces_that_are_added_at_once_come_to_the_bits_of_those_added_one_by_one(monkeypatch, split):
    """Rows do not all count alike, so pieces do not."""
    weighted = FederatedModel(small_split.MODEL, replace(small_split.LOSS, weights="weights"))
    weights = 1 + np.arange(small_split.COUNT, dtype=np.float32) % 3
    found = []

    def look(house, run):
        return {name: array.tobytes() for name, array in small_split.parameters(house, run, 4).items()}

    for bound in (planner.TOGETHER_BYTES, 0):
        monkeypatch.setattr(planner, "TOGETHER_BYTES", bound)
        rounds, info, bits = trained(
            look,
            model=weighted,
            data={**small_split.ROWS, "weights": weights},
            split=split,
            rounds=4,
            micro_batches=8,
        )
        assert info.state is RunState.FINISHED, info.detail
        found.append(([record.loss for record in rounds], bits))
    assert found[0] == found[1]
