"""The state folder: what is put is there after reopening, one aggregator at a time, nothing half done."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aggregator.store.database import SCHEMA
from aggregator.store.folder import refusal
from aggregator.store.state import (
    ContextRow,
    Record,
    RunRow,
    SegmentRow,
    State,
    check_run_id,
    write_durably,
)
from edge_attention.core.errors import (
    AlreadyExists,
    DataLoss,
    EdgeAttentionError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)


@pytest.fixture(params=["folder", "memory"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    with State(tmp_path / "state" if request.param == "folder" else None) as opened:
        yield opened


def test_contexts_and_segments(state: State) -> None:
    state.put_context("c2", "later", 2.0, {"key_dim": 8})
    state.put_context("c1", "earlier", 1.0, {})
    state.put_segment("c2", "s2", {"start": 0})
    state.put_segment("c2", "s1", {"start": 4})
    state.put_segment("c2", "s2", {"start": 0, "stop": 4})
    state.put_context("c2", "later", 2.0, {"key_dim": 16})
    assert state.list_contexts() == [
        ContextRow("c1", "earlier", 1.0, {}),
        ContextRow("c2", "later", 2.0, {"key_dim": 16}),
    ]
    both = [SegmentRow("c2", "s2", {"start": 0, "stop": 4}), SegmentRow("c2", "s1", {"start": 4})]
    assert state.list_segments("c2") == both
    state.delete_context("c2")
    assert state.list_segments("c2") == []
    state.put_context("c3", "later", 3.0, {})
    assert [c.id for c in state.list_contexts()] == ["c1", "c3"]


def test_runs_and_records(state: State) -> None:
    state.put_run("run-2", "b", 2.0, {"rounds": 10}, "running")
    state.put_run("run-1", "a", 1.0, {}, "running")
    state.set_run_status("run-2", "failed", "node x is away")
    for round in (0, 1, 2):
        state.add_record("run-2", round, {"loss": 1.0 / (round + 1)})
    assert list(state.each_run()) == [
        RunRow("run-1", "a", 1.0, {}, "running", "", 0, None),
        RunRow("run-2", "b", 2.0, {"rounds": 10}, "failed", "node x is away", 0, None),
    ]
    assert state.get_run("run-1") == next(iter(state.each_run()))
    assert state.records("run-2", after_round=0) == [Record(1, {"loss": 0.5}), Record(2, {"loss": 1.0 / 3})]
    assert [r.round for r in state.records("run-2")] == [0, 1, 2]
    assert state.records("run-1") == []


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda s: s.put_context("other", "name", 0.0, {}), AlreadyExists, "context 'name' already"),
        (lambda s: s.put_run("run", "x", 0.0, {}, "running"), AlreadyExists, "run 'run' already"),
        (lambda s: s.put_segment("no", "s", {}), NotFound, "no context with id 'no'"),
        (lambda s: s.delete_context("no"), NotFound, "no context with id 'no'"),
        (lambda s: s.set_run_status("no", "failed"), NotFound, "no run 'no'"),
        (lambda s: s.get_run("no"), NotFound, "no run 'no'"),
        (lambda s: s.add_record("no", 0, {}), NotFound, "no run 'no'"),
        (lambda s: s.get_version("run", 0), NotFound, "no version 0"),
        (lambda s: s.get_version("run", 2**63), InvalidArgument, "64 bits"),
        (lambda s: s.put_run("../etc", "x", 0.0, {}, "running"), InvalidArgument, "no run id"),
        (lambda s: s.add_record("run", 0, {"x": object()}), InvalidArgument, "record of round 0 of run run"),
        (lambda s: s.get_blob("0" * 64), NotFound, "no blob 000"),
        (lambda s: s.get_blob("../../etc/passwd"), InvalidArgument, "no SHA-256"),
        (lambda s: s.has_blob("A" * 64), InvalidArgument, "no SHA-256"),
    ],
)
def test_refusals(
    state: State, call: Callable[[State], object], kind: type[EdgeAttentionError], message: str
) -> None:
    state.put_context("context", "name", 0.0, {})
    state.put_run("run", "name", 0.0, {}, "running")
    with pytest.raises(kind, match=message):
        call(state)
    assert [len(state.list_contexts()), len(state.run_ids()), len(state.records("run"))] == [1, 1, 0]


@pytest.mark.parametrize("id", ["", "A", "a/b", "..", "a\n", "a b", "é", "a" * 65, "a\0"])
def test_a_run_id_that_is_no_folder_name(id: str) -> None:
    with pytest.raises(InvalidArgument, match="is no run id"):
        check_run_id(id)
    check_run_id("a-9")


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    with State(tmp_path) as state:
        state.put_context("c", "name", 1.0, {"é": [1.5, None]})
        state.put_segment("c", "s", {"holders": ["a"]})
        state.put_run("r", "name", 1.0, {}, "running")
        state.add_record("r", 3, {})
        digest = state.put_blob(b"graph")
        seen = [state.list_contexts(), state.list_segments("c"), list(state.each_run()), state.records("r")]
    with State(tmp_path) as state:
        assert seen == [
            state.list_contexts(),
            state.list_segments("c"),
            list(state.each_run()),
            state.records("r"),
        ]
        assert state.get_blob(digest) == b"graph"
        durability = state._database.execute(
            "SELECT * FROM pragma_journal_mode, pragma_synchronous"
        ).fetchone()
        assert durability == ("wal", 2)


def test_a_transaction_is_all_or_nothing_nested_too(state: State) -> None:
    def half() -> None:
        with state.transaction():
            state.put_run("r", "name", 1.0, {}, "running")
            with state.transaction():
                state.add_record("r", 0, {})
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        half()
    assert list(state.each_run()) == []
    state.put_run("r", "name", 1.0, {}, "running")
    assert state.records("r") == []


def test_a_second_aggregator_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    child = (
        "import sys, pathlib; from aggregator.store.state import State; "
        "State(pathlib.Path(sys.argv[1])); print('open')"
    )
    command = [sys.executable, "-c", child, str(tmp_path)]
    with State(tmp_path):
        with pytest.raises(
            FailedPrecondition, match=r"in use by another aggregator \(process \d+\).*--state"
        ):
            State(tmp_path)
        refused = subprocess.run(command, capture_output=True, text=True)
        assert refused.returncode != 0
        assert "in use by another aggregator" in refused.stderr
    assert subprocess.run(command, capture_output=True, text=True).stdout == "open\n"
    State(tmp_path).close()


def test_two_temporary_states_are_apart_and_leave_nothing() -> None:
    with State(None) as one, State(None) as two:
        one.put_run("r", "name", 1.0, {}, "running")
        assert list(two.each_run()) == []
        folders = [one.directory, two.directory]
        assert all(folder.is_dir() for folder in folders)
    one.close()
    assert not any(folder.exists() for folder in folders)
    with pytest.raises(Internal, match="closed"):
        list(one.each_run())


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    State(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as database:
        database.execute(f"PRAGMA user_version={SCHEMA + 1}")
    database.close()
    (tmp_path / "state.db.sums").unlink()
    for _ in range(2):  # the second time shows that the first freed the lock
        with pytest.raises(FailedPrecondition, match=rf"has schema {SCHEMA + 1} .* up to {SCHEMA};"):
            State(tmp_path)


def test_a_damaged_database_and_an_unusable_folder_say_so(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 100)
    with pytest.raises(DataLoss, match="is damaged"):
        State(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match=r"file cannot be used: .* another --state"):
        State(tmp_path / "file")


def test_blobs_are_verified_healed_and_cleaned(tmp_path: Path) -> None:
    with State(tmp_path) as state:
        digest = hashlib.sha256(b"graph").hexdigest()
        assert not state.has_blob(digest)
        assert state.put_blob(b"graph") == state.put_blob(b"graph") == digest
        assert state.has_blob(digest)
        (tmp_path / "blobs" / digest).write_bytes(b"graqh")
        with pytest.raises(DataLoss, match=f"{digest} is damaged"):
            state.get_blob(digest)
        state.put_blob(b"graph")
        assert state.get_blob(digest) == b"graph"
        assert state.get_blob(state.put_blob(b"")) == b""
    (tmp_path / "blobs" / f"{digest}.tmp").touch()
    with State(tmp_path) as state:
        assert state.get_blob(digest) == b"graph"
    assert not list(tmp_path.glob("blobs/*.tmp"))


def test_a_file_becomes_a_blob_where_it_lies(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"graph").hexdigest()
    with State(tmp_path) as state:
        file = tmp_path / "spool" / "x"
        file.parent.mkdir()
        file.write_bytes(b"graph")
        state.adopt_blob(file, digest)
        assert not file.exists()
        assert (state.get_blob(digest), state.blob_path(digest).read_bytes()) == (b"graph", b"graph")
        with pytest.raises(Internal, match="cannot be written"):
            state.adopt_blob(file, "0" * 64)
    with State(tmp_path) as state:
        assert state.blob_path(digest).read_bytes() == b"graph"
        with pytest.raises(NotFound, match="upload it"):
            state.blob_path("0" * 64)
    (tmp_path / "blobs" / digest).write_bytes(b"graqh")
    with State(tmp_path) as state, pytest.raises(DataLoss, match=f"{digest} is damaged"):
        state.blob_path(digest)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_durably(tmp_path / "file", b"before")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceExhausted, match=r"file cannot be written: No space left.*free space"):
        write_durably(tmp_path / "file", b"after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"before"}


def test_a_database_that_cannot_be_written_says_what_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that has turned read-only by itself: SQLite says `disk I/O error`."""
    with contextlib.closing(State(tmp_path)) as state:
        state._database.execute("PRAGMA query_only=ON")  # SQLITE_READONLY
        with pytest.raises(Internal, match="attempt to write a readonly database; see the log"):
            state.put_context("i", "n", 0.0, {})
        assert "SQLITE_READONLY" in caplog.text
        for number, said in ((errno.EROFS, "mount its disk for writing"), (errno.ENOSPC, "free space there")):
            monkeypatch.setattr("aggregator.store.database.refusal", lambda _, n=number: OSError(n, "no"))
            with pytest.raises(EdgeAttentionError, match=said):
                state.put_context("i", "n", 0.0, {})
        state._database.execute("PRAGMA query_only=OFF")


