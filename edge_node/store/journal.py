"""What is known of the files of a folder: a log that only grows, synced after the data it speaks of.

A record is a line: the CRC-32 of its text, and the text, JSON. One that is not whole is passed over: at the
end it was never finished, elsewhere the disk has changed it, and those after it are as good as they were.
Those who add records at the same time share one commit: the files are synced, then the records are written
and synced.
"""

from __future__ import annotations

import errno
import json
import logging
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edge_attention.core.errors import DataLoss, EdgeAttentionError, OutOfMemory
from edge_node.store.disk import Disk, no_descriptor, remedy

log = logging.getLogger(__name__)

JournalRecord = Mapping[str, Any]
COMPACT = 4 * 1024 * 1024
"""Bytes past which a log that has grown to four times what is known is written anew."""
_SYNCS = 4


class JournalBatch:
    """Records that become durable together, each with the file whose data it speaks of, if any."""

    def __init__(self) -> None:
        self.records: list[tuple[JournalRecord, Path | None]] = []
        self.new_names = False
        self.done = False
        self.error: EdgeAttentionError | None = None


class Journal:
    """The log in the file `path`. `summary` gives the records that say all that was `told` to it so far.

    Thread-safe. `told` is called with each record once it is on the disk.
    """

    def __init__(
        self,
        path: Path,
        disk: Disk,
        told: Callable[[JournalRecord], None],
        summary: Callable[[], Iterable[JournalRecord]],
    ) -> None:
        self._path = path
        self._disk = disk
        self._told = told
        self._summary = summary
        self._length = 0
        self._least = 0
        self._crc = 0
        self._written: tuple[int, int] | None = None
        """The file that has been written; None: none yet."""
        self._waiting = JournalBatch()
        self._adding = threading.Lock()
        self._turn = threading.Lock()
        self._bad: set[Path] = set()
        self._pool = ThreadPoolExecutor(_SYNCS, thread_name_prefix="sync")

    @property
    def mark(self) -> list[int]:
        """Tells this state of the log from any other."""
        return [self._length, self._crc]

    def read(self) -> bool:
        """Tell all that the file has; False if there is none."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return False
        at, damaged, unfinished = 0, list[int](), list[int]()
        for text in data.split(b"\n"):
            line = data[at : at + len(text) + 1]
            record = _record(line)
            if record is not None:
                damaged, unfinished = damaged + unfinished, []
                self._told(record)
                self._length, self._crc = self._length + len(line), zlib.crc32(line, self._crc)
            elif line:
                unfinished.append(at)
            at += len(line)
        if damaged:
            log.error(
                "%s is damaged: %d of its records are not as they were written, the first at byte %d; what "
                "they alone said is missing here, and all else is read. Look at the disk; what is missing "
                "can be appended, or copied again (edge-attention contexts repair)",
                self._path,
                len(damaged),
                damaged[0],
            )
        if unfinished:
            log.warning("%s ends in a record that was never finished", self._path)
        return True

    def rewrite(self) -> None:
        """Write the file anew: the summary."""
        data = b"".join(_line(record) for record in self._summary())
        self._disk.replace(self._path, data)
        self._written = self._disk.identity(self._path)
        self._length = self._least = len(data)
        self._crc = zlib.crc32(data)

    def add(self, record: JournalRecord, file: Path | None = None, *, new_name: bool = False) -> JournalBatch:
        """Put a record behind those added before; `wait` until it is on the disk.

        Args:
            file: whose data it speaks of: synced first.
            new_name: the file was created: the folder is synced first, too.
        """
        with self._adding:
            self._waiting.records.append((record, file))
            self._waiting.new_names |= new_name
            return self._waiting

    def wait(self, batch: JournalBatch) -> None:
        """Returns when the batch is on the disk.

        Raises:
            OutOfMemory: the disk is full; the records go with the next batch.
            DataLoss: the disk cannot write what the records speak of. They are not written in this life.
        """
        with self._turn:
            if not batch.done:
                with self._adding:
                    assert batch is self._waiting
                    self._waiting = JournalBatch()
                batch.error = self._commit(batch)
                batch.done = True
        if batch.error is not None:
            raise type(batch.error)(batch.error.message)

    def flush(self) -> None:
        """Wait for all that was added, as `wait` does."""
        with self._adding:
            batch = self._waiting
        if not batch.records:
            with self._turn:  # those under way are on the disk then, or wait again
                pass
            with self._adding:
                batch = self._waiting
        if batch.records:
            self.wait(batch)

    def require_written(self, file: Path) -> None:
        """Raises DataLoss if the file could not be written: what was added of it is not on the disk."""
        if file in self._bad:
            raise DataLoss(f"the disk cannot write {file}; see the log, replace it, and start the node again")

    def _commit(self, batch: JournalBatch) -> EdgeAttentionError | None:
        failed = self._sync({path for _, path in batch.records if path is not None})
        if failed is not None:
            # After a sync that failed a second one says nothing: what the file has is never known again.
            self._again(batch, [(r, path) for r, path in batch.records if path not in self._bad])
            return failed
        data = b"".join(_line(record) for record, _ in batch.records)
        try:
            if self._written is not None and self._disk.identity(self._path) != self._written:
                raise OSError(errno.ESTALE, "another file has taken its place")
            if batch.new_names:
                self._disk.sync_folder(self._path.parent)
            self._disk.write(self._path, data, self._length)
            self._disk.sync(self._path)
        except OSError as error:
            self._again(batch, batch.records)
            return OutOfMemory(f"{self._path} cannot be written: {error.strerror}; {remedy(error)}")
        self._length, self._crc = self._length + len(data), zlib.crc32(data, self._crc)
        for record, _ in batch.records:
            self._told(record)
        if self._length > max(COMPACT, 4 * self._least):
            try:
                self.rewrite()
            except OSError as error:
                log.warning("%s stays long: %s", self._path, error.strerror)
        return None

    def _again(self, batch: JournalBatch, records: list[tuple[JournalRecord, Path | None]]) -> None:
        """Records that are not on the disk go with the next batch, in their order."""
        with self._adding:
            self._waiting.records[:0] = records
            self._waiting.new_names |= batch.new_names

    def _sync(self, files: Collection[Path]) -> DataLoss | OutOfMemory | None:
        out: OutOfMemory | None = None

        def sync(path: Path) -> OSError | None:
            try:
                self._disk.sync(path)
            except FileNotFoundError:
                pass  # dropped meanwhile; a record says so
            except OSError as error:
                return error
            return None

        for path, error in zip(files, (map if len(files) < 2 else self._pool.map)(sync, files), strict=True):
            if error is not None and no_descriptor(error):  # nothing was done to it
                out = OutOfMemory(f"{path} cannot be written: {error.strerror}; {remedy(error)}")
            elif error is not None:
                log.error("the disk cannot write %s: %s", path, error.strerror)
                self._bad.add(path)
        try:
            for path in files:
                self.require_written(path)
        except DataLoss as failed:
            return failed
        return out


def _line(record: JournalRecord) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> JournalRecord | None:
    """The record of a whole line, or None."""
    crc, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or crc != b"%08x" % zlib.crc32(text[:-1]):
        return None
    found = json.loads(text)
    return found if isinstance(found, dict) else None
