"""The state folder kept as the settings say, over real runs."""

from __future__ import annotations

import asyncio
import os
import time
import types
from dataclasses import replace

import pytest
from house import House, job_of, until
from test_fusion import ended, started

from aggregator.observe.metrics import Metrics
from aggregator.store.disk import folder_bytes, scarce, state_bytes
from aggregator.store.folder import no_files
from aggregator.store.retention import Retention
from aggregator.store.settled_clock import SettledClock
from aggregator.training import housekeeping
from aggregator.training.housekeeping import Housekeeping
from edge_attention.core.errors import DiskFull
from edge_attention.core.messages.training import RunState
from edge_attention.disk_room import room


def test_runs_that_have_ended_go_as_the_settings_say_and_those_that_go_on_stay(tmp_path):
    async def scenario(house):
        first, _ = await started(house, rounds=2)
        await ended(house, first)
        job = job_of(house, first)
        ids = [first]
        for _ in range(2):
            ids.append((await house.runs.start(job)).id)
            await ended(house, ids[-1])
        going = (await house.runs.start(replace(job, rounds=100_000))).id
        await until(lambda: house.runs.describe(going).round >= 1)
        keeping = Housekeeping(house.state, house.runs, Retention(runs=1), house.metrics)
        await keeping.look()
        assert [run.id for run in house.runs.list()] == [ids[-1], going]
        assert house.runs.describe(going).state is RunState.RUNNING
        read = house.metrics.registry.get_sample_value
        assert read("edge_attention_aggregator_runs_deleted_total", {"setting": "--keep-runs"}) == 2
        assert read("edge_attention_aggregator_state_bytes", {"kind": "runs"}) > 0
        await house.runs.stop(going)
        # Nothing is younger than in a hundred days, and it says so of everything.
        late = Housekeeping(
            house.state,
            house.runs,
            Retention(run_seconds=86400.0),
            Metrics(),
            lambda: time.time() + 1e7,
        )
        await late.look()
        assert house.runs.list() == ()
        assert list((tmp_path / "runs").iterdir()) == []

    with House(tmp_path) as house:
        asyncio.run(scenario(house))


def test_files_that_nobody_names_go_after_their_days(tmp_path):
    async def scenario(house):
        digest = house.state.put_blob(b"sent, and never used")
        await Housekeeping(house.state, house.runs, Retention(), house.metrics).look()
        assert house.state.has_blob(digest)
        await asyncio.sleep(0.02)
        await Housekeeping(house.state, house.runs, Retention(blob_seconds=0.01), Metrics()).look()
        assert not house.state.has_blob(digest)

    with House(tmp_path) as house:
        asyncio.run(scenario(house))


def test_a_run_is_refused_where_its_disk_has_no_room(tmp_path, monkeypatch):
    async def scenario(house):
        run, _ = await started(house, rounds=1)
        await ended(house, run)
        job = job_of(house, run)
        before = {run.id for run in house.runs.list()}

        def full(*_, **__):
            raise OSError(28, "No space left on device", str(tmp_path))

        with monkeypatch.context() as patch:
            patch.setattr("tempfile.mkdtemp", full)
            with pytest.raises(DiskFull, match="No space left on device; free space there"):
                await house.runs.start(job)
        with monkeypatch.context() as patch:
            small = types.SimpleNamespace(f_blocks=1000, f_bavail=10, f_frsize=4096, f_files=0)
            patch.setattr("os.statvfs", lambda _: small)
            with pytest.raises(DiskFull, match="bound disk-reserve: the disk of"):
                await house.runs.start(job)
            with pytest.raises(DiskFull, match="bound disk-reserve"):
                await house.runs.plan(job)
        assert {run.id for run in house.runs.list()} == before
        assert (await house.runs.start(job)).state is RunState.RUNNING
        await house.runs.close()

    with House(tmp_path) as house:
        asyncio.run(scenario(house))


