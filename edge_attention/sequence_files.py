"""Sequences on disk: sparse memory-mapped files, and a manifest for each, written after the data.

They survive the process (the page cache keeps what was written), not a power cut in mid-append.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from edge_attention.core.errors import FailedPrecondition, OutOfMemory
from edge_attention.core.tensors import Float32, require_stored
from edge_attention.kept_files import KeptFiles
from edge_attention.mapped import Memory, mapped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """What is known of a sequence: `layout` is (heads, tile, dim); `origin` is set if it is private."""

    name: str
    tokens: int
    layout: tuple[int, int, int]
    origin: tuple[str, str] | None

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles in use."""
        return -(-self.tokens // self.layout[1]) * 4 * math.prod(self.layout)


class Files:
    """The sequences kept in `folder`, which belongs to one process at a time.

    Raises:
        FailedPrecondition: it cannot be used, or another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / "lock", "w")  # noqa: SIM115  (held as long as the process lives)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"{folder} is in use by another edge-node; give each its own --store folder"
            ) from None
        except OSError as error:
            raise FailedPrecondition(f"{folder} cannot be used as --store: {error.strerror}") from None
        self.kept = KeptFiles(folder / "kept")

    def load(self, limit: int) -> Iterator[tuple[Manifest, Memory]]:
        """What an earlier process left, mapped for growth to `limit` bytes; what is damaged is skipped."""
        known: set[Path] = set()
        for path in sorted(self._folder.glob("*.json")):
            known.add(path.with_suffix(".tiles"))
            try:
                manifest = _read(path)
                if path.stem != _stem(manifest.name):
                    raise ValueError("its file has another name")
                data = path.with_suffix(".tiles")
                if data.stat().st_size < manifest.nbytes:
                    raise ValueError(f"{data.name} is shorter than its {manifest.nbytes:,} bytes")
                yield manifest, _map(data, max(limit, manifest.nbytes))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("skipped the stored sequence %s: %s", path, error)
        for data in set(self._folder.glob("*.tiles")) - known:
            data.unlink()  # of a sequence that was never finished, or dropped

    def create(self, name: str, size: int) -> Memory:
        """An empty file for `name`, mapped; `size` bytes of address space, none of disk."""
        path = self._path(name, ".tiles")
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        return _map(path, size)

    def allocate(self, name: str, start: int, size: int) -> None:
        """Have `size` bytes on disk from `start` on: writing to a mapping on a full disk kills a process."""
        fd = os.open(self._path(name, ".tiles"), os.O_RDWR)
        try:
            os.posix_fallocate(fd, start, size)
        except OSError as error:
            raise OutOfMemory(
                f"{name} needs {size:,} bytes in {self._folder}: {error.strerror}; free some disk"
            ) from None
        finally:
            os.close(fd)

    def save(self, manifest: Manifest) -> None:
        path = self._path(manifest.name, ".json")
        temporary = path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(asdict(manifest)))
            temporary.replace(path)
        except OSError as error:
            raise OutOfMemory(f"{manifest.name} cannot be kept in {self._folder}: {error.strerror}") from None

    def delete(self, name: str) -> None:
        # The manifest first: data without one is swept at the next start.
        for suffix in (".json", ".tiles"):
            self._path(name, suffix).unlink(missing_ok=True)

    def _path(self, name: str, suffix: str) -> Path:
        return self._folder / (_stem(name) + suffix)


def tiles_of(memory: Memory, layout: tuple[int, int, int]) -> Float32:
    """`memory` as tiles of (heads, tile, dim): float32 [tiles, heads, tile, dim], as many as fit."""
    one = math.prod(layout)
    count = len(memory) // (4 * one)
    return np.frombuffer(memory, np.float32, count * one).reshape(count, *layout)


def _stem(name: str) -> str:
    return sha256(name.encode()).hexdigest()[:32]


def _map(path: Path, size: int) -> Memory:
    with path.open("r+b") as file:
        if os.fstat(file.fileno()).st_size < size:
            file.truncate(size)
        return mapped(file.fileno(), size)


def _read(path: Path) -> Manifest:
    found = json.loads(path.read_text())
    name, tokens, origin = require_stored(found["name"]), found["tokens"], found["origin"]
    heads, tile, dim = found["layout"]
    if not name.startswith("context/") or not all(
        type(n) is int and 0 < n < 2**31 for n in (heads, tile, dim, tokens + 1)
    ):
        raise ValueError("its manifest is damaged")
    if origin is not None:
        digest, output = origin
        origin = (str(digest), str(output))
    return Manifest(name, tokens, (heads, tile, dim), origin)
