"""What the aggregator must remember: one folder with a SQLite database, blobs, and the files of runs.

    <directory>/lock          held (flock) by the one aggregator that uses the folder
    <directory>/state.db      contexts and segments, runs, versions and records
    <directory>/state.db.sums what its pages are (`aggregator.store.page_sums`)
    <directory>/blobs/        files by the SHA-256 of their bytes
    <directory>/reserve       room for deletions on a full disk (`aggregator.store.reserve`)
    <directory>/spool/        what is under way up; empty at every start (`aggregator.engine.spool`)
    <directory>/runs/         written by `aggregator.store.parameters`

A method that returns has made its change durable: SQLite in WAL mode with synchronous=FULL, files fsynced
before and folders after the rename. Methods block on the disk, so asyncio calls them in a worker thread;
one lock makes any number of threads safe.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator.store.blobs import Blobs
from aggregator.store.database import Database
from aggregator.store.folder import PREFIX, lock, remedy, sweep, sync, write_durably
from aggregator.store.reserve import Reserve
from edge_attention.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from edge_attention.disk_room import room

__all__ = [
    "ContextRow",
    "Record",
    "RunRow",
    "SegmentRow",
    "State",
    "Version",
    "check_run_id",
    "sync",
    "write_durably",
]

_DIGEST = re.compile(rb"(?=([0-9a-f]{64}))")  # looked for at every place: letters may stand before one

_ID = re.compile("[0-9a-f]{8}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContextRow:
    """A context as it is kept; `spec` is JSON."""

    id: str
    name: str
    created: float  # seconds since 1970
    spec: dict[str, Any]


@dataclass(frozen=True)
class SegmentRow:
    """A segment of the context with the id `context`, as it is kept; `spec` is JSON."""

    context: str
    id: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class RunRow:
    """A run as it is kept: its job, and how far it is; `detail` says more of its `status`."""

    id: str
    name: str
    created: float  # seconds since 1970
    job: dict[str, Any]
    status: str
    detail: str
    round: int  # of the latest commit; 0 before it
    version: int | None  # the latest committed; None before it


@dataclass(frozen=True)
class Version:
    """One committed version; files are relative to the state folder."""

    run: str
    version: int
    round: int
    file: str
    digest: str
    optimizer_file: str | None  # None: no longer kept
    optimizer_digest: str | None
    created: float  # seconds since 1970


@dataclass(frozen=True)
class Record:
    """What is remembered of one round of a run, as JSON."""

    round: int
    record: dict[str, Any]


class State:
    """The folder `directory` (made if need be), or with None a temporary one that `close` removes.

    Raises `FailedPrecondition` if another aggregator uses the folder, if a newer release wrote it, or if it
    cannot be written; `DataLoss` if its database is damaged.
    """

    def __init__(self, directory: Path | None) -> None:
        if directory is None:
            sweep()
        self._temporary = tempfile.TemporaryDirectory(prefix=PREFIX) if directory is None else None
        self.directory = Path(self._temporary.name if self._temporary else directory or "").absolute()
        folder = self.directory / "blobs"
        self._blobs_of: dict[str, frozenset[str]] = {}
        """Run -> the blobs that its job names, as far as somebody has asked."""
        try:
            for made in (self.directory, folder):  # of folders in between, mkdir leaves the mode to the umask
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = lock(self.directory)
        except OSError as error:
            where = error.filename or self.directory
            raise FailedPrecondition(
                f"state folder {self.directory} cannot be used: {where}: {error.strerror}; "
                f"{remedy(self.directory, error)}, or give another --state"
            ) from error
        try:
            self._blobs = Blobs(folder)
            self._reserve = Reserve(self.directory)
            self._database = Database(self.directory, memory=self._temporary is not None)
            self._rows, self._change = self._database.rows, self._database.change
            self.id = self._identity()
            if self._temporary is None:
                self._reserve.keep()
        except BaseException:
            os.close(self._lock_file)
            raise

    def _identity(self) -> str:
        """What tells this state from any other: 8 letters and digits, made when the folder is first used."""
        path = self.directory / "id"
        found = path.read_bytes().decode(errors="replace") if path.exists() else ""
        if not _ID.fullmatch(found):
            contexts = self._rows("SELECT id FROM contexts ORDER BY rowid DESC LIMIT 1")
            known = str(contexts[0][0]).partition("-")[0] if contexts else ""  # they begin with it
            made = known if _ID.fullmatch(known) else secrets.token_hex(4)
            if found or contexts:
                log.warning("%s is not as it was written; it is written anew", path)
            write_durably(path, made.encode())
            sync(self.directory)
            return made
        return found

    def close(self) -> None:
        """Frees the folder for another aggregator; removes a temporary one. A second call does nothing."""
        with self._database.mutex:
            if self._lock_file < 0:
                return
            self._database.close()
            os.close(self._lock_file)
            self._lock_file = -1
            if self._temporary:
                self._temporary.cleanup()

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes made inside become durable together, or none does. Nested: part of the outer one."""
        with self._database.transaction():
            yield

    # Contexts

    def put_context(self, id: str, name: str, created: float, spec: Mapping[str, Any]) -> None:
        """Adds the context, or replaces its row and keeps its segments; `AlreadyExists` for a name taken."""
        text = _to_json(f"the spec of context {name}", spec)
        with self.transaction():
            if self._rows("SELECT 1 FROM contexts WHERE name = ? AND id <> ?", name, id):
                raise AlreadyExists(f"there is a context {name!r} already; delete it, or take another name")
            self._database.execute(
                "INSERT INTO contexts VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "name = excluded.name, created = excluded.created, spec = excluded.spec",
                (id, name, created, text),
            )

    def delete_context(self, id: str) -> None:
        """Deletes the context with its segments."""
        missing = f"there is no context with id {id!r}"
        self._reserve.freeing(lambda: self._change(missing, "DELETE FROM contexts WHERE id = ?", id))

    def list_contexts(self) -> list[ContextRow]:
        """All contexts, oldest first."""
        rows = self._rows("SELECT id, name, created, spec FROM contexts ORDER BY created, rowid")
        return [ContextRow(id, name, created, json.loads(spec)) for id, name, created, spec in rows]

    def put_segment(self, context: str, id: str, spec: Mapping[str, Any]) -> None:
        """Adds or replaces a segment; `NotFound` without its context."""
        text = _to_json(f"the spec of segment {id}", spec)
        with self.transaction():
            if not self._rows("SELECT 1 FROM contexts WHERE id = ?", context):
                raise NotFound(f"there is no context with id {context!r} for segment {id!r}")
            self._database.execute(
                "INSERT INTO segments VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET spec = excluded.spec",
                (context, id, text),
            )

    def delete_segment(self, context: str, id: str) -> None:
        """Deletes a segment; nothing if there is none."""
        with self.transaction():
            self._database.execute("DELETE FROM segments WHERE context = ? AND id = ?", (context, id))

    def list_segments(self, context: str) -> list[SegmentRow]:
        """The context's segments in the order in which they were added; none for an unknown context."""
        rows = self._rows("SELECT context, id, spec FROM segments WHERE context = ? ORDER BY rowid", context)
        return [SegmentRow(context, id, json.loads(spec)) for context, id, spec in rows]

    def put_append(self, context: str, request: str, answer: Mapping[str, Any], keep: int) -> None:
        """Remembers the answer of an append of that id, and of the context's appends the last `keep`."""
        text = _to_json(f"the answer of append {request}", answer)
        with self.transaction():
            statement = "INSERT INTO appends (context, request, answer) VALUES (?, ?, ?)"
            self._database.execute(statement, (context, request, text))
            self._database.execute(
                "DELETE FROM appends WHERE context = ? AND number <= (SELECT number FROM appends "
                "WHERE context = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (context, context, keep),
            )

    def get_append(self, context: str, request: str) -> dict[str, Any] | None:
        """The answer of an append of that id; None if there was none, or it is no longer remembered."""
        rows = self._rows("SELECT answer FROM appends WHERE context = ? AND request = ?", context, request)
        found: dict[str, Any] | None = json.loads(rows[0][0]) if rows else None
        return found

    def take_numbers(self, name: str, count: int, least: int) -> range:
        """`count` numbers of `least` and above that no call with this `name` has given, larger than those."""
        with self.transaction():
            rows = self._rows("SELECT next FROM numbers WHERE name = ?", name)
            start = max(least, rows[0][0] if rows else 0)
            self._database.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?)", (name, start + count))
        return range(start, start + count)

    # Runs

    def put_run(self, id: str, name: str, created: float, job: Mapping[str, Any], status: str) -> None:
        """Adds a run; its id becomes a folder's name, so it is checked. `AlreadyExists` for an id taken."""
        check_run_id(id)
        text = _to_json(f"the job of run {id}", job)
        with self.transaction():
            if self._rows("SELECT 1 FROM runs WHERE id = ?", id):
                raise AlreadyExists(f"there is a run {id!r} already; take another id")
            values = (id, name, created, text, status)
            self._database.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, '', 0, NULL)", values)

    def delete_run(self, id: str) -> frozenset[str]:
        """Forgets the run, its records and versions; returns the digests of the blobs that it named.

        The caller removes its files, and `drop_blobs` what nothing else has a use for. `NotFound` if there is
        none. All of it, or nothing; on a full disk records go first, the oldest before the others.
        """
        return self._reserve.freeing(lambda: self._forget_run(id), lambda: self._forget_run_in_pieces(id))

    def keep_reserve(self) -> None:
        """Have again what deletions on a full disk have taken, if there is room. To be called at times."""
        if self._temporary is None:
            self._reserve.keep()

    def _forget_run(self, id: str) -> frozenset[str]:
        with self.transaction():
            named = self._blobs_named(id)
            for table in ("records", "versions"):
                self._database.execute(f"DELETE FROM {table} WHERE run = ?", (id,))
            self._database.execute("DELETE FROM runs WHERE id = ?", (id,))
            self._blobs_of.pop(id, None)
        return named

    def _forget_run_in_pieces(self, id: str) -> frozenset[str]:
        """The same in what room there is: the log has each page that a deletion comes by."""
        oldest = "SELECT round, length(json) FROM records WHERE run = ? ORDER BY round LIMIT 1000"
        self._database.checkpoint()
        while rows := self._rows(oldest, id):
            left, (last, _) = room(self.directory)[0] // 4, rows[0]
            for round, length in rows:
                left -= length
                if left < 0:
                    break
                last = round
            with self.transaction():
                self._database.execute("DELETE FROM records WHERE run = ? AND round <= ?", (id, last))
            self._database.checkpoint()
        return self._forget_run(id)

    def set_run_status(self, id: str, status: str, detail: str = "") -> None:
        """Writes down how the run is, and why; `NotFound` if there is none."""
        statement = "UPDATE runs SET status = ?, detail = ? WHERE id = ?"
        self._change(f"there is no run {id!r}", statement, status, detail, id)

    def get_run(self, id: str) -> RunRow:
        """The run; `NotFound` if there is none."""
        rows = self._rows("SELECT * FROM runs WHERE id = ?", id)
        if not rows:
            raise NotFound(f"there is no run {id!r}")
        return _run(rows[0])

    def run_ids(self) -> list[str]:
        """All runs, oldest first."""
        return [str(id) for (id,) in self._rows("SELECT id FROM runs ORDER BY created, rowid")]

    def run_before(self, id: str) -> str | None:
        """The run of the same name that was started last before this one; None: there is none."""
        rows = self._rows(
            "SELECT b.id FROM runs a JOIN runs b ON b.name = a.name AND b.rowid < a.rowid WHERE a.id = ? "
            "ORDER BY b.rowid DESC LIMIT 1",
            id,
        )
        return str(rows[0][0]) if rows else None

    def each_run(self) -> Iterator[RunRow]:
        """All runs, oldest first, read one by one: there may be hundreds, and a job may have a megabyte."""
        for id in self.run_ids():
            for row in self._rows("SELECT * FROM runs WHERE id = ?", id):  # or it was deleted meanwhile
                yield _run(row)

    def latest_version(self, id: str) -> int | None:
        """The version that the run has committed last, None before the first; `NotFound` without the run."""
        rows = self._rows("SELECT version FROM runs WHERE id = ?", id)
        if not rows:
            raise NotFound(f"there is no run {id!r}")
        found: int | None = rows[0][0]
        return found

    def add_version(self, version: Version) -> None:
        """Adds the version as its run's latest. `ParameterStore` wrote the files."""
        v = version
        row = (v.run, v.version, v.round, v.file, v.digest, v.optimizer_file, v.optimizer_digest, v.created)
        with self.transaction():
            statement = "UPDATE runs SET round = ?, version = ? WHERE id = ?"
            self._change(f"there is no run {v.run!r}", statement, v.round, v.version, v.run)
            self._database.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def forget_optimizers(self, run: str, before: int) -> list[str]:
        """Strikes the optimizer files of versions below `before`; the caller deletes those returned."""
        where = "run = ? AND version < ? AND optimizer_file IS NOT NULL"
        with self.transaction():
            struck = self._rows(f"SELECT optimizer_file FROM versions WHERE {where}", run, before)
            self._database.execute(
                f"UPDATE versions SET optimizer_file = NULL, optimizer_digest = NULL WHERE {where}",
                (run, before),
            )
        return [file for (file,) in struck]

    def forget_versions(self, run: str, before: int, besides: int | None = None) -> list[str]:
        """Strikes versions below `before`, but never version 0, nor `besides`; the caller deletes the files
        returned."""
        where = "run = ? AND version > 0 AND version < ? AND version <> ?"
        which = run, before, besides or 0
        with self.transaction():
            struck = self._rows(f"SELECT file, optimizer_file FROM versions WHERE {where}", *which)
            self._database.execute(f"DELETE FROM versions WHERE {where}", which)
        return [file for files in struck for file in files if file is not None]

    def get_version(self, run: str, version: int) -> Version:
        """The version; `NotFound` if there is none, or no longer."""
        rows = self._rows("SELECT * FROM versions WHERE run = ? AND version = ?", run, version)
        if rows:
            return Version(*rows[0])
        latest = self.get_run(run).version
        if latest is None or not 0 <= version <= latest:
            raise NotFound(f"run {run!r} has no version {version}; its latest is {latest}")
        ((oldest,),) = self._rows("SELECT MIN(version) FROM versions WHERE run = ? AND version > 0", run)
        raise NotFound(
            f"version {version} of run {run!r} is no longer kept; there are 0 and {oldest} to {latest}: "
            "take one of them, and give the next run a larger keep_versions"
        )

    def list_versions(self, run: str | None = None) -> list[Version]:
        """The versions of one run, or of all, in order."""
        where = "? IS NULL OR run = ?"
        rows = self._rows(f"SELECT * FROM versions WHERE {where} ORDER BY run, version", run, run)
        return [Version(*row) for row in rows]

    def last_commits(self) -> dict[str, float]:
        """Run -> when its latest version was committed, in seconds since 1970."""
        return {
            str(run): float(at)
            for run, at in self._rows("SELECT run, MAX(created) FROM versions GROUP BY run")
        }

    def add_record(self, run: str, round: int, record: Mapping[str, Any]) -> None:
        """Adds what is to be remembered of a round."""
        text = _to_json(f"the record of round {round} of run {run}", record)
        with self.transaction():
            self.latest_version(run)  # NotFound
            self._database.execute("INSERT INTO records VALUES (?, ?, ?)", (run, round, text))

    def record(self, run: str, round: int) -> dict[str, Any] | None:
        """What is remembered of one round; None if nothing is."""
        rows = self._rows("SELECT json FROM records WHERE run = ? AND round = ? LIMIT 1", run, round)
        found: dict[str, Any] | None = json.loads(rows[0][0]) if rows else None
        return found

    def replace_record(self, run: str, round: int, record: Mapping[str, Any]) -> None:
        """Puts `record` in the place of what is remembered of a round."""
        text = _to_json(f"the record of round {round} of run {run}", record)
        missing = f"run {run!r} has no record of round {round}"
        self._change(missing, "UPDATE records SET json = ? WHERE run = ? AND round = ?", text, run, round)

    def records(
        self, run: str, after_round: int = -1, every: int = 1, count: int | None = None
    ) -> list[Record]:
        """The records of rounds above `after_round`, in order, the first `count`; every `every`th round's."""
        where = "run = ? AND round > ? AND round % ? = 0"
        rows = self._rows(
            f"SELECT round, json FROM records WHERE {where} ORDER BY round, rowid LIMIT ?",
            run, after_round, every, -1 if count is None else count,
        )  # fmt: skip
        return [Record(round, json.loads(text)) for round, text in rows]

    def record_texts(self, run: str, after_round: int, count: int) -> list[tuple[int, str]]:
        """(round, JSON of its record) of rounds above `after_round`, in order, the first `count`."""
        statement = "SELECT round, json FROM records WHERE run = ? AND round > ? ORDER BY round LIMIT ?"
        return [(int(n), str(text)) for n, text in self._rows(statement, run, after_round, count)]

    # Blobs

    def put_blob(self, data: bytes) -> str:
        """Stores the bytes; their SHA-256 in lower-case hexadecimal, under which `get_blob` returns them."""
        return self._blobs.put(data)

    def adopt_blob(self, file: Path, digest: str) -> None:
        """Moves `file`, which lies in this folder and has this digest, among the blobs."""
        self._blobs.adopt(file, digest)

    def get_blob(self, digest: str) -> bytes:
        """The blob, verified: `NotFound` if there is none, `DataLoss` if its bytes are not what was put."""
        return self._blobs.get(digest)

    def blob_path(self, digest: str) -> Path:
        """Where the blob lies, for reading only; verified. Raises as `get_blob` does."""
        return self._blobs.path(digest)

    def has_blob(self, digest: str) -> bool:
        """Whether there is such a blob; its bytes are not looked at."""
        return self._blobs.has(digest)

    def drop_blob(self, digest: str) -> None:
        """Removes the blob, unless a kept run names it; does nothing if there is no such blob."""
        self.drop_blobs({digest})

    def drop_blobs(self, digests: Collection[str], unused_seconds: float = 0.0) -> int:
        """Removes those of the blobs `digests` that no kept run names; returns how many bytes they had.

        `unused_seconds`: those that were put, or asked for by `has_blob`, in so many last seconds stay:
        somebody may be about to name them.
        """
        used = self._used_blobs() if digests else frozenset()
        return sum(self._blobs.drop(digest, unused_seconds) for digest in digests if digest not in used)

    def _used_blobs(self) -> frozenset[str]:
        """What the runs that are kept name. Jobs do not change: each is looked through once."""
        known, found = self._blobs_of, dict[str, frozenset[str]]()
        for id in self.run_ids():
            with contextlib.suppress(NotFound):  # deleted meanwhile
                found[id] = known[id] if id in known else self._blobs_named(id)
        self._blobs_of = found
        return frozenset().union(*found.values())

    def _blobs_named(self, id: str) -> frozenset[str]:
        # Runs alike name the same: of equal ones one is kept.
        return frozenset(map(sys.intern, _named(self.get_run(id).job)))

    def unused_blobs(self, seconds: float) -> list[str]:
        """Blobs that nobody has put or asked for in so many last seconds, whoever may name them."""
        return self._blobs.unused(seconds)


def _named(job: Mapping[str, Any]) -> frozenset[str]:
    """The digests that a run's job and plan name, and whatever else looks like one."""
    found: set[str] = set()
    for key, value in job.items():
        # A job is kept as protobuf's bytes, in which a digest is as it is.
        data = base64.b64decode(value) if key == "job" else str(value).encode()
        found.update(digest.decode() for digest in _DIGEST.findall(data))
    return frozenset(found)


def check_run_id(id: str) -> None:
    """`InvalidArgument` unless the id may be a folder's name: 1 to 64 of a-z, 0-9 and hyphens."""
    if not re.fullmatch("[a-z0-9-]{1,64}", id):
        raise InvalidArgument(f"{id[:80]!r} is no run id; it is 1 to 64 of the characters a-z, 0-9 and '-'")


def _to_json(what: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(value))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"{what} cannot be stored as JSON: {error}; give plain numbers and text"
        ) from error


def _run(row: tuple[Any, ...]) -> RunRow:
    id, name, created, job, status, detail, round, version = row
    return RunRow(id, name, created, json.loads(job), status, detail, round, version)
