"""Simulated nodes that share a process: one that fails is gone until another takes its name."""

from __future__ import annotations

import asyncio

import edge_node.link
from edge_attention.trust.dial import Dial
from edge_node.executor import LocalNode
from edge_node.many import SimulatedLink, SimulatedNode
from edge_node.release import Releases
from edge_node.runtime import Runtime
from edge_node.store.store import Store


class Counted(Dial):
    """Reaches nobody, and says how often it was to."""

    def __init__(self):
        super().__init__("127.0.0.1:1")
        self.opened = 0
        self.dialled = asyncio.Event()

    def open_caller(self):
        self.opened += 1
        self.dialled.set()
        raise ConnectionRefusedError("nobody is there")


def link(dial):
    return SimulatedLink(
        SimulatedNode("n", {}), dial, "n", LocalNode(Store(1 << 20), {}, Releases()), Runtime()
    )


def test_a_node_that_was_severed_does_not_dial_again(monkeypatch):
    monkeypatch.setattr(edge_node.link.random, "random", lambda: 0.0)  # at once, that is

    async def scenario():
        dial = Counted()
        one = link(dial)
        life = asyncio.create_task(one.run())
        await dial.dialled.wait()
        one.sever()
        assert await life == (1, "")
        before = dial.opened
        for _ in range(200):
            await asyncio.sleep(0)
        assert dial.opened == before

    asyncio.run(scenario())


def test_one_that_is_severed_before_it_begins_does_not_begin():
    async def scenario():
        dial = Counted()
        one = link(dial)
        one.sever()
        assert await one.run() == (1, "")
        assert not dial.opened

    asyncio.run(scenario())
