"""A real edge node, spoken to by an aggregator that lies."""

from __future__ import annotations

import asyncio
import contextlib
import random
from hashlib import sha256
from typing import Any, ClassVar

import grpc
import grpc.aio
import labs
import numpy as np
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from edge_attention.cli.local_fleet import Child
from edge_attention.core.messages import link as said
from edge_attention.core.messages.program import Append, Contribution, Program, Return, Run, Stored
from edge_attention.wire.link import CONNECT, DOWNLOAD, UPLOAD, from_node, to_node
from edge_attention.wire.methods import CHANNEL_OPTIONS
from protos.edge_attention.v1 import link_pb2
from tests.fuzz.link import _sealed
from tests.fuzz.mutate import Mutator, unsealed
from tests.fuzz.targets import Input, Target

CHUNK = 100_000
KEPT = "context/kept/keys"


def doubled() -> bytes:
    """y = x + x, of a tensor with four axes."""
    axes = ["t", "h", "n", "d"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, axes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


class EdgeNode(Target):
    name, share = "node", 0.25
    together: ClassVar[int] = 4

    async def start(self) -> None:
        self._out: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ready, self._news = asyncio.Event(), asyncio.Event()
        self._answers: dict[str, list[Contribution]] = {}
        self._lies: asyncio.Queue[tuple[bytes, ...]] = asyncio.Queue()
        self._tasks = 0
        graph = doubled()
        self._graph = sha256(graph).hexdigest()
        self._files = {**self.corpus.files, self._graph: graph}
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS)
        self._server.add_generic_rpc_handlers([_Raw(self)])
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        await asyncio.to_thread(self._start)
        await asyncio.wait_for(self._ready.wait(), 180)
        self._tokens = np.random.default_rng(5).standard_normal((16, 2, 4)).astype(np.float32)
        program = Program("keep", "s", range(16), (Append(KEPT, self._tokens, 0, 8), Return(KEPT, "kept")))
        answer = await self._run(program)
        if answer[-1].error is not None:
            raise AssertionError(f"the node does not keep a sequence: {answer[-1].error}")
        self._kept = (
            next(iter(answer[-1].tensors.values())) if answer[-1].tensors else answer[0].tensors["kept"]
        )

    def _start(self) -> None:
        files = labs.write(self.folder)["a"]
        flags = ["--aggregator", f"127.0.0.1:{self._port}", "--name", "a", "--threads", "1"]
        flags += ["--store", str(self.folder / "store"), "--memory-limit", "200MB"]
        for name, file in files.items():
            flags += ["--data", f"{name}={file}"]
        self.children = [Child("node", "edge_node.main", flags, None)]

    async def stop(self) -> None:
        self._out.put_nowait(None)
        for child in self.children:
            await asyncio.to_thread(child.terminate)
        await self._server.stop(0)

    def make(self, rng: random.Random) -> Input:
        mutator = Mutator(rng, self.corpus)
        if rng.random() < 0.1:
            call = rng.choice(self.corpus.calls[DOWNLOAD.path])
            data = rng.choice(call.responses or [b""])
            return Input(self.name, DOWNLOAD.path, (mutator.mutate(link_pb2.DownloadResponse, data),))
        messages = [data for call in self.corpus.calls[CONNECT.path] for data in call.responses]
        programs = [
            m for m in messages if link_pb2.ConnectResponse.FromString(m).WhichOneof("kind") == "program"
        ]
        data = mutator.mutate(
            link_pb2.ConnectResponse, rng.choice(programs if rng.random() < 0.8 else messages)
        )
        return Input(self.name, CONNECT.path, (_hurried(data, rng),))

    async def send(self, sent: Input) -> None:
        if sent.path == DOWNLOAD.path:
            # Told at the next download of something that nobody has.
            while self._lies.qsize() > 8:
                self._lies.get_nowait()
            self._lies.put_nowait(sent.parts)
            self._tasks += 1
            wanted = sha256(sent.parts[0]).hexdigest()
            run = Run(wanted, {}, {"y": "task/y"})
            self._say(Program(f"lied-{self._tasks}", "s", range(1), (run,), deadline_seconds=2.0))
        else:
            self._out.put_nowait(sent.parts[0])
        await asyncio.sleep(0.004)

    def _say(self, message: Any) -> None:
        self._out.put_nowait(to_node.encode(message))

    async def _run(self, program: Program) -> list[Contribution]:
        await asyncio.wait_for(self._ready.wait(), 180)
        self._answers[program.task_id] = []
        self._say(program)
        out = self._out
        async with asyncio.timeout(180):
            while not any(one.final for one in self._answers[program.task_id]):
                if self._out is not out:  # what was said on a stream that ended is said again
                    out = self._out
                    self._say(program)
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 0.2)
        return self._answers.pop(program.task_id)

    async def good(self) -> str:
        """A graph over what the node stored at the beginning."""
        self._tasks += 1
        run = Run(self._graph, {"x": Stored(KEPT)}, {"y": "task/y"})
        program = Program(
            f"good-{self._tasks}", "s", range(16), (run, Return("task/y", "y")), deadline_seconds=60.0
        )
        answers = await self._run(program)
        if (error := answers[-1].error) is not None:
            return f"a good program ended with {error}"
        found = next(one.tensors["y"] for one in answers if "y" in one.tensors)
        kept = np.asarray(self._kept)
        same = found.shape == kept.shape and np.array_equal(np.asarray(found), kept + kept)
        return "" if same else f"a good program's answer is wrong: {found.shape} for {kept.shape}"

    # What the server's handlers call

    async def connect(self, requests: Any) -> Any:
        register = from_node.decode(await anext(aiter(requests)))
        # The node may be back before its old stream has ended: that takes nothing of the new one's.
        out = self._out = asyncio.Queue()
        resumed = register.session == "s1"
        self._say(said.Registered("s1", 10.0, 0.5, resumed, said.Credit(1 << 26, 1 << 10)))
        reader = asyncio.create_task(self._hear(requests, out))
        self._ready.set()
        try:
            while (data := await out.get()) is not None:
                yield data
        finally:
            reader.cancel()
            if self._out is out:
                self._ready.clear()

    async def _hear(self, requests: Any, out: asyncio.Queue[bytes | None]) -> None:
        async for data in requests:
            message = from_node.decode(data)
            if isinstance(message, Contribution):
                self.answers[message.error.name if message.error else "done"] += 1
                if message.task_id in self._answers:
                    self._answers[message.task_id].append(message)
                    self._news.set()
                out.put_nowait(to_node.encode(said.Credit(len(data), 1)))
            elif isinstance(message, said.Heartbeat):
                out.put_nowait(to_node.encode(said.HeartbeatAck(message.number)))
        out.put_nowait(None)

    async def download(self, requests: Any, context: Any) -> Any:
        request = DOWNLOAD.request.decode(await anext(aiter(requests)))
        data = self._files.get(request.digest)
        if data is None:
            if self._lies.empty():
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
            for part in self._lies.get_nowait():
                yield part
            return
        for start in range(request.offset, max(len(data), 1), CHUNK):
            yield DOWNLOAD.response.encode(said.Chunk(start, len(data), data[start : start + CHUNK]))

    async def upload(self, requests: Any) -> Any:
        size = 0
        async for data in requests:
            size = UPLOAD.request.decode(data).size
        yield UPLOAD.response.encode(said.Uploaded(size))


