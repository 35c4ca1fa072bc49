"""How much room the state folder takes, by what it is of, and how much is left on its disk."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["FULL", "folder_bytes", "room", "scarce", "state_bytes"]

FULL = 0.1
"""Share of the disk that is left from which it is said: appends and uploads are refused a little later."""
_KINDS = ("runs", "blobs", "deployments", "spool", "plans")
"""Folders in the state folder; `plans`: what jobs are planned in, and plans for jobs that come again."""


def room(folder: Path) -> tuple[int, int]:
    """(bytes that can still be written, bytes in all) of the disk that holds `folder`.

    A disk that has room for fewer more files than bytes (inodes) counts by these: of a million files one in
    ten left is a tenth of its bytes. One that is mounted read-only has none left, and neither has a folder
    that is not there; the size is then that of the disk of the folder above. (0, 0): nothing says.
    """
    for there in (folder, *folder.parents):
        try:
            found = os.statvfs(there)
        except OSError:
            continue
        size = found.f_blocks * found.f_frsize
        if there != folder or found.f_flag & os.ST_RDONLY:
            return 0, size
        free = found.f_bavail * found.f_frsize
        if found.f_files:
            free = min(free, size * found.f_favail // found.f_files)
        return free, size
    return 0, 0


def scarce(folder: Path) -> bool:
    """Whether little is left of the disk that holds `folder`."""
    free, size = room(folder)
    return size > 0 and free < FULL * size


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below `folder`; 0 if there is none. Blocks."""
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(path, name)).st_size
            except OSError:  # it has just gone
                continue
    return size


def state_bytes(state: Path) -> dict[str, int]:
    """What the state folder takes by kind. Files that two kinds have count twice. Blocks."""
    found = {kind: folder_bytes(state / kind) for kind in _KINDS}
    whole = folder_bytes(state)
    return {**found, "other": max(whole - sum(found.values()), 0)}
