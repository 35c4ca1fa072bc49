"""Files by the SHA-256 of their bytes, durable, verified before they are used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from pathlib import Path

from aggregator.store.folder import TEMPORARY, sync, unwritable, write_durably
from edge_attention.core.errors import DataLoss, InvalidArgument, NotFound

_DIGEST = re.compile("[0-9a-f]{64}")
_PIECE = 1024 * 1024


class Blobs:
    """A folder of blobs, which must be there. Any number of threads may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mutex = threading.Lock()
        # Whose bytes were found right since the folder was opened.
        self._verified: set[str] = set()
        for left in folder.glob(f"*{TEMPORARY}"):
            left.unlink()

    def put(self, data: bytes) -> str:
        """Stores the bytes; their digest in lower-case hexadecimal."""
        digest = hashlib.sha256(data).hexdigest()
        with self._mutex:
            try:
                self.get(digest)
                self.has(digest)
            except (NotFound, DataLoss):  # a damaged blob is healed by putting it again
                write_durably(self._folder / digest, data)
                sync(self._folder)
            self._verified.add(digest)
        return digest

    def adopt(self, file: Path, digest: str) -> None:
        """Moves `file`, whose digest this is, among the blobs; it lies on the same file system."""
        target = self._path(digest)
        with self._mutex:
            try:
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
                os.replace(file, target)
            except OSError as error:
                raise unwritable(target, error) from error
            sync(self._folder)
            self._verified.add(digest)

    def get(self, digest: str) -> bytes:
        """The blob, verified: `NotFound` if there is none, `DataLoss` if its bytes are not what was put."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise _missing(digest) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise _damaged(path)
        return data

    def path(self, digest: str) -> Path:
        """Where the blob lies, for reading only; verified, once, piece by piece. Raises as `get` does."""
        path = self._path(digest)
        if digest in self._verified and path.is_file():
            return path
        found = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as file:
                while piece := file.read(_PIECE):
                    found.update(piece)
        except FileNotFoundError:
            raise _missing(digest) from None
        if found.hexdigest() != digest:
            raise _damaged(path)
        self._verified.add(digest)
        return path

    def has(self, digest: str) -> bool:
        """Whether there is such a blob; its bytes are not looked at. Who asks is about to use it."""
        path = self._path(digest)
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        # Not when it was changed: deployments, which have links of it, go by that.
        with contextlib.suppress(OSError):  # gone just now, or a file system without times
            os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        return True

    def drop(self, digest: str, unused_seconds: float = 0.0) -> int:
        """Removes the blob, if there is one; the bytes it had. What is linked to elsewhere stays there.

        `unused_seconds`: one that was put, or asked for by `has`, in so many last seconds stays.
        """
        path = self._path(digest)
        with self._mutex:
            try:
                found = path.stat()
            except FileNotFoundError:
                return 0
            if unused_seconds and _used(found) > time.time() - unused_seconds:
                return 0
            self._verified.discard(digest)
            path.unlink(missing_ok=True)
            return found.st_size

    def unused(self, seconds: float) -> list[str]:
        """Those that nobody has put, or asked for by `has`, in so many last seconds."""
        before, found = time.time() - seconds, []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not _DIGEST.fullmatch(entry.name):
                    continue  # being written, or nobody's here
                with contextlib.suppress(FileNotFoundError):  # gone just now
                    if _used(entry.stat()) <= before:
                        found.append(entry.name)
        return found

    def _path(self, digest: str) -> Path:
        require_digest(digest)
        return self._folder / digest


def require_digest(digest: str) -> None:
    """Refuse what is no digest, before it names a file or is kept: a peer's may have any length.

    Raises:
        InvalidArgument: it is not 64 lower-case hexadecimal digits.
    """
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"{digest[:80]!r} is no SHA-256 digest; give 64 lower-case hexadecimal digits")


def _used(found: os.stat_result) -> float:
    """When a blob was put, asked for or read last, in seconds since 1970."""
    return max(found.st_atime, found.st_mtime)


def _missing(digest: str) -> NotFound:
    return NotFound(f"there is no blob {digest}; upload it")


def _damaged(path: Path) -> DataLoss:
    return DataLoss(f"blob {path} is damaged: its bytes have another digest; upload it again")
