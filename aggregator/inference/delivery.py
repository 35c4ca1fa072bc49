"""Gets to nodes what they need to hold parts of a model: weights and constants, each known by its digest.

Read from where it lies as it is sent, a chunk at a time: neither the model nor a weight is whole in memory
here. What a node has already under that name, with that digest, it does not ask for again.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from aggregator.engine.bulk import Bulk, Readable
from aggregator.engine.trip import Errand, Trips
from edge_attention.core.errors import DeadlineExceeded, InvalidTensor
from edge_attention.core.messages.program import BulkTensor
from edge_attention.core.schedule.schedule import Weight
from edge_attention.core.tensors import Array, DataType, Encoding

__all__ = ["ArrayBytes", "CutFiles", "NodeDeliveries", "StoredPiece", "digest_of", "is_fetched"]

NODES_AT_ONCE = 4
"""Nodes that are sent weights at a time; the others wait."""
GROUP_BYTES = 8 * 1024 * 1024
"""Of what a node is sent in one task, unless one piece is larger: until the task ends it is in its memory."""
GROUP = 64
"""Pieces of one task."""
SMALL = 256 * 1024
"""Bytes of a piece that comes with a message, where it changes often."""
MESSAGE_BYTES = 3 * 1024 * 1024
"""Of such pieces in one message."""
CHUNK = 1024 * 1024
"""Bytes that are hashed at a time."""


def is_fetched(nbytes: int) -> bool:
    """Whether a piece that changes is fetched by nodes, by its digest: else it comes with a message."""
    return nbytes > SMALL


class CutFiles(Protocol):
    """The files of a cut model. What is called blocks for as long as a disk does."""

    def graph(self, digest: str) -> Path:
        """The ONNX file with this SHA-256."""

    def constant(self, digest: str) -> Path:
        """The file that has a constant's bytes, in C order, little-endian."""

    def weight(self, weight: Weight) -> Array:
        """The elements, mapped from the model's file where that can be."""


