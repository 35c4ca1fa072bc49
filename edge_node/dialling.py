"""What a node needs of a way to its aggregator: by gRPC it is `Dial`, in one process `edge_node.here`."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Protocol, TypeVar

from edge_attention.wire.methods import Method
from edge_attention.wire.writer import StreamWriter

Q = TypeVar("Q")
R = TypeVar("R")


class LinkStream(Protocol):
    """The link's messages, encoded, both ways. Iterating raises why it ended, an EdgeAttentionError."""

    def writer(
        self,
        next: Callable[[], bytes | None],
        written: Callable[[int], None],
        more: Callable[[], bool] | None = None,
    ) -> StreamWriter:
        """Writes what `next` gives; `written`, `more`: as of `StreamWriter`."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def done_writing(self) -> None:
        """Nothing more comes from here; the other side reads to the end."""

    def cancel(self) -> None:
        """End it at once."""


class LinkLine(Protocol):
    """One connection: the link's stream, and bulk beside it. Errors are those of the catalogue."""

    def duplex(self, method: Method[bytes, bytes], /) -> LinkStream: ...

    def receive(self, method: Method[Q, R], request: Q, /) -> AsyncIterator[R]: ...

    async def send(self, method: Method[Q, R], requests: AsyncIterable[Q], /) -> R: ...

    async def close(self) -> None: ...


class Connector(Protocol):
    """Opens connections to the aggregator at `address`.

    Attributes:
        ends: when the certificate shown ends, in seconds since 1970; 0 without one.
    """

    @property
    def address(self) -> str: ...

    @property
    def ends(self) -> Callable[[], float]: ...

    def open_caller(self) -> LinkLine: ...
