"""Named tensors, and sequences in tiles that grow without moving. Thread-safe; every byte is counted."""

from __future__ import annotations

import logging
import math
import mmap
import threading
from collections import Counter
from dataclasses import dataclass

from edge_attention.core.errors import InvalidProgram, InvalidTensor, NotFound, OutOfMemory
from edge_attention.core.tensors import MAX_RANK, Array, DataType, Float32, require
from edge_attention.core.tiles import write
from edge_attention.kept_files import KEPT
from edge_attention.sequence_files import Files, Manifest, tiles_of

# Linux's value; Python names it since 3.13. Only address space is taken, memory comes with the first write.
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
_MAX_TILE = 65_536
_MAX_NAMES = 100_000
# Each is a mapping, of which a process has 65,530, and a line of the Register message.
_MAX_SEQUENCES = 4_096

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a private tensor comes from: an output of a graph, or (no digest) what `output` says."""

    digest: str
    output: str


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor of the store. `origin` is set if and only if it is private."""

    array: Array
    origin: Origin | None = None


@dataclass(eq=False)
class _Sequence:
    """`tiles` [reserved, heads, tile, dim]; the first `tokens` tokens are written."""

    tiles: Float32
    tokens: int
    origin: Origin | None

    @property
    def in_use(self) -> int:
        return -(-self.tokens // int(self.tiles.shape[2]))

    @property
    def nbytes(self) -> int:
        return self.in_use * 4 * math.prod(self.tiles.shape[1:])


class Store:
    """What one node holds, at most `limit` bytes of it, or what it held under a larger limit.

    `files`: keeps sequences under `context/` on disk, and has those of an earlier life.
    """

    def __init__(self, limit: int, files: Files | None = None) -> None:
        self.limit = limit
        self._files = files
        self._held: dict[str, Held] = {}
        self._sequences: dict[str, _Sequence] = {}
        self._bytes: Counter[str] = Counter()
        self._lock = threading.RLock()
        for manifest, memory in files.load(limit) if files else ():
            origin = Origin(*manifest.origin) if manifest.origin else None
            sequence = _Sequence(tiles_of(memory, manifest.layout), manifest.tokens, origin)
            self._sequences[manifest.name] = sequence
            self._count(manifest.name, sequence.nbytes)
        for name, array, private in files.kept.load() if files else ():
            self._held[name] = Held(array, Origin(*private) if private else None)
            self._count(name, array.nbytes)
        if self.used > limit:
            log.warning("%s bytes are stored already, more than --memory-limit: no more is taken", self.used)

    @property
    def used(self) -> int:
        """Bytes stored."""
        return self._bytes.total()

    def used_in(self, scope: str) -> int:
        """Bytes stored under `task`, `job` or `context`."""
        return self._bytes[scope]

    def sequences(self) -> dict[str, int]:
        """Tokens of every sequence."""
        with self._lock:
            return {name: sequence.tokens for name, sequence in self._sequences.items()}

    def require(self, more: int, what: str) -> None:
        """Raises OutOfMemory if `more` bytes would take the store past its limit."""
        if self.used + more > self.limit:
            raise OutOfMemory(
                f"{what} needs {more:,} more bytes, but {self.used:,} of the node's {self.limit:,} are used; "
                "drop something, give the node less, or start it with a larger --memory-limit"
            )

    def reserve(self, size: int, what: str) -> None:
        """Count `size` bytes that are about to come; `release` them when they are stored or given up."""
        with self._lock:
            self.require(size, what)
            self._bytes["task"] += size

    def release(self, size: int) -> None:
        with self._lock:
            self._bytes["task"] -= size

    def put(self, name: str, array: Array, origin: Origin | None = None) -> None:
        """Store `array` (not copied: it must not change) as `name`, in place of a tensor of that name.

        Raises InvalidProgram (a sequence is called so), InvalidTensor (of no use here), OutOfMemory.
        """
        DataType.of(array.dtype, name)
        if array.ndim > MAX_RANK:
            raise InvalidTensor(f"{name} has {array.ndim} dimensions; the limit is {MAX_RANK}")
        with self._lock:
            if name in self._sequences:
                raise InvalidProgram(f"{name} is a sequence: drop it before storing another tensor there")
            if name not in self._held and len(self._held) >= _MAX_NAMES:
                raise InvalidProgram(f"{name}: this node stores {_MAX_NAMES} tensors already, the limit")
            more = array.nbytes - (self._held[name].array.nbytes if name in self._held else 0)
            if more > 0:
                self.require(more, name)
            if self._files is not None and KEPT in name:
                self._files.kept.save(name, array, (origin.digest, origin.output) if origin else None)
            self._held[name] = Held(array, origin)
            self._count(name, more)

    def get(self, name: str, tiles: range | None = None) -> Held:
        """The tensor `name`: of a sequence a view [tiles, heads, tile, dim] of the tiles asked for or in use.

        Raises NotFound, or InvalidProgram for tiles that are not in use.
        """
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                if tiles is not None:
                    raise InvalidProgram(f"{name} is no sequence, it has no tiles")
                return held
            sequence = self._sequences.get(name)
            if sequence is None:
                raise NotFound(f"this node stores nothing called {name!r}")
            wanted = range(sequence.in_use) if tiles is None else tiles
            if wanted.stop > sequence.in_use:
                raise InvalidProgram(f"{name} has {sequence.in_use} tiles in use, but {wanted} was asked for")
            return Held(sequence.tiles[wanted.start : wanted.stop], sequence.origin)

    def is_sequence(self, name: str) -> bool:
        return name in self._sequences

    def append(
        self, name: str, source: Array, at: int | None = None, tile: int = 0, origin: Origin | None = None
    ) -> int:
        """Write `source` [tokens, heads, dim] float32 at token `at` (None: the end) of the sequence `name`.

        A sequence that does not exist begins with tiles of `tile` tokens. Tokens that are there already are
        replaced; what is private once stays private. Returns the tokens then stored.

        Raises InvalidTensor (the source does not fit), InvalidProgram (`at` past the end, another tile size),
        OutOfMemory (also where no address space or disk is left).
        """
        require(source, f"the source of {name}", shape=("tokens", "heads", "dim"), finite=False)
        tokens, heads, dim = source.shape
        files = self._files_of(name)
        with self._lock:
            sequence = self._sequences.get(name)
            new = sequence is None
            if sequence is None:
                sequence = self._begin(name, heads, tile, dim)
            held, (_, *layout) = sequence.tokens, sequence.tiles.shape
            if [heads, dim] != [layout[0], layout[2]]:
                raise InvalidTensor(f"the source of {name} is {source.shape}; a tile of it is {layout}")
            if tile not in (0, layout[1]):
                raise InvalidProgram(f"{name} has tiles of {layout[1]} tokens, not {tile}")
            start = held if at is None else at
            if not 0 <= start <= held:
                raise InvalidProgram(f"{name} holds {held} tokens; one at token {start} leaves a gap")
            grown = _Sequence(sequence.tiles, max(held, start + tokens), origin or sequence.origin)
            if grown.in_use > sequence.in_use:
                more = grown.nbytes - sequence.nbytes
                self.require(more, name)
                if grown.in_use > len(sequence.tiles):
                    raise OutOfMemory(f"{name} cannot grow past the {len(sequence.tiles)} tiles reserved")
                if files is not None:
                    files.allocate(name, sequence.nbytes, more)
            if files is not None and grown.origin and not sequence.origin and not new:
                # Private before the data: a crash in between must not leave private data marked public.
                files.save(_manifest(name, _Sequence(sequence.tiles, held, grown.origin)))
            write(sequence.tiles, source, start)
            self._sequences[name] = grown
            self._count(name, grown.nbytes - (0 if new else sequence.nbytes))
            if files is not None:
                files.save(_manifest(name, grown))
            return grown.tokens

    def drop(self, name: str) -> None:
        """Forget `name`; one that ends in `/` stands for all that begin with it. Unknown names are fine."""
        with self._lock:
            everything = (*self._held, *self._sequences)
            for found in [n for n in everything if n.startswith(name)] if name.endswith("/") else [name]:
                held = self._held.pop(found, None)
                if held is not None:
                    self._count(found, -held.array.nbytes)
                    if self._files is not None and KEPT in found:
                        self._files.kept.delete(found)
                sequence = self._sequences.pop(found, None)
                if sequence is not None:
                    self._count(found, -sequence.nbytes)
                    if (files := self._files_of(found)) is not None:
                        files.delete(found)

    def _begin(self, name: str, heads: int, tile: int, dim: int) -> _Sequence:
        if name in self._held:
            raise InvalidProgram(f"{name} is a tensor and no sequence: drop it before appending there")
        if not (0 < tile <= _MAX_TILE and heads and dim):
            what = f"{heads} heads of {dim} in tiles of {tile} tokens"
            raise InvalidProgram(f"{what} begin no sequence {name}; a tile has 1 to {_MAX_TILE}")
        if len(self._sequences) >= _MAX_SEQUENCES:
            raise InvalidProgram(f"{name}: this node stores {_MAX_SEQUENCES} sequences already, the limit")
        one = 4 * heads * tile * dim
        self.require(one, name)
        files = self._files_of(name)
        # The whole limit if possible: address space costs nothing, and what is stored never moves. Less where
        # it grows short: there are processors with 512 GiB of it.
        for size in (self.limit, self.limit // 16, self.limit // 256):
            size = max(size // one, 1) * one
            try:
                memory = files.create(name, size) if files is not None else mmap.mmap(-1, size, _ANONYMOUS)
                return _Sequence(tiles_of(memory, (heads, tile, dim)), 0, None)
            except (OSError, ValueError, OverflowError) as error:
                reason = error
        raise OutOfMemory(f"{name}: no address space is left for {size:,} bytes: {reason}")

    def _files_of(self, name: str) -> Files | None:
        return self._files if name.startswith("context/") else None

    def _count(self, name: str, more: int) -> None:
        self._bytes[name.partition("/")[0]] += more


def _manifest(name: str, sequence: _Sequence) -> Manifest:
    _, heads, tile, dim = sequence.tiles.shape
    origin = sequence.origin
    private = (origin.digest, origin.output) if origin else None
    return Manifest(name, sequence.tokens, (heads, tile, dim), private)
