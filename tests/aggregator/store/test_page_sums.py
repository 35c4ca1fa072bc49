"""A database whose pages have changed on the disk is refused by name; wherever a process ends, none is."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.store import page_sums
from aggregator.store.database import SCHEMA
from aggregator.store.folder import write_durably
from aggregator.store.page_sums import PageSums
from aggregator.store.state import State
from aggregator.store.write_ahead import require_whole
from edge_attention.core.errors import DataLoss, DiskFull, Internal

PAGE = 4096


def fill(state: State, first: int, count: int) -> None:
    for number in range(first, first + count):
        with state.transaction():
            state.put_context(f"i{number}", f"c{number}", float(number), {"number": number})
            state.put_segment(f"i{number}", "s", {"long": "x" * 300})


def found(folder: Path) -> list[object]:
    """All that a state says."""
    with State(folder) as state:
        contexts = state.list_contexts()
        return [
            contexts,
            [state.list_segments(c.id) for c in contexts],
            list(state.each_run()),
            state.get_run("r"),
        ]


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A folder that was closed: nothing is in its log."""
    folder = tmp_path_factory.mktemp("closed") / "state"
    with State(folder) as state:
        state.put_run("r", "name", 1.0, {"rounds": 3}, "running")
        fill(state, 0, 40)
    assert not (folder / "state.db-wal").exists()
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder as a killed process leaves it: some pages are in the database alone, some in the log, too."""
    folder = tmp_path_factory.mktemp("killed")
    with State(folder / "living") as state:
        state.put_run("r", "name", 1.0, {"rounds": 3}, "running")
        fill(state, 0, 40)
        state._database.checkpoint()
        fill(state, 40, 2)
        shutil.copytree(folder / "living", folder / "killed")
    return folder / "killed"


def flip(file: Path, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(bit // 8)
        (byte,) = opened.read(1)
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ (1 << bit % 8)]))


def test_a_bit_of_a_database_that_changed_is_found_whichever_it_is(closed, tmp_path):
    """Each bit of the header, and many others; each of them changed alone."""
    folder = tmp_path / "s"
    shutil.copytree(closed, folder)
    file, sums = folder / "state.db", PageSums(folder / "state.db")
    bits = 8 * file.stat().st_size
    sums.require_whole()
    for bit in [*range(8 * 100), *random.Random(0).sample(range(bits), 1500)]:
        flip(file, bit)
        with pytest.raises(
            DataLoss, match=rf"state.db is damaged: 1 of .* first at byte {bit // 8 // PAGE * PAGE:,};"
        ):
            sums.require_whole()
        flip(file, bit)
    sums.require_whole()


def test_a_bit_of_the_sums_that_changed_is_found_and_they_can_be_removed(closed, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(closed, folder)
    file, sums = folder / "state.db.sums", PageSums(folder / "state.db")
    for bit in range(8 * file.stat().st_size):
        flip(file, bit)
        with pytest.raises(DataLoss, match=r"state.db.sums is damaged.*remove state.db.sums"):
            sums.require_whole()
        flip(file, bit)
    file.unlink()
    assert found(folder) == found(closed)
    assert file.exists()


@settings(max_examples=60)
@given(
    st.sampled_from(["state.db", "state.db-wal", "state.db.sums"]),
    st.randoms(use_true_random=False),
    st.integers(1, 3),
)
def test_damage_is_named_or_nothing_is_wrong(killed, file, chosen, many):
    """Of a process that was killed. What is in the log is not read from the database."""
    with tempfile.TemporaryDirectory() as made:
        expected = Path(made) / "expected"
        shutil.copytree(killed, expected)
        folder = Path(made) / "state"
        shutil.copytree(killed, folder)
        size = (folder / file).stat().st_size
        if file == "state.db-wal":  # its last commit cannot be told from one that a power cut tore
            size -= 2 * (PAGE + 24) * 3
        for _ in range(many):
            flip(folder / file, chosen.randrange(8 * size))
        said = ""
        try:
            there = found(folder)
        except DataLoss as error:
            said = error.message
        if said:
            assert file in said
        else:
            assert there == found(expected)


def test_a_page_in_the_place_of_another_and_a_file_that_has_lost_its_end_are_damage(closed, tmp_path):
    for name, change in {
        "swapped": lambda data: (
            data[: 2 * PAGE] + data[3 * PAGE : 4 * PAGE] + data[2 * PAGE : 3 * PAGE] + data[4 * PAGE :]
        ),
        "short": lambda data: data[:-PAGE],
        "torn": lambda data: data[:-100],
        "empty": lambda data: b"",
        "long": lambda data: data + bytes(PAGE),
    }.items():
        shutil.copytree(closed, tmp_path / name)
        file = tmp_path / name / "state.db"
        file.write_bytes(change(file.read_bytes()))
        with pytest.raises(DataLoss, match=r"state.db is damaged"):
            State(tmp_path / name)
        file.unlink()
        with pytest.raises(DataLoss, match=r"state.db is damaged"):
            State(tmp_path / name)


@pytest.mark.parametrize("size", [1, 40_000])
def test_wherever_a_process_ends_the_state_is_what_was_committed(tmp_path, monkeypatch, size):
    """The folder is copied, as a kill would leave it, at each step of checkpoints and after each commit."""
    monkeypatch.setattr(page_sums, "CHECKPOINT_BYTES", size)
    living, copies = tmp_path / "living", []
    committed = 0

    def copy() -> None:
        copies.append((committed, shutil.copytree(living, tmp_path / f"copy{len(copies)}")))

    def written(path, data):
        copy()
        write_durably(path, data)
        copy()

    with State(living) as state:
        state.put_run("r", "name", 1.0, {}, "running")
        monkeypatch.setattr(page_sums, "write_durably", written)
        for number in range(6):
            committed = number + 1  # by the time anything is copied
            fill(state, number, 1)
            copy()
        monkeypatch.setattr(page_sums, "write_durably", write_durably)
        monkeypatch.setattr(page_sums, "CHECKPOINT_BYTES", 1 << 30)
        fill(state, 6, 20)
        before = {p.name: p.read_bytes() for p in living.glob("state.db*")}
        assert before["state.db-wal"]
        state._database._sums._sum(require_whole(living / "state.db-wal"))
        sums = (living / "state.db.sums").read_bytes()
        state._database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        after = (living / "state.db").read_bytes()
        fill(state, 26, 1)
    assert len(copies) > 8
    for count, folder in copies:
        contexts, segments, *_ = found(folder)
        assert len(contexts) in (count, count - 1)
        assert len(segments) == len(contexts)
        assert [c.id for c in contexts] == [f"i{n}" for n in range(len(contexts))]
    # In the midst of SQLite's part: any of its pages may be there and any not.
    for seed in range(10):
        folder = tmp_path / f"midst{seed}"
        shutil.copytree(living, folder)
        old, chosen = before["state.db"].ljust(len(after), b"\0"), random.Random(seed)
        pages = [chosen.choice((old, after))[at : at + PAGE] for at in range(0, len(after), PAGE)]
        for path in folder.glob("state.db*"):
            path.unlink()
        (folder / "state.db").write_bytes(b"".join(pages))
        (folder / "state.db-wal").write_bytes(before["state.db-wal"])
        (folder / "state.db.sums").write_bytes(sums)
        assert len(found(folder)[0]) == 26


def test_the_log_is_short_however_much_is_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(page_sums, "CHECKPOINT_BYTES", 100_000)
    with State(tmp_path / "s") as state:
        state.put_run("r", "name", 1.0, {}, "running")
        sizes = []
        for number in range(60):
            fill(state, number, 1)
            sizes.append((tmp_path / "s" / "state.db-wal").stat().st_size)
    assert max(sizes) < 200_000
    assert sorted(sizes) != sizes
    assert len(found(tmp_path / "s")[0]) == 60


def test_a_log_that_cannot_be_summed_stays_and_at_the_end_the_sums_go(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(page_sums, "CHECKPOINT_BYTES", 1)

    def full(path, data):
        raise DiskFull(f"{path} cannot be written")

    with State(tmp_path / "s") as state:
        state.put_run("r", "name", 1.0, {}, "running")
        with monkeypatch.context() as patched:
            patched.setattr(page_sums, "write_durably", full)
            fill(state, 0, 3)
            assert caplog.text.count("stays as it is, and grows") == 1
            shutil.copytree(tmp_path / "s", tmp_path / "killed")
            state.close()
    assert "not summed any more" in caplog.text
    for name in ("s", "killed"):
        assert len(found(tmp_path / name)[0]) == 3
        assert (tmp_path / name / "state.db.sums").exists()


def test_a_state_of_an_earlier_release_is_summed_and_that_release_refuses_it_from_then_on(closed, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(closed, folder)
    (folder / "state.db.sums").unlink()
    database = sqlite3.connect(folder / "state.db")
    database.execute("PRAGMA user_version=2")
    database.close()
    assert found(folder) == found(closed)
    assert (folder / "state.db.sums").exists()
    database = sqlite3.connect(folder / "state.db")
    assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    database.close()
    assert SCHEMA > 2


def test_processes_that_share_a_database_take_turns(tmp_path):
    """Who checkpoints does so alone, and who is killed having its turn gives it back."""
    sums = PageSums(tmp_path / "x.db", shared=True)
    with sums.turn() as one, sums.turn() as other:
        assert one
        assert other
        with sums.turn(alone=True) as mine:
            assert not mine
    code = (
        "import pathlib, sys; from aggregator.store.page_sums import PageSums\n"
        "with PageSums(pathlib.Path(sys.argv[1]), shared=True).turn(alone=True) as mine:\n"
        "    print(mine, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with sums.turn() as mine:
            assert not mine
        other.kill()
    with sums.turn(seconds=60) as mine:
        assert mine


def test_a_database_grows_past_the_page_that_is_never_written(tmp_path):
    """The one at 1 GiB, where SQLite's locks are. Most of this file is a hole."""
    path, size = tmp_path / "state.db", 65536
    pages = page_sums._LOCKS_AT // size
    made = sqlite3.connect(path, isolation_level=None)
    made.execute(f"PRAGMA page_size={size}")
    made.execute("CREATE TABLE t (data)")
    made.close()
    with path.open("r+b") as file:
        file.seek(28)  # of the header: how many pages there are
        file.write(pages.to_bytes(4, "big"))
        file.truncate(page_sums._LOCKS_AT)
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.close()
    sums = PageSums(path)
    sums.make()
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA wal_autocheckpoint=0")
    for number in range(2):
        database.execute("INSERT INTO t VALUES (zeroblob(?))", (2 * size + number,))
        sums.checkpoint(database)
    sums.close(database)
    assert path.stat().st_size > page_sums._LOCKS_AT + size, "it has not grown past it"
    PageSums(path).require_whole()
    with path.open("r+b") as file:
        file.seek(page_sums._LOCKS_AT + size)  # the page behind it counts
        file.write(b"\xff")
    with pytest.raises(DataLoss, match="1 of its"):
        PageSums(path).require_whole()


