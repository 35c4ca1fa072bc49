"""A state's disk without room: a run waits and goes on, or fails with the reason; nothing is half-done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import small_model
import test_fusion
from full_disk import FullDisk
from house import House, until
from test_federated import ended, parameters, started

from aggregator.store.state import State
from aggregator.store.tensor_file import TensorFileWriter
from aggregator.training import disk_room
from aggregator.trust import audit as audits
from aggregator.trust.audit import Audit
from aggregator.trust.registry import Registry
from edge_attention.core.errors import DiskFull, NotFound
from edge_attention.core.messages.attention import ContextSpec
from edge_attention.core.messages.training import RunState


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(disk_room, "ROOM_RETRY_SECONDS", (0.01, 0.05))


def left_over(house):
    """Files that nobody will ever name."""
    return [str(p) for p in house.state.directory.rglob("*.tmp")]


def whole(**changed):
    async def scenario(house):
        run, _ = await started(house, **changed)
        await ended(house, run)
        return parameters(house, run)

    with House() as house:
        return asyncio.run(scenario(house))


def test_a_run_waits_for_room_wherever_it_met_the_end_of_it(tmp_path, monkeypatch):
    expected = whole(rounds=3)

    async def scenario(house, fill_at):
        disk = FullDisk(house, monkeypatch)
        run, _ = await started(house, rounds=3)
        disk.writes, disk.fill_at, disk.times = 0, fill_at, 3
        rounds, info = await ended(house, run)
        assert info.state is RunState.FINISHED, (fill_at, info.detail)
        assert [r.number for r in rounds] == [1, 2, 3]
        assert (info.waiting, left_over(house)) == ("", []), fill_at
        for got, want in zip(parameters(house, run), expected, strict=True):
            np.testing.assert_array_equal(got, want)
        return disk.writes

    with House(tmp_path / "count") as house:
        writes = asyncio.run(scenario(house, 10**9))
    assert writes > 12
    for fill_at in range(1, writes, 5):
        with House(tmp_path / str(fill_at)) as house:
            asyncio.run(scenario(house, fill_at))


@pytest.mark.parametrize("kind", ["federated", "fusion"])
def test_a_run_says_that_it_waits_for_room_and_goes_on(kind, monkeypatch):
    begin = started if kind == "federated" else test_fusion.started

    async def scenario(house):
        disk = FullDisk(house, monkeypatch)
        run, _ = await begin(house, rounds=40)
        await until(lambda: house.runs.describe(run).round >= 2)
        disk.fill()
        await until(lambda: "room on the disk, until" in house.runs.describe(run).waiting)
        assert house.runs.describe(run).state is RunState.RUNNING
        before = house.runs.describe(run).round
        disk.free()
        rounds, info = await ended(house, run)
        assert (info.state, info.waiting) == (RunState.FINISHED, "")
        assert [r.number for r in rounds] == list(range(1, 41)), f"each once, over round {before}"
        assert left_over(house) == []

    with House() as house:
        asyncio.run(scenario(house))


def test_without_room_for_long_it_fails_with_the_reason_and_can_be_resumed(monkeypatch):
    monkeypatch.setattr(disk_room, "ROOM_SECONDS", 0.3)

    async def scenario(house):
        disk = FullDisk(house, monkeypatch)
        run, _ = await started(house, rounds=200)
        await until(lambda: house.runs.describe(run).round >= 2)
        refused = []
        real = house.state.set_run_status
        monkeypatch.setattr(house.state, "set_run_status", lambda *a: refused.append(a) or full())

        def full():
            raise DiskFull("the disk of the state is full; free space there")

        disk.full = True
        await until(lambda: house.runs.describe(run).state is RunState.FAILED)
        assert "No space left" in house.runs.describe(run).detail
        assert "waited 0 s for room" in house.runs.describe(run).detail
        with pytest.raises(DiskFull):
            await house.runs.resume_run(run)
        assert house.runs.describe(run).state is RunState.FAILED, "refused, and as it was"
        disk.full = False
        monkeypatch.setattr(house.state, "set_run_status", real)
        await until(lambda: house.state.get_run(run).status == "failed")
        assert (await house.runs.resume_run(run)).state is RunState.RUNNING
        await until(lambda: house.runs.describe(run).round >= 5)
        await house.runs.stop(run)

    with House() as house:
        asyncio.run(scenario(house))


def test_a_run_is_stopped_at_any_time(tmp_path, monkeypatch):
    async def scenario(house):
        disk = FullDisk(house, monkeypatch)
        run, _ = await started(house, rounds=500)
        await until(lambda: house.runs.describe(run).round >= 2)
        disk.fill()
        await until(lambda: house.runs.describe(run).waiting)
        async with asyncio.timeout(120):
            assert (await house.runs.stop(run)).state is RunState.STOPPED
        disk.free()
        await until(lambda: house.state.get_run(run).status == "stopped")
        at = house.runs.describe(run).round
        await house.runs.resume_run(run)
        await until(lambda: house.runs.describe(run).round > at + 2)
        await house.runs.stop(run)

    with House(tmp_path) as house:
        asyncio.run(scenario(house))


def test_a_run_that_finds_no_room_to_begin_leaves_nothing(monkeypatch):
    async def scenario(house):
        job = small_model.job(house)
        disk = FullDisk(house, monkeypatch)
        disk.fill()
        with pytest.raises(DiskFull, match="free space"):
            await house.runs.start(job)
        disk.free()
        assert house.runs.list() == ()
        assert list((house.state.directory / "runs").iterdir()) == []
        assert list((house.state.directory / "plans").iterdir()) == []

    with House() as house:
        asyncio.run(scenario(house))


def test_a_file_that_cannot_even_be_begun_is_not_left(tmp_path, monkeypatch):
    with House(tmp_path / "s") as house:
        FullDisk(house, monkeypatch).full = True
        with pytest.raises(DiskFull):
            TensorFileWriter(tmp_path / "x", {"p/0": (np.dtype(np.float32), (3,))}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_an_audit_line_torn_by_a_full_disk_spoils_no_other(tmp_path, monkeypatch, caplog):
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write("began")
    real, short = os.write, [3, 0, 0]

    def write(descriptor, data):
        if not short:
            return real(descriptor, data)
        if not (count := short.pop(0)):
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:count])

    monkeypatch.setattr(audits.os, "write", write)
    for event in ("torn", "lost", "lost", "whole", "whole"):
        audit.write(event)
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["began", "whole", "whole"]
    assert caplog.text.count("cannot be written") == 1


@contextlib.contextmanager
def small_disk(folder: Path, size="6m"):
    """A file system of its own, which a test can fill up."""
    folder.mkdir()
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder):
    """Not a byte of room, meanwhile."""
    with (folder / "filling").open("wb", buffering=0) as file:
        for size in (65536, 512, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
        yield
    (folder / "filling").unlink()


async def again(do, times=1000):
    for _ in range(times):
        await do()


def test_who_enrols_is_told_that_the_disk_is_full_and_nothing_is_issued(tmp_path):
    registry, issued = Registry(tmp_path), []

    def create():
        token = registry.create_token("join", "node", "ab" * 16, 0.0)
        issued.append(token.id)

    (count,) = registry._database.execute("PRAGMA page_count").fetchone()
    registry._database.execute(f"PRAGMA max_page_count={count}")

    def fill():
        for _ in range(1000):
            create()

    with pytest.raises(DiskFull, match=r"trust\.db: the disk is full; free space"):
        fill()
    assert [row.id for row in registry.tokens()] == issued
    registry._database.execute(f"PRAGMA max_page_count={2**30}")
    create()
    assert [row.id for row in registry.tokens()] == issued
    registry.close()


def test_on_a_disk_that_is_really_full_everything_answers_and_nothing_is_half_done(tmp_path):
    async def scenario(house, disk):
        run, _ = await started(house, rounds=100_000)
        await until(lambda: house.runs.describe(run).round >= 3)
        await house.contexts.create(ContextSpec("before", 2, 2, 4, 4))
        keys = np.ones((8, 2, 4), np.float32)
        with filled(disk):
            await until(lambda: "room on the disk" in house.runs.describe(run).waiting)
            made = []

            async def create():
                await house.contexts.create(ContextSpec(f"c{len(made)}", 2, 2, 4, 4))
                made.append(f"c{len(made)}")

            # Some fits into pages that are there already.
            with pytest.raises(DiskFull, match="free space"):
                await again(create)
            assert {c.spec.name for c in house.contexts.list()} == {"before", *made}
            with pytest.raises(DiskFull, match="free space"):
                await again(lambda: house.appender.append("before", "", keys, keys))
            tokens = house.contexts.get("before").tokens
            with pytest.raises(DiskFull):
                house.state.put_blob(b"x" * 100_000)
            async with asyncio.timeout(120):
                assert (await house.runs.stop(run)).state is RunState.STOPPED
        await until(lambda: house.state.get_run(run).status == "stopped")
        appended = await house.appender.append("before", "", keys, keys)
        assert appended.tokens == range(tokens, tokens + 8)
        at = (await house.runs.resume_run(run)).round
        await until(lambda: house.runs.describe(run).round > at + 3)
        await house.runs.stop(run)
        assert left_over(house) == []

    with small_disk(tmp_path / "disk") as disk, House(disk / "state") as house:
        asyncio.run(scenario(house, disk))


@pytest.mark.parametrize("size", ["16m", "64m"])
def test_a_run_with_more_records_than_room_is_kept_for_goes_on_a_full_disk(tmp_path, size):
    with small_disk(tmp_path / "disk", size) as disk, State(disk / "state") as state:
        for run in ("long", "other"):
            state.put_run(run, run, 0.0, {"job": ""}, "finished")
        for first in range(0, 5000, 500):
            with state.transaction():
                for number in range(first, first + 500):
                    for run in ("long", "other")[: 1 + (number < 100)]:
                        values = (run, number, json.dumps({"round": "x" * 1000}))
                        state._database.execute("INSERT INTO records VALUES (?, ?, ?)", values)
        state._database.checkpoint()
        with filled(disk):
            state.delete_run("long")
            with pytest.raises(NotFound, match="'long'"):
                state.get_run("long")
            assert len(state.records("other", -1)) == 100
            assert not state.records("long", -1)
        state.keep_reserve()
        assert (disk / "state" / "reserve").exists()


def test_what_frees_room_is_done_on_a_full_disk(tmp_path):
    """Runs and contexts go, by the room that is kept for that; then there is room for others."""

    async def scenario(house, disk):
        await house.contexts.create(ContextSpec("old", 2, 2, 4, 4))
        run, _ = await started(house, rounds=3)
        await ended(house, run)
        made = []

        async def create():
            await house.contexts.create(ContextSpec(f"c{len(made)}", 2, 2, 4, 4))
            made.append(f"c{len(made)}")

        with filled(disk):
            with pytest.raises(DiskFull):
                await again(create)
            await house.runs.delete(run)
            await house.contexts.drop(house.contexts.get("old"))
            assert not (disk / "state" / "reserve").exists()
        assert {context.name for context in house.state.list_contexts()} == set(made)
        assert not list((disk / "state" / "runs").iterdir())
        house.state.keep_reserve()
        assert (disk / "state" / "reserve").exists()
        await create()

    with small_disk(tmp_path / "disk") as disk, House(disk / "state") as house:
        asyncio.run(scenario(house, disk))
