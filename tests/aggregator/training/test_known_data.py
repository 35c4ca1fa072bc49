"""Whether nodes still have the data that a run began with: an edited file, one with other rows, and none."""

from __future__ import annotations

import asyncio
import json

import pytest
import small_job
import small_model
import test_federated
import test_fusion
from house import House, dataset, until

from aggregator.training.known_data import KnownData, by_rows_alone, declared, kept, known_from, news_since
from aggregator.training.page import troubles
from edge_attention.core.messages.training import RunState, SelectionSpec, StrategySpec

KEY = b"of these nodes alone"
GAUGE = "edge_attention_aggregator_run_other_data_nodes"


def known(rows=30, digest="d", node="a"):
    return KnownData(node, "rows", rows, digest)


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (known(), known(), ""),
        (known(), known(31), "it has 31 rows, and had 30"),
        (known(digest=""), known(29, ""), "it has 29 rows, and had 30"),
        (known(digest=""), known(), ""),
        (known(), known(digest=""), ""),
        (known(digest="k" * 16 + "d"), known(digest="k" * 16 + "e"), "as many rows, and other values"),
        (known(digest="k" * 16 + "d"), known(digest="l" * 16 + "e"), ""),
    ],
)
def test_what_is_another_is_said_as_far_as_nodes_tell(was, now, said):
    assert said in was.differs(now)
    assert bool(was.differs(now)) == bool(said)


def test_nodes_of_whose_data_the_rows_are_all_that_is_known_are_named():
    assert by_rows_alone([known()]) == ""
    many = [known(digest="", node=f"n{number}") for number in range(9)]
    assert by_rows_alone([known(), many[0], many[0]]).startswith(
        "the data of n0 is known by its number of rows"
    )
    assert "n7 and 1 more is known" in by_rows_alone(many)


def test_what_was_declared_is_kept_of_groups_too():
    table = told(dataset("rows", x=small_model.X["a"]))
    found = declared("a", [table.describe(), dataset("other", x=small_model.X["b"]).describe()], ["rows"])
    assert [one.dataset for one in found] == ["rows"]
    assert len(found[0].digest) == 64
    assert known_from(json.loads(json.dumps({"data": kept(found)}))) == found
    assert known_from({"groups": [{"data": kept(found)}, {}, {"data": kept(found)}]}) == (*found, *found)
    assert known_from({"nodes": {"a": 30}}) == ()


def told(table):
    table.tell_changes(KEY)
    return table


def edited(name):
    """The rows of a node, of which one label is another."""
    labels = small_model.Y[name].copy()
    labels[0] = (labels[0] + 1) % small_model.CLASSES
    return told(dataset("rows", x=small_model.X[name], y=labels))


async def begun(house, **changed):
    """A federated run, and its nodes, which tell of changes."""
    job = small_model.job(house, rounds=10_000, **changed)
    released = sorted({graph.release for graph in (await house.runs.plan(job)).graphs if graph.release})
    boxes = {
        name: house.node(name, datasets=[told(small_model.rows(name))], releases=released)
        for name in small_model.NODES
    }
    return (await house.runs.start(job)).id, boxes


def again(box, *tables):
    """The node's process is another one, with these datasets."""
    box.disconnect()
    box.datasets = {table.name: table for table in tables}
    box.connect(fresh=True)


def test_a_federated_run_does_not_go_on_with_other_rows_of_the_same_number():
    async def scenario(house):
        run, boxes = await begun(house)
        await until(lambda: house.runs.describe(run).round >= 1)
        await house.runs.stop(run)
        again(boxes["b"], edited("b"))
        await house.runs.resume_run(run)
        _, failed = await test_federated.ended(house, run)
        again(boxes["b"], told(small_model.rows("b")))
        before = (await house.runs.resume_run(run)).round
        await until(lambda: house.runs.describe(run).round > before)
        return failed, await house.runs.stop(run)

    with House() as house:
        failed, goes_on = asyncio.run(scenario(house))
    assert failed.state is RunState.FAILED
    assert "dataset 'rows' of node 'b' is not the one this run began with: it has as many" in failed.detail
    assert "give the node its file back, and resume the run" in failed.detail
    assert goes_on.state is RunState.STOPPED


def test_a_round_that_need_not_have_all_is_made_without_the_node_of_other_data():
    async def scenario(house):
        run, boxes = await begun(house, selection=SelectionSpec(quorum=0.5, minimum=2))
        await until(lambda: house.runs.describe(run).round >= 1)
        again(boxes["b"], edited("b"))
        at = house.runs.describe(run).round
        await until(lambda: house.runs.describe(run).round >= at + 2)
        await house.runs.stop(run)
        return house.state.records(run, at)[1].record

    with House() as house:
        record = asyncio.run(scenario(house))
    assert "other values" in record["left_out"]["b"]
    assert "b" not in record["nodes"]


