"""Nodes by the hundred in one process, at real streams, with answers made up.

`python -m benchmarks.many_nodes ADDRESS FIRST COUNT`. Each has a connection of its own, registers, beats as
it is told to and sends its metrics now and then, as a node does; it stores nothing and computes nothing. What
it answers an attend with is made of its number (`made_up`), so that whoever asks can merge the same.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import lru_cache
from typing import Any

import grpc.aio
import numpy as np

from benchmarks.turns import serve
from edge_attention.core.messages import link as said
from edge_attention.core.messages.program import Append, Call, Contribution, Program
from edge_attention.core.partial import Partial
from edge_attention.core.tensors import Float32
from edge_attention.descriptors import raise_descriptors
from edge_attention.metrics.node import REPORT_SECONDS, NodeMetrics
from edge_attention.wire.link import CONNECT, from_node, prepared_program, to_node
from edge_attention.wire.methods import CHANNEL_OPTIONS
from edge_node.prepared import Prepared
from edge_node.session import PROGRAMS
from edge_node.store.store import Store

HEADS, DIM = 4, 16
"""Of the context that is attended to: query heads, all of them key heads, too."""
START_SECONDS = 0.004
"""Between one node's registration and the next one's."""


@lru_cache(maxsize=4096)
def made_up(number: int, queries: int) -> Partial:
    """What node `number` answers so many queries with."""
    random = np.random.default_rng([number, queries])
    out = random.standard_normal((queries, HEADS, DIM), np.float32)
    return Partial(out, random.standard_normal((queries, HEADS), np.float32))


def name_of(number: int) -> str:
    return f"node-{number:04}"


class _Idle:
    """A session as the metrics of a node with nothing to do see it."""

    registered, reconnects, tasks = True, 0, 0


@lru_cache(maxsize=1)
def report() -> bytes:
    """A node's metrics, as it sends them every REPORT_SECONDS."""
    return NodeMetrics(Store(1 << 30), _Idle(), "CPUExecutionProvider", 1).report(0.0)


_prepared: dict[bytes, Prepared] = {}


def called(call: Call) -> Program:
    """The program that the call stands for."""
    if call.prepared:
        program = prepared_program.decode(call.prepared)
        _prepared[call.program] = Prepared(call.program, program, len(call.prepared))
    return _prepared[call.program].called(call)


class Node:
    """One node's end of the link."""

    def __init__(self, address: str, number: int) -> None:
        self._number = number
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._sent = self._came = 0
        self._interval = 0.0
        self._reported = time.monotonic() - REPORT_SECONDS * (number % 100) / 100  # not all at once
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running: asyncio.Task[None]

    async def run(self) -> None:
        """Until the aggregator ends the stream."""
        register = said.Register(
            said.PROTOCOL, "made up", name_of(self._number), f"{self._number}", "", "cpu", 1, 1 << 30
        )
        call = self._channel.stream_stream(CONNECT.path)()
        self._send(register)
        tasks = [asyncio.create_task(self._write(call))]
        try:
            async for data in call:
                self._came += 1
                match to_node.decode(data):
                    case said.Registered() as registered:
                        self._send(PROGRAMS)
                        self._interval = registered.heartbeat_seconds
                        tasks.append(asyncio.create_task(self._beat()))
                        self.up.set_result(None)
                    case said.HeartbeatAck() as ack:
                        self._interval = ack.heartbeat_seconds or self._interval
                    case Program() as program:
                        self._answer(program, len(data))
                    case Call() as call:
                        self._answer(called(call), len(data))
                    case _:
                        pass
        finally:
            for task in tasks:
                task.cancel()
            await self._channel.close()

    def _send(self, message: said.FromNode) -> None:
        self._sent += 1
        self._out.put_nowait(from_node.encode(message))

    async def _write(self, call: Any) -> None:
        while True:
            await call.write(await self._out.get())

    async def _beat(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(self._interval)
            number += 1
            due = time.monotonic() - self._reported >= REPORT_SECONDS
            if due:
                self._reported = time.monotonic()
            metrics = report() if due else b""
            counts = self._sent, self._came
            self._send(said.Heartbeat(number, 1 << 20, 0, False, metrics, *counts, self._interval))

    def _answer(self, program: Program, size: int) -> None:
        tensors: dict[str, Float32]
        if any(isinstance(instruction, Append) for instruction in program.instructions):
            # The summary of what it was given.
            value = np.ones((HEADS, DIM), np.float32)
            tensors = {"key_norm": np.ones(HEADS, np.float32), "value_min": -value, "value_max": value}
        else:
            partial = made_up(self._number, len(program.tensors["task/q"]))
            tensors = {"lse": partial.lse, "out": partial.out}
        self._send(
            Contribution(
                program.task_id, program.shard, program.coverage, program.version, 0, tensors, final=True
            )
        )
        self._send(said.Credit(size, 1))


async def start(address: str, numbers: range) -> list[Node]:
    nodes = []
    for number in numbers:
        node = Node(address, number)
        nodes.append(node)
        node.running = asyncio.create_task(node.run())
        await asyncio.sleep(START_SECONDS)
    await asyncio.gather(*(node.up for node in nodes))
    return nodes


def main() -> None:
    raise_descriptors()
    address, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    loop = asyncio.new_event_loop()
    nodes = loop.run_until_complete(start(address, range(first, first + count)))

    async def until_told() -> None:
        def ended(_: int) -> int:
            """How many nodes' streams have ended."""
            return sum(node.running.done() for node in nodes)

        await asyncio.to_thread(serve, ended, count)

    loop.run_until_complete(until_told())


if __name__ == "__main__":
    main()