class _Raw(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The link's three methods, as bytes."""

    def __init__(self, target: EdgeNode) -> None:
        self._target = target

    def service(self, details: Any) -> Any:
        target = self._target

        async def connect(requests: Any, context: Any) -> Any:
            async for data in target.connect(requests):
                yield data

        async def download(requests: Any, context: Any) -> Any:
            async for data in target.download(requests, context):
                yield data

        async def upload(requests: Any, context: Any) -> Any:
            async for data in target.upload(requests):
                yield data

        known = {CONNECT.path: connect, DOWNLOAD.path: download, UPLOAD.path: upload}
        handler = known.get(details.method)
        return None if handler is None else grpc.stream_stream_rpc_method_handler(handler)


def _hurried(data: bytes, rng: random.Random) -> bytes:
    """A program gets a task of its own, mostly, and a deadline: it may wait for files that never come."""
    task = f"fuzzed-{rng.getrandbits(32):x}"
    try:
        message = link_pb2.ConnectResponse.FromString(unsealed(data))
    except DecodeError:
        return data
    if message.WhichOneof("kind") != "program":
        return data
    program = message.program
    if rng.random() < 0.8:
        program.task_id = task
    if not program.HasField("deadline_seconds") or program.deadline_seconds > 2.0:
        program.deadline_seconds = 2.0
    return _sealed(message)
