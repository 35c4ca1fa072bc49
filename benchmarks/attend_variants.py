"""One attend over two shards, four ways: ours, bare gRPC streams, Ray actors, PyTorch's gloo.

Each way's worker answers a turn with a list of [added, kernel] milliseconds a call: seen at the root,
what the call took beyond the slowest shard's kernel of that same call, and that kernel.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from benchmarks.turns import serve

HEADS, DIM, SHARDS = 12, 64, 2
MODULE = "benchmarks.attend_variants"

Shard = Callable[[Any], tuple[Any, Any, float]]
"""Queries -> (out, lse, seconds of the kernel)."""


def queries() -> Any:
    return np.random.default_rng(0).standard_normal((1, HEADS, DIM), np.float32)


def shard(keys: int, seed: int) -> Shard:
    """The library's kernel over so many random keys, on one thread, as a node runs it."""
    import onnxruntime as ort

    from edge_attention.graphs.attention import library

    rng = np.random.default_rng(seed)
    shape = (keys // library.TILE, HEADS, library.TILE, DIM)
    stored = {name: rng.standard_normal(shape, np.float32) for name in ("keys", "values")}
    view = {"lo": np.zeros(1, np.int64), "hi": np.full(1, keys, np.int64)}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = library.load(library.forward_graph(1, 1))
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    scale = np.array(DIM**-0.5, np.float32)

    def attend(q: Any) -> tuple[Any, Any, float]:
        start = time.perf_counter()
        out, lse = session.run(["out", "lse"], {"q": q, **stored, **view, "scale": scale})
        return out, lse, time.perf_counter() - start

    return attend


def merged(partials: list[tuple[Any, Any]]) -> Any:
    """The merge of DESIGN section 4, with this library's function."""
    from edge_attention.core.partial import Partial, merge

    (a, b) = (Partial(np.asarray(out), np.asarray(lse)) for out, lse in partials)
    return merge(a, b)


def timed(call: Callable[[], float]) -> Callable[[int], list[list[float]]]:
    """A turn of a call that returns its slowest kernel's seconds."""

    def turn(calls: int) -> list[list[float]]:
        figures = []
        for _ in range(calls):
            start = time.perf_counter()
            kernel = call()
            figures.append([(time.perf_counter() - start - kernel) * 1e3, kernel * 1e3])
        return figures

    return turn


def ours(keys: int) -> None:
    """An aggregator and two nodes with one thread each; figures are the reply's own.

    Two more follow them: what the same call added as its Python client saw it, and what one with a deadline
    added, in which each node runs two graphs and returns its lse before its out.
    """
    from edge_attention import Client
    from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet

    with ExitStack() as stack:
        fleet = stack.enter_context(LocalFleet())
        fleet.start_aggregator("--metrics-port", "0")
        port = int(fleet.child(AGGREGATOR).wait_for(r"metrics on \S*:(\d+)")[1])
        names = [f"shard-{i}" for i in range(SHARDS)]
        for name in names:
            fleet.start_node(name, "--threads", "1")
        client = stack.enter_context(Client(fleet.address))
        context = client.create_context(
            "bench", query_heads=HEADS, key_heads=HEADS, key_dim=DIM, value_dim=DIM
        )
        for seed, name in enumerate(names):
            rng = np.random.default_rng(seed)
            k, v = (rng.standard_normal((keys, HEADS, DIM), np.float32) for _ in range(2))
            context.append(k, v, node=name)
        q = queries()

        def call() -> list[float]:
            start = time.perf_counter()
            answer = context.attend(q)
            took = time.perf_counter() - start
            assert answer.exact
            kernel = answer.seconds["node_run"]
            return [(answer.seconds["all"] - kernel) * 1e3, kernel * 1e3, (took - kernel) * 1e3]

        def late() -> float:
            answer = context.attend(q, deadline=30.0)
            assert answer.exact
            return (answer.seconds["all"] - answer.seconds["node_run"]) * 1e3

        def stream_bytes(way: str) -> float:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                text = page.read().decode()
            pattern = rf'aggregator_bytes_total{{direction="{way}",kind="stream"}} (\S+)'
            found = re.search(pattern, text)
            assert found, f"no {pattern} in the aggregator's metrics"
            return float(found[1])

        # What an attend puts on the streams, so that the bare ones carry the same. Heartbeats are in it
        # too, now and then: the smallest of some calls has none.
        sizes = []
        for _ in range(10):
            before = {way: stream_bytes(way) for way in ("sent", "received")}
            call()
            sizes.append({way: round((stream_bytes(way) - was) / SHARDS) for way, was in before.items()})
        first = {way: int(statistics.median(size[way] for size in sizes)) for way in ("sent", "received")}
        serve(lambda calls: [[*call(), late()] for _ in range(calls)], first)


def bare(down: int, up: int) -> None:
    """grpc.aio streams, open already, to two processes: `down` bytes to each, `up` bytes from each."""
    asyncio.run(_bare(down, up))


async def _bare(down: int, up: int) -> None:
    import grpc.aio

    loop = asyncio.get_running_loop()
    with children("echo", str(up)) as echoes:
        ports = [await loop.run_in_executor(None, echo.readline) for echo in echoes]
        channels: list[Any] = [grpc.aio.insecure_channel(f"127.0.0.1:{int(port)}") for port in ports]
        streams = [channel.stream_stream("/bare/Stream")() for channel in channels]
        data = bytes(down)

        async def call() -> list[float]:
            start = time.perf_counter()
            for stream in streams:
                await stream.write(data)
            for stream in streams:
                assert len(await stream.read()) == up
            return [(time.perf_counter() - start) * 1e3, 0.0]

        async def turn(calls: int) -> list[list[float]]:
            return [await call() for _ in range(calls)]

        # The loop is this thread's; the conversation with the parent has another.
        await asyncio.to_thread(
            serve, lambda calls: asyncio.run_coroutine_threadsafe(turn(calls), loop).result()
        )
        for stream in streams:
            await stream.done_writing()
        for channel in channels:
            await channel.close()


async def _echo(up: int) -> None:
    """A server that answers each message of a stream with `up` bytes."""
    import grpc.aio

    data = bytes(up)

    async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield data

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "bare", {"Stream": grpc.stream_stream_rpc_method_handler(stream)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


def ray(keys: int) -> None:
    """Two Ray actors, `ray.get` of both."""
    import ray as framework  # type: ignore[import-not-found, unused-ignore]

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with tempfile.TemporaryDirectory() as folder:
        framework.init(
            num_cpus=SHARDS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=100 * 1024 * 1024,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        actor = framework.remote(num_cpus=1)(_Actor)
        actors = [actor.remote(keys, seed) for seed in range(SHARDS)]
        q = queries()

        def call() -> float:
            answers = framework.get([a.attend.remote(q) for a in actors])
            merged([(out, lse) for out, lse, _ in answers])
            return float(max(seconds for *_, seconds in answers))

        call()
        serve(timed(call))
        framework.shutdown()


class _Actor:
    def __init__(self, keys: int, seed: int) -> None:
        self._shard = shard(keys, seed)

    def attend(self, q: Any) -> tuple[Any, Any, float]:
        return self._shard(q)


def gloo(keys: int) -> None:
    """PyTorch processes under gloo: the root broadcasts the query and gathers (out, lse)."""
    with tempfile.TemporaryDirectory() as folder, children("gloo-rank", str(keys), folder):
        group, torch = _gloo(folder, 0)
        q = torch.from_numpy(queries())
        size = HEADS * (DIM + 1) + 1  # out, lse, seconds
        gathered = [torch.empty(size) for _ in range(SHARDS + 1)]

        def call() -> float:
            group.broadcast(q, 0)
            group.gather(torch.zeros(size), gathered, 0)
            parts = [part.numpy() for part in gathered[1:]]
            cut = HEADS * DIM
            merged([(p[:cut].reshape(1, HEADS, DIM), p[cut:-1].reshape(1, HEADS)) for p in parts])
            return float(max(part[-1] for part in parts))

        call()
        serve(timed(call))
        group.broadcast(torch.full_like(q, torch.nan), 0)  # NaN: the end
        group.destroy_process_group()


def _gloo(folder: str, rank: int) -> tuple[Any, Any]:
    import torch  # type: ignore[import-not-found, unused-ignore]
    import torch.distributed as group  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = f"file://{folder}/meeting"
    group.init_process_group("gloo", init_method=meeting, rank=rank, world_size=SHARDS + 1)
    return group, torch


def _gloo_rank(keys: int, folder: str, rank: int) -> None:
    """A worker of `gloo`."""
    group, torch = _gloo(folder, rank)
    attend = shard(keys, rank - 1)
    q = torch.empty(1, HEADS, DIM)
    while True:
        group.broadcast(q, 0)
        if q.isnan().any():
            break
        out, lse, seconds = attend(q.numpy())
        group.gather(
            torch.from_numpy(np.concatenate((out.ravel(), lse.ravel(), [np.float32(seconds)]))), dst=0
        )
    group.destroy_process_group()


@contextmanager
def children(role: str, *arguments: str, module: str = MODULE) -> Iterator[list[Any]]:
    """One process a shard that runs `module` in `role`; the files to read what they print."""
    command = [sys.executable, "-m", module, role, *arguments]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen([*command, str(number)], stdin=pipe, stdout=pipe, text=True)
        for number in range(1, SHARDS + 1)
    ]
    try:
        yield [child.stdout for child in started]
    finally:
        for child in started:
            assert child.stdin is not None
            child.stdin.close()
            child.wait()


def main() -> None:
    role, *arguments = sys.argv[1:]
    match role:
        case "ours" | "ray" | "gloo":
            {"ours": ours, "ray": ray, "gloo": gloo}[role](int(arguments[0]))
        case "bare":
            bare(int(arguments[0]), int(arguments[1]))
        case "echo":
            asyncio.run(_echo(int(arguments[0])))
        case "gloo-rank":
            _gloo_rank(int(arguments[0]), arguments[1], int(arguments[2]))


if __name__ == "__main__":
    main()
