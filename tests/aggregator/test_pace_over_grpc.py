"""A fleet that grows and shrinks beats more seldom and more often again, over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib

from dialled import caller, node

from aggregator.fleet import pace as paces
from aggregator.recipes import RECIPES
from aggregator.server import ServerSettings, running
from edge_attention.core.messages.fleet import DescribeAggregatorRequest
from edge_attention.wire.services import DESCRIBE_AGGREGATOR
from edge_node import session


def test_nodes_follow_what_the_fleets_size_asks_for(monkeypatch):
    monkeypatch.setattr(paces, "BEATS_A_SECOND", 2.0)  # one node 0.5 s, two 1 s, three 1.5 s
    followed = {}
    beat = session.Session._beat

    def noted(self, now):
        followed[self._name] = self._heartbeat
        return beat(self, now)

    monkeypatch.setattr(session.Session, "_beat", noted)

    async def all_follow(seconds, *names):
        async with asyncio.timeout(180):
            while {followed.get(name) for name in names} != {seconds}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def scenario():
        settings = ServerSettings("127.0.0.1", 0, None, "127.0.0.1", None, 1.5, 60.0)
        async with running(settings, RECIPES) as port, node(port, "a"), caller(port) as client:
            await all_follow(0.5, "a")
            async with contextlib.AsyncExitStack() as stack:
                for name in "bc":
                    await stack.enter_async_context(node(port, name))
                await all_follow(1.5, *"abc")
                about = await client.unary(DESCRIBE_AGGREGATOR, DescribeAggregatorRequest(), 60)
                assert (about.lease_seconds, about.heartbeat_seconds) == (4.5, 1.5)
            await all_follow(0.5, "a")

    asyncio.run(scenario())
