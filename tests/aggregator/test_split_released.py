"""Samples that stay on nodes: one release of the whole job lets all of it leave, and nothing else does."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import small_split
from house import House, dataset, until
from test_fusion import ended

from aggregator.training.split.releases import WholeRelease
from edge_attention.core.job_release import JobRelease
from edge_attention.core.messages.training import OptimizerSpec, RunState, SplitData
from edge_attention.core.release import GraphRule, Release, column
from edge_attention.jobs.federated_job import FederatedModel

IDS = [f"P{number}" for number in range(small_split.COUNT)]
DATA = SplitData(inputs="texts", labels="marks")
ORDER = np.random.default_rng(5).permutation(small_split.COUNT)
STAYS = {"data": DATA, "holdout": 0.4, "rounds": 4}


def datasets(name):
    """Of the first node of a group the texts, of its last one the marks, in another order."""
    if name in "ad":
        return [dataset("texts", IDS, tokens=small_split.ROWS["tokens"])]
    if name in "cf":
        shuffled = [IDS[i] for i in ORDER]
        return [dataset("marks", shuffled, labels=small_split.ROWS["labels"][ORDER])]
    return []


def fleet(house, flag, allowed, names="abc"):
    return {
        name: house.node(name, datasets=datasets(name), releases=[flag] if name in allowed else [])
        for name in names
    }


async def planned(house, **changed):
    return await house.runs.plan(small_split.job(house, **(STAYS | changed)))


async def ran(house, allowed, names="abc", flag="", **changed):
    flag = flag or (await planned(house, **changed)).job_release
    fleet(house, flag, allowed, names)
    run = (await house.runs.start(small_split.job(house, **(STAYS | changed)))).id
    return flag, *await ended(house, run)


def test_a_plan_says_which_of_the_jobs_nodes_are_not_here():
    async def scenario(house):
        house.node("a")
        return (await house.runs.plan(small_split.job(house))).unchecked

    with House() as house:
        said = asyncio.run(scenario(house))
    assert [text.partition(":")[0] for text in said] == ["node 'b' is not here", "node 'c' is not here"]


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_one_release_covers_steps_sums_and_evaluations(pieces):
    with House(patience=30.0) as house:
        flag, rounds, info = asyncio.run(ran(house, "ac", micro_batches=pieces))
    assert flag.startswith("job:")
    assert info.state is RunState.FINISHED, info.detail
    assert rounds[-1].evaluation.samples == info.samples.holdout > 0
    assert info.samples.complete == small_split.COUNT


def test_releases_are_allowed_one_by_one_as_ever():
    async def scenario(house):
        plan = await planned(house)
        for name in "abc":
            own = sorted({graph.release for graph in plan.graphs if graph.node == name and graph.release})
            assert len(own) == (0 if name == "b" else 2)
            house.node(name, datasets=datasets(name), releases=own)
        run = (await house.runs.start(small_split.job(house, **STAYS))).id
        return await ended(house, run)

    with House(patience=30.0) as house:
        _, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail


@pytest.mark.parametrize("allowed", ["a", "c", ""])
def test_a_node_without_it_names_it_whole(allowed):
    with House(patience=5.0) as house:
        flag, rounds, info = asyncio.run(ran(house, allowed))
    assert not rounds
    assert info.state is RunState.FAILED
    assert f"--allow-release {flag}" in info.detail, "not one digest after the other, nor alignment alone"


def test_another_jobs_release_lets_nothing_leave():
    async def scenario(house):
        other = FederatedModel(small_split.MODEL, small_split.LOSS, parameters=["*.0.*"])
        flag = (await planned(house, model=other)).job_release
        return flag, *await ran(house, "ac", flag=flag)

    with House(patience=5.0) as house:
        flag, _, rounds, info = asyncio.run(scenario(house))
    assert not rounds
    assert info.state is RunState.FAILED
    assert "--allow-release job:" in info.detail
    assert flag not in info.detail


def test_a_job_that_only_learns_at_another_rate_has_the_same_release():
    async def scenario(house):
        return [
            (await planned(house, **changed)).job_release
            for changed in ({}, {"optimizer": OptimizerSpec("sgd", {"lr": 1.0}), "clip": 1.0})
        ]

    with House() as house:
        first, second = asyncio.run(scenario(house))
    assert first == second


def test_one_release_covers_all_groups():
    async def scenario(house):
        groups = [["a", "b", "c"], ["d", "f"]]
        return await ran(house, "acdf", "abcdf", groups=groups, nodes=(), local_steps=2, rounds=2)

    with House(patience=30.0) as house:
        _, rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FINISHED, info.detail
    assert len(rounds) == 2
    assert info.samples.complete == 2 * small_split.COUNT


def test_a_run_goes_on_with_it_after_a_restart_of_both(tmp_path):
    """The plan's files are the run's; a node that was restarted has to be told again what it lets leave."""

    async def begun(house):
        flag = (await planned(house, rounds=8)).job_release
        fleet(house, flag, "ac")
        run = (await house.runs.start(small_split.job(house, **(STAYS | {"rounds": 8})))).id
        await until(lambda: house.runs.describe(run).round >= 3)
        await house.runs.close()
        return run, flag

    async def gone_on(house, run, flag):
        fleet(house, flag, "ac")
        house.runs.resume()
        return await ended(house, run)

    async def whole(house):
        return await ran(house, "ac", rounds=8)

    with House(tmp_path / "one", patience=30.0) as house:
        run, flag = asyncio.run(begun(house))
    with House(tmp_path / "one", patience=30.0) as house:
        rounds, info = asyncio.run(gone_on(house, run, flag))
        assert info.state is RunState.FINISHED, info.detail
        found = small_split.parameters(house, run, 8)
    with House(tmp_path / "two", patience=30.0) as house:
        _, again, info = asyncio.run(whole(house))
        wanted = small_split.parameters(house, info.id, 8)
    # Held out and drawn are positions in the list of samples, which is in the order of the labels' rows.
    assert [record.loss for record in rounds] == [record.loss for record in again]
    for name, array in wanted.items():
        assert found[name].tobytes() == array.tobytes(), name


def test_the_plan_has_all_that_leaves():
    with House() as house:
        plan = asyncio.run(planned(house))
    leaving = {(graph.node, graph.role): graph.outputs for graph in plan.graphs if graph.release}
    assert leaving["a", "ids"] == leaving["c", "ids"] == ("keyed hashes of the ids",)
    assert {node for node, _ in leaving} == {"a", "c"}
    roles = {role for _, role in leaving}
    assert {"part 0, sums", "part 2, sums", "part 0, step 0", "part 0, evaluation, step 0"} <= roles
    needed = {graph.release for graph in plan.graphs if graph.release}
    digests = frozenset(flag.removeprefix("sha256:") for flag in needed - {"alignment"})
    assert "alignment" in needed
    assert plan.job_release == JobRelease(digests, alignment=True).flag
    with House() as house:
        own = asyncio.run(planned(house, data=small_split.ROWS))
    assert own.job_release == "", "of the job's own samples nothing is private"


def test_the_list_of_groups_is_there_once_each_has_told():
    one, two = (
        Release({digest * 64: GraphRule({"x": frozenset({column("d", "x")})}, frozenset({"y"}))})
        for digest in "ab"
    )

    async def scenario():
        whole = WholeRelease(2)
        waits = asyncio.ensure_future(whole.texts(0, [one]))
        await asyncio.sleep(0)
        assert not waits.done()
        second = await whole.texts(1, [two])
        first = await waits
        assert await whole.texts(0, [one]) == first, "told again, as after a restart, nobody is waited for"
        return first, second

    first, second = asyncio.run(scenario())
    assert first[0] == second[0] == JobRelease(frozenset({one.digest, two.digest}), alignment=True).text
    assert (first[1:], second[1:]) == ((one.text,), (two.text,))
