"""Pieces are written and hashed by a thread of their own while the next ones are computed."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from edge_attention.core.tensors import Array

DEPTH = 2
"""Pieces that may wait: what computes them waits for its turn then, and memory does not grow."""
DIRECTLY = 64 * 1024
"""Bytes below which a piece is written at once where nothing waits: to hand it on takes longer."""


class Writer(Protocol):
    """What takes a tensor's pieces, as `TensorFileWriter`."""

    def write_at(self, name: str, start: int, piece: Array) -> None: ...


class Behind:
    """A block within which pieces are written by a thread of their own while the next ones are computed;
    small ones, where nothing waits, at once.

    What goes wrong in the thread is raised by a later write, or at the block's end.

    After that nothing is written, nor after the end, whatever ended it: a writer can be finished or aborted.
    Of an error of the thread's and one of who computes, the latter is raised. Nobody changes a piece once it
    was given.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "behind")
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while error is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def writer(self, writer: Writer) -> Writer:
        """What to write to in place of `writer`: the thread hands it on, piece by piece."""
        return _Ahead(self, writer)

    def write(self, writer: Writer, name: str, start: int, piece: Array) -> None:
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()
        if piece.nbytes < DIRECTLY and not self._waiting:
            self._write(writer, name, start, piece)
            return
        while len(self._waiting) >= DEPTH:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, writer, name, start, piece))

    def _write(self, writer: Writer, name: str, start: int, piece: Array) -> None:
        if self._failed:
            return  # it is raised when its turn comes
        try:
            writer.write_at(name, start, piece)
        except BaseException:
            self._failed = True
            raise


@dataclass(frozen=True)
class _Ahead:
    behind: Behind
    writer: Writer

    def write_at(self, name: str, start: int, piece: Array) -> None:
        self.behind.write(self.writer, name, start, piece)
