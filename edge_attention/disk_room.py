"""How much room is left on a disk."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["room"]


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
