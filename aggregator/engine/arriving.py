"""The tokens of an append while they come: checked message by message, and from 1 MiB on kept on the disk.

Many appends of 256 MB may be open at once, and stay open as long as their callers like: what they have sent
lies in the spool, bounded by caller, and never in memory as a whole. From there nodes download it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aggregator.bounds.bounds import APPEND_LIMIT
from aggregator.bounds.budget import Lease
from aggregator.store.folder import require_space, unwritable
from edge_attention.core.errors import DataLoss, InvalidTensor, ResourceExhausted
from edge_attention.core.messages.attention import ContextSpec
from edge_attention.core.tensors import Array, Float32, require

KEY_LIMIT = 1e18
"""Largest magnitude of a key's element: its square, summed over a key, still fits float32."""

IN_MEMORY = 1024 * 1024
"""Bytes of an append that stay in memory: beyond that it goes to the disk."""

SMALL = 128 * 1024
"""Bytes that are checked and written without a thread."""

_PIECE = 1024 * 1024


def require_tokens(spec: ContextSpec, keys: Array, values: Array) -> None:
    """Refuse what cannot be tokens of such a context. Reads all of it: 0.1 s for 256 MB.

    Raises:
        InvalidTensor: shapes that do not fit, NaN or Inf, keys whose scores would overflow.
    """
    require(keys, "keys", shape=("tokens", spec.key_heads, spec.key_dim))
    require(values, "values", shape=(len(keys), spec.key_heads, spec.value_dim))
    largest = max(float(keys.max()), -float(keys.min())) if keys.size else 0.0
    if largest > KEY_LIMIT:
        raise InvalidTensor(
            f"keys hold {largest:.3g}; beyond {KEY_LIMIT:.0e} scores would overflow float32: rescale them"
        )


@dataclass(frozen=True)
class OnDisk:
    """Rows [first, first + rows) of a float32 array [any, *row] in a file of `Arriving`, which removes it."""

    path: Path
    row: tuple[int, ...]
    first: int
    rows: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, part: slice) -> OnDisk:
        start, stop, _ = part.indices(self.rows)
        return replace(self, first=self.first + start, rows=max(stop - start, 0))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.row)

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)

    @property
    def offset(self) -> int:
        return 4 * self.first * math.prod(self.row)

    def digest(self) -> str:
        """SHA-256 of the bytes. Blocks."""
        found, at, end = hashlib.sha256(), self.offset, self.offset + self.nbytes
        with open(self.path, "rb", buffering=0) as file:
            while at < end:
                piece = os.pread(file.fileno(), min(_PIECE, end - at), at)
                if not piece:
                    raise DataLoss(f"spool file {self.path} has lost its end; append again")
                found.update(piece)
                at += len(piece)
        return found.hexdigest()

    def array(self) -> Float32:
        """The rows, in memory. Blocks."""
        array = np.fromfile(self.path, np.float32, self.nbytes // 4, offset=self.offset)
        if array.nbytes != self.nbytes:
            raise DataLoss(f"spool file {self.path} has lost its end; append again")
        return array.reshape(self.shape)


Rows = Array | OnDisk
"""Rows of a float32 tensor, in memory or in a file."""


class Arriving:
    """The tokens of one append, as far as they have come. Call `close` when nobody reads them any more."""

    def __init__(self, folder: Path, spec: ContextSpec, lease: Lease) -> None:
        """`lease` grows with what comes, and is the caller's to give back."""
        self._folder = folder
        self._spec = spec
        self._lease = lease
        self._parts: list[tuple[Float32, Float32]] = []
        self._files: tuple[tuple[Path, int], ...] = ()
        self._tokens = 0
        self._size = 0

    async def take(self, keys: Array, values: Array) -> None:
        """Check and keep the next tokens: keys [tokens, heads, key dim], values [tokens, heads, value dim].

        Raises:
            InvalidTensor: no tokens of such a context.
            Overloaded: the caller has too much under way.
            ResourceExhausted: the append is too long, or the disk is full.
        """
        size = keys.nbytes + values.nbytes
        if self._size + size > APPEND_LIMIT:
            raise ResourceExhausted(
                f"bound append-limit: this append brings over {APPEND_LIMIT:,} bytes; cut it into several"
            )
        self._lease.grow(size)
        if size <= SMALL and not self._files:
            self._take(keys, values)
        else:
            await _whole(self._take, keys, values)

    async def tokens(self) -> tuple[Rows, Rows]:
        """All that came, keys and values: arrays, or files that are there until `close`."""
        if not self._files:
            if not self._parts:
                spec = self._spec
                empty = np.zeros((0, spec.key_heads, spec.key_dim), np.float32)
                return empty, np.zeros((0, spec.key_heads, spec.value_dim), np.float32)
            keys, values = zip(*self._parts, strict=True)
            return np.concatenate(keys), np.concatenate(values)
        (keys_path, _), (values_path, _) = self._files
        spec = self._spec
        return (
            OnDisk(keys_path, (spec.key_heads, spec.key_dim), 0, self._tokens),
            OnDisk(values_path, (spec.key_heads, spec.value_dim), 0, self._tokens),
        )

    def close(self) -> None:
        """Forget the tokens and remove their files; what `tokens` gave is no longer to be read."""
        self._parts = []
        files, self._files = self._files, ()
        for path, descriptor in files:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def _take(self, keys: Array, values: Array) -> None:
        require_tokens(self._spec, keys, values)
        self._size += keys.nbytes + values.nbytes
        self._tokens += len(keys)
        self._parts.append((keys, values))
        if self._files or self._size > IN_MEMORY:
            parts, self._parts = self._parts, []
            self._write(parts)

    def _write(self, parts: list[tuple[Float32, Float32]]) -> None:
        try:
            if not self._files:
                self._files = tuple(_file(self._folder / secrets.token_hex(8)) for _ in range(2))
            require_space(self._folder, sum(k.nbytes + v.nbytes for k, v in parts))
            for pair in parts:
                for (_, descriptor), array in zip(self._files, pair, strict=True):
                    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                    while view:
                        view = view[os.write(descriptor, view) :]
        except OSError as error:
            raise unwritable(self._folder, error) from error


def _file(path: Path) -> tuple[Path, int]:
    return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


async def _whole(work: Callable[[Array, Array], None], keys: Array, values: Array) -> None:
    """Run `work` in a thread to its end, also where this task is cancelled: then nobody uses `self`."""
    task = asyncio.ensure_future(asyncio.to_thread(work, keys, values))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await task
        raise
