"""Learning-rate schedules, clipped gradients, early stopping and the best version, in runs of either kind,
against a reference that is written plainly in float64; and gone on with bit for bit."""

from __future__ import annotations

import asyncio

import numpy as np
import plain_training
import pytest
import small_job
import small_model
import test_federated
import test_fusion
from house import House, until

from aggregator.training.remedies import remedy_of
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.training import (
    LocalSpec,
    OptimizerSpec,
    RunState,
    ScheduleSpec,
    StopSpec,
    StrategySpec,
)
from edge_attention.core.rounds.sampling import training_rows

COSINE = ScheduleSpec("cosine", {"warmup": 2, "floor": 0.1})
STEP = ScheduleSpec("step", {"every": 2, "gamma": 0.5})


def fusion(**changed):
    async def scenario(house):
        run, _ = await test_fusion.started(house, **changed)
        return run, *await test_fusion.ended(house, run)

    with House() as house:
        run, rounds, info = asyncio.run(scenario(house))
        versions = [house.parameters.load(run, n).parameters for n in (0, house.parameters.latest(run))]
    return rounds, info, *versions


@pytest.mark.parametrize(("schedule", "clip"), [(COSINE, 0.0), (STEP, 0.05), (ScheduleSpec(), 0.02)])
def test_a_fusion_run_follows_its_schedule_and_clips(schedule, clip):
    rounds, info, initial, final = fusion(schedule=schedule, clip=clip, holdout=0.0)
    assert info.state is RunState.FINISHED, info.detail
    machine, names = small_job.one_machine(), list(initial)
    parameters = {name: initial[name].astype(np.float64) for name in names}
    m = [np.zeros(parameters[n].shape) for n in names]
    v = [np.zeros(parameters[n].shape) for n in names]
    clips = 0
    for record in rounds:
        now = {name: array.astype(np.float32) for name, array in parameters.items()}
        _, found = machine.gradients(now, small_job.feeds(np.array(record.samples)))
        gradients = plain_training.clipped([found[name] for name in names], clip)
        clips += not np.array_equal(gradients[0], found[names[0]])
        lr = plain_training.rate(schedule.name, 0.01, record.number, 6, **schedule.options)
        new, m, v = plain_training.adam([parameters[n] for n in names], gradients, m, v, record.number, lr)
        parameters = dict(zip(names, new, strict=True))
    assert bool(clips) == bool(clip), "or the test shows nothing"
    for name in names:
        np.testing.assert_allclose(final[name], parameters[name], atol=2e-5, err_msg=name)


def plainly(rounds, local, schedule, clip, update=0.0, averaged=False, steps=3):
    """FedAvg of SGD, or gradients averaged, with a schedule and clipped gradients."""
    weight, bias = small_model.W.astype(np.float64), small_model.B.astype(np.float64)
    kept = {n: rows - round(0.25 * rows) for n, rows in small_model.ROWS.items()}
    for number in range(1, rounds + 1):
        lr = plain_training.rate(schedule.name, local, number, rounds, **schedule.options)
        total = [np.zeros_like(weight), np.zeros_like(bias)]
        for name in small_model.NODES:
            w, b = weight.copy(), bias.copy()
            count = 1 if averaged else steps
            for rows in training_rows(small_model.ROWS[name], 0.25, 8, count, 0, name, number):
                x, y = small_model.X[name][rows], small_model.Y[name][rows]
                _, *gradients = small_model.gradient(w, b, x, y)
                if averaged:
                    moved = gradients
                    break
                dw, db = plain_training.clipped(gradients, clip)
                w, b = w - lr * dw, b - lr * db
                moved = [weight - w, bias - b]
            share = 1 / 5 if averaged else kept[name] / sum(kept.values())
            total = [t + share * u for t, u in zip(total, moved, strict=True)]
        if averaged:
            total = [lr * t for t in plain_training.clipped(total, clip)]
        weight, bias = weight - total[0], bias - total[1]
    return weight, bias


def federated(**changed):
    async def scenario(house):
        run, _ = await test_federated.started(house, **changed)
        return run, *await test_federated.ended(house, run)

    with House() as house:
        run, rounds, info = asyncio.run(scenario(house))
        assert info.state is RunState.FINISHED, info.detail
        return rounds, info, test_federated.parameters(house, run)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("schedule", "clip"), [(COSINE, 0.0), (STEP, 0.3), (ScheduleSpec(), 0.3)])
def test_a_federated_run_follows_its_schedule_and_clips_each_step(schedule, clip, steps):
    local = LocalSpec(
        OptimizerSpec("sgd", {"lr": 0.2}), batch=8, steps=steps, schedule=schedule, clip_gradients=clip
    )
    _, _, (weight, bias) = federated(local=local, rounds=5)
    expected = plainly(5, 0.2, schedule, clip, steps=steps)
    np.testing.assert_allclose(weight, expected[0], atol=1e-5)
    np.testing.assert_allclose(bias, expected[1], atol=1e-5)
    if clip:
        without = plainly(5, 0.2, schedule, 0.0, steps=steps)
        assert np.abs(expected[0] - without[0]).max() > 1e-3, "or the test shows nothing"


