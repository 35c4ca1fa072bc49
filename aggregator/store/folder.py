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
_ROOM = "free space there"

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
    kind = DiskFull if error.errno in FULL else Internal
    return kind(f"{path} cannot be written: {error.strerror}; {remedy(path, error)}")


def remedy(path: Path, error: OSError) -> str:
    """What to do about a file or folder of the state that cannot be used."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "remove files there: its disk has room, but for no more files" if no_files(path) else _ROOM
        case errno.EROFS:
            return "mount its disk for writing; one that has turned read-only by itself is failing"
        case errno.EMFILE | errno.ENFILE:
            return "let this process open more files (ulimit -n, LimitNOFILE=)"
        case errno.EISDIR | errno.ENOTDIR | errno.ENOENT:
            return "something has moved or replaced it: put it back, or restore the state folder from a copy"
        case errno.EACCES | errno.EPERM:
            return "let the user that runs the aggregator read and write it"
        case _:
            return "check the disk and the folder's permissions"


def no_files(path: Path) -> bool:
    """Whether the disk of `path` has room left, but for no more files (inodes)."""
    for folder in (path, *path.parents):
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        return found.f_bavail > 0 and found.f_files > 0 and found.f_favail == 0
    return False


def is_full(folder: Path) -> bool:
    """Whether the disk that holds `folder` has no room left."""
    found = os.statvfs(folder)
    return found.f_bavail == 0 or (found.f_files > 0 and found.f_favail == 0)


def refusal(folder: Path) -> OSError | None:
    """What the system says now to who writes in `folder`; None where it lets.

    SQLite calls a disk without room, one that has turned read-only and one that is broken by one name. That a
    disk has turned read-only by itself is not in what `statvfs` says of it.
    """
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # A file system without files that have no name says so.
        return None if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL) else error
    return None


def require_space(folder: Path, size: int) -> None:
    """Refuse to write `size` bytes that would take what commits need of the disk.

    Raises:
        DiskFull: less than DISK_RESERVE, or a twentieth of a small disk, would be left.
    """
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    if no_files(folder):
        raise DiskFull(
            f"bound disk-reserve: the disk of {folder} has room for bytes, and for no more files (df -i); "
            "remove files there"
        )
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
