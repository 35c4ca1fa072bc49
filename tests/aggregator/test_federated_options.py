"""What a federated job may ask for besides: differences down, consensus, deadlines, selection, stopping."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import small_model
from house import House, until
from test_federated import ended, parameters, reference, started

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.messages.training import (
    ConsensusSpec,
    EncodingSpec,
    LocalSpec,
    OptimizerSpec,
    PushSpec,
    RunState,
    SelectionSpec,
    StopSpec,
    StrategySpec,
)


def trained(**changed):
    """The rounds, the run's last state and its parameters."""

    async def scenario(house):
        run, boxes = await started(house, **changed)
        return run, boxes, *await ended(house, run)

    with House() as house:
        run, boxes, rounds, info = asyncio.run(scenario(house))
        assert info.state is RunState.FINISHED, info.detail
        return rounds, info, parameters(house, run), boxes


def names_pushed(program):
    """Stored names a program brought parameters under."""
    return {name for name in program.tensors if "/p/" in name}


@pytest.mark.parametrize(
    ("encoding", "near"), [("float32", 1e-5), ("float16", 1e-4), ("bfloat16", 1e-3), ("int8", 1e-2)]
)
def test_differences_bring_nodes_to_the_version_they_would_have_been_sent(encoding, near):
    push = PushSpec(True, EncodingSpec(encoding))
    _, _, (weight, bias), boxes = trained(push=push, rounds=6, evaluate_every=2)
    expected = reference(6)
    assert np.abs(weight - expected[0]).max() < near
    assert np.abs(bias - expected[1]).max() < near
    training = [p for p in boxes["a"].programs if "task/rows/first" in p.tensors]
    assert len(training) == 6
    assert names_pushed(training[0])
    later = [name for p in training[1:] for name in names_pushed(p)]
    assert not later, "it had the version before: a difference, or nothing after an evaluation, is enough"