@pytest.mark.parametrize(("schedule", "clip"), [(COSINE, 0.0), (ScheduleSpec(), 0.2)])
def test_averaged_gradients_are_clipped_as_one(schedule, clip):
    local = LocalSpec(OptimizerSpec("sgd", {"lr": 0.5}), batch=8, schedule=schedule, clip_gradients=clip)
    strategy = StrategySpec("gradient_averaging")
    _, _, (weight, bias) = federated(local=local, strategy=strategy, rounds=5)
    expected = plainly(5, 0.5, schedule, clip, averaged=True)
    np.testing.assert_allclose(weight, expected[0], atol=1e-5)
    np.testing.assert_allclose(bias, expected[1], atol=1e-5)


def test_scaffold_reads_gradients_off_by_the_rate_of_the_round():
    """With a rate that falls it still follows its own reference: all nodes alike, so it is FedAvg's path."""
    local = LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=3, schedule=STEP)
    rounds, _, _ = federated(local=local, strategy=StrategySpec("scaffold"), rounds=6)
    assert rounds[-1].loss < rounds[0].loss


OPTIONS = {
    "local": LocalSpec(
        OptimizerSpec("adam", {"lr": 0.05}), batch=8, steps=3, schedule=COSINE, clip_gradients=0.5
    ),
    "rounds": 8,
    "evaluate_every": 1,
    "stop": StopSpec(patience=6),
    "keep_versions": 2,
}


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    async def whole(house):
        run, _ = await test_federated.started(house, **OPTIONS)
        rounds, info = await test_federated.ended(house, run)
        return run, rounds, info

    async def halted(house):
        run, _ = await test_federated.started(house, **OPTIONS)
        await until(lambda: house.runs.describe(run).round >= 3)
        await house.runs.stop(run)
        await house.runs.resume_run(run)
        rounds, info = await test_federated.ended(house, run)
        return run, rounds, info

    found = []
    for scenario in (whole, halted):
        with House() as house:
            run, rounds, info = asyncio.run(scenario(house))
            assert info.state is RunState.FINISHED, info.detail
            best = info.best_version
            weight, bias = test_federated.parameters(house, run)
            kept, _ = house.parameters.open(run, best)
            found.append(
                (
                    [r.loss for r in rounds],
                    weight.tobytes(),
                    bias.tobytes(),
                    best,
                    info.best_loss,
                    info.detail,
                )
            )
            losses = [r.evaluation.loss for r in rounds]
            assert best == 1 + int(np.argmin(losses))
            assert kept.read("p/1").shape == bias.shape, "it is kept, however old it is"
    assert found[0] == found[1]


def test_a_run_ends_early_and_says_so():
    stop = StopSpec(patience=2, min_delta=1e3)  # nothing is ever so much better
    rounds, info, _ = federated(rounds=50, evaluate_every=1, stop=stop)
    assert len(rounds) == 3
    assert "2 evaluations without a loss below" in info.detail
    rounds, info, *_ = fusion(rounds=50, evaluate_every=1, stop=stop)
    assert len(rounds) == 3
    assert "2 evaluations without a loss below" in info.detail
    assert info.best_version in (1, 2, 3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schedule": ScheduleSpec("cosin")}, "did you mean 'cosine'"),
        ({"clip": -1.0}, "clip"),
        ({"stop": StopSpec(metrics={"wrong": 0.5})}, "no metric of the head; it has correct"),
    ],
)
def test_a_fusion_job_that_asks_for_what_there_is_not(changed, said):
    with House() as house, pytest.raises(InvalidArgument, match=said):
        asyncio.run(test_fusion.started(house, **changed))


def test_the_model_diverges_and_no_node_is_blamed():
    async def scenario(house):
        local = LocalSpec(OptimizerSpec("sgd", {"lr": 1e30}), batch=8, steps=3)
        run, _ = await test_federated.started(house, local=local)
        return await test_federated.ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert "a learning rate of 1e+30 is likely too high" in info.detail
    assert f"is not finite from round {len(rounds) + 1} on" in info.detail
    assert "of every node" in info.detail
    assert "quarantined" not in info.detail


def test_a_fusion_run_diverges():
    rounds, info, *_ = fusion(optimizer=OptimizerSpec("sgd", {"lr": 1e30}))
    assert info.state is RunState.FAILED
    assert "a learning rate of 1e+30 is likely too high" in info.detail
    assert f"the last finite loss was {rounds[-1].loss:.6g}, of round {len(rounds)}" in info.detail


def test_a_model_that_cannot_be_evaluated_any_more():
    rounds, info, *_ = fusion(optimizer=OptimizerSpec("sgd", {"lr": 1e30}), evaluate_every=1)
    assert info.state is RunState.FAILED
    assert f"is not finite after round {len(rounds)}, whose loss was {rounds[-1].loss:.6g}" in info.detail
    assert "held-out samples" in info.detail
    assert "1e+30, is too high: lower optimizer.lr, or set clip" in info.detail


@pytest.mark.parametrize("recipe", ["fusion", "federated"])
def test_a_step_past_float32_is_no_end_to_resume_from(recipe):
    """It would end so again: the aggregator's own step, at a learning rate of the job's."""

    async def scenario(house):
        if recipe == "fusion":
            run, _ = await test_fusion.started(house, optimizer=OptimizerSpec("sgd", {"lr": 1e39}))
            _, info = await test_fusion.ended(house, run)
        else:
            strategy = StrategySpec("fedavg", {"lr": 1e39})
            run, _ = await test_federated.started(house, strategy=strategy)
            _, info = await test_federated.ended(house, run)
        return info, house.runs.error_of(run)

    with House() as house:
        info, error = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert "overflow; lower" in info.detail
    assert "start it anew with the job mended" in remedy_of(info, error)
