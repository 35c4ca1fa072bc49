"""Sequences on disk: sparse memory-mapped files, and a journal that says what each holds.

    <folder>/journal          what is stored, and the sum of every tile of it
    <folder>/<16 hex>.tiles   one sequence's tiles; a file is never used for another
    <folder>/clean            the process ended in order when the journal was so: nothing need be verified
    <folder>/kept/            tensors (edge_node.store.kept_files)

The journal speaks only of data that are on the disk, and before tokens it speaks of are overwritten it says
that they end there. So after a power cut what was acknowledged is there. Unless the process before ended in
order, every tile is read and compared with its sum, and what differs is not stored here any more.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.errors import FailedPrecondition, OutOfMemory
from edge_attention.core.tensors import Float32, require_stored
from edge_node.store.disk import Disk, remedy
from edge_node.store.journal import Journal, JournalBatch, JournalRecord
from edge_node.store.kept_files import KeptFiles
from edge_node.store.mapped import MappedMemory, mapped
from edge_node.store.origin import Origin, restored
from edge_node.store.tiles import sums

log = logging.getLogger(__name__)

FORMAT = 1
SCOPES = 8192
"""Contexts whose highest revision is known, those a node holds nothing of any more included."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a sequence: `layout` is (heads, tile, dim); `sums` has one for each tile in use.

    `origin` is set if it is private; `revision` is that of the last change.
    """

    name: str
    file: str
    tokens: int
    layout: tuple[int, int, int]
    origin: Origin | None = None
    revision: int = 0
    sums: tuple[int, ...] = ()

    @property
    def in_use(self) -> int:
        """Tiles."""
        return -(-self.tokens // self.layout[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles in use."""
        return self.in_use * 4 * math.prod(self.layout)


