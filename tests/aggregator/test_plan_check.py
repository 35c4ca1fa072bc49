"""A plan says what a run would be refused for, by node: by what nodes say of their data, and their labels."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import small_job
import small_model
from house import House, dataset

from edge_attention.core.job_release import JobRelease
from edge_attention.core.messages.training import RunState

GOOD = {"x": small_model.X["a"], "y": small_model.Y["a"]}


def planned(datasets, **changed):
    """The plan of the small job with a node for each of `datasets` (node -> arrays of dataset `rows`)."""

    async def scenario(house):
        job = small_model.job(house, **{"nodes": (), **changed})
        for name, arrays in datasets.items():
            house.node(name, datasets=[dataset("rows", **arrays)] if arrays else [])
        return await house.runs.plan(job)

    with House() as house:
        return asyncio.run(scenario(house))


def problems(plan):
    return {problem.node: problem.text for problem in plan.problems}


def test_a_job_that_fits_has_no_problem_and_one_release():
    plan = planned({"a": GOOD, "b": GOOD})
    assert problems(plan) == {}
    needed = {graph.release.removeprefix("sha256:") for graph in plan.graphs if graph.release}
    assert plan.job_release == JobRelease(frozenset(needed)).flag


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": GOOD["x"][:, :3], "y": GOOD["y"]}, "is float32 [3] a row, input 'x' takes float32 [4]"),
        ({"x": GOOD["x"], "target": GOOD["y"]}, "of node 'b' has no column 'y'; it has: x, target"),
        ({"x": GOOD["x"], "y": GOOD["y"] + 0.5}, "column 'y' of node 'b' is float"),
    ],
)  # fmt: skip
def test_what_one_node_has_is_said_of_that_node(arrays, said):
    plan = planned({"a": GOOD, "b": arrays, "c": arrays})
    found = problems(plan)
    assert set(found) == {"b", "c"}
    assert said in found["b"]
    assert plan.graphs, "what it would run is said all the same"


def test_a_dataset_that_nobody_has_is_asked_for_by_what_there_is():
    plan = planned({"a": GOOD}, dataset="row")
    assert problems(plan) == {
        "": "no node here has a dataset 'row' (did you mean 'rows'?); a run would wait for one. They have: "
        "a: rows"
    }
    assert planned({}, dataset="row").problems == ()
    assert "no node is here" in planned({}, dataset="row").unchecked[0]


def test_a_node_that_is_away_is_said_not_to_be_looked_at():
    plan = planned({"a": GOOD}, nodes=("a", "z"))
    assert problems(plan) == {}
    assert "node 'z' is not here: what it has is not looked at" in plan.unchecked


def test_labels_out_of_range_are_said_where_the_node_lets_it_leave():
    async def scenario(house):
        job = small_model.job(house, nodes=())
        flag = (await house.runs.plan(job)).job_release
        good, bad = (dataset("rows", x=GOOD["x"], y=GOOD["y"] + more) for more in (0, 2))
        house.node("a", datasets=[good], releases=[flag])
        house.node("b", datasets=[bad], releases=[flag])
        house.node("c", datasets=[bad])
        plan = await house.runs.plan(job)
        run = (await house.runs.start(replace(job, nodes=("a", "b")))).id
        async with asyncio.timeout(120):
            events = [event async for event in house.runs.watch(run, 0)]
        return plan, events[-1]

    with House() as house:
        plan, info = asyncio.run(scenario(house))
    found = problems(plan)
    assert set(found) == {"b"}
    assert "labels hold 2 to 4, the model has classes 0 to 2" in found["b"]
    assert [text for text in plan.unchecked if "node 'c'" in text]
    assert info.state is RunState.FAILED
    assert found["b"] in info.detail, "a run says the same"


def test_a_fusion_job_is_looked_at_part_by_part():
    async def scenario(house):
        job, files = small_job.job()
        for data in files.values():
            house.state.put_blob(data)
        narrow = dataset("x", small_job.IDS, x=small_job.X["b"][:, :2])
        house.node("a", datasets=[dataset("x", small_job.IDS, x=small_job.X["a"])])
        house.node("b", datasets=[narrow])
        return await house.runs.plan(job)

    with House() as house:
        plan = asyncio.run(scenario(house))
    texts = {(p.node, p.text.partition(";")[0]) for p in plan.problems}
    assert texts == {
        ("b", "column 'x' of node 'b' is float32 [2] a row, input 'x' takes float32 [3]"),
        ("a", "node 'a' has no dataset 'labels' (it has: x)"),
    }
    assert plan.job_release.startswith("job:")


def test_one_release_covers_a_whole_run_and_nothing_else():
    async def scenario(house, allowed):
        job, files = small_job.job()
        for data in files.values():
            house.state.put_blob(data)
        flag = (await house.runs.plan(job)).job_release
        for lab in "ab":
            house.node(lab, datasets=small_job.datasets(lab), releases=[flag] if lab in allowed else [])
        run = (await house.runs.start(job)).id
        async with asyncio.timeout(120):
            events = [event async for event in house.runs.watch(run, 0)]
        return events[-1], flag

    with House(patience=2.0) as house:
        info, _ = asyncio.run(scenario(house, "ab"))
        assert info.state is RunState.FINISHED, info.detail
    with House(patience=2.0) as house:
        info, flag = asyncio.run(scenario(house, "a"))
        assert info.state is RunState.FAILED
        assert f"--allow-release {flag}" in info.detail, "the whole of it, not one digest after the other"


def test_a_federated_failure_names_the_release_of_the_whole_job():
    async def scenario(house):
        job = small_model.job(house, nodes=("a",))
        flag = (await house.runs.plan(job)).job_release
        house.node("a", datasets=[small_model.rows("a")])
        run = (await house.runs.start(job)).id
        async with asyncio.timeout(120):
            events = [event async for event in house.runs.watch(run, 0)]
        return events[-1], flag

    with House(patience=2.0) as house:
        info, flag = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert f"--allow-release {flag}" in info.detail


def test_own_data_leaves_where_the_node_is_for_development():
    from edge_node.release import Releases

    own = Releases((), own_data=True)
    assert own.alignment
    assert own.announced[0] == "own-data"
    from edge_attention.core.release import GraphRule, Release, column

    release = Release({"a" * 64: GraphRule({"x": frozenset({column("d", "x")})}, frozenset({"y"}))})
    flow = [("a" * 64, "x", column("d", "x"))]
    assert own.allowed("a" * 64, flow, ["y"]) == frozenset()
    own.learn([JobRelease(frozenset({release.digest})).text, release.text])
    assert own.allowed("a" * 64, flow, ["y"]) == {"y"}
    plain = Releases()
    plain.learn([release.text])
    assert plain.allowed("a" * 64, flow, ["y"]) == frozenset()