class ArrayBytes:
    """The bytes of an array, in C order, as `Bulk` reads them: no more than some rows are made at a time."""

    def __init__(self, array: Array) -> None:
        self.dtype, self.shape, self.nbytes = array.dtype, array.shape, array.nbytes
        while array.ndim > 1 and array.shape[0] == 1:
            array = array[0]
        self._rows = array if array.ndim else array.reshape(1)
        self._row = max(array.nbytes // max(len(self._rows), 1), 1)

    def read(self, start: int, size: int) -> bytes:
        if not size:
            return b""
        first = start // self._row
        data = self._rows[first : -(-(start + size) // self._row)].tobytes()
        return data[start - first * self._row :][:size]


def digest_of(source: Readable) -> str:
    """SHA-256 of all its bytes. Blocks."""
    found = hashlib.sha256()
    for start in range(0, source.nbytes, CHUNK):
        found.update(source.read(start, min(CHUNK, source.nbytes - start)))
    return found.hexdigest()


@dataclass(frozen=True, eq=False)
class StoredPiece:
    """What a node is to store as `name`. `open` gives its bytes, once for each loan.

    `digest`: empty of what comes with a message each time (`NodeDeliveries.renew`).
    """

    name: str
    digest: str
    dtype: str
    shape: tuple[int, ...]
    open: Callable[[], Readable]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def bulk(self) -> BulkTensor:
        """Raises InvalidTensor where its dtype does not travel."""
        data_type = DataType.of(np.dtype(self.dtype), self.name)
        return BulkTensor(self.name, data_type, self.shape, Encoding.RAW, self.digest, self.nbytes)


class NodeDeliveries:
    """Gives nodes pieces, a bounded number of nodes at a time."""

    def __init__(self, trips: Trips, bulk: Bulk, at_once: int = NODES_AT_ONCE) -> None:
        self._trips = trips
        self._bulk = bulk
        self._free = asyncio.Semaphore(at_once)
        self._had: dict[str, tuple[str, dict[str, str]]] = {}
        """Node -> its process, and what that one has been given: name -> digest."""

    async def give(
        self,
        node: str,
        life: str,
        pieces: Sequence[StoredPiece],
        seconds: float,
        done: Callable[[int], None],
    ) -> None:
        """Returns when the node has stored them all; `done` is told of the bytes of each group that it has.

        What its process `life` has been given before, and not lost since (`lost`, `freed`), it has: a name
        stands for the digest of what is stored under it.

        Raises:
            EdgeAttentionError: what the node says, or DeadlineExceeded, Unavailable: it is not there, or not
                in time.
        """
        until = time.monotonic() + seconds
        known, had = self._had.get(node, ("", dict[str, str]()))
        if known != life:
            had = {}
            self._had[node] = life, had
        there = [piece for piece in pieces if had.get(piece.name) == piece.digest]
        if there:
            done(sum(piece.nbytes for piece in there))
        lacking = [piece for piece in pieces if had.get(piece.name) != piece.digest]
        if not lacking:
            return
        async with self._free:
            for group in _groups(lacking):
                left = until - time.monotonic()
                if left <= 0:
                    raise DeadlineExceeded(f"node {node!r} was not given all it needs in {seconds:.3g} s")
                await self._give(node, group, left)
                had.update((piece.name, piece.digest) for piece in group)
                done(sum(piece.nbytes for piece in group))

    async def renew(self, node: str, pieces: Sequence[StoredPiece], seconds: float) -> None:
        """Give a node what changes often, all at once: what is small comes with the message, and need not be
        fetched.

        Raises as `give`.
        """
        errands: list[Errand] = []
        lent: list[str] = []
        try:
            for group in _messages(pieces):
                inline, large = await asyncio.to_thread(_opened, group)
                for piece, source in large:
                    self._bulk.lend_source(piece.digest, source)
                    lent.append(piece.digest)
                errands.append(
                    Errand(
                        shard=f"store{len(errands)}",
                        holders=(node,),
                        coverage=range(len(errands), len(errands) + 1),
                        instructions=(),
                        inline=inline,
                        lent=tuple(piece.bulk for piece, _ in large),
                    )
                )
            outcome = await self._trips.make(errands, seconds)
        finally:
            for digest in lent:
                self._bulk.take_back(digest)
        for missing in outcome.missing.values():
            raise (missing.error or missing.cause(missing.text))

    def lost(self, node: str) -> None:
        """The node lacks something that it was given."""
        self._had.pop(node, None)

    def freed(self, scope: str) -> None:
        """Nodes drop what begins so."""
        for _, had in self._had.values():
            for name in [name for name in had if name.startswith(scope)]:
                del had[name]

    async def _give(self, node: str, group: Sequence[StoredPiece], seconds: float) -> None:
        bulk = tuple(piece.bulk for piece in group)
        lent: list[str] = []
        try:
            for piece in group:
                self._bulk.lend_source(piece.digest, await asyncio.to_thread(piece.open))
                lent.append(piece.digest)
            errand = Errand(shard="store", holders=(node,), coverage=range(1), instructions=(), lent=bulk)
            outcome = await self._trips.make([errand], seconds)
        finally:
            for digest in lent:
                self._bulk.take_back(digest)
        if (missing := outcome.missing.get("store")) is not None:
            raise (missing.error or missing.cause(missing.text))


def _opened(
    pieces: Iterable[StoredPiece],
) -> tuple[dict[str, Array], list[tuple[StoredPiece, Readable]]]:
    """What of a message's pieces comes with it, by name, and what is lent. Blocks."""
    inline: dict[str, Array] = {}
    large: list[tuple[StoredPiece, Readable]] = []
    for piece in pieces:
        source = piece.open()
        if is_fetched(piece.nbytes):
            large.append((piece, source))
        else:
            data = source.read(0, source.nbytes)
            inline[piece.name] = np.frombuffer(data, piece.dtype).reshape(piece.shape)
    return inline, large


def _messages(pieces: Iterable[StoredPiece]) -> Iterator[list[StoredPiece]]:
    """Groups of which each is a message."""
    group: list[StoredPiece] = []
    size = 0
    for piece in pieces:
        own = 0 if is_fetched(piece.nbytes) else piece.nbytes
        if group and (size + own > MESSAGE_BYTES or len(group) == GROUP):
            yield group
            group, size = [], 0
        group.append(piece)
        size += own
    if group:
        yield group


def _groups(pieces: Iterable[StoredPiece]) -> Iterator[list[StoredPiece]]:
    group: list[StoredPiece] = []
    size = 0
    for piece in pieces:
        if group and (size + piece.nbytes > GROUP_BYTES or len(group) == GROUP):
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece.nbytes
    if group:
        yield group


def require_travels(weight: Weight, array: Array) -> None:
    """Raises InvalidTensor where the weight's dtype does not travel."""
    try:
        DataType.of(array.dtype, f"weight {weight.name[:80]!r}")
    except InvalidTensor as error:
        raise InvalidTensor(f"{error.message}; cut models have weights of these only") from None
