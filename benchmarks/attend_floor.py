"""The least a gRPC attend can add: bare streams, the kernel, the merge. Nothing else.

No protobuf, no programs, no checks, no sessions: what is left is what grpc.aio costs while kernels push
everything out of the caches. The kernel runs in a worker thread, or on the event loop's own, where nothing
else can happen meanwhile; the loops are asyncio's, or uvloop's. Nobody who uses them can add less.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.attend_variants import DIM, HEADS, children, merged, queries, shard
from benchmarks.turns import serve

MODULE = "benchmarks.attend_floor"
WAYS = ("thread", "loop", "uvloop")
"""Where the kernel runs: in a thread, on the loop's own, on uvloop's own."""
_CUT = HEADS * DIM


async def _root(way: str, keys: int) -> None:
    import grpc.aio

    loop = asyncio.get_running_loop()
    with children("node", way, str(keys), module=MODULE) as nodes:
        ports = [await loop.run_in_executor(None, node.readline) for node in nodes]
        channels: list[Any] = [grpc.aio.insecure_channel(f"127.0.0.1:{int(port)}") for port in ports]
        streams = [channel.stream_stream("/floor/Stream")() for channel in channels]
        q = queries()

        async def call() -> list[float]:
            start = time.perf_counter()
            data = q.tobytes()
            for stream in streams:
                await stream.write(data)
            parts = [np.frombuffer(await stream.read(), np.float32) for stream in streams]
            merged([(p[:_CUT].reshape(1, HEADS, DIM), p[_CUT:-1].reshape(1, HEADS)) for p in parts])
            kernel = float(max(part[-1] for part in parts))
            return [(time.perf_counter() - start - kernel) * 1e3, kernel * 1e3]

        async def turn(calls: int) -> list[list[float]]:
            return [await call() for _ in range(calls)]

        await asyncio.to_thread(
            serve, lambda calls: asyncio.run_coroutine_threadsafe(turn(calls), loop).result()
        )
        for stream in streams:
            await stream.done_writing()
        for channel in channels:
            await channel.close()


async def _node(way: str, keys: int, seed: int) -> None:
    import grpc.aio

    attend, pool, loop = shard(keys, seed), ThreadPoolExecutor(1), asyncio.get_running_loop()
    in_thread = way == "thread"

    def work(data: bytes) -> bytes:
        out, lse, seconds = attend(np.frombuffer(data, np.float32).reshape(1, HEADS, DIM))
        return np.concatenate((out.ravel(), lse.ravel(), [np.float32(seconds)])).tobytes()

    async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for data in requests:
            yield await loop.run_in_executor(pool, work, data) if in_thread else work(data)

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    role, how, *arguments = sys.argv[1:]
    numbers = [int(argument) for argument in arguments]
    if how == "uvloop":
        import uvloop  # type: ignore[import-not-found, unused-ignore]

        run: Any = uvloop.run
    else:
        run = asyncio.run
    run(_root(how, *numbers) if role == "root" else _node(how, *numbers))
