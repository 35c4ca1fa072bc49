"""Training by fusion over nodes in this process: the run of one machine, and what goes wrong in a round."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import small_job
from house import House, until
from small_job import SAMPLES

from edge_attention.core.messages.training import MissingSamples, OptimizerSpec, RunState
from edge_node import executor


def releases(planned, node):
    return sorted({g.release for g in planned if g.node == node and g.release})


async def started(house, skip=(), tamper=None, **changed):
    """The run's id, and its nodes, with what the plan says they must let leave. `tamper`: what b does."""
    job, files = small_job.job(**changed)
    for data in files.values():
        house.state.put_blob(data)
    planned = (await house.runs.plan(job)).graphs
    boxes = {
        lab: house.node(
            lab,
            datasets=small_job.datasets(lab),
            releases=releases(planned, lab),
            tamper=tamper if lab == "b" else None,
        )
        for lab in "ab"
        if lab not in skip
    }
    info = await house.runs.start(job)
    return info.id, boxes


async def ended(house, run):
    """The run's rounds, and the run."""
    async with asyncio.timeout(180):
        events = [event async for event in house.runs.watch(run, 0)]
    return [event for event in events if not hasattr(event, "state")], events[-1]


def compare(house, run, rounds):
    parameters, losses = small_job.trained(
        [r.samples for r in rounds], house.parameters.load(run, 0).parameters
    )
    final = house.parameters.load(run, len(rounds)).parameters
    assert final.keys() == parameters.keys()
    for name, array in final.items():
        np.testing.assert_allclose(array, parameters[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose([r.loss for r in rounds], losses, atol=1e-4)


@pytest.mark.parametrize("coalesce", [executor._COALESCE, 64])
def test_a_run_over_two_nodes_is_the_run_of_one_machine(monkeypatch, coalesce):
    """With 64: gradients come in many contributions, as those of a large model do."""
    monkeypatch.setattr(executor, "_COALESCE", coalesce)

    async def scenario(house):
        run, _ = await started(house)
        return run, *await ended(house, run)

    with House() as house:
        run, rounds, info = asyncio.run(scenario(house))
        assert (info.state, info.round, info.version) == (RunState.FINISHED, 6, 6), info.detail
        assert [r.number for r in rounds] == [r.version for r in rounds] == [1, 2, 3, 4, 5, 6]
        compare(house, run, rounds)
        assert (info.samples.complete, info.samples.train, info.samples.holdout) == (SAMPLES, 24, 6)
        assert rounds[-1].evaluation.samples == 6
        held = np.setdiff1d(np.arange(SAMPLES), np.concatenate([r.samples for r in rounds]))
        final = house.parameters.load(run, 6).parameters
        truth = small_job.one_machine().evaluate(final, small_job.feeds(held))
        np.testing.assert_allclose(rounds[-1].evaluation.loss, truth["loss"], atol=1e-5)
        assert rounds[-1].evaluation.metrics["correct"] == truth["correct"]
        for record in rounds:
            assert abs(sum(record.mass.values()) - 1) < 1e-5


def test_a_node_that_is_away_is_waited_for_by_name_and_the_run_goes_on():
    async def scenario(house):
        run, boxes = await started(house)
        await until(lambda: house.runs.describe(run).round >= 2)
        boxes["b"].mute = True
        boxes["b"].lose()
        await until(lambda: "node 'b' (lost), until" in house.runs.describe(run).waiting)
        round_before = house.runs.describe(run).round
        boxes["b"].mute = False
        boxes["b"].connect(fresh=True)
        rounds, info = await ended(house, run)
        assert round_before < 6
        assert info.waiting == ""
        return run, rounds, info

    with House() as house:
        run, rounds, info = asyncio.run(scenario(house))
        assert info.state is RunState.FINISHED, info.detail
        compare(house, run, rounds)


@pytest.mark.parametrize("left_out", [True, False])
def test_samples_a_node_lacks(left_out):
    mode = MissingSamples.LEAVE_OUT if left_out else MissingSamples.ATTEND

    async def scenario(house):
        job, files = small_job.job(missing=mode, holdout=0.0)
        for data in files.values():
            house.state.put_blob(data)
        planned = (await house.runs.plan(job)).graphs
        house.node("a", datasets=small_job.datasets("a"), releases=releases(planned, "a"))
        few = small_job.order("b")[:20]
        house.node("b", datasets=small_job.datasets("b", few), releases=releases(planned, "b"))
        run = (await house.runs.start(job)).id
        return *await ended(house, run), few

    with House() as house:
        rounds, info, few = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert (info.samples.complete, info.samples.incomplete) == (20, 10)
    if left_out:
        assert info.samples.train == 20
        assert all(r.absent == {} for r in rounds)
    else:
        assert info.samples.train == 30
        for record in rounds:
            absent = sum(i not in few for i in record.samples)
            assert record.absent == ({"b": absent} if absent else {})
            assert abs(sum(record.mass.values()) - 1) < 1e-5


def poisoned(contribution):
    tensors = {n: a * np.float32(np.nan) if n == "dq" else a for n, a in contribution.tensors.items()}
    return replace(contribution, tensors=tensors)


def short(contribution):
    return replace(contribution, tensors={n: a for n, a in contribution.tensors.items() if n != "lse"})


def misshapen(contribution):
    return replace(contribution, tensors={n: a[..., :1] for n, a in contribution.tensors.items()})


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (poisoned, "node 'b': what it returned as dq is not finite"),
        (short, "did not return lse"),
        (misshapen, "ids"),
    ],
)
def test_a_hostile_node_ends_the_run_with_its_name(tamper, said):
    async def scenario(house):
        run, _ = await started(house, tamper=tamper)
        return (await ended(house, run))[1]

    with House() as house:
        info = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert said in info.detail


def test_a_loss_that_is_no_number_ends_the_run_and_the_last_good_version_stays():
    async def scenario(house):
        run, _ = await started(house, optimizer=OptimizerSpec("sgd", {"lr": 1e20}))
        return run, *await ended(house, run)

    with House() as house:
        run, rounds, info = asyncio.run(scenario(house))
        assert info.state is RunState.FAILED
        assert "not finite" in info.detail
        assert len(rounds) == info.version < 6
        final = house.parameters.load(run, info.version).parameters
        assert all(np.isfinite(array).all() for array in final.values())


def test_a_gradient_that_is_not_released_is_named_with_its_flag():
    async def scenario(house):
        job, files = small_job.job()
        for data in files.values():
            house.state.put_blob(data)
        plan = await house.runs.plan(job)
        house.node("a", datasets=small_job.datasets("a"), releases=releases(plan.graphs, "a"))
        house.node("b", datasets=small_job.datasets("b"), releases=["attention", "alignment"])
        return plan.job_release, (await ended(house, (await house.runs.start(job)).id))[1]

    with House() as house:
        flag, info = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert f"--allow-release {flag}" in info.detail
    assert "node 'b'" in info.detail


def test_trouble_of_a_nodes_own_is_retried_said_and_given_up_in_the_end():
    said = set()

    async def scenario(house):
        run, boxes = await started(house, patience_seconds=3.0)
        await until(lambda: house.runs.describe(run).version >= 1)
        boxes["b"].node.store.limit = 100
        async for event in house.runs.watch(run, 0):
            said.add(getattr(event, "waiting", ""))
        return house.runs.describe(run)

    with House() as house:
        info = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert "--memory-limit" in info.detail
    assert any(
        sentence.startswith("another try, until") and "--memory-limit" in sentence for sentence in said
    )
