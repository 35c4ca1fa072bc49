"""The life of a run: watched from anywhere, stopped anywhere, taken up by the next process."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from dataclasses import replace

import pytest
import small_job
from house import House, job_of, until
from test_fusion import compare, ended, started

from aggregator.training.records import record_from
from edge_attention.core.errors import FailedPrecondition, InvalidGraph, NotFound
from edge_attention.core.messages.training import RunState


def test_the_next_process_goes_on_and_ends_where_the_run_would_have_ended(tmp_path):
    async def first(house):
        run, _ = await started(house, rounds=8)
        await until(lambda: house.runs.describe(run).round >= 3)
        await house.runs.close()
        return run

    async def second(house, run):
        house.runs.resume()
        assert house.runs.describe(run).state is RunState.RUNNING
        await until(lambda: house.runs.describe(run).waiting)
        job, _ = small_job.job(rounds=8)
        planned = (await house.runs.plan(job)).graphs
        for lab in "ab":
            released = sorted({g.release for g in planned if g.node == lab and g.release})
            house.node(lab, datasets=small_job.datasets(lab), releases=released)
        return await ended(house, run)

    with House(tmp_path) as house:
        run = asyncio.run(first(house))
        before = house.parameters.latest(run)
        assert 3 <= before < 8
    with House(tmp_path) as house:
        rounds, info = asyncio.run(second(house, run))
        assert (info.state, info.version) == (RunState.FINISHED, 8), info.detail
        assert [r.number for r in rounds] == list(range(1, 9)), "each round once"
        compare(house, run, rounds)
        assert rounds[-1].evaluation is not None
        lines = (house.parameters.folder(run) / "record.jsonl").read_text().splitlines()
        assert [record_from(json.loads(line)) for line in lines] == rounds
    with House(tmp_path) as house:
        house.runs.resume()
        assert house.runs.describe(run).state is RunState.FINISHED
        assert house.runs._active == {}


def test_a_run_whose_samples_changed_is_not_continued(tmp_path):
    async def first(house):
        run, _ = await started(house)
        await until(lambda: house.runs.describe(run).round >= 1)
        await house.runs.close()
        return run

    async def second(house, run):
        for lab in "ab":
            rows = small_job.order(lab)[: 30 if lab == "a" else 29]
            house.node(lab, datasets=small_job.datasets(lab, rows), releases=["attention", "alignment"])
        house.runs.resume()
        return (await ended(house, run))[1]

    with House(tmp_path) as house:
        run = asyncio.run(first(house))
    with House(tmp_path) as house:
        info = asyncio.run(second(house, run))
    assert info.state is RunState.FAILED
    assert "no longer those this run began with" in info.detail


def test_a_stop_keeps_what_was_committed_and_agrees_with_the_store():
    async def scenario(house):
        run, _ = await started(house, rounds=1000)
        await until(lambda: house.runs.describe(run).round >= 3)
        info = await house.runs.stop(run)
        assert (info.state, info.detail) == (RunState.STOPPED, "stopped on request")
        await asyncio.sleep(0.05)
        assert house.parameters.latest(run) == info.version == info.round
        rounds, last = await ended(house, run)
        assert last.state is RunState.STOPPED
        assert len(rounds) == info.round
        return run

    with House() as house:
        asyncio.run(scenario(house))


def test_a_stop_in_the_middle_of_a_commit_knows_the_version_it_committed(monkeypatch):
    async def scenario(house):
        run, _ = await started(house, rounds=1000)
        loop, committing, asked = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        commit = house.parameters.commit

        def slow(*given):
            if given[1] == 3:
                loop.call_soon_threadsafe(committing.set)
                asked.wait(180)
            commit(*given)

        monkeypatch.setattr(house.parameters, "commit", slow)
        await committing.wait()
        task = house.runs._active[run].task
        stopping = asyncio.create_task(house.runs.stop(run))
        await until(task.cancelling)
        asked.set()
        return run, await stopping

    with House() as house:
        run, info = asyncio.run(scenario(house))
        assert house.parameters.latest(run) == info.version == info.round == 3


def test_stopping_what_waits_and_what_has_ended():
    async def scenario(house):
        run, _ = await started(house, skip="b")
        await until(lambda: "node 'b'" in house.runs.describe(run).waiting)
        with pytest.raises(FailedPrecondition, match="no version yet"):
            house.runs.parameters(run, None)
        info = await house.runs.stop(run)
        assert (info.state, info.waiting) == (RunState.STOPPED, "")
        assert await house.runs.stop(run) == info
        finished, _ = await started_again(house)
        before = (await ended(house, finished))[1]
        assert before.state is RunState.FINISHED, before.detail
        assert (await house.runs.stop(finished)).state is RunState.FINISHED
        assert house.runs.describe(finished).state is RunState.FINISHED
        assert house.state.get_run(finished).status == "finished"

    async def started_again(house):
        house.membership.get("a").state = type(house.membership.state("a")).LOST
        return await started(house)

    with House() as house:
        asyncio.run(scenario(house))


def test_a_patience_that_ends_fails_the_run_and_names_the_node():
    async def scenario(house):
        run, _ = await started(house, skip="b", patience_seconds=0.05)
        return (await ended(house, run))[1]

    with House() as house:
        info = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert "node b did not come within" in info.detail


def test_a_slow_watcher_gets_every_round_of_a_run_that_ends_meanwhile():
    async def scenario(house):
        run, _ = await started(house)
        numbers = []
        async for event in house.runs.watch(run, 0):
            if hasattr(event, "number"):
                numbers.append(event.number)
                # The run ends while the first round is being told.
                await until(lambda: house.runs.describe(run).state is RunState.FINISHED)
        return numbers

    with House() as house:
        assert asyncio.run(scenario(house)) == [1, 2, 3, 4, 5, 6]


def test_a_run_that_fails_while_it_evaluates_has_told_its_last_round():
    async def scenario(house):
        run, boxes = await started(house, rounds=2, patience_seconds=2.0)
        # The evaluation asks for more than the batch; from then on b is gone.
        boxes["b"].tamper = lambda c: None if any(len(a) == 6 for a in c.tensors.values()) else c
        return await ended(house, run)

    with House() as house:
        rounds, info = asyncio.run(scenario(house))
    assert info.state is RunState.FAILED
    assert [r.number for r in rounds] == [1, 2]
    assert rounds[-1].evaluation is None


def test_a_round_is_told_when_its_commit_is_known_and_its_evaluation_there(monkeypatch):
    async def scenario(house):
        run, _ = await started(house, rounds=2)
        loop, committed = asyncio.get_running_loop(), asyncio.Event()
        commit = house.parameters.commit

        def slow(*given):
            commit(*given)
            if given[1] == 2:
                loop.call_soon_threadsafe(committed.set)
                time.sleep(0.2)

        monkeypatch.setattr(house.parameters, "commit", slow)
        watching = asyncio.create_task(ended(house, run))
        await committed.wait()
        house.runs._active[run].update()  # something else wakes whoever watches
        return (await watching)[0]

    with House() as house:
        rounds = asyncio.run(scenario(house))
    assert [r.number for r in rounds] == [1, 2]
    assert rounds[-1].evaluation is not None


def test_unknown_runs_and_jobs_that_cannot_be_leave_nothing():
    async def scenario(house):
        with pytest.raises(NotFound, match="runs here: none"):
            house.runs.describe("x")
        with pytest.raises(NotFound):
            await anext(house.runs.watch("x", 0))
        job, _ = small_job.job()
        with pytest.raises(NotFound):
            await house.runs.start(job)
        encoders = small_job.job(encoders=(small_job.Encoder("b", "x", b"no ONNX", {"x": "x"}),))
        for data in encoders[1].values():
            house.state.put_blob(data)
        with pytest.raises(InvalidGraph):
            await house.runs.start(encoders[0])
        assert house.runs.list() == ()

    with House() as house:
        asyncio.run(scenario(house))


def test_a_run_is_found_by_id_and_by_its_latest_name():
    async def scenario(house):
        first, _ = await started(house, rounds=1, holdout=0.0)
        await ended(house, first)
        house.membership.tick(float("inf"))
        second, _ = await started(house, rounds=1, holdout=0.0)
        await ended(house, second)
        assert house.runs.describe(first).id == first
        assert house.runs.describe("small").id == second
        assert [run.id for run in house.runs.list()] == [first, second]
        assert house.runs.parameters(first, None).version == 1
        with pytest.raises(NotFound, match="no version 7"):
            house.runs.parameters(first, 7)

    with House() as house:
        asyncio.run(scenario(house))


def test_a_run_that_is_stopped_before_it_has_begun_is_stopped():
    async def run(house):
        job, files = small_job.job()
        for data in files.values():
            house.state.put_blob(data)
        planned = (await house.runs.plan(job)).graphs
        releases = sorted({graph.release for graph in planned if graph.node == "a" and graph.release})
        house.node("a", datasets=small_job.datasets("a"), releases=releases)
        info = await house.runs.start(job)
        assert (await house.runs.stop(info.id)).state is RunState.STOPPED
        assert house.runs.describe(info.id).state is RunState.STOPPED

    with House() as house:
        asyncio.run(run(house))


def test_of_a_run_that_has_ended_nothing_stays_in_memory_but_what_is_told_of_it():
    async def scenario(house):
        run, _ = await started(house, rounds=1)
        active = weakref.ref(house.runs._active[run])
        _, info = await ended(house, run)
        await until(lambda: not house.runs._active)
        gc.collect()
        assert active() is None, "its job may have a megabyte"
        assert house.runs.describe(run) == info
        assert [one.id for one in house.runs.list()] == [run]
        assert house.runs.error_of(run) is None
        failed = (await house.runs.start(replace(job_of(house, run), patience_seconds=0.01))).id
        for box in list(house.membership.members()):
            house.membership.disconnected(box.name, box.epoch, time.monotonic())
        _, info = await ended(house, failed)
        assert info.state is RunState.FAILED
        assert house.runs.error_of(failed).__traceback__ is None
        await house.runs.delete(failed)
        assert house.runs.error_of(failed) is None

    with House() as house:
        asyncio.run(scenario(house))
