"""What the shell does when something on this side fails: it says so, and tries again."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections import deque
from hashlib import sha256

import numpy as np
import pytest
import small_graphs
from fake_aggregator import FakeAggregator

from edge_attention.core.errors import ResourceExhausted
from edge_attention.core.messages.program import (
    Call,
    Contribution,
    Frozen,
    PreparedProgram,
    Return,
    Run,
    Slot,
    Stored,
)
from edge_attention.core.tensors import DataType
from edge_attention.trust.dial import Dial
from edge_attention.wire.codec import MESSAGE_LIMIT
from edge_attention.wire.link import prepared_program
from edge_node.executor import LocalNode
from edge_node.link import NodeLink
from edge_node.prepared import Prepared
from edge_node.release import Releases
from edge_node.runtime import Runtime, Stop
from edge_node.session import UNTAKEN, UNTAKEN_BYTES
from edge_node.store.store import Store


class Broken(Dial):
    """Cannot open a channel, for a reason that nobody foresaw."""

    def __init__(self, address):
        super().__init__(address)
        self.opened = 0
        self.again = asyncio.Event()

    def open_caller(self):
        self.opened += 1
        if self.opened > 1:
            self.again.set()
        raise RuntimeError("no such thing")


def test_a_failure_that_nobody_foresaw_is_said_and_tried_again(caplog):
    async def scenario():
        dial = Broken("127.0.0.1:1")
        link = NodeLink(dial, "n", LocalNode(Store(1 << 20), {}, Releases()), Runtime())
        running = asyncio.create_task(link.run())
        async with asyncio.timeout(180):
            await dial.again.wait()
        link.drain()
        link.drain()
        await running

    with caplog.at_level("INFO"):
        asyncio.run(scenario())
    assert "the connection failed on this side: RuntimeError: no such thing; trying again" in caplog.text


class Remembered(Dial):
    """Dials for real, and knows which of its callers are still held by anybody."""

    def __init__(self, address):
        super().__init__(address)
        self.callers = []
        self.again = asyncio.Event()

    def open_caller(self):
        if len(self.callers) > 1:
            self.again.set()
        caller = super().open_caller()
        self.callers.append(weakref.ref(caller))
        return caller


def test_a_connection_that_failed_is_let_go_at_once():
    """gRPC keeps dialling for a call that somebody still holds."""

    async def scenario(port):
        dial = Remembered(f"127.0.0.1:{port}")
        link = NodeLink(dial, "n", LocalNode(Store(1 << 20), {}, Releases()), Runtime())
        running = asyncio.create_task(link.run())
        async with asyncio.timeout(180):
            await dial.again.wait()
        held = [caller() is not None for caller in dial.callers]
        link.drain()
        link.drain()
        await running
        return held

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        gc.collect()
        gc.disable()
        try:
            held = asyncio.run(scenario(taken.getsockname()[1]))
        finally:
            gc.enable()
    assert held[:2] == [False, False]


def test_an_aggregator_that_does_not_read_is_left():
    """Whatever it says that it has taken: what is sent lies here until gRPC takes it."""

    async def scenario():
        link = NodeLink(Dial("127.0.0.1:1"), "n", LocalNode(Store(1 << 20), {}, Releases()), Runtime())
        few, many = [bytes(MESSAGE_LIMIT)] * (UNTAKEN_BYTES // MESSAGE_LIMIT), [b"x"] * UNTAKEN
        for waiting in (few, many):
            link._outgoing = deque(waiting)
            link._require_read()
            link._outgoing.append(bytes(1))
            with pytest.raises(ResourceExhausted, match=r"127.0.0.1:1 does not read"):
                link._received(b"")

    asyncio.run(scenario())


def test_a_task_that_came_again_and_runs_can_still_be_stopped_once_its_former_run_is_over():
    async def scenario():
        link = NodeLink(Dial("127.0.0.1:1"), "n", LocalNode(Store(1 << 20), {}, Releases()), Runtime())
        former, now = Stop(), Stop()
        link._stops["t"] = now
        for stop, left in ((former, {"t": now}), (now, {})):
            link._ended(stop, Contribution("t", "s", range(1), 0, 0, final=True))
            assert link._stops == left

    asyncio.run(scenario())


def test_a_call_whose_program_is_frozen_just_as_it_is_read_runs_what_was_frozen(monkeypatch):
    graph, data = small_graphs.product()
    x, w = np.array([[1, 2], [3, 4]], np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    run = Run(graph, {"x": Stored("task/x"), "w": Stored("job/j/w")}, {"y": "task/y"})
    slot = Slot("task/x", DataType.FLOAT32, x.shape)
    program = PreparedProgram((run, Return("task/y", "y")), (slot,), (Frozen("job/j/w"),))
    written = prepared_program.encode(program)
    asked = Call("t", "s", range(1), 0, None, sha256(written).digest(), x.tobytes(), "someone", written)

    async def scenario():
        aggregator = await FakeAggregator().start()
        node = LocalNode(Store(1 << 20), {}, Releases())
        node.store.put("job/j/w", w)
        runtime = Runtime()
        link = NodeLink(Dial(f"127.0.0.1:{aggregator.port}"), "n", node, runtime)
        loaded, called = {graph: runtime.load(graph, data)}, Prepared.called

        def frozen_meanwhile(prepared, call):
            found = called(prepared, call)
            if not prepared.ready:
                link._prepared.freeze(prepared, loaded)  # for another call, in a thread of its own
            return found

        monkeypatch.setattr(Prepared, "called", frozen_meanwhile)
        running = asyncio.create_task(link.run())
        try:
            await aggregator.until(link.registered)
            return (await aggregator.run(asked))[-1]
        finally:
            link.vanish()
            await running
            await aggregator.stop()

    answer = asyncio.run(scenario())
    assert answer.error is None
    np.testing.assert_array_equal(answer.tensors["y"], x @ w)
