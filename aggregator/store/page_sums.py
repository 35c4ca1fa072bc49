"""Sums of a SQLite database's pages, beside it: what has changed on the disk is found before SQLite reads it.

    state.db          the pages, as the last checkpoint left them
    state.db-wal      what was committed since; has sums of its own (`write_ahead`)
    state.db.sums     magic, bytes of a page, number of pages, a CRC-32 a page, a CRC-32 of all that

SQLite in WAL mode writes the database at a checkpoint and at no other time. So checkpoints are made here:

    1. sums of the pages that are in the log, as they are there, go into the file of sums, durably
    2. SQLite copies the pages into the database and empties the log

At the start each page is what its sum says, or the log has it, whole: SQLite reads it there. That holds
wherever a process is killed: before 2 has come to its end the log has all the pages that 1 and 2 change.
Nobody writes between 1 and 2. A database of several processes has them agree by a lock on its folder
(`turn`); locking or opening the database itself would take SQLite's own locks away, which are the process's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.store.folder import sync, write_durably
from aggregator.store.write_ahead import Log, page_sum, require_whole
from edge_attention.core.errors import DataLoss, EdgeAttentionError, Internal

__all__ = ["PageSums"]

log = logging.getLogger(__name__)

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""A log of so many bytes goes into the database; SQLite's own checkpoints are at as many."""
_MAGIC = b"EASUMS1\n"
_HEAD = struct.Struct("<8sII")
_PIECE = 1024 * 1024
_LOCKS_AT = 0x40000000
"""The page with this byte SQLite's locks are on: it is never written, in no log, and nothing is in it."""
_PAGE_SIZE_AT = 16  # in the database's header, two bytes, big-endian; 1 is 65,536

Array = np.ndarray[Any, np.dtype[np.uint32]]