def test_who_may_not_write_in_a_folder_is_told_why(tmp_path: Path) -> None:
    assert refusal(tmp_path) is None
    assert not list(tmp_path.iterdir())
    found = refusal(tmp_path / "none")
    assert found is not None
    assert found.errno == errno.ENOENT


def test_threads_share_one_state(state: State) -> None:
    state.put_run("r", "name", 1.0, {}, "running")
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for round in range(20):
                with state.transaction():
                    state.add_record("r", round, {"thread": thread})
                    state.set_run_status("r", str(thread))
                    assert state.get_run("r").status == str(thread)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(state.records("r")) == 80


def test_a_state_folder_is_for_its_user_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with State(tmp_path / "state") as state:
            state.put_context("c", "x", 1.0, {})
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
            assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert {modes[name] for name in modes if name.startswith("state.db")} == {0o600}
    assert modes["blobs"] == 0o700


def test_a_state_of_the_schema_before_is_taken_over(tmp_path: Path) -> None:
    with State(tmp_path) as state:
        state.put_context("c1", "c", 1.0, {})
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as database:
        for statement in ("DROP TABLE appends", "DROP TABLE numbers", "PRAGMA user_version=1"):
            database.execute(statement)
    (tmp_path / "state.db.sums").unlink()  # that release made none
    with State(tmp_path) as state:
        assert [context.name for context in state.list_contexts()] == ["c"]
        state.put_append("c1", "a", {"tokens": [0, 1]}, 5)
        assert state.take_numbers("n", 3, 10) == range(10, 13)
    with State(tmp_path) as state:
        assert state.get_append("c1", "a") == {"tokens": [0, 1]}
        assert state.take_numbers("n", 3, 1) == range(13, 16)
        assert state.take_numbers("n", 3, 100) == range(100, 103)
        state.delete_context("c1")
        assert state.get_append("c1", "a") is None
    assert (tmp_path / "state.db.sums").exists()