class Files:
    """The sequences kept in `folder`, which belongs to one process at a time.

    Raises:
        FailedPrecondition: it cannot be used, or another process uses it, or a newer release has.
    """

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder = folder
        self._disk = disk or Disk()
        self._manifests: dict[str, Manifest] = {}
        self.revisions: OrderedDict[str, int] = OrderedDict()
        """The highest of each scope, as `context/<id>`."""
        self._journal = Journal(folder / "journal", self._disk, self._told, self._summary)
        try:
            self._disk.make_folder(folder)
            self._lock = open(folder / "lock", "w")  # noqa: SIM115  (held as long as the process lives)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.kept = KeptFiles(folder / "kept", self._disk)
        except BlockingIOError:
            raise FailedPrecondition(
                f"{folder} is in use by another edge-node; give each its own --store folder"
            ) from None
        except OSError as error:
            raise _unusable(folder, error) from None

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return self._folder

    def load(self, limit: int) -> Iterator[tuple[Manifest, MappedMemory]]:
        """What an earlier process left, mapped for growth to `limit` bytes, after it was verified.

        Of a sequence with a damaged tile those before it are left; what cannot be used is said and removed.

        Raises:
            FailedPrecondition: a file cannot be opened or mapped, which says nothing of what is in it.
        """
        try:
            if not self._begin() or any(map(self._short, self._manifests.values())):
                self._verify()
            last = {manifest.name: file for file, manifest in self._manifests.items()}
            for file, manifest in list(self._manifests.items()):
                # Of two of one name the record that the first was dropped is damaged.
                if not manifest.tokens or not self._path(file).exists() or last[manifest.name] != file:
                    del self._manifests[file]
            self._journal.rewrite()
            self._sweep()
        except OSError as error:
            raise _unusable(self._folder, error) from None
        for manifest in list(self._manifests.values()):
            try:
                memory = self._map(manifest, max(limit, manifest.nbytes))
            except OSError as error:  # without it others would take its place, and its tokens would go
                raise _unusable(self._folder, error) from None
            yield manifest, memory

    def create(self, name: str, layout: tuple[int, int, int], size: int) -> tuple[Manifest, MappedMemory]:
        """An empty file for `name`, mapped; `size` bytes of address space, none of disk."""
        manifest = Manifest(name, secrets.token_hex(8), 0, layout)
        path = self._path(manifest.file)
        self._disk.create(path, size)
        try:
            memory = self._map(manifest, size)
        except OSError:
            self._disk.remove(path)
            raise
        self._journal.add({"begin": manifest.file, "name": name, "layout": layout}, path, new_name=True)
        return manifest, memory

    def allocate(self, manifest: Manifest, start: int, size: int) -> None:
        """Have `size` bytes on disk from `start` on: writing to a mapping on a full disk kills a process."""
        try:
            fd = os.open(self._path(manifest.file), os.O_RDWR)
            try:
                os.posix_fallocate(fd, start, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise OutOfMemory(
                f"{manifest.name} needs {size:,} bytes in {self._folder}: {error.strerror}; {remedy(error)}"
            ) from None

    def add(self, manifest: Manifest, tile: int) -> JournalBatch:
        """Put it in order that the sequence is now so, with sums that are new from `tile` on; see `wait`."""
        record = {
            "grew": manifest.file, "tokens": manifest.tokens, "origin": _saved(manifest.origin),
            "revision": manifest.revision, "tile": tile, "sums": list(manifest.sums[tile:]),
        }  # fmt: skip
        return self._journal.add(record, self._path(manifest.file))

    def wait(self, batch: JournalBatch) -> None:
        """Returns when what was added is on the disk, with all it speaks of and all that was added before.

        Raises:
            OutOfMemory: the disk is full; what was added is not lost.
            DataLoss: the disk cannot write it.
        """
        self._journal.wait(batch)

    def flush(self) -> None:
        """Wait for all that was added."""
        self._journal.flush()

    def require_written(self, manifest: Manifest) -> None:
        """Raises DataLoss if the disk could not write the sequence."""
        self._journal.require_written(self._path(manifest.file))

    def delete(self, manifest: Manifest) -> None:
        self._journal.add({"drop": manifest.file})
        try:
            self._disk.remove(self._path(manifest.file))
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._path(manifest.file), error.strerror)

    def seen(self, scope: str, revision: int) -> None:
        """Put it in order that a change of this revision was seen."""
        self._journal.add({"seen": scope, "revision": revision})

    def close(self) -> None:
        """End in order: the next process need not verify what is here. Raises as `wait` does, and OSError."""
        self.flush()
        self._disk.replace(self._folder / "clean", json.dumps(self._journal.mark).encode())

    def _begin(self) -> bool:
        """Reads what is there; whether the process before ended in order."""
        mark = self._folder / "clean"
        try:
            ended = json.loads(mark.read_text())
        except (OSError, ValueError):
            ended = None
        self._disk.remove(mark)
        self._disk.sync_folder(self._folder)
        if self._journal.read():
            return bool(ended == self._journal.mark)
        from edge_node.store.old_sequences import old_sequences  # hardly ever

        for found, path, parts in old_sequences(self._folder):
            self._disk.sync(path)
            layout, origin, tokens, known = tuple(found["layout"]), found["origin"], 0, list[int]()
            for part in parts:
                known, tokens = sums(known, layout[1], tokens, part), tokens + len(part)
            private = restored(origin, chosen=False)
            manifest = Manifest(found["name"], path.stem, tokens, layout, private, 0, tuple(known))
            self._manifests[path.stem] = manifest
        return True

    def _verify(self) -> None:
        """Keep of every sequence the tiles that are as they were written."""
        if not self._manifests:
            return
        began, size = time.monotonic(), sum(m.nbytes for m in self._manifests.values())
        log.info("the last process did not end in order: verifying %s bytes", f"{size:,}")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="verify") as pool:
            for file, good in zip(
                self._manifests, pool.map(self._good, self._manifests.values()), strict=True
            ):
                manifest = self._manifests[file]
                if good < manifest.in_use:
                    tokens = good * manifest.layout[1]
                    log.warning(
                        "of %s %d of %d tokens are left: the rest is not what was written",
                        manifest.name,
                        tokens,
                        manifest.tokens,
                    )
                    self._manifests[file] = replace(manifest, tokens=tokens, sums=manifest.sums[:good])
        log.info("verified %s bytes in %.1f s", f"{size:,}", time.monotonic() - began)

    def _good(self, manifest: Manifest) -> int:
        """How many tiles from the first on have their sums. What follows the last token is set to zero.

        Raises:
            OSError: it cannot be read, which says nothing of what is in it: that is not to be removed.
        """
        heads, tile, dim = manifest.layout
        one = 4 * heads * tile * dim
        path = self._path(manifest.file)
        try:
            file = path.open("r+b", buffering=0)
        except (FileNotFoundError, IsADirectoryError) as error:
            log.warning("%s cannot be read: %s", path, error.strerror)
            return 0
        with file:
            for index, known in enumerate(manifest.sums):
                try:
                    data = bytearray(os.pread(file.fileno(), one, index * one))
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    log.warning("%s cannot be read: %s", path, error.strerror)
                    return index
                if len(data) < one:
                    return index
                count = min(manifest.tokens - index * tile, tile)
                there = np.frombuffer(data, np.float32).reshape(heads, tile, dim)
                if sums((), tile, 0, there[:, :count].transpose(1, 0, 2)) != [known]:
                    return index
                if count < tile:
                    there[:, count:] = 0  # what of a change that was never finished may be there
                    os.pwrite(file.fileno(), data, index * one)
        return manifest.in_use

    def _short(self, manifest: Manifest) -> bool:
        """Whether its file is not as long as it must be, or is not there."""
        path = self._path(manifest.file)
        return not path.exists() or path.stat().st_size < manifest.nbytes

    def _sweep(self) -> None:
        """Remove the files of sequences that were dropped, never finished or damaged."""
        for path in [
            *self._folder.glob("*.tiles"),
            *self._folder.glob("*.new"),
            *self._folder.glob("*.json"),
        ]:
            if path.suffix != ".tiles" or path.stem not in self._manifests:
                self._disk.remove(path)

    def _told(self, record: JournalRecord) -> None:
        """One record, in order: of the journal as it is read, then of each that becomes durable."""
        match record:
            case {"format": int(number)}:
                if number > FORMAT:
                    raise FailedPrecondition(
                        f"{self._folder} was written by a newer release; run that, or give another --store"
                    )
            case {"begin": str(file), "name": str(name), "layout": [heads, tile, dim]}:
                sizes = (heads, tile, dim)
                if re.fullmatch("[0-9a-f]{1,64}", file) and all(
                    type(n) is int and 0 < n < 2**31 for n in sizes
                ):
                    self._manifests[file] = Manifest(require_stored(name), file, 0, sizes)
            case {"grew": str(file), "tokens": int(tokens), "tile": int(tile), "sums": list(new), **rest}:
                known = self._manifests.get(file)
                origin, revision = rest.get("origin"), int(rest.get("revision", 0))
                if known is not None:
                    grown = replace(
                        known,
                        tokens=tokens,
                        sums=(*known.sums[:tile], *new),
                        origin=restored(origin, chosen=False),
                        revision=revision,
                    )
                    if len(grown.sums) == grown.in_use:
                        self._manifests[file] = grown
                    else:  # one before is damaged; how it was then is still there, or will be found not to be
                        log.warning("%s: its records do not fit each other", known.name)
                    self._highest(scope_of(known.name), revision)
            case {"drop": str(file)}:
                self._manifests.pop(file, None)
            case {"seen": str(scope), "revision": int(revision)}:
                self._highest(scope, revision)

    def _highest(self, scope: str, revision: int) -> None:
        self.revisions[scope] = max(revision, self.revisions.get(scope, 0))
        self.revisions.move_to_end(scope)
        if len(self.revisions) > SCOPES:
            self.revisions.popitem(last=False)

    def _summary(self) -> Iterable[JournalRecord]:
        yield {"format": FORMAT}
        for scope, revision in self.revisions.items():
            yield {"seen": scope, "revision": revision}
        for m in self._manifests.values():
            yield {"begin": m.file, "name": m.name, "layout": m.layout}
            yield {
                "grew": m.file, "tokens": m.tokens, "origin": _saved(m.origin), "revision": m.revision,
                "tile": 0, "sums": list(m.sums),
            }  # fmt: skip

    def _map(self, manifest: Manifest, size: int) -> MappedMemory:
        with self._path(manifest.file).open("r+b") as file:
            file.truncate(manifest.nbytes)  # what lies behind is of changes that were never finished
            file.truncate(size)
            return mapped(file.fileno(), size)

    def _path(self, file: str) -> Path:
        return self._folder / f"{file}.tiles"


def _unusable(folder: Path, error: OSError) -> FailedPrecondition:
    where = f" ({error.filename})" if error.filename and str(error.filename) != str(folder) else ""
    said = f"{folder} cannot be used as --store: {error.strerror}{where}; {remedy(error)}"
    return FailedPrecondition(said)


def _saved(origin: Origin | None) -> list[Any] | None:
    return None if origin is None else origin.saved()


def scope_of(name: str) -> str:
    """Of `context/<id>/...` the part that changes are numbered in."""
    return "/".join(name.split("/", 2)[:2])


def tiles_of(memory: MappedMemory, layout: tuple[int, int, int]) -> Float32:
    """`memory` as tiles of (heads, tile, dim): float32 [tiles, heads, tile, dim], as many as fit."""
    one = math.prod(layout)
    count = len(memory) // (4 * one)
    return np.frombuffer(memory, np.float32, count * one).reshape(count, *layout)