def put(state: State, name: str) -> None:
    state.put_context(name, name, 1.0, {})


@pytest.mark.parametrize("back", ["while it runs", "after its end"])
def test_nothing_is_committed_to_a_folder_that_was_moved_and_all_is_there_once_it_is_back(tmp_path, back):
    folder, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state = State(folder)
    put(state, "before")
    folder.rename(elsewhere)
    with pytest.raises(Internal, match=f"{folder}/state.db is not where it was opened .*put it back"):
        put(state, "lost")
    assert [context.name for context in state.list_contexts()] == ["before"]
    wanted = ["before"]
    if back == "while it runs":
        elsewhere.rename(folder)
        put(state, "after")
        wanted += ["after"]
    state.close()
    if back == "after its end":
        elsewhere.rename(folder)
    with State(folder) as state:
        assert [context.name for context in state.list_contexts()] == wanted


def test_a_folder_that_took_the_place_of_one_in_use_is_left_alone(tmp_path, caplog):
    folder = tmp_path / "state"
    state = State(folder)
    put(state, "old")
    folder.rename(tmp_path / "elsewhere")
    with State(folder) as other:
        put(other, "new")
        with pytest.raises(Internal, match="another file has taken its place"):
            put(state, "lost")
        log = (folder / "state.db-wal").read_bytes()
        state.close()
        assert (folder / "state.db-wal").read_bytes() == log
        assert "put it back" in caplog.text
    for path, name in ((folder, "new"), (tmp_path / "elsewhere", "old")):
        with State(path) as found:
            assert [context.name for context in found.list_contexts()] == [name]
