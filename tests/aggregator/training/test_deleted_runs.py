"""Runs that are deleted: nothing of them is left, and nothing of others is missing."""

from __future__ import annotations

import asyncio

import pytest
from house import House, job_of, until
from test_fusion import ended, started

from aggregator.store import blobs, state
from aggregator.training import runs
from edge_attention.core.errors import FailedPrecondition, NotFound
from edge_attention.core.messages.training import RunState


def test_a_run_that_goes_on_is_not_deleted_and_one_that_has_ended_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "UNUSED_SECONDS", 0.0)

    async def scenario(house):
        run, _ = await started(house, rounds=1000)
        await until(lambda: house.runs.describe(run).round >= 1)
        with pytest.raises(FailedPrecondition, match=f"stop it first: edge-attention train stop {run}"):
            await house.runs.delete(run)
        await house.runs.stop(run)
        assert list((tmp_path / "blobs").iterdir())
        deleted = await house.runs.delete("small")
        assert (deleted.id, deleted.state) == (run, RunState.STOPPED)
        with pytest.raises(NotFound):
            house.runs.describe(run)
        with pytest.raises(NotFound):
            await house.runs.delete(run)
        assert house.runs.list() == ()
        assert not house.parameters.folder(run).exists()
        assert not house.run_activity.runs
        assert not any(line.run == run for line in house.run_activity.rounds)
        return run

    with House(tmp_path) as house:
        asyncio.run(scenario(house))
        assert house.runs._budgets[runs.RUNS_KEPT].used == 0
        # What nobody else names goes with it; what clients sent a moment ago is only not named any more.
        assert list((tmp_path / "blobs").iterdir()) == []
    with House(tmp_path) as house:
        assert house.runs.list() == ()


def test_what_another_run_names_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "UNUSED_SECONDS", 0.0)

    async def scenario(house):
        first, _ = await started(house, rounds=2)
        await ended(house, first)
        job = job_of(house, first)
        second = (await house.runs.start(job)).id
        await ended(house, second)
        before = {path.name for path in (tmp_path / "blobs").iterdir()}
        await house.runs.delete(first)
        assert {path.name for path in (tmp_path / "blobs").iterdir()} == before
        assert house.runs.describe(second).round == 2
        assert b"".join(house.runs.parameters(second, None).pieces)

    with House(tmp_path) as house:
        asyncio.run(scenario(house))


def test_a_blob_that_somebody_asked_for_just_now_stays(tmp_path):
    with House(tmp_path) as house:
        state = house.state
        digest = state.put_blob(b"a graph")
        assert state.drop_blobs({digest}, 3600.0) == 0
        assert state.has_blob(digest)
        assert state.unused_blobs(3600.0) == []
        assert state.unused_blobs(0.0) == [digest]
        assert state.drop_blobs({digest}) == len(b"a graph")
        assert not state.has_blob(digest)
        assert blobs.Blobs(tmp_path / "blobs").drop(digest) == 0


def test_files_of_a_run_that_was_half_deleted_go_at_the_next_start(tmp_path):
    with House(tmp_path) as house:
        folder = house.parameters.folder("gone-123456")
        folder.mkdir()
        (folder / "record.jsonl").write_text("{}\n")
    with House(tmp_path):
        assert not folder.exists()


def test_jobs_are_looked_through_once_however_many_blobs_go(tmp_path, monkeypatch):
    looked, named = [], state._named
    monkeypatch.setattr(state, "_named", lambda job: looked.append(job) or named(job))
    with House(tmp_path) as house:
        kept = [house.state.put_blob(b"graph %d" % number) for number in range(4)]
        gone = [house.state.put_blob(b"file %d" % number) for number in range(4)]
        for number, digest in enumerate(kept):
            house.state.put_run(f"run-{number}", "run", 0.0, {"plan": f"runs {digest}"}, "finished")
        for digest in (*kept, *gone):
            house.state.drop_blob(digest)
        assert len(looked) == len(kept)
        assert [house.state.has_blob(digest) for digest in (*kept, *gone)] == [True] * 4 + [False] * 4
        assert house.state.delete_run("run-0") == {kept[0]}
        house.state.drop_blobs(set(kept))
        assert [house.state.has_blob(digest) for digest in kept] == [False, True, True, True]
        assert len(looked) == len(kept) + 1, "of the run that was deleted, to say what it named"
