"""An aggregator in this process as a node reaches it: its messages' bytes, without a network between.

What goes over the link is encoded, sealed and read as on the wire, so that both sides do what they do in a
fleet; bulk is handed on as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Protocol

from edge_attention.core.errors import Cancelled, EdgeAttentionError, Internal, Unavailable
from edge_attention.core.messages.link import Chunk, DownloadRequest, UploadChunk, Uploaded
from edge_attention.wire.writer import StreamWriter
from edge_node.dialling import LinkLine, LinkStream

__all__ = ["Here", "NodesDoor"]

WHERE = "this process"


class NodesDoor(Protocol):
    """What an aggregator serves nodes with (`aggregator.engine.link.FleetLink`)."""

    async def connect(self, requests: AsyncIterator[bytes], context: Any) -> None: ...

    def download(self, request: DownloadRequest, context: Any) -> AsyncIterator[Chunk]: ...

    async def upload(self, chunks: AsyncIterator[UploadChunk], context: Any) -> Uploaded: ...


class Here:
    """Opens connections to the aggregator behind `door`, on whose event loop it is to be used."""

    address = WHERE

    def __init__(self, door: NodesDoor) -> None:
        self._door = door

    @property
    def ends(self) -> Callable[[], float]:
        return lambda: 0.0

    def open_caller(self) -> LinkLine:
        return _Line(self._door)


class _Line:
    def __init__(self, door: NodesDoor) -> None:
        self._door = door
        self._pipes: list[_Pipe] = []

    def duplex(self, method: object) -> LinkStream:
        self._pipes = [*(pipe for pipe in self._pipes if pipe.open), pipe := _Pipe(self._door)]
        return pipe

    async def receive(self, method: object, request: Any) -> AsyncIterator[Any]:
        async for chunk in self._door.download(request, None):
            yield chunk

    async def send(self, method: object, requests: AsyncIterable[Any]) -> Any:
        return await self._door.upload(aiter(requests), None)

    async def close(self) -> None:
        for pipe in self._pipes:
            pipe.cancel()


class _Messages:
    """Messages on their way, in order: put in from any thread, read by one task of the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._waiting = deque[bytes]()
        self._reader: asyncio.Future[None] | None = None
        self._ended = False
        self._error: EdgeAttentionError | None = None

    def put(self, data: bytes) -> None:
        self._waiting.append(data)
        self._told()

    def end(self, error: EdgeAttentionError | None = None) -> None:
        """Nothing more comes; whoever reads all of them then hears of `error`."""
        self._ended, self._error = True, self._error or error
        self._told()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._waiting:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._reader = self._loop.create_future()
            if self._waiting:
                break  # put in between, by a thread that saw nobody wait
            await self._reader
        return self._waiting.popleft()

    def _told(self) -> None:
        if self._reader is None:
            return
        if threading.get_ident() == self._thread:
            self._wake()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _Pipe:
    """One stream of the link; to the aggregator it is the call's context, too."""

    def __init__(self, door: NodesDoor) -> None:
        self._up = _Messages()
        self._down = _Messages()
        self._serving = asyncio.create_task(self._serve(door), name="a node's stream")

    @property
    def open(self) -> bool:
        return not self._serving.done()

    async def _serve(self, door: NodesDoor) -> None:
        error: EdgeAttentionError | None = Unavailable(f"{WHERE} ended the connection")
        try:
            await door.connect(self._up, self)
            error = None
        except asyncio.CancelledError:
            error = Cancelled("the connection was closed")
            raise
        except EdgeAttentionError as raised:
            error = raised
        except Exception as raised:
            error = Internal(f"the aggregator failed at the stream: {type(raised).__name__}: {raised}")
        finally:
            self._down.end(error)

    # The aggregator's side

    def peer(self) -> str:
        return WHERE

    async def write(self, data: bytes) -> None:
        self._down.put(data)

    # The node's

    def writer(
        self,
        next: Callable[[], bytes | None],
        written: Callable[[int], None],
        more: Callable[[], bool] | None = None,
    ) -> StreamWriter:
        return StreamWriter(self._write, next, written, more)

    async def _write(self, data: bytes) -> None:
        self._up.put(data)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._down

    async def done_writing(self) -> None:
        self._up.end()

    def cancel(self) -> None:
        self._serving.cancel()