def test_what_a_folder_takes(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "x").write_bytes(b"12345")
    (tmp_path / "state.db").write_bytes(b"123")
    assert folder_bytes(tmp_path) == 8
    assert folder_bytes(tmp_path / "none") == 0
    assert state_bytes(tmp_path) == {
        "runs": 5,
        "blobs": 0,
        "deployments": 0,
        "spool": 0,
        "plans": 0,
        "other": 3,
    }
    free, size = room(tmp_path)
    assert 0 < free <= size
    assert room(tmp_path / "none" / "below") == (0, size), "a folder that is gone"


@pytest.mark.parametrize(
    ("files", "files_left", "read_only", "left"),
    [
        (1000, 900, False, 0.5),
        (1000, 20, False, 0.02),
        (1000, 0, False, 0),
        (0, 0, False, 0.5),
        (9, 9, True, 0),
    ],
)
def test_a_disk_without_files_left_or_read_only_is_full(
    tmp_path, monkeypatch, files, files_left, read_only, left
):
    """Metrics, the alert, the page and the doctor all go by `room`. 1,000 blocks of 4 KiB, 500 free."""
    flags = os.ST_RDONLY if read_only else 0
    disk = os.statvfs_result((4096, 4096, 1000, 500, 500, files, files_left, files_left, flags, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    assert room(tmp_path) == (int(left * 4096 * 1000), 4096 * 1000)
    assert scarce(tmp_path) is (left < 0.1)
    if not read_only:
        assert no_files(tmp_path) is (files_left == 0 and files > 0)


def test_what_is_no_blob_is_nobodys_business(tmp_path):
    with House(tmp_path) as house:
        (tmp_path / "blobs" / "lost+found").mkdir()
        digest = house.state.put_blob(b"unused")
        assert house.state.unused_blobs(-1.0) == [digest]


def test_what_is_kept_for_speed_alone_goes_where_little_of_the_disk_is_left(tmp_path, monkeypatch):
    async def scenario(house):
        gone = []

        async def let_go():
            gone.append(True)

        keeping = Housekeeping(house.state, house.runs, Retention(), house.metrics, let_go=let_go)
        await keeping.look()
        assert gone == [] or room(tmp_path)[0] < 0.1 * room(tmp_path)[1]
        monkeypatch.setattr(housekeeping, "scarce", lambda folder: folder == tmp_path)
        await keeping.look()
        assert gone

    with House(tmp_path) as house:
        asyncio.run(scenario(house))


def test_a_clock_that_is_a_year_ahead_at_the_start_deletes_nothing_by_age(tmp_path, monkeypatch):
    real = time.time
    kept = Retention(run_seconds=3600.0)

    async def scenario(house):
        await Housekeeping(house.state, house.runs, kept, Metrics()).look()
        run, _ = await started(house, rounds=1)
        await ended(house, run)
        blob = house.state.put_blob(b"nobody names it")
        monkeypatch.setattr(time, "time", lambda: real() + 366 * 86400.0)
        for _ in range(2):  # each as of a process that has just started
            await Housekeeping(house.state, house.runs, kept, Metrics()).look()
        assert house.runs.describe(run).id == run
        assert house.state.has_blob(blob)

    with House(tmp_path) as house:
        asyncio.run(scenario(house))


def test_a_clock_that_is_set_a_year_ahead_deletes_nothing_by_age(monkeypatch):
    real = time.time

    async def scenario(house):
        settled = SettledClock(wall=lambda: time.time())
        keeper = Housekeeping(house.state, house.runs, Retention(run_seconds=3600.0), Metrics(), settled)
        run, _ = await started(house, rounds=1)
        await ended(house, run)
        blob = house.state.put_blob(b"nobody names it")
        monkeypatch.setattr(time, "time", lambda: real() + 366 * 86400.0)
        for _ in range(3):
            await keeper.look()
        assert house.runs.describe(run).id == run
        assert house.state.has_blob(blob)
        monkeypatch.setattr(time, "time", real)
        await keeper.look()
        assert house.runs.describe(run).id == run

    with House() as house:
        asyncio.run(scenario(house))
