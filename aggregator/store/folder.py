"""The state folder as files: written whole or not at all, held by one process, swept after a crash."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from aggregator.bounds.bounds import DISK_RESERVE
from edge_attention.core.errors import DiskFull, EdgeAttentionError, FailedPrecondition, Internal

TEMPORARY = ".tmp"  # what a crash may leave behind ends so, and is removed on opening
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk without room, or without room for this user."""

PREFIX = "edge-aggregator-"  # of temporary folders


def write_durably(path: Path, data: bytes) -> None:
    """Writes the file whole or not at all. The folder's entry is durable once the caller calls `sync`."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def sync(folder: Path) -> None:
    """Makes the names of the folder's files durable."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(path: Path, error: OSError) -> EdgeAttentionError:
    if error.errno in FULL:
        return DiskFull(f"{path} cannot be written: {error.strerror}; free space there")
    return Internal(
        f"{path} cannot be written: {error.strerror}; check the disk and the folder's permissions"
    )


def is_full(folder: Path) -> bool:
    """Whether the disk that holds `folder` has no room left."""
    found = os.statvfs(folder)
    return found.f_bavail == 0 or (found.f_files > 0 and found.f_favail == 0)


def require_space(folder: Path, size: int) -> None:
    """Refuse to write `size` bytes that would take what commits need of the disk.

    Raises:
        DiskFull: less than DISK_RESERVE, or a twentieth of a small disk, would be left.
    """
    disk = os.statvfs(folder)
    reserve = min(DISK_RESERVE, disk.f_blocks * disk.f_frsize // 20)
    if disk.f_bavail * disk.f_frsize - size < reserve:
        raise DiskFull(
            f"bound disk-reserve: the disk of {folder} keeps {reserve:,} bytes free for what is committed, "
            f"and {size:,} more would take of them; free space there"
        )


def sweep() -> None:
    """Remove temporary folders of aggregators that were killed: those of this user nobody holds any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            # A young one may be about to be locked.
            if folder.stat().st_uid != os.getuid() or time.time() - folder.stat().st_mtime < 60:
                continue
            with (folder / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue


def lock(directory: Path) -> int:
    """An open descriptor that holds the folder; the kernel frees it however the process ends."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise FailedPrecondition(
            f"state folder {directory} is in use by another aggregator (process {holder}); "
            "stop that one, or give this one another --state"
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
