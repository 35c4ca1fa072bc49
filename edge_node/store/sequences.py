"""One stored sequence: tiles that grow without moving, in memory or in a file that outlives a power cut."""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from dataclasses import dataclass, field, replace

import numpy as np

from edge_attention.core.errors import InvalidProgram, InvalidTensor
from edge_attention.core.tensors import Array, Float32
from edge_node.store import tiles as tiled
from edge_node.store.held import Held
from edge_node.store.journal import JournalBatch
from edge_node.store.mapped import MappedMemory
from edge_node.store.origin import Origin
from edge_node.store.sequence_files import Files, Manifest, tiles_of

LARGE_PAGES_FROM = 8 * 1024 * 1024
"""Bytes of a sequence from which its memory grows by pages of 2 MiB: who reads it whole is a fifth faster for
that. Small ones would take more than they hold."""


@dataclass(eq=False)
class KeptSequence:
    """`tiles` [reserved, heads, tile, dim]; the first `tokens` tokens are written.

    Who reads or changes it holds the store's lock, who writes holds `writing` besides and lets the lock go.

    Attributes:
        counted: bytes of it that count, those about to be written included.
        revision: of the last change.
        files: where it is kept, and `manifest`: what was last put in order to be on the disk there.
        sums: of every tile in use, if it is kept.
        memory: what the tiles are in, while the kernel backs it by small pages and could do so by large ones.
        unsaved: the first tile that has changed since the manifest; None if none has.
    """

    tiles: Float32
    tokens: int = 0
    origin: Origin | None = None
    counted: int = 0
    revision: int = 0
    files: Files | None = None
    manifest: Manifest | None = None
    sums: list[int] = field(default_factory=list)
    unsaved: int | None = None
    memory: mmap.mmap | None = None
    writing: threading.Lock = field(default_factory=threading.Lock)
    _written: tuple[int, list[int], Origin | None, int | None] = (0, [], None, None)
    _whole: Held | None = None

    def __post_init__(self) -> None:
        self.tile = int(self.tiles.shape[2])
        """Tokens of one."""
        self._tile_bytes = 4 * math.prod(self.tiles.shape[1:])

    @classmethod
    def kept(cls, manifest: Manifest, memory: MappedMemory, files: Files) -> KeptSequence:
        """The sequence in a file of `files`."""
        return cls(
            tiles_of(memory, manifest.layout),
            manifest.tokens,
            manifest.origin,
            manifest.nbytes,
            manifest.revision,
            files,
            manifest,
            list(manifest.sums),
        )

    def about_to_grow(self) -> None:
        """Called before tokens are written: from here on a long sequence takes large pages."""
        if self.memory is not None and self.counted >= LARGE_PAGES_FROM:
            memory, self.memory = self.memory, None
            with contextlib.suppress(OSError, AttributeError):  # a kernel, or a system, without them
                memory.madvise(mmap.MADV_HUGEPAGE)

    @property
    def in_use(self) -> int:
        return -(-self.tokens // self.tile)

    @property
    def plain(self) -> bool:
        """Whether it has tokens, in memory alone, that all may see."""
        return self.tokens > 0 and self.origin is None and self.files is None

    def write_few(self, source: Array, start: int, tokens: int) -> None:
        """`write` and `publish` of a plain one, `start` and `tokens` as `place` said."""
        tiled.write(self.tiles, source, start)
        self.tokens = tokens

    def whole(self) -> Held:
        """All tiles in use; the same while there are no more: what is in them stays where it is."""
        held, in_use = self._whole, self.in_use
        if held is None or len(held.array) != in_use or held.origin is not self.origin:
            held = self._whole = Held(self.tiles[:in_use], self.origin)
        return held

    def tiles_for(self, tokens: int) -> int:
        return -(-tokens // self.tile)

    def bytes_for(self, tokens: int) -> int:
        return -(-tokens // self.tile) * self._tile_bytes

    def place(self, name: str, source: Array, at: int | None, tile: int) -> tuple[int, int]:
        """Where an append of `source` begins, and how many tokens there are after it.

        Raises:
            InvalidTensor, InvalidProgram: it does not fit.
        """
        _, heads, tokens_a_tile, dim = self.tiles.shape
        if source.shape[1:] != (heads, dim):
            layout = [heads, tokens_a_tile, dim]
            raise InvalidTensor(f"the source of {name} is {source.shape}; a tile of it is {layout}")
        if tile not in (0, tokens_a_tile):
            raise InvalidProgram(f"{name} has tiles of {tokens_a_tile} tokens, not {tile}")
        start = self.tokens if at is None else at
        if not 0 <= start <= self.tokens:
            raise InvalidProgram(f"{name} holds {self.tokens} tokens; one at token {start} leaves a gap")
        return start, max(self.tokens, start + len(source))

    def write(
        self, source: Array, start: int, tokens: int, used: int, origin: Origin | None, lock: threading.RLock
    ) -> None:
        """Write, so that whatever is on the disk then, what the journal says of it is true; then `publish`.

        Args:
            start, tokens: as `place` said.
            used: bytes of the tiles in use before.
            lock: the store's.

        Raises:
            OutOfMemory, DataLoss: nothing was written.
        """
        tile, known, origin = int(self.tiles.shape[2]), self.sums, origin or self.origin
        self._written = tokens, known, origin, None
        if self.files is None or self.manifest is None:
            tiled.write(self.tiles, source, start)
            return
        if (more := self.bytes_for(tokens) - used) > 0:
            self.files.allocate(self.manifest, used, more)
        held = self.tokens
        if start < held:  # the same again, perhaps
            again = np.ascontiguousarray(source[: held - start])
            there = tiled.read(self.tiles, start, start + len(again))
            if np.array_equal(there.view(np.uint32), again.view(np.uint32)):
                start, source = start + len(again), source[len(again) :]
        if not len(source):
            return
        first = start // tile
        if start < held:
            known = tiled.sums(known, tile, first * tile, tiled.read(self.tiles, first * tile, start))
        if start < held or (held and origin is not self.origin):
            # Before what it says is no longer so, and before private tokens are where public ones were.
            with lock:
                self.tokens = start
                self.sums = known
                self.origin = origin
                self._changed(first)
                batch = self.add()
            if batch is not None:
                self.files.wait(batch)
        tiled.write(self.tiles, source, start)
        known = tiled.sums(known, tile, start, source)
        if (beyond := start + len(source)) < tokens:
            known = tiled.sums(known, tile, beyond, tiled.read(self.tiles, beyond, tokens))
        self._written = tokens, known, origin, first

    def publish(self) -> None:
        """What was written is part of the sequence."""
        self.tokens, self.sums, self.origin, first = self._written
        if first is not None:
            self._changed(first)

    def add(self) -> JournalBatch | None:
        """Put in order that it is to be on the disk as it is, unless that was done."""
        if self.unsaved is None or self.files is None or self.manifest is None:
            return None
        self.manifest = replace(
            self.manifest,
            tokens=self.tokens,
            origin=self.origin,
            revision=self.revision,
            sums=tuple(self.sums),
        )
        first, self.unsaved = self.unsaved, None
        return self.files.add(self.manifest, first)

    def require_written(self) -> None:
        """Raises DataLoss if the disk could not write it."""
        if self.files is not None and self.manifest is not None:
            self.files.require_written(self.manifest)

    def delete(self) -> None:
        """Remove its file."""
        if self.files is not None and self.manifest is not None:
            self.files.delete(self.manifest)

    def _changed(self, tile: int) -> None:
        """Tiles from this one on are not on the disk as they are."""
        self.unsaved = tile if self.unsaved is None else min(tile, self.unsaved)
