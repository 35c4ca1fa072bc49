"""Records of many rounds: what is read and written of them, how much, and by which thread."""

from __future__ import annotations

import asyncio
import json
import threading

import many_rounds
import pytest
import test_federated
import test_fusion
from house import House, until

from aggregator.training import records
from aggregator.training.records import PAGE, RecordFile, every_record, record_from, to_json
from edge_attention.core.messages.training import RunState, TrainingRound

MANY = 10_000


def record(number):
    return TrainingRound(number, number, 0.5, (1, 2), {}, {}, {}, {})


@pytest.fixture
def house(tmp_path):
    with House(tmp_path) as house:
        house.state.put_run("run", "run", 0.0, {}, "running")
        (tmp_path / "runs" / "run").mkdir(exist_ok=True)
        yield house


def filled(house, first, last):
    with house.state.transaction():
        for number in range(first, last + 1):
            house.state.add_record("run", number, to_json(record(number)))
        house.state._database.execute("UPDATE runs SET round = ?", (last,))


def numbers(path):
    return [json.loads(line)["number"] for line in path.read_text().splitlines()]


def test_every_record_is_found_a_page_at_a_time(house, monkeypatch):
    filled(house, 0, 2 * PAGE + 7)
    read, counts = house.state.records, []
    monkeypatch.setattr(
        house.state, "records", lambda *given, count: counts.append(count) or read(*given, count=count)
    )
    assert [r.number for r in every_record(house.state, "run")] == list(range(1, 2 * PAGE + 8))
    assert set(counts) == {PAGE}


def test_lines_are_appended_never_written_again(house, monkeypatch):
    path = house.parameters.folder("run") / "record.jsonl"
    filled(house, 0, 600)
    first = RecordFile(house.state, "run", path)
    first.write(590)
    assert numbers(path) == list(range(1, 591))
    assert record_from(json.loads(path.read_text().splitlines()[4])) == record(5)
    # The next process: it looks at the end of the file, and reads from the state what is missing there.
    read, asked = house.state.record_texts, []
    monkeypatch.setattr(
        house.state, "record_texts", lambda run, after, count: asked.append(after) or read(run, after, count)
    )
    inode = path.stat().st_ino
    second = RecordFile(house.state, "run", path)
    second.write(600)
    second.write(600)
    filled(house, 601, 601)
    second.write(601)
    assert numbers(path) == list(range(1, 602))
    assert (asked, path.stat().st_ino) == ([590, 600], inode)


@pytest.mark.parametrize(
    "end",
    [
        b'{"number": 7, "lo',  # a machine that lost power
        b"\0\0\0\0\0\n",
        b'{"number": 9999}\n',  # of a state that was put back since
        b"[]\n",
        b'{"number": "6"}\n',
    ],
)
def test_what_is_no_line_of_the_run_is_cut_off(house, end):
    path = house.parameters.folder("run") / "record.jsonl"
    filled(house, 0, 9)
    RecordFile(house.state, "run", path).write(6)
    with path.open("ab") as file:
        file.write(end)
    RecordFile(house.state, "run", path).write(9)
    assert numbers(path) == list(range(1, 10))


def test_lines_longer_than_what_is_read_at_a_time(house, monkeypatch):
    monkeypatch.setattr(records, "_TAIL", 16)
    path = house.parameters.folder("run") / "record.jsonl"
    filled(house, 0, 9)
    for until_round in (1, 2, 5, 9):
        RecordFile(house.state, "run", path).write(until_round)
        assert numbers(path) == list(range(1, until_round + 1))


def test_a_file_that_cannot_be_written_is_said_once_and_caught_up_with(house, caplog):
    path = house.parameters.folder("run") / "record.jsonl"
    filled(house, 0, 9)
    path.mkdir()
    lines = RecordFile(house.state, "run", path)
    for number in range(1, 6):
        lines.write(number)
    said = [r.message for r in caplog.records]
    assert len(said) == 1
    assert "record.jsonl cannot be written" in said[0]
    assert "the run goes on" in said[0]
    path.rmdir()
    lines.write(6)
    assert numbers(path) == list(range(1, 7))


@pytest.mark.parametrize("way", [test_fusion, test_federated], ids=["fusion", "federated"])
def test_a_run_goes_on_and_ends_where_its_record_cannot_be_written(way, tmp_path, caplog):
    async def scenario(house):
        run, _ = await way.started(house, rounds=4)
        (house.parameters.folder(run) / "record.jsonl").mkdir(parents=True)
        return await way.ended(house, run)

    with House(tmp_path) as house:
        rounds, info = asyncio.run(scenario(house))
    assert (info.state, info.version, len(rounds)) == (RunState.FINISHED, 4, 4), info.detail
    assert sum("record.jsonl cannot be written" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("way", [test_fusion, test_federated], ids=["fusion", "federated"])
def test_ten_thousand_rounds_are_read_by_other_threads_than_the_loops(way, tmp_path, monkeypatch):
    async def first(house):
        run, _ = await way.started(house, rounds=MANY + 2)
        await until(lambda: house.runs.describe(run).round >= 1)
        await house.runs.close()
        return run

    with House(tmp_path) as house:
        run = asyncio.run(first(house))
        many_rounds.grow(house.state, run, MANY)

    by_loop = []

    async def second(house):
        loop = threading.get_ident()
        await asyncio.to_thread(house.runs.recall)

        def watched(name):
            real = getattr(house.state, name)

            def call(*given, **options):
                if threading.get_ident() == loop:
                    by_loop.append((name, given))
                return real(*given, **options)

            monkeypatch.setattr(house.state, name, call)

        for name in ("records", "record_texts", "record", "replace_record", "add_record"):
            watched(name)
        house.runs.resume()
        job = house.runs._active[run].job
        released = sorted({g.release for g in (await house.runs.plan(job)).graphs if g.release})
        for node in getattr(job, "nodes", ()) or "ab":
            module = way.small_job if way is test_fusion else way.small_model
            datasets = module.datasets(node) if way is test_fusion else [module.rows(node)]
            house.node(node, datasets=datasets, releases=released)
        async with asyncio.timeout(120):
            events = [event async for event in house.runs.watch(run, 0)]
        return [e for e in events if isinstance(e, TrainingRound)]

    with House(tmp_path) as house:
        rounds = asyncio.run(second(house))
        info = house.runs.describe(run)
        assert (info.state, info.version) == (RunState.FINISHED, MANY + 2), info.detail
        assert [r.number for r in rounds] == list(range(1, MANY + 3)), "each round once"
        assert numbers(house.parameters.folder(run) / "record.jsonl") == list(range(1, MANY + 3))
    assert by_loop == []
