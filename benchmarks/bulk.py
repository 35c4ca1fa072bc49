"""50 MB between a node and the aggregator, both ways, by a bare gRPC stream of the same bytes.

Two processes over loopback: the aggregator's link with its spool and a file that is lent, and a node's
transfers. Digests are checked on both sides. The bare stream sends the same chunks through gRPC's asyncio API
and looks at nothing. They take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from aggregator.serving.rpc import service_handlers
from benchmarks.report import Figure, Report
from benchmarks.turns import median_ratio
from edge_attention.core.messages.link import PROTOCOL, Register, UploadChunk, Uploaded
from edge_attention.core.messages.program import BulkTensor
from edge_attention.core.tensors import DataType, Encoding
from edge_attention.wire.caller import Caller
from edge_attention.wire.methods import CHANNEL_OPTIONS
from edge_node.transfers import Transfers

SIZE = 50_000_000
CHUNK = 512 * 1024
BARE = "edge_attention.benchmark.Bare"


def report(quick: bool) -> Report:
    """Median seconds each way, their ratios to a bare stream, and the aggregator's peak memory over idle."""
    seconds, memory = asyncio.run(_measured(5 if quick else 20))
    figures = [
        Figure(f"{way}: by a bare stream", median_ratio(seconds[way], seconds[f"bare {way}"]), "times")
        for way in ("down", "up")
    ]
    figures += [Figure(name, 1e3 * float(np.median(values)), "ms") for name, values in seconds.items()]
    figures.append(Figure("aggregator's peak over idle", memory / 1e6, "MB"))
    return Report("50 MB between a node and the aggregator", tuple(figures))


class _Room:
    def reserve(self, size: int, what: str) -> None: ...

    def release(self, size: int) -> None: ...


class _Stop:
    def check(self) -> None: ...


async def _measured(turns: int) -> tuple[dict[str, list[float]], int]:
    command = [sys.executable, "-m", "benchmarks.bulk"]
    server = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"GRPC_VERBOSITY": "ERROR"}
    )
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        port, session, digest, idle = (await server.stdout.readline()).decode().split()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=list(CHANNEL_OPTIONS)) as channel:
            seconds = await _turns(channel, session, digest, turns)
        server.stdin.write(b"\n")
        peak = int((await server.stdout.readline()).decode())
    finally:
        server.stdin.close()
        await server.wait()
    return seconds, peak - int(idle)


async def _turns(channel: grpc.aio.Channel, session: str, digest: str, turns: int) -> dict[str, list[float]]:
    transfers = Transfers(_Room(), lambda way, size: None)
    transfers.online(Caller(channel, "the aggregator"), session)
    lent = BulkTensor("x", DataType.FLOAT32, (SIZE // 4,), Encoding.RAW, digest, SIZE)
    bare_down, bare_up = channel.unary_stream(f"/{BARE}/Down"), channel.stream_unary(f"/{BARE}/Up")
    pieces = _pieces(secrets.token_bytes(SIZE))

    async def down() -> None:
        await transfers.tensor(lent, _Stop())

    async def up() -> None:
        # As random as an update, and another each time: its digest is part of the work.
        update[:8] = secrets.token_bytes(8)
        await transfers.upload_all({hashlib.sha256(update).hexdigest(): memoryview(update)}, _Stop())

    async def down_bare() -> None:
        async for _ in bare_down(b""):
            pass

    async def up_bare() -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        await bare_up(chunks())

    update = bytearray(secrets.token_bytes(SIZE))
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "down": down,
        "bare down": down_bare,
        "up": up,
        "bare up": up_bare,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            await way()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + CHUNK] for start in range(0, SIZE, CHUNK)]


# The aggregator's process


async def _serve() -> None:
    from aggregator.engine.bulk import Bulk
    from aggregator.engine.dispatch import Dispatcher
    from aggregator.engine.link import FleetLink
    from aggregator.fleet.membership import Membership
    from aggregator.observe.metrics import Metrics
    from aggregator.store.state import State

    with State(None) as state:
        metrics = Metrics()
        membership = Membership(3600.0, lambda: secrets.token_hex(8))
        bulk = Bulk(state)
        dispatcher = Dispatcher(membership, metrics.tasks)
        link = FleetLink(membership, dispatcher, bulk, metrics, welcome=lambda member: ())
        register = Register(PROTOCOL, "", "node", "1", "", "CPU", 1, 1 << 30)
        session = membership.register(register, time.monotonic()).member.session
        path = state.directory / "lent"
        digest = _write(path)
        bulk.lend_file(digest, path, 0, SIZE)
        pieces = _pieces(path.read_bytes())
        handlers: Any = {one.method: one.handler for one in link.endpoints()}
        (upload,) = (method for method in handlers if method.name == "Upload")
        wanted = handlers[upload]

        async def take(chunks: AsyncIterator[UploadChunk], context: Any) -> Uploaded:
            """As the link, and the tensor is let go of, as at the end of a round."""
            uploaded: Uploaded = await wanted(chunks, context)
            for name, file in list(bulk._uploads[session].items()):
                if file.whole:
                    tensor = BulkTensor("x", DataType.FLOAT32, (SIZE // 4,), Encoding.RAW, name, SIZE)
                    bulk.received(session, [tensor])["x"].close()
            return uploaded

        async def down(request: bytes, context: Any) -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        async def up(requests: AsyncIterator[bytes], context: Any) -> bytes:
            async for _ in requests:
                pass
            return b""

        server = grpc.aio.server(options=CHANNEL_OPTIONS)
        bare = grpc.method_handlers_generic_handler(
            BARE,
            {
                "Down": grpc.unary_stream_rpc_method_handler(down),
                "Up": grpc.stream_unary_rpc_method_handler(up),
            },
        )
        server.add_generic_rpc_handlers((*service_handlers({**handlers, upload: take}), bare))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, session, digest, _memory("VmRSS"), flush=True)
        with contextlib.suppress(EOFError):
            await asyncio.to_thread(input)
        print(_memory("VmHWM"), flush=True)
        await server.stop(0)


def _write(path: Path) -> str:
    data = secrets.token_bytes(SIZE)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _memory(key: str) -> int:
    """Bytes: VmRSS now, VmHWM at most so far."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(key))) * 1024


if __name__ == "__main__":
    asyncio.run(_serve())
