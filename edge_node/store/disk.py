"""What is done to files so that it outlives a power cut, and in which order it does.

What is written is on the disk when `sync` of the file returns; that a file is there, is gone or has another
name, when `sync_folder` returns. Before that any part of it may be found afterwards. All methods block and
raise OSError. A test puts a disk in its place that loses its power between any two of these.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def no_descriptor(error: OSError) -> bool:
    """Whether a file could not be opened because too many are open."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def remedy(error: OSError) -> str:
    """What to do about a file that cannot be opened or written."""
    if no_descriptor(error):
        return "let this process open more files (ulimit -n, LimitNOFILE=)"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.EISDIR | errno.ESTALE:
            return "--store was moved, removed or replaced: put it back, or start the node again"
        case errno.EROFS:
            return "mount the disk of --store for writing; one that has turned read-only by itself is failing"
        case errno.EACCES | errno.EPERM:
            return "let the user that runs this node read and write --store"
        case errno.EIO:
            return "replace the disk"
        case errno.ENOMEM:
            return "let this process map more files (vm.max_map_count, ulimit -v), or have more memory"
        case _:
            return "free some disk"


class Disk:
    """The real one."""

    def make_folder(self, folder: Path) -> None:
        """The folder and those above it, where there are none yet."""
        missing = [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            self.sync_folder(made.parent)

    def create(self, path: Path, size: int) -> None:
        """A file of `size` bytes, none of which takes room yet; its owner's alone."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def write(self, path: Path, data: bytes | memoryview, at: int = 0) -> None:
        """Have the file end in `data`, from byte `at` on."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, at)
            left = memoryview(data)
            while left:
                done = os.pwrite(descriptor, left, at)
                at, left = at + done, left[done:]
        finally:
            os.close(descriptor)

    def sync(self, path: Path) -> None:
        """What was written to the file, by a mapping too, is on the disk."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def sync_folder(self, folder: Path) -> None:
        """The names in the folder are on the disk."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def identity(self, path: Path) -> tuple[int, int]:
        """Tells the file from another that has taken its place."""
        found = path.stat()
        return found.st_dev, found.st_ino

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def replace(self, path: Path, data: bytes, more: bytes | memoryview = b"") -> None:
        """The file has `data` and `more` and nothing else, or what it had; on the disk when this returns."""
        temporary = path.with_suffix(".new")
        try:
            self.write(temporary, data)
            if more:
                self.write(temporary, more, len(data))
            self.sync(temporary)
            self.rename(temporary, path)
        except OSError:
            self.remove(temporary)
            raise
        self.sync_folder(path.parent)