def test_a_node_that_lost_what_it_had_is_sent_everything_and_nothing_changes():
    async def scenario(house):
        run, boxes = await started(house, push=PushSpec(True, EncodingSpec("float16")), rounds=6)
        await until(lambda: house.runs.describe(run).round >= 2)
        boxes["b"].disconnect()
        boxes["b"].connect(fresh=True)
        await ended(house, run)
        return run

    with House() as house:
        interrupted = parameters(house, asyncio.run(scenario(house)))
    _, _, expected, _ = trained(push=PushSpec(True, EncodingSpec("float16")), rounds=6)
    for found, wanted in zip(interrupted, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_residuals_lost_with_a_node_begin_at_zero_and_the_run_goes_on():
    async def scenario(house):
        run, boxes = await started(house, update=EncodingSpec("int8"), rounds=6)
        await until(lambda: house.runs.describe(run).round >= 2)
        boxes["b"].disconnect()
        boxes["b"].connect(fresh=True)
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert all(len(r.nodes) == 5 for r in rounds)


def consensus(**weights):
    probe = np.random.default_rng(1).standard_normal((4, small_model.FEATURES)).astype(np.float32)
    return ConsensusSpec("logits", {"x": probe}, **weights)


def test_consensus_losses_are_reported_and_shrink_under_their_penalties():
    plain = trained(consensus=consensus(), rounds=3)[0]
    for kind in ("total", "attention", "global", "parameters", "node/a"):
        assert plain[-1].consensus[kind] > 0
    near = trained(consensus=consensus(parameter_weight=4.0), rounds=3)[0]
    # Of the first round: later ones start elsewhere.
    assert near[0].consensus["parameters"] < 0.7 * plain[0].consensus["parameters"]
    alike = trained(consensus=consensus(attention_weight=0.5), rounds=3)[0]
    assert alike[0].consensus["attention"] < 0.7 * plain[0].consensus["attention"]


def test_a_round_goes_on_without_a_node_that_does_not_answer_in_time():
    async def scenario(house):
        run, boxes = await started(
            house, selection=SelectionSpec(quorum=0.6, deadline_seconds=3.0), rounds=2, holdout=0.0
        )
        return *await ended(house, run), boxes

    async def mute(house):
        job = small_model.job(house)
        released = sorted({g.release for g in (await house.runs.plan(job)).graphs if g.release})
        for name in small_model.NODES:
            house.node(name, datasets=[small_model.rows(name)], releases=released, mute=name == "c")
        selection = SelectionSpec(quorum=0.6, deadline_seconds=3.0)
        run = (await house.runs.start(small_model.job(house, selection=selection, rounds=2, holdout=0.0))).id
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(mute(house))
    assert info.state is RunState.FINISHED, info.detail
    for r in rounds:
        assert set(r.nodes) == set("abde")
        assert "not done after" in r.left_out["c"]
    with House() as house:
        rounds, _, _ = asyncio.run(scenario(house))
    assert all(not r.left_out for r in rounds)


def test_buffered_rounds_do_not_wait_for_a_node_that_never_answers():
    async def scenario(house):
        strategy = StrategySpec("fedbuff", {"buffer": 3})
        job = small_model.job(house, strategy=strategy)
        released = sorted({g.release for g in (await house.runs.plan(job)).graphs if g.release})
        for name in small_model.NODES:
            house.node(name, datasets=[small_model.rows(name)], releases=released, mute=name == "c")
        run = (await house.runs.start(small_model.job(house, strategy=strategy, rounds=8, holdout=0.0))).id
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert len(rounds) == 8
    assert not any("c" in r.nodes for r in rounds)


def test_a_share_of_the_nodes_is_asked_and_each_gets_its_turn():
    rounds, *_ = trained(selection=SelectionSpec(fraction=0.4), rounds=12)
    assert all(len(r.nodes) == 2 for r in rounds)
    assert {name for r in rounds for name in r.nodes} == set(small_model.NODES)


def test_a_run_stops_when_it_is_good_enough():
    rounds, info, *_ = trained(stop=StopSpec(metrics={"correct": 0.5}), rounds=50, evaluate_every=1)
    assert len(rounds) < 50
    assert "correct is" in info.detail
    assert rounds[-1].evaluation.share("correct") >= 0.5


def test_a_node_that_does_not_release_the_update_fails_the_run_with_the_flag():
    async def scenario(house):
        for name in small_model.NODES:
            house.node(name, datasets=[small_model.rows(name)])
        run = (await house.runs.start(small_model.job(house))).id
        return (await ended(house, run))[1]

    with House() as house:
        info = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert "--allow-release" in info.detail


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strategy": StrategySpec("fedsomething")}, "fedsomething"),
        ({"strategy": StrategySpec("fedavg", {"speed": 1})}, "speed"),
        ({"combine": StrategySpec("krum", {"byzantine": 2})}, "krum"),
        ({"update": EncodingSpec("int4")}, "int4"),
        ({"push": PushSpec(True, EncodingSpec("topk"))}, "push.encoding"),
        ({"local": LocalSpec(OptimizerSpec("sgd"), batch=8)}, "steps or epochs"),
        ({"local": LocalSpec(OptimizerSpec("sgd"), batch=0, steps=1)}, "local.batch"),
        ({"rounds": 0}, "rounds"),
        ({"weighting": "size"}, "weighting"),
        ({"holdout": 1.0}, "holdout"),
        ({"strategy": StrategySpec("scaffold"), "update": EncodingSpec("topk")}, "scaffold"),
        ({"selection": SelectionSpec(fraction=0.0)}, "fraction"),
        ({"consensus": ConsensusSpec("logits")}, "probe"),
    ],
)
def test_what_no_model_could_mend_is_refused_with_its_name(changed, said):
    with House() as house, pytest.raises(InvalidArgument, match=said):
        asyncio.run(house.runs.plan(small_model.job(house, **changed)))


def test_a_stopped_run_is_resumed_and_one_that_goes_on_is_not():
    async def scenario(house):
        run, _ = await started(house, rounds=40)
        await until(lambda: house.runs.describe(run).round >= 2)
        with pytest.raises(FailedPrecondition, match="only a run that was stopped"):
            await house.runs.resume_run(run)
        assert (await house.runs.stop(run)).state is RunState.STOPPED
        at = house.runs.describe(run).round
        assert (await house.runs.resume_run(run)).state is RunState.RUNNING
        rounds, info = await ended(house, run)
        return at, rounds, info

    with House() as house:
        at, rounds, info = asyncio.run(scenario(house))
    assert at < 40
    assert info.state is RunState.FINISHED, info.detail
    assert [r.number for r in rounds] == list(range(1, 41))


def test_where_no_row_is_held_out_nothing_is_evaluated():
    rounds, *_ = trained(holdout=0.001, evaluate_every=1, stop=StopSpec(loss=100.0))
    assert rounds[-1].evaluation is None
    assert len(rounds) == 1, "its loss is the nodes'"


def test_a_run_resumed_over_live_nodes_does_not_take_them_for_lost():
    async def scenario(house):
        run, boxes = await started(house, rounds=40)
        await until(lambda: house.runs.describe(run).round >= 2)
        await house.runs.stop(run)
        await house.runs.resume_run(run)
        await ended(house, run)
        now = asyncio.get_running_loop().time()
        for box in boxes.values():
            house.membership.heard(box.name, now + 100.0)
        return house.membership.tick(now + 100.0)

    with House() as house:
        assert not list(asyncio.run(scenario(house)))
