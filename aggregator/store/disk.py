"""How much room the state folder takes, by what it is of, and whether little is left on its disk."""

from __future__ import annotations

import os
from pathlib import Path

from edge_attention.disk_room import room

__all__ = ["FULL", "folder_bytes", "scarce", "state_bytes"]

FULL = 0.1
"""Share of the disk that is left from which it is said: appends and uploads are refused a little later."""
_KINDS = ("runs", "blobs", "deployments", "spool", "plans")
"""Folders in the state folder; `plans`: what jobs are planned in, and plans for jobs that come again."""


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
