"""Named tensors, and sequences in tiles that grow without moving. Thread-safe; every byte is counted."""

from __future__ import annotations

import logging
import math
import mmap
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidProgram, InvalidTensor, NotFound, OutOfMemory, Overtaken
from edge_attention.core.tensors import MAX_RANK, Array, DataType, require
from edge_node.store.disk import no_descriptor, remedy
from edge_node.store.held import Held, restored_tensor
from edge_node.store.kept_files import KEPT, MAPPED
from edge_node.store.origin import Origin
from edge_node.store.sequence_files import SCOPES, Files, scope_of, tiles_of
from edge_node.store.sequences import KeptSequence

__all__ = ["Held", "Origin", "Store"]

# Linux's value; Python names it since 3.13. Only address space is taken, memory comes with the first write.
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
_MAX_TILE = 65_536
_MAX_NAMES = 100_000
# Each is a mapping, of which a process has 65,530, and a line of the Register message, which has 4 MiB.
_MAX_SEQUENCES, _MAX_SEQUENCE_NAME = 16_384, 160

FEW_BYTES = 64 * 1024
"""Of tokens that are written in one turn of the store's lock."""
DISK_TIMES = 4
"""Times `limit` that tensors take on the disk which are kept there and mapped, at most."""

_DTYPES = frozenset(np.dtype(data_type.value) for data_type in DataType)

log = logging.getLogger(__name__)