@pytest.mark.parametrize(
    "changed",
    [
        {"selection": SelectionSpec(quorum=0.5, minimum=2)},
        {"strategy": StrategySpec("fedbuff", {"buffer": 2})},
    ],
)
def test_whoever_looks_is_told_which_node_a_run_goes_on_without(changed):
    async def scenario(house):
        run, boxes = await begun(house, **changed)
        await until(lambda: house.runs.describe(run).round >= 1)
        before = house.runs.describe(run).detail
        again(boxes["b"], edited("b"))
        await until(lambda: house.runs.describe(run).detail)
        found = house.runs.describe(run)
        count = house.metrics.registry.get_sample_value(GAUGE, {"run": run})
        at = found.round
        await until(lambda: house.runs.describe(run).round >= at + 3)
        record = house.state.records(run, at + 1)[1].record
        again(boxes["b"], told(small_model.rows("b")))
        await until(lambda: not house.runs.describe(run).detail)
        cleared = house.metrics.registry.get_sample_value(GAUGE, {"run": run})
        await house.runs.stop(run)
        return before, found, count, record, cleared

    with House() as house:
        before, found, count, record, cleared = asyncio.run(scenario(house))
    assert before == ""
    assert found.state is RunState.RUNNING
    assert found.detail.startswith(
        "goes on without b: dataset 'rows' of node 'b' is not the one this run began"
    )
    assert found.detail.endswith("; started with its file of before, a node takes part again")
    ((_, trouble),) = [one for one in troubles([found], 0.0) if "goes on without" in one[1].text]
    assert trouble.severity == "warn"
    assert (count, cleared) == (1, 0)
    assert "other values" in record["left_out"]["b"]
    assert "b" not in record["nodes"]


def test_a_fusion_run_does_not_go_on_with_other_values_under_the_same_ids():
    async def scenario(house):
        job, files = small_job.job(rounds=10_000)
        for data in files.values():
            house.state.put_blob(data)
        planned = (await house.runs.plan(job)).graphs
        boxes = {}
        for lab in "ab":
            tables, allowed = map(told, small_job.datasets(lab)), test_fusion.releases(planned, lab)
            boxes[lab] = house.node(lab, datasets=list(tables), releases=allowed)
        run = (await house.runs.start(job)).id
        await until(lambda: house.runs.describe(run).round >= 1)
        rows = small_job.order("b")
        values = small_job.X["b"][rows].copy()
        values[3] += 1
        again(boxes["b"], told(dataset("x", [small_job.IDS[i] for i in rows], x=values)))
        return await test_fusion.ended(house, run)

    with House() as house:
        rounds, failed = asyncio.run(scenario(house))
    assert rounds
    assert failed.state is RunState.FAILED
    assert "dataset 'x' of node 'b' is not the one this run began with" in failed.detail


def test_the_next_run_of_a_name_says_which_data_is_other_than_in_the_one_before():
    async def scenario(house):
        first, boxes = await begun(house)
        await until(lambda: house.runs.describe(first).round >= 1)
        await house.runs.stop(first)
        again(boxes["b"], edited("b"))
        second, _ = await test_federated.started(house, names=())
        await test_federated.ended(house, second)
        third, _ = await test_federated.started(house, names=())
        await test_federated.ended(house, third)
        other, _ = await test_federated.started(house, names=(), name="other")
        await test_federated.ended(house, other)
        return first, *(house.runs.describe(run) for run in (second, third, other))

    with House() as house:
        first, second, third, other = asyncio.run(scenario(house))
        data = known_from(house.state.record(second.id, 0))
        assert house.state.run_before(second.id) == first
        assert house.state.run_before(first) is None
        assert news_since(house.state, first, data) == ""
    (note,) = [note for note in second.notes if "other data" in note]
    assert note.startswith(f"since run {first} there is other data: 'rows' of node 'b': it has as many rows")
    assert "'a'" not in note
    assert not [note for note in (*third.notes, *other.notes) if "other data" in note]


def test_a_node_that_is_started_anew_with_other_data_is_told_of():
    async def scenario(house):
        box = house.node("a", datasets=[told(small_model.rows("a"))])
        again(box, told(small_model.rows("a")))
        again(box, edited("a"))
        box.connect()  # the same process: it has what it had
        return [why for _, (_, why), _, _ in house.membership.transitions if why.startswith("registered")]

    with House() as house:
        turns = asyncio.run(scenario(house))
    assert turns == ["registered", "registered", "registered, with other data in 'rows'", "registered"]