class PageSums:
    """Keeps the sums of the pages of the SQLite database `path`, in a file beside it.

    `shared`: several processes use the database, and take turns by a lock on its folder.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self._path = path
        self._shared = shared
        self._log = Path(f"{path}-wal")
        self._file = Path(f"{path}.sums")
        self._failing = False
        self._opened: tuple[int, int] | None = None

    @property
    def known(self) -> bool:
        """Whether there are sums. A database that an earlier release wrote has none."""
        return self._file.exists()

    @contextmanager
    def turn(self, *, alone: bool = False, seconds: float = 0.0) -> Iterator[bool]:
        """A block in which the caller has its turn to write, `alone` or beside others; gives whether it has.

        Waits for up to `seconds` for it.
        """
        if not self._shared:
            yield True
            return
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield _locked(folder, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, seconds)
        finally:
            os.close(folder)

    def require_whole(self) -> None:
        """Refuse a database that has changed since it was written. To be called before SQLite opens it.

        Raises:
            DataLoss: the database, its log or its sums have changed.
        """
        committed = require_whole(self._log)
        try:
            size, sums = self._read()
        except FileNotFoundError:
            return
        unwritten = _LOCKS_AT // size + 1
        missing = set(range(1, len(sums) + 1)) - committed.images.keys() - {unwritten}
        wrong = []
        for number, page in self._pages(size):
            missing.discard(number)
            if number in committed.images or number == unwritten:
                continue
            if number > len(sums) or page_sum(number, page) != sums[number - 1]:
                wrong.append(number)
        if wrong or missing:
            bad, folder = sorted({*wrong, *missing}), self._path.parent
            raise DataLoss(
                f"{self._path} is damaged: {len(bad):,} of its {len(sums):,} pages are not as they were "
                f"written, the first at byte {(bad[0] - 1) * size:,}; restore folder {folder} from a copy, "
                f"or, if another program has written it and you want what it wrote, remove {self._file.name}"
            )

    def open(self, connect: Callable[[], sqlite3.Connection], *, make: bool = True) -> sqlite3.Connection:
        """The database as `connect` opens it, if it is whole. With `make` its pages are summed where they are
        not: it is new, or an earlier release wrote it. Who does so has it alone.

        Raises:
            DataLoss: see `require_whole`.
            OSError: it is not there any more.
        """
        self.require_whole()
        database = connect()
        if make and not self.known:
            database.close()
            self.make()
            database = connect()
        found = self._path.stat()
        self._opened = found.st_dev, found.st_ino  # it is this file from now on
        return database

    def require_there(self) -> None:
        """Refuse to go on where the file that was `opened` is not at its place any more.

        SQLite would go on with it, wherever it is now: what it commits then is not there after a restart.

        Raises:
            Internal: it, or its folder, was moved, removed or replaced.
        """
        if self._opened is None:
            return
        try:
            found = self._path.stat()
            if (found.st_dev, found.st_ino) == self._opened:
                return
            what = "another file has taken its place"
        except OSError as error:
            what = error.strerror or str(error)
        raise Internal(
            f"{self._path} is not where it was opened ({what}): its folder was moved, removed or replaced "
            "under the running aggregator, and what is committed would be lost; put it back, or stop the "
            "aggregator and restore the state folder from a copy"
        )

    def make(self) -> None:
        """Make the sums anew, of the database as it is. To be called while nobody has it open.

        One that has a log is left as it is.
        """
        if not self._path.exists() or self._log.exists():
            return
        with self._path.open("rb") as file:
            file.seek(_PAGE_SIZE_AT)
            size = int.from_bytes(file.read(2), "big")
        if size:
            size = 65536 if size == 1 else size
            self._write(size, np.array([page_sum(*found) for found in self._pages(size)], np.uint32))

    def due(self) -> bool:
        """Whether the log is so long that `checkpoint` is to be called."""
        try:
            return self._log.stat().st_size >= CHECKPOINT_BYTES
        except OSError:
            return False

    def checkpoint(self, database: sqlite3.Connection) -> None:
        """Copy the log's pages into the database, and their sums into the file of sums.

        The caller is the only one who writes, and is in no transaction. What cannot be done now the next call
        does: what is committed stays in the log.
        """
        try:
            self.require_there()
            self._sum(require_whole(self._log))
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._failing = False
        except (EdgeAttentionError, OSError, sqlite3.Error) as error:
            if not self._failing:  # once: the next commit tries again
                log.error("the log of %s stays as it is, and grows: %s", self._path, error)
            self._failing = True

    def close(self, *databases: sqlite3.Connection) -> None:
        """Close the connections, of which the first writes. The caller is the only one who writes.

        SQLite has the log in the database when the last one of all is closed, whatever the sums say: where
        they cannot be brought up to date they go, and the next start takes the database as it is. A database
        that is elsewhere now stays open to the end of the process, and keeps its log and its sums.
        """
        try:
            self.require_there()
        except Internal as error:
            log.error("%s", error)
            for database in databases:  # closing removes a log by its path, which may be another's now
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(database))
            return
        try:
            self._sum(require_whole(self._log))
        except (EdgeAttentionError, OSError) as error:
            log.error("%s is not summed any more: %s", self._path, error)
            with contextlib.suppress(OSError):
                self._file.unlink()
        for database in reversed(databases):
            database.close()

    def _sum(self, committed: Log) -> None:
        """Sums of the pages in the log, into the file."""
        if not committed.images or not self.known:
            return
        size, sums = self._read()
        if committed.page != size:
            raise self._damaged()
        self._write(size, _updated(sums, committed.images, committed.pages))

    def _pages(self, size: int) -> Iterator[tuple[int, bytes]]:
        """(number from 1, bytes) of each page of the database, in order; a last one may be short."""
        number = 1
        with contextlib.suppress(FileNotFoundError), self._path.open("rb", buffering=0) as file:
            while piece := file.read(max(1, _PIECE // size) * size):
                for at in range(0, len(piece), size):
                    yield number, piece[at : at + size]
                    number += 1

    def _read(self) -> tuple[int, Array]:
        """(bytes of a page, sums of the pages)."""
        data = self._file.read_bytes()
        if len(data) < _HEAD.size + 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise self._damaged()
        magic, size, count = _HEAD.unpack_from(data)
        if magic != _MAGIC or len(data) != _HEAD.size + 4 * count + 4:
            raise self._damaged()
        return size, np.frombuffer(data, "<u4", count, _HEAD.size).astype(np.uint32)

    def _write(self, size: int, sums: Array) -> None:
        data = _HEAD.pack(_MAGIC, size, len(sums)) + sums.astype("<u4").tobytes()
        write_durably(self._file, data + zlib.crc32(data).to_bytes(4, "little"))
        with contextlib.suppress(OSError):  # a file system without modes or owners
            self._file.chmod(0o600)
            if os.geteuid() == 0:  # an operator's command: the daemon, another user, must read it
                owner = self._path.stat()
                os.chown(self._file, owner.st_uid, owner.st_gid)
        sync(self._file.parent)

    def _damaged(self) -> DataLoss:
        return DataLoss(
            f"{self._file} is damaged, so that {self._path.name} cannot be checked; restore the folder "
            f"{self._path.parent} from a copy, or remove {self._file.name} to go on without a check this time"
        )


def _updated(sums: Array, images: Mapping[int, int], pages: int) -> Array:
    """The sums once the pages of a log are in the database, which then has `pages`."""
    made = np.zeros(pages, np.uint32)
    kept = min(pages, len(sums))
    made[:kept] = sums[:kept]
    for number, value in images.items():
        if number <= pages:
            made[number - 1] = value
    return made


def _locked(descriptor: int, how: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.005)
