"""The state folder's SQLite database: opened, its schema, transactions, and its errors as ours.

In WAL mode with synchronous=FULL: what a transaction changed is durable when it ends. Sums of its pages lie
beside it (`aggregator.store.page_sums`). One lock makes any number of threads safe; calls block on the disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aggregator.store.folder import is_full, refusal, unwritable
from aggregator.store.page_sums import PageSums
from edge_attention.core.errors import (
    DataLoss,
    DiskFull,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
)

__all__ = ["SCHEMA", "UNWRITABLE", "Database"]

log = logging.getLogger(__name__)

UNWRITABLE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
"""What SQLite says where the system does not let it write."""

SCHEMA = 3  # kept in the database's user_version; 3 is 2 with sums beside it, which earlier releases forget

_TABLES = (
    """CREATE TABLE contexts (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL,
        spec TEXT NOT NULL)""",
    """CREATE TABLE segments (context TEXT NOT NULL REFERENCES contexts ON DELETE CASCADE, id TEXT NOT NULL,
        spec TEXT NOT NULL, PRIMARY KEY (context, id))""",
    """CREATE TABLE runs (id TEXT PRIMARY KEY, name TEXT NOT NULL, created REAL NOT NULL, job TEXT NOT NULL,
        status TEXT NOT NULL, detail TEXT NOT NULL, round INTEGER NOT NULL, version INTEGER)""",
    """CREATE TABLE versions (run TEXT NOT NULL REFERENCES runs, version INTEGER NOT NULL,
        round INTEGER NOT NULL, file TEXT NOT NULL, digest TEXT NOT NULL, optimizer_file TEXT,
        optimizer_digest TEXT, created REAL NOT NULL, PRIMARY KEY (run, version))""",
    "CREATE TABLE records (run TEXT NOT NULL REFERENCES runs, round INTEGER NOT NULL, json TEXT NOT NULL)",
    "CREATE INDEX records_by_round ON records (run, round)",
)
_SINCE_2 = (
    """CREATE TABLE appends (number INTEGER PRIMARY KEY AUTOINCREMENT,
        context TEXT NOT NULL REFERENCES contexts ON DELETE CASCADE, request TEXT NOT NULL,
        answer TEXT NOT NULL, UNIQUE (context, request))""",
    "CREATE TABLE numbers (name TEXT PRIMARY KEY, next INTEGER NOT NULL)",
)


class Database:
    """The database `state.db` in `directory`, or with `memory` one that is gone with the process.

    Raises:
        FailedPrecondition: a newer release wrote it.
        DataLoss: it is damaged.
    """

    def __init__(self, directory: Path, *, memory: bool = False) -> None:
        self._directory = directory
        self.mutex = threading.RLock()
        """Held in a transaction; its holder may begin one, or read."""
        self._sums = None if memory else PageSums(directory / "state.db")
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        if self._sums is None:
            return self._connect(":memory:")
        path = str(self._directory / "state.db")
        database = self._sums.open(lambda: self._connect(path))
        self._sums.checkpoint(database)  # what a process that was killed has left in the log
        return database

    def _connect(self, path: str) -> sqlite3.Connection:
        # isolation_level None: transactions begin and end where `transaction` says, nowhere else.
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        if self._sums is not None:
            with contextlib.suppress(OSError):  # a file system without modes
                os.chmod(path, 0o600)  # the files SQLite makes beside it get the same
        try:
            with _translated(self._directory):
                # Checkpoints are made by `PageSums` alone.
                for pragma in (
                    "journal_mode=WAL",
                    "synchronous=FULL",
                    "foreign_keys=ON",
                    "wal_autocheckpoint=0",
                ):
                    database.execute(f"PRAGMA {pragma}")
                (schema,) = database.execute("PRAGMA user_version").fetchone()
                if schema > SCHEMA:
                    raise FailedPrecondition(
                        f"state folder {self._directory} has schema {schema} and this release reads up to "
                        f"{SCHEMA}; run the release that wrote it, or a newer one, or give another --state"
                    )
                if schema < SCHEMA:
                    database.execute("BEGIN IMMEDIATE")
                    new = (*(_TABLES if schema == 0 else ()), *(_SINCE_2 if schema < 2 else ()))
                    for statement in (*new, f"PRAGMA user_version={SCHEMA}", "COMMIT"):
                        database.execute(statement)
        except BaseException:
            self._disconnect(database)
            raise
        return database

    def _disconnect(self, database: sqlite3.Connection) -> None:
        if self._sums is not None:
            self._sums.close(database)
        else:
            database.close()

    def close(self) -> None:
        self._disconnect(self._connection)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes made inside become durable together, or none does. Nested: part of the outer one."""
        with self.mutex, _translated(self._directory):
            nested = bool(self._connection.in_transaction)
            if nested:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                if self._sums is not None:
                    self._sums.require_there()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            if self._sums is not None and self._sums.due():
                self.checkpoint()

    def checkpoint(self) -> None:
        """Have SQLite copy what is in its log into the database, and the sums be those of that."""
        if self._sums is not None:
            self._sums.checkpoint(self._connection)

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Run one statement, inside a `transaction`."""
        return self._connection.execute(statement, values)

    def change(self, missing: str, statement: str, *values: object) -> None:
        """Runs one statement; `NotFound(missing)` if it changed no row."""
        with self.transaction():
            if not self._connection.execute(statement, values).rowcount:
                raise NotFound(missing)

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What a statement finds."""
        with self.mutex, _translated(self._directory, writes=False):
            return self._connection.execute(statement, values).fetchall()


@contextmanager
def _translated(directory: Path, *, writes: bool = True) -> Iterator[None]:
    """`writes`: whether it is tried why the system does not let, which waits for the disk."""
    try:
        yield
    except OverflowError as error:
        raise InvalidArgument("a number does not fit into 64 bits with a sign; give a smaller one") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            message = f"the database in state folder {directory} is damaged ({error}); restore it from a copy"
            raise DataLoss(message) from error
        # Where its shared memory cannot grow SQLite calls a full disk an error of input and output.
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and is_full(directory)):
            raise DiskFull(f"the disk of state folder {directory} is full; free space there") from error
        if writes and code in UNWRITABLE and (found := refusal(directory)) is not None:
            raise unwritable(directory, found) from error
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        log.error("the database in state folder %s: %s (%s)", directory, error, name)
        raise Internal(f"the database in state folder {directory} failed: {error}; see the log") from error