class Store:
    """What one node holds, at most `limit` bytes of it, or what it held under a larger limit.

    Tensors whose shapes may tell of private data are counted apart, up to `apart` bytes (None: `limit`). So
    nothing that others see depends on them: not `used`, nor whether other tensors have room.

    `files`: keeps sequences under `context/` on disk, and has those of an earlier life. What was appended or
    kept is there after a power cut once `commit` has returned.
    """

    def __init__(self, limit: int, files: Files | None = None, apart: int | None = None) -> None:
        self.limit = limit
        self._apart_limit = limit if apart is None else apart
        self._apart = 0
        self._files = files
        self._held: dict[str, Held] = {}
        self._tasks_names = 0
        self._sequences: dict[str, KeptSequence] = {}
        self._bytes: Counter[str] = Counter()
        self._used = 0
        """Their sum."""
        self._lock = threading.RLock()
        self._unsaved: set[str] = set()
        """Kept tensors that are not on the disk yet."""
        self.layouts = 0
        """Is another number once `layout` or `extent` may say something else of a name."""
        self._revisions: OrderedDict[str, int] = OrderedDict()
        self._pins: Counter[Held] = Counter()
        self.disk = 0
        """Bytes of the disk that tensors take which are mapped, or will be; at most DISK_TIMES `limit`."""
        self._left: dict[str, None] = {}
        """Of these those that an earlier life has left and nobody has asked for in this one, oldest first."""
        self._saving = threading.Lock()
        self.freed: Callable[[str], None] = lambda scope: None
        """Told of a scope, a name that ends in `/`, when all that begins with it was dropped."""
        if files is not None:
            self._load(files)
        if self.used > limit:
            log.warning("%s bytes are stored already, more than --memory-limit: no more is taken", self.used)

    def _load(self, files: Files) -> None:
        for manifest, memory in files.load(self.limit):
            sequence = KeptSequence.kept(manifest, memory, files)
            self._sequences[manifest.name] = sequence
            self._count(manifest.name, sequence.counted)
        self._revisions |= files.revisions
        for name, array, origin, file in files.kept.load():
            self._held[name] = held = restored_tensor(array, origin, file)
            self._counted(name, held)
            if file is not None:
                self._left[name] = None

    @property
    def folder(self) -> Path | None:
        """Where it keeps what it has on disk; None: it has nothing there."""
        return None if self._files is None else self._files.folder

    @property
    def used(self) -> int:
        """Bytes stored, without those that are counted apart."""
        return self._used

    @property
    def used_apart(self) -> int:
        """Bytes of tensors whose shapes may tell of private data: for this machine only."""
        return self._apart

    def used_in(self, scope: str) -> int:
        """Bytes stored under `task`, `job` or `context`, without those that are counted apart."""
        return self._bytes[scope]

    def sequences(self) -> dict[str, int]:
        """Tokens of every sequence."""
        with self._lock:
            return {name: sequence.tokens for name, sequence in self._sequences.items()}

    def require(self, more: int, what: str, apart: bool = False) -> None:
        """Raises OutOfMemory if `more` bytes would take the store past its limit, or the one for `apart`."""
        if apart:
            if self._apart + more > self._apart_limit:
                raise OutOfMemory(
                    f"{what} needs {more:,} more bytes, but {self._apart:,} of the {self._apart_limit:,} are "
                    "used that this node has for what graphs make of private data; start it with a larger "
                    "--memory-limit, half of which that is on a node with --data"
                )
        elif self.used + more > self.limit:
            raise OutOfMemory(
                f"{what} needs {more:,} more bytes, but {self.used:,} of the node's {self.limit:,} are used; "
                "drop something, give the node less, or start it with a larger --memory-limit"
            )

    def reserve(self, size: int, what: str, apart: bool = False) -> None:
        """Count `size` bytes that are about to come; `release` them when they are stored or given up."""
        with self._lock:
            self.require(size, what, apart)
            self._count("task/", size, apart)

    def release(self, size: int, apart: bool = False) -> None:
        """Give back what `reserve` has counted; `apart` as there."""
        with self._lock:
            self._count("task/", -size, apart)

    def pin(self, name: str, held: Held) -> None:
        """Have what is stored as `name`, or was, count until `unpin`: somebody reads it that long.

        Raises:
            OutOfMemory: it is stored no longer, and there is no room for it.
        """
        with self._lock:
            if self._held.get(name) is not held and not self._pins[held]:
                self.require(held.nbytes, name, held.chosen)
                self._counted(name, held)
            self._pins[held] += 1

    def unpin(self, name: str, held: Held) -> None:
        """Take back one `pin`."""
        with self._lock:
            self._pins[held] -= 1
            if not self._pins[held]:
                del self._pins[held]
                if self._held.get(name) is not held:
                    self._counted(name, held, -1)

    def has(self, name: str, digest: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this digest is stored as `name`, and on the disk if it is to be kept."""
        with self._lock:
            held = self._held.get(name)
            if held is None or held.digest != digest or name in self._unsaved:
                return False
            self._left.pop(name, None)
            return held.array.dtype == dtype and held.array.shape == shape

    def put(self, name: str, array: Array, origin: Origin | None = None, digest: str = "") -> None:
        """Store `array` (not copied: it must not change) as `name`, in place of a tensor of that name.

        `digest`: SHA-256 of its bytes, if that is known.

        Raises InvalidProgram (a sequence is called so), InvalidTensor (of no use here), OutOfMemory.
        """
        with self._lock:
            if name in self._sequences:
                raise InvalidProgram(f"{name} is a sequence: drop it before storing another tensor there")
            kept = self._files is not None and KEPT in name
            mapped = kept and origin is None and array.nbytes >= MAPPED
            held = Held(array, origin, digest, array.nbytes if mapped else 0)
            self._left.pop(name, None)
            before = self._held.get(name)
            if before is not None and not kept and self._alike(before, held):
                self._held[name] = held  # as of each call of what keeps something: it counts the same
                return
            self.layouts += 1
            if mapped:
                self._require_disk(array.nbytes - (before.disk if before is not None else 0), name)
            self._replace(name, held, before)
            if kept:
                self._unsaved.add(name)
            self._held[name] = held

    def _alike(self, before: Held, held: Held) -> bool:
        """Whether `held` takes what `before` did, both public, in memory, of one type and shape, unpinned."""
        one, other = before.array, held.array
        return (
            before.origin is held.origin is None
            and before.file is None
            and not before.disk
            and one.shape == other.shape
            and one.dtype == other.dtype
            and before not in self._pins
        )

    def _require_disk(self, size: int, name: str) -> None:
        """Have what an earlier life left and nobody wants make room. Raises OutOfMemory."""
        most = DISK_TIMES * self.limit
        while self.disk + size > most:
            if not self._left:
                raise OutOfMemory(
                    f"{name} needs {size:,} bytes of disk, where tensors that are kept have {most:,}, "
                    f"{DISK_TIMES} times --memory-limit, and take {self.disk:,}: drop some"
                )
            self.drop(next(iter(self._left)))

    def count(self, name: str, held: Held, before: Held | None = None) -> None:
        """Count a tensor that a task keeps (task_tensors.py), in place of `before`. Raises as `put`."""
        with self._lock:
            self._replace("task/", held, before, name)
            self._tasks_names += before is None

    def count_all(self, held: Collection[Held], before: Collection[Held]) -> bool:
        """Count tensors that a task keeps, in place of those `before`, all at once; or nothing and say False.

        Where there is no room for all, or one is of no use here, `count` says of which that is so.
        """
        for one in held:
            if one.array.dtype not in _DTYPES or one.array.ndim > MAX_RANK:
                return False
        (more, apart), (freed, freed_apart) = _sizes(held), _sizes(before)
        more, apart, names = more - freed, apart - freed_apart, len(held) - len(before)
        with self._lock:
            full = self._used + more > self.limit or self._apart + apart > self._apart_limit
            many = len(self._held) + self._tasks_names + names > _MAX_NAMES
            if full or many or any(one in self._pins for one in before):
                return False
            self._count("task/", more)
            self._count("task/", apart, apart=True)
            self._tasks_names += names
        return True

    def uncount(self, held: Collection[Held]) -> None:
        """A task keeps these no longer."""
        more, apart = _sizes(held)
        with self._lock:
            self._tasks_names -= len(held)
            self._count("task/", -more)
            self._count("task/", -apart, apart=True)

    def _replace(self, name: str, held: Held, before: Held | None, shown: str = "") -> None:
        """Count `held` and not `before` any more, if that may be stored. `shown`: what errors call it."""
        array, what = held.array, shown or name
        DataType.of(array.dtype, what)
        if array.ndim > MAX_RANK:
            raise InvalidTensor(f"{what} has {array.ndim} dimensions; the limit is {MAX_RANK}")
        if before is None and len(self._held) + self._tasks_names >= _MAX_NAMES:
            raise InvalidProgram(f"{what}: this node stores {_MAX_NAMES} tensors already, the limit")
        if before in self._pins:
            before = None  # it counts until nobody reads it
        size, freed = held.nbytes, 0 if before is None else before.nbytes
        alike = before is not None and before.chosen == held.chosen
        if (more := size - freed if alike else size) > 0:
            self.require(more, what, held.chosen)
        if before is not None:
            self._counted(name, before, -1)
        self._counted(name, held)

    def get(self, name: str, tiles: range | None = None) -> Held:
        """The tensor `name`: of a sequence a view [tiles, heads, tile, dim] of the tiles asked for or in use.

        Raises NotFound, or InvalidProgram for tiles that are not in use.
        """
        with self._lock:
            held = self._held.get(name)
            if held is None:
                return self._tiles(name, tiles)
            if tiles is not None:
                raise InvalidProgram(f"{name} is no sequence, it has no tiles")
            self._left.pop(name, None)
        if held.file is not None and not held.file.checked:
            if held.file.intact():
                with self._lock:
                    self.layouts += 1
                return held
            with self._lock:
                if self._held.get(name) is held:
                    self.drop(name)
            raise NotFound(f"{name} was damaged on this node's disk and is dropped: store it again")
        return held

    def _tiles(self, name: str, tiles: range | None) -> Held:
        sequence = self._sequences.get(name)
        if sequence is None:
            raise NotFound(f"this node stores nothing called {name!r}")
        if tiles is None:
            return sequence.whole()
        if tiles.stop > sequence.in_use:
            raise InvalidProgram(f"{name} has {sequence.in_use} tiles in use, but {tiles} was asked for")
        return Held(sequence.tiles[tiles.start : tiles.stop], sequence.origin)

    def layout(self, name: str) -> tuple[int, ...] | None:
        """The shape of what is stored under `name`, of a sequence that of a tile [heads, tile, dim].

        None: nothing is, or it is private.
        """
        held, sequence = self._held.get(name), self._sequences.get(name)
        if held is not None:
            return held.array.shape if held.origin is None else None
        if sequence is None or sequence.origin is not None:
            return None
        return tuple(sequence.tiles.shape[1:])

    def extent(self, name: str) -> tuple[int, ...] | None:
        """As `layout`, but of a sequence that of all tiles in use [tiles, heads, tile, dim].

        None also of what `get` would first read whole from the disk, to see that it is as it was written.
        """
        held = self._held.get(name)
        if held is not None and held.file is not None and not held.file.checked:
            return None
        layout, sequence = self.layout(name), self._sequences.get(name)
        return layout if layout is None or sequence is None else (sequence.in_use, *layout)

    def is_sequence(self, name: str) -> bool:
        """Whether what is stored as `name` is a sequence, which appends grow where it lies."""
        return name in self._sequences

    def append(
        self,
        name: str,
        source: Array,
        at: int | None = None,
        tile: int = 0,
        origin: Origin | None = None,
        revision: int = 0,
    ) -> int:
        """Write `source` [tokens, heads, dim] float32 at token `at` (None: the end) of the sequence `name`.

        A sequence that does not exist begins with tiles of `tile` tokens. Tokens that are there already are
        replaced, those beyond stay; a gap is refused. Returns the tokens it holds then. What was private once
        is private for good, and takes no private tokens of another origin; what is not private does not
        become so: graphs may be reading it as what all may see.

        Raises InvalidTensor, InvalidProgram, OutOfMemory, Overtaken (a later change of the context has come),
        NotFound (it was dropped meanwhile).
        """
        if source.ndim != 3 or source.dtype != np.float32:
            require(source, f"the source of {name}", shape=("tokens", "heads", "dim"), finite=False)
        _, heads, dim = source.shape
        if origin is None and not revision and 0 < source.nbytes <= FEW_BYTES and name.startswith("job/"):
            with self._lock:
                sequence = self._sequences.get(name)
                if sequence is not None and sequence.plain and sequence.writing.acquire(blocking=False):
                    try:
                        return self._append_few(name, sequence, source, at, tile)
                    finally:
                        sequence.writing.release()
        with self._lock:
            self._require_current(name, revision)
            sequence = self._sequences.get(name) or self._begin(name, heads, tile, dim)
        with sequence.writing:
            try:
                with self._lock:
                    self._require_there(name, sequence)
                    self._require_current(name, revision)
                    if origin and sequence.tokens and not sequence.origin:
                        raise InvalidProgram(
                            f"{name} is not private and takes no private tokens; begin another sequence"
                        )
                    label = replace(origin, chosen=False) if origin else None
                    if label and sequence.origin and label != sequence.origin:
                        # A graph may be reading it as what a release covers.
                        raise InvalidProgram(
                            f"{name} holds what was computed from private data in another way; begin another "
                            "sequence"
                        )
                    start, tokens = sequence.place(name, source, at, tile)
                    used, was = sequence.counted, (sequence.in_use, sequence.origin)
                    self._take(name, sequence, tokens)
                    sequence.revision = revision
                sequence.write(source, start, tokens, used, sequence.origin or label, self._lock)
                with self._lock:
                    self._require_there(name, sequence)
                    sequence.publish()
                    if sequence.files is not None or was != (sequence.in_use, sequence.origin):
                        self.layouts += 1
                return tokens
            finally:
                with self._lock:
                    self._settle(name, sequence)

    def _append_few(self, name: str, sequence: KeptSequence, source: Array, at: int | None, tile: int) -> int:
        """`append` of so few tokens that others may wait for them to be written, to a plain sequence."""
        start, tokens = sequence.place(name, source, at, tile)
        self._take(name, sequence, tokens)
        in_use = sequence.in_use
        sequence.write_few(source, start, tokens)
        if sequence.in_use != in_use:
            self.layouts += 1
        return tokens

    def commit(self, names: Iterable[str] = ()) -> None:
        """Returns when what `names` hold, what was dropped and what was kept is on the disk. Blocks on it.

        Raises:
            OutOfMemory, DataLoss: the disk is full, or cannot be written; a later commit may do it.
        """
        files = self._files
        names = [name for name in names if name.startswith("context/") or KEPT in name]
        if files is None or not names:
            return
        with self._saving:  # who comes second has what it wants on the disk, too, when it is let in
            self._commit(files, names)

    def _commit(self, files: Files, names: list[str]) -> None:
        with self._lock:
            sequences = [sequence for name in names if (sequence := self._sequences.get(name)) is not None]
            for sequence in sequences:
                sequence.add()
            kept = {name: self._held[name] for name in self._unsaved if name in self._held}
            self._unsaved.clear()
        try:
            files.flush()
            for sequence in sequences:
                sequence.require_written()
            for name, held in list(kept.items()):
                *_, array, origin, file = files.kept.save(name, held.array, held.origin, held.digest)
                with self._lock:
                    del kept[name]
                    if name not in self._held:
                        files.kept.delete(name)
                    elif file is not None and self._held[name] is held:
                        self._held[name] = mapped = restored_tensor(array, origin, file)
                        self.layouts += 1
                        self._counted(name, mapped)
                        if held not in self._pins:
                            self._counted(name, held, -1)
        finally:
            with self._lock:
                self._unsaved |= kept.keys()

    def close(self) -> None:
        """End in order: all is on the disk, and the next process need not verify it. Raises as `commit`."""
        self.commit([*self._sequences, *self._unsaved])
        if self._files is not None:
            self._files.close()

    def drop(self, name: str, revision: int | None = None) -> None:
        """Forget `name`; one that ends in `/` stands for all that begin with it. Unknown names are fine.

        `revision`: that of a change of a context, refused where a later one has written; None: whatever has.

        Raises:
            Overtaken: nothing is dropped.
        """
        with self._lock:
            self.layouts += 1
            names = [name]
            if name.endswith("/"):
                names = [n for n in (*self._held, *self._sequences) if n.startswith(name)]
            if revision is not None and name.startswith("context/"):
                for found in names:
                    sequence = self._sequences.get(found)
                    if sequence is not None and revision < sequence.revision:
                        later = f"number {sequence.revision} has written since"
                        raise Overtaken(f"{found}: this drop has number {revision}; {later}")
                scope = scope_of(name)
                if revision > self._revisions.get(scope, 0):
                    self._see(scope, revision)
                    if self._files is not None:
                        self._files.seen(scope, revision)
            for found in names:
                held = self._held.pop(found, None)
                if held is not None:
                    self._left.pop(found, None)
                    if held not in self._pins:
                        self._counted(found, held, -1)
                    if self._files is not None and KEPT in found:
                        self._files.kept.delete(found)
                sequence = self._sequences.get(found)
                if sequence is not None:
                    self._forget(found, sequence)
        if name.endswith("/"):
            self.freed(name)

    def _begin(self, name: str, heads: int, tile: int, dim: int) -> KeptSequence:
        if name in self._held:
            raise InvalidProgram(f"{name} is a tensor and no sequence: drop it before appending there")
        if not (0 < tile <= _MAX_TILE and heads and dim):
            what = f"{heads} heads of {dim} in tiles of {tile} tokens"
            raise InvalidProgram(f"{what} begin no sequence {name}; a tile has 1 to {_MAX_TILE}")
        if len(name) > _MAX_SEQUENCE_NAME:
            most = f"a sequence has a name of {_MAX_SEQUENCE_NAME} characters at most"
            raise InvalidProgram(f"{name[:80]}...: {most}")
        if len(self._sequences) >= _MAX_SEQUENCES:
            raise InvalidProgram(f"{name}: this node stores {_MAX_SEQUENCES:,} sequences already, the limit")
        layout = (heads, tile, dim)
        one = 4 * math.prod(layout)
        self.require(one, name)
        files = self._files_of(name)
        # The whole limit if possible: address space costs nothing, and what is stored never moves. Less where
        # it grows short: there are processors with 512 GiB of it.
        for size in (self.limit, self.limit // 16, self.limit // 256):
            size = max(size // one, 1) * one
            try:
                if files is not None:
                    sequence = KeptSequence.kept(*files.create(name, layout, size), files)
                else:
                    memory = mmap.mmap(-1, size, _ANONYMOUS)
                    sequence = KeptSequence(tiles_of(memory, layout), memory=memory)
                self._sequences[name] = sequence
                self.layouts += 1
                return sequence
            except (OSError, ValueError, OverflowError) as error:
                if isinstance(error, OSError) and no_descriptor(error):
                    raise OutOfMemory(f"{name} cannot be stored: {error.strerror}; {remedy(error)}") from None
                reason = error
        raise OutOfMemory(f"{name}: no address space is left for {size:,} bytes: {reason}")

    def _require_current(self, name: str, revision: int) -> None:
        """Refuse a change of a context that a later one has come before."""
        if not name.startswith("context/"):
            return
        scope = scope_of(name)
        sequence = self._sequences.get(name)
        seen = max(self._revisions.get(scope, 0), sequence.revision if sequence is not None else 0)
        if revision < seen:
            raise Overtaken(
                f"{name}: this change has number {revision}, and number {seen} of {scope} has come before it"
            )
        self._see(scope, revision)

    def _see(self, scope: str, revision: int) -> None:
        if revision:
            self._revisions[scope] = revision
            self._revisions.move_to_end(scope)
            if len(self._revisions) > SCOPES:
                self._revisions.popitem(last=False)

    def _require_there(self, name: str, sequence: KeptSequence) -> None:
        if self._sequences.get(name) is not sequence:
            raise NotFound(f"{name} was dropped meanwhile")

    def _take(self, name: str, sequence: KeptSequence, tokens: int) -> None:
        """Count what `tokens` need before they are written."""
        more = sequence.bytes_for(tokens) - sequence.counted
        if more > 0:
            self.require(more, name)
            if sequence.tiles_for(tokens) > len(sequence.tiles):
                raise OutOfMemory(f"{name} cannot grow past the {len(sequence.tiles)} tiles reserved")
            sequence.counted += more
            self._count(name, more)
            sequence.about_to_grow()

    def _settle(self, name: str, sequence: KeptSequence) -> None:
        """After an append, or one that failed: what is not used does not count."""
        if self._sequences.get(name) is not sequence:
            return
        if unused := sequence.counted - sequence.bytes_for(sequence.tokens):
            sequence.counted -= unused
            self._count(name, -unused)
        if not sequence.tokens and sequence.unsaved is None:
            self._forget(name, sequence)

    def _forget(self, name: str, sequence: KeptSequence) -> None:
        del self._sequences[name]
        self.layouts += 1
        self._count(name, -sequence.counted)
        sequence.delete()

    def _files_of(self, name: str) -> Files | None:
        return self._files if name.startswith("context/") else None

    def _counted(self, name: str, held: Held, sign: int = 1) -> None:
        self._count(name, sign * held.nbytes, held.chosen)
        self.disk += sign * held.disk

    def _count(self, name: str, more: int, apart: bool = False) -> None:
        if apart:
            self._apart += more
        else:
            self._bytes[name.partition("/")[0]] += more
            self._used += more


def _sizes(held: Collection[Held]) -> tuple[int, int]:
    """Bytes of them: of those that all may see counted, and of those whose shapes private data has chosen."""
    whole, apart = 0, 0
    for one in held:
        if one.chosen:
            apart += one.nbytes
        else:
            whole += one.nbytes
    return whole, apart
