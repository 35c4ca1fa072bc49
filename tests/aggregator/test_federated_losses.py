"""Losses whose labels do not all count alike, over nodes: the run is that of one machine, in float64."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_model
from house import House, dataset
from test_federated import ended, parameters

from edge_attention.core.messages.training import (
    LocalSpec,
    LossSpec,
    OptimizerSpec,
    RunState,
    StrategySpec,
)

sys.path.append(str(Path(__file__).parents[1] / "graphs" / "models"))
import losses_in_float64 as reference

IGNORED = -100
CLASSES = (0.2, 1.0, 4.0)
LR, ROUNDS = 0.3, 3


def labels(name: str) -> np.ndarray:
    """Of node a, nothing counts; of the others more and more does."""
    y = small_model.Y[name].copy()
    y[np.random.default_rng(1).random(len(y)) < {"a": 1.1, "b": 0.8}.get(name, 0.3)] = IGNORED
    return y


def importance(name: str) -> np.ndarray:
    return np.random.default_rng(2).uniform(0, 3, small_model.ROWS[name]).astype(np.float32)


SPEC = LossSpec(
    "cross_entropy",
    "logits",
    "labels",
    {"ignore_index": IGNORED, "label_smoothing": 0.1},
    class_weights=CLASSES,
    weights="importance",
)


async def started(house, strategy, local, tamper=None, **changed):
    asked = {"rounds": ROUNDS, "holdout": 0.0, **changed}
    job = small_model.job(house, strategy=strategy, local=local, **asked)
    job = replace(job, model=replace(job.model, loss=SPEC))
    released = sorted({graph.release for graph in (await house.runs.plan(job)).graphs if graph.release})
    for name in small_model.NODES:
        data = dataset("rows", x=small_model.X[name], y=labels(name), importance=importance(name))
        house.node(name, datasets=[data], releases=released, tamper=(tamper or {}).get(name))
    return (await house.runs.start(job)).id


def loss_and_gradient(w, b, x, y, s):
    """In float64, as one machine that has all these rows."""
    x = x.astype(np.float64)

    def loss(w, b):
        return reference.cross_entropy(
            x @ w + b, y, class_weights=CLASSES, label_smoothing=0.1, ignore_index=IGNORED, weights=s
        )[0]

    return (
        loss(w, b),
        reference.slope(lambda w: loss(w, b), w),
        reference.slope(lambda b: loss(w, b), b),
    )


@pytest.mark.parametrize("strategy", ["fedavg", "gradient_averaging"])
def test_a_step_on_all_rows_of_all_nodes_is_one_machines(strategy: str) -> None:
    """Batches differ in size from node to node in nothing but what counts in them."""
    batch = min(small_model.ROWS.values())

    async def scenario(house):
        local = LocalSpec(OptimizerSpec("sgd", {"lr": LR}), batch=batch, steps=1)
        run = await started(house, StrategySpec(strategy), local, weighting="samples")
        return run, *await ended(house, run)

    with pytest.MonkeyPatch.context() as patch:
        # Nodes of as many rows: one batch is all of them, so that one machine's batch is that of the fleet.
        for name in small_model.NODES:
            patch.setitem(small_model.X, name, small_model.X[name][:batch])
            patch.setitem(small_model.Y, name, small_model.Y[name][:batch])
            patch.setitem(small_model.ROWS, name, batch)
        with House() as house:
            run, rounds, info = asyncio.run(scenario(house))
            assert info.state is RunState.FINISHED, info.detail
            weight, bias = parameters(house, run)
        x = np.concatenate([small_model.X[n] for n in small_model.NODES])
        y = np.concatenate([labels(n) for n in small_model.NODES])
        s = np.concatenate([importance(n) for n in small_model.NODES]).astype(np.float64)
    w, b = small_model.W.astype(np.float64), small_model.B.astype(np.float64)
    for number in range(ROUNDS):
        loss, dw, db = loss_and_gradient(w, b, x, y, s)
        assert rounds[number].loss == pytest.approx(loss, rel=1e-5)
        w, b = w - LR * dw, b - LR * db
    np.testing.assert_allclose(weight, w, atol=2e-6)
    np.testing.assert_allclose(bias, b, atol=2e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_rounds_of_several_steps_learn_and_are_evaluated_by_what_counts(optimizer: str) -> None:
    async def scenario(house):
        local = LocalSpec(OptimizerSpec(optimizer, {"lr": 0.05}), batch=8, steps=3)
        run = await started(house, StrategySpec("fedavg"), local)
        return run, *await ended(house, run)

    with House() as house:
        _, rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert rounds[-1].loss < rounds[0].loss
    assert rounds[0].nodes["a"].loss == 0, "none of its labels counts"


def test_an_evaluation_is_the_loss_over_all_rows_held_out() -> None:
    async def scenario(house):
        local = LocalSpec(OptimizerSpec("sgd", {"lr": 0.0 + 1e-12}), batch=8, steps=1)
        job = small_model.job(
            house, strategy=StrategySpec("fedavg"), local=local, rounds=1, holdout=0.5, evaluate_every=1
        )
        job = replace(job, model=replace(job.model, loss=SPEC))
        released = sorted({graph.release for graph in (await house.runs.plan(job)).graphs if graph.release})
        for name in small_model.NODES:
            data = dataset("rows", x=small_model.X[name], y=labels(name), importance=importance(name))
            house.node(name, datasets=[data], releases=released)
        run = (await house.runs.start(job)).id
        return job, *await ended(house, run)

    with House() as house:
        job, rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    from edge_attention.core.rounds.sampling import holdout_rows

    held = {n: holdout_rows(small_model.ROWS[n], 0.5, job.seed, n) for n in small_model.NODES}
    x = np.concatenate([small_model.X[n][held[n]] for n in small_model.NODES])
    y = np.concatenate([labels(n)[held[n]] for n in small_model.NODES])
    s = np.concatenate([importance(n)[held[n]] for n in small_model.NODES]).astype(np.float64)
    w, b = small_model.W.astype(np.float64), small_model.B.astype(np.float64)
    evaluation = rounds[-1].evaluation
    assert evaluation.loss == pytest.approx(loss_and_gradient(w, b, x, y, s)[0], rel=1e-4)
    assert evaluation.samples == len(y)
    assert evaluation.metrics["labels"] == (y != IGNORED).sum()
    said = (x.astype(np.float64) @ w + b).argmax(axis=1)
    assert evaluation.metrics["correct"] == (said == y).sum()
    assert evaluation.share("correct") == pytest.approx((said == y).sum() / (y != IGNORED).sum())


@pytest.mark.parametrize("count", [-1.0, 1e12])
def test_held_out_rows_that_count_less_than_nothing_or_more_than_they_can_do_not_count(count: float) -> None:
    """A node could have any loss told of a version, and have the run stop by it."""

    def lies(contribution):
        told = {
            n: np.full_like(a, count) if n == "next/loss/weight" else a
            for n, a in contribution.tensors.items()
        }
        return replace(contribution, tensors=told)

    async def scenario(house):
        local = LocalSpec(OptimizerSpec("sgd", {"lr": 0.05}), batch=8, steps=1)
        given = {"rounds": 1, "holdout": 0.5, "evaluate_every": 1}
        run = await started(house, StrategySpec("fedavg"), local, {"e": lies}, **given)
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    held = {name: round(0.5 * rows) for name, rows in small_model.ROWS.items()}
    assert rounds[-1].evaluation.samples == sum(held.values()) - held["e"]
    assert rounds[-1].evaluation.loss > 0
