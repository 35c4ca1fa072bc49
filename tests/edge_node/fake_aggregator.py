"""An aggregator of eighty lines: registers a node, sends it programs, serves and takes bulk."""

from __future__ import annotations

import asyncio
import contextlib
from hashlib import sha256

import grpc.aio

from aggregator.serving.rpc import service_handlers
from edge_attention.core.messages.link import (
    Chunk,
    Credit,
    Heartbeat,
    HeartbeatAck,
    Register,
    Registered,
    Uploaded,
)
from edge_attention.core.messages.program import Contribution, Program
from edge_attention.wire.link import CONNECT, DOWNLOAD, UPLOAD, from_node, to_node
from edge_attention.wire.methods import CHANNEL_OPTIONS

CHUNK = 100_000


class FakeAggregator:
    def __init__(self, files=None, refuse=None, credit=Credit(1 << 26, 1 << 10)):  # noqa: B008
        self.files, self.refuse, self.credit = dict(files or {}), refuse, credit
        self.uploads: dict[str, bytearray] = {}
        self.break_downloads = 0
        self.refuse_uploads: Exception | None = None
        self.registers: list[Register] = []
        self.heartbeats: list[Heartbeat] = []
        self.contributions: list[Contribution] = []
        self.port = 0
        self._outgoing: asyncio.Queue | None = None
        self._changed = asyncio.Event()

    async def start(self, port=0):
        self.server = grpc.aio.server(options=CHANNEL_OPTIONS)
        handlers = {CONNECT: self._connect, DOWNLOAD: self._download, UPLOAD: self._upload}
        self.server.add_generic_rpc_handlers(service_handlers(handlers))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port or self.port}")
        await self.server.start()
        return self

    async def stop(self):
        await self.server.stop(0)

    def send(self, *messages):
        for message in messages:
            self._outgoing.put_nowait(message if isinstance(message, bytes) else to_node.encode(message))

    async def until(self, condition, what="it", seconds=180):
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.1)

    async def run(self, program: Program) -> list[Contribution]:
        """The contributions of `program`, in order."""
        self.send(program)
        return await self.result(program.task_id)

    async def result(self, task_id):
        def of():
            return [c for c in self.contributions if c.task_id == task_id]

        await self.until(lambda: any(c.final for c in of()))
        return of()

    async def _connect(self, requests, context):
        outgoing = asyncio.Queue()
        register = from_node.decode(await anext(aiter(requests)))
        self.registers.append(register)
        if self.refuse is not None:
            raise self.refuse
        resumed = register.session == "s1"
        self._outgoing = outgoing
        self.send(Registered("s1", 10.0, 0.2, resumed, self.credit))
        reader = asyncio.create_task(self._read(requests, outgoing))
        self._changed.set()
        try:
            while (data := await outgoing.get()) is not None:
                await context.write(data)
        finally:
            reader.cancel()

    async def _read(self, requests, outgoing):
        async for data in requests:
            message = from_node.decode(data)
            if isinstance(message, Contribution):
                self.contributions.append(message)
                outgoing.put_nowait(to_node.encode(Credit(len(data), 1)))
            elif isinstance(message, Heartbeat):
                self.heartbeats.append(message)
                outgoing.put_nowait(to_node.encode(HeartbeatAck(message.number)))
            self._changed.set()
        outgoing.put_nowait(None)

    async def _download(self, request, context):
        data = self.files[request.digest]
        for count, start in enumerate(range(request.offset, max(len(data), 1), CHUNK)):
            if self.break_downloads and count == 2:
                self.break_downloads -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            yield Chunk(start, len(data), data[start : start + CHUNK])

    async def _upload(self, chunks, context):
        async for chunk in chunks:
            data = self.uploads.setdefault(chunk.digest, bytearray())
            if chunk.data and self.refuse_uploads is not None:
                raise self.refuse_uploads
            if chunk.data:
                assert chunk.offset == len(data)
                data += chunk.data
        if len(data) == chunk.size:
            assert sha256(data).hexdigest() == chunk.digest
        return Uploaded(len(data))
