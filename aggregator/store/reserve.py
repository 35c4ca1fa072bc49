"""Room that is kept for what frees room: a deletion is written down before its files go, and a full disk has
no room for that.

    <state>/reserve    a file of zeros, which goes when a deletion finds the disk full, and comes back later

Blocks on the disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edge_attention.core.errors import DiskFull

__all__ = ["RESERVE", "Reserve"]

RESERVE = "reserve"
MOST_BYTES = 4 * 1024 * 1024
SHARE = 100
"""Of a small disk one in so many bytes."""

T = TypeVar("T")


class Reserve:
    """That of the state folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RESERVE

    def keep(self) -> None:
        """Have it, if the disk has as much room again; or at one of the next calls."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._path.parent)
            size = min(MOST_BYTES, disk.f_blocks * disk.f_frsize // SHARE)
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size >= size:
                    return
            if disk.f_bavail * disk.f_frsize < 2 * size:
                return
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, size)
            except OSError:
                self._path.unlink()
            finally:
                os.close(file)

    def freeing(self, change: Callable[[], T], in_pieces: Callable[[], T] | None = None) -> T:
        """Make a change that frees room; on a full disk in the room that is kept for that.

        `in_pieces`: does the same in less room, and takes its time.

        Raises:
            DiskFull: there is none left.
        """
        try:
            return change()
        except DiskFull:
            try:
                self._path.unlink()
            except OSError:
                pass
            else:
                return (in_pieces or change)()
            raise
