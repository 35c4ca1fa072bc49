"""Folders whose files stay as they were written: what a disk has changed since is found before it is used.

    <folder>/sealed.json    path of each other file in it -> SHA-256 of its bytes

Blocks on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

from aggregator.store.folder import remedy, sync, unwritable, write_durably
from edge_attention.core.errors import DataLoss, FailedPrecondition

__all__ = ["file_digest", "require_sealed", "seal"]

SEAL = "sealed.json"
_LOST = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO})
"""What the system says of a file that is not there any more, or that the disk does not give back."""


def seal(folder: Path) -> None:
    """Write down what the folder's files are. They, and that, are on the disk when this returns."""
    try:
        files = {str(path.relative_to(folder)): path for path in _files(folder)}
        sums = {name: file_digest(path, synced=True) for name, path in files.items()}
        for below in {path.parent for path in files.values()}:
            sync(below)
    except OSError as error:
        raise unwritable(Path(error.filename or folder), error) from error
    write_durably(folder / SEAL, json.dumps(sums).encode())
    sync(folder)


def require_sealed(folder: Path) -> None:
    """Refuse a folder that is not as it was sealed. One that an earlier release wrote has no seal.

    Raises:
        DataLoss: names the first file that is gone, that the disk does not give back, or with other bytes.
        FailedPrecondition: one cannot be read now, which says nothing of what is in it; says what to do.
    """
    try:
        sums = json.loads((folder / SEAL).read_bytes())
        for name, wanted in sums.items():
            if file_digest(folder / name) != wanted:
                raise DataLoss(f"{folder / name} is damaged: its bytes are not those that were written")
    except FileNotFoundError as error:
        if Path(error.filename) != folder / SEAL:
            raise DataLoss(f"{error.filename} is gone") from None
    except OSError as error:
        said = f"{error.filename or folder} cannot be read: {error.strerror}"
        if error.errno not in _LOST:
            raise FailedPrecondition(f"{said}; {remedy(folder, error)}") from None
        raise DataLoss(said) from None
    except (ValueError, AttributeError, TypeError):
        raise DataLoss(f"{folder / SEAL} is damaged") from None


def file_digest(path: Path, *, synced: bool = False) -> str:
    """SHA-256 of the file's bytes; `synced`: which are on the disk when this returns. Raises OSError."""
    with path.open("rb") as file:
        if synced:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
