"""The aggregator's node link, spoken to by a node that is registered and lies."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import threading
import zlib
from typing import Any, ClassVar

import grpc.aio
from fleets import SPEC, queries, tokens
from google.protobuf.message import DecodeError

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages import link as said
from edge_attention.core.messages.program import Append, Batch, Call, Program
from edge_attention.wire.link import from_node, prepared_program, to_node
from edge_attention.wire.methods import CHANNEL_OPTIONS
from edge_node.executor import Execution, LocalNode
from edge_node.limits import graphs_of
from edge_node.prepared import Prepared
from edge_node.release import Releases
from edge_node.runtime import Runtime
from edge_node.store.store import Store
from protos.edge_attention.v1 import link_pb2
from tests.fuzz import corpus
from tests.fuzz.corpus import CONNECT, LINK_PATHS
from tests.fuzz.mutate import CHECKSUM, Mutator, seal, unsealed
from tests.fuzz.targets import FleetTarget, Input

LIAR = "z"
"""The node that lies. A context has its tokens there, and is asked all the time."""

ASKERS = 6

AWAITED = "awaited:" + CONNECT
"""The path of an input that answers a program, with its task, shard, coverage and version."""


class Link(FleetTarget):
    name, share = "link", 0.25
    together: ClassVar[int] = 4

    async def start(self) -> None:
        await super().start()
        self._programs: asyncio.Queue[Program] = asyncio.Queue()
        self._prepared: dict[bytes, Prepared] = {}
        self._session = ""
        self._out: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._node = LocalNode(Store(64 << 20), {}, Releases(()))
        self._runtime, self._serial = Runtime("cpu", 1), 0
        self._instance = secrets.token_hex(8)
        self._over = False
        self._ready = asyncio.Event()
        self._tasks = [asyncio.create_task(self._stay())]
        await asyncio.wait_for(self._ready.wait(), 180)
        self._askers = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(ASKERS)]
        for asker in self._askers:
            asker.start()

    async def stop(self) -> None:
        self._over = True
        self._out.put_nowait(None)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(asyncio.gather(*self._tasks, return_exceptions=True), 15)
        for asker in self._askers:
            await asyncio.to_thread(asker.join, 10)
        await super().stop()

    def make(self, rng: random.Random) -> Input:
        mutator = Mutator(rng, self.corpus)
        what = rng.random()
        if what < 0.12:
            path = rng.choice([path for path in LINK_PATHS if path != CONNECT])
            # Uploads of nodes are those of clients, with a session.
            known = (
                self.corpus.calls.get(path)
                or self.corpus.calls[path.replace("EdgeLinkService", "BulkService")]
            )
            call = rng.choice(known)
            cls = corpus.METHODS[path][0]
            return Input(self.name, path, tuple(mutator.mutate(cls, part) for part in call.requests[:3]))
        messages = [data for call in self.corpus.calls[CONNECT] for data in call.requests]
        if what < 0.17:
            # A stream of its own, which begins with anything.
            parts = [rng.choice(messages) for _ in range(rng.choice((1, 1, 2, 4)))]
            parts = [
                mutator.mutate(link_pb2.ConnectRequest, part) if rng.random() < 0.7 else part
                for part in parts
            ]
            return Input(self.name, CONNECT, tuple(parts))
        wanted = [
            m for m in messages if link_pb2.ConnectRequest.FromString(m).WhichOneof("kind") == "contribution"
        ]
        data = rng.choice(wanted if what < 0.85 else messages)
        path = AWAITED if what < 0.7 else "stream:" + CONNECT
        return Input(self.name, path, (mutator.mutate(link_pb2.ConnectRequest, data),))

    async def send(self, sent: Input) -> None:
        if sent.path == AWAITED:
            with contextlib.suppress(TimeoutError):
                program = await asyncio.wait_for(self._programs.get(), 1.0)
                self._out.put_nowait(_addressed(sent.parts[0], program))
        elif sent.path == "stream:" + CONNECT:
            self._out.put_nowait(sent.parts[0])
        else:
            # With the session of a node that is there, where one is named.
            parts = [_with_session(sent.path, part, self._session) for part in sent.parts]
            await self.call(sent.path, parts, 1.0)

    async def good(self) -> str:
        await asyncio.wait_for(self._ready.wait(), 180)
        said = await asyncio.to_thread(self._good.ask)
        while not self._programs.empty():
            self._programs.get_nowait()
        return said

    def _ask(self, number: int) -> None:
        """Attends and appends that go to the node that lies, one after the other."""
        keys, values = tokens(64)
        asked = queries(2)
        with self.fleet.client(timeout=2) as client:
            context = None
            while not self._over:
                with contextlib.suppress(EdgeAttentionError):
                    context = context or client.create_context(f"lied-about-{number}", **SPEC)
                    if context.describe().tokens < 64:
                        context.append(keys, values, node=LIAR)
                    context.attend(asked, deadline=0.1)

    async def _stay(self) -> None:
        """Be registered, again whenever the stream ends."""
        while not self._over:
            with contextlib.suppress(grpc.aio.AioRpcError, EdgeAttentionError, asyncio.InvalidStateError):
                await self._converse()
            self._ready.clear()
            await asyncio.sleep(0.05)

    async def _converse(self) -> None:
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.fleet.address, options) as channel:
            call: Any = channel.stream_stream(CONNECT)()
            held = tuple(said.Sequence(*item) for item in self._node.store.sequences().items())
            who = ("fuzz", LIAR, self._instance, self._session, "cpu", 1, 64 << 20, (), held, ())
            await call.write(from_node.encode(said.Register(said.PROTOCOL, *who)))
            self._out = asyncio.Queue()
            writer = asyncio.create_task(self._write(call, self._out))
            beats = asyncio.create_task(self._beat(self._out))
            try:
                async for data in call:
                    message = to_node.decode(data)
                    if isinstance(message, said.Registered):
                        self._session = message.session
                        self._out.put_nowait(from_node.encode(said.Credit(64 << 20, 256)))
                        self._ready.set()
                    elif isinstance(message, Program | Call):
                        self._out.put_nowait(from_node.encode(said.Credit(len(data), 1)))
                        self._take(self._called(message) if isinstance(message, Call) else message)
            finally:
                writer.cancel()
                beats.cancel()

    async def _write(self, call: Any, out: asyncio.Queue[bytes | None]) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while (data := await out.get()) is not None:
                await call.write(data)
            await call.done_writing()

    async def _beat(self, out: asyncio.Queue[bytes | None]) -> None:
        number = 0
        while True:
            number += 1
            out.put_nowait(from_node.encode(said.Heartbeat(number, 0, 0, False, b"")))
            await asyncio.sleep(0.5)

    def _called(self, call: Call) -> Program:
        if call.program not in self._prepared:
            program = prepared_program.decode(call.prepared)
            self._prepared[call.program] = Prepared(call.program, program, 0)
        return self._prepared[call.program].called(call)

    def _take(self, program: Program) -> None:
        """What is to be stored is stored, so that there is something to ask for; the rest is lied about."""
        if any(isinstance(one, Append | Batch) for one in program.instructions):
            self._serial += 1
            with contextlib.suppress(EdgeAttentionError):
                graphs = {digest: self._runtime.find(digest) for digest in graphs_of(program)}
                for contribution in Execution(
                    program, self._node, graphs, serial=self._serial
                ).contributions():
                    self._out.put_nowait(from_node.encode(contribution))
        elif self._programs.qsize() < 32:
            self._programs.put_nowait(program)


def _addressed(data: bytes, program: Program) -> bytes:
    """The contribution as an answer to this program, if it can be read at all."""
    try:
        message = link_pb2.ConnectRequest.FromString(unsealed(data))
    except DecodeError:
        return data
    if message.WhichOneof("kind") != "contribution":
        return data
    answer = message.contribution
    answer.task_id = program.task_id
    # One in eight keeps what it says of itself.
    if zlib.crc32(data) % 8:
        answer.shard, answer.version = program.shard, program.version
        answer.coverage.start, answer.coverage.stop = program.coverage.start, program.coverage.stop
    return _sealed(message)


def _with_session(path: str, data: bytes, session: str) -> bytes:
    cls = corpus.METHODS[path][0]
    try:
        message: Any = cls.FromString(unsealed(data))
    except DecodeError:
        return data
    if path == CONNECT or "session" not in cls.DESCRIPTOR.fields_by_name or len(data) % 4 == 0:
        return data
    message.session = session
    return _sealed(message)


def _sealed(message: Any) -> bytes:
    if CHECKSUM not in message.DESCRIPTOR.fields_by_name:
        return bytes(message.SerializeToString())
    message.ClearField(CHECKSUM)
    return seal(message.SerializeToString())
