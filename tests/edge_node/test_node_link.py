"""What the shell does when something on this side fails: it says so, and tries again."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections import deque

import pytest

from edge_attention.core.errors import ResourceExhausted
from edge_attention.trust.dial import Dial
from edge_attention.wire.codec import MESSAGE_LIMIT
from edge_node.executor import LocalNode
from edge_node.link import NodeLink
from edge_node.release import Releases
from edge_node.runtime import Runtime
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
