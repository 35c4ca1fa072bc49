"""Long lists are made by a thread, a caller's one after another; short ones at once. They say the same."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from house import House

from aggregator.api.service import Api
from aggregator.attention.service import AttentionApi
from aggregator.bounds.turns import Turns
from aggregator.engine.listed import AT_ONCE, listed
from aggregator.training.service import TrainingApi
from edge_attention.core.errors import Overloaded
from edge_attention.core.messages.attention import ContextSpec, ListContextsRequest, ListContextsResponse
from edge_attention.core.messages.fleet import ListNodesRequest
from edge_attention.core.messages.link import PROTOCOL, Register
from edge_attention.core.messages.training import ListRunsRequest, RunState, TrainingRun
from edge_attention.wire import services

EMPTY = ListContextsResponse(())
RUN = TrainingRun("r", "n", RunState.RUNNING, "", 1, 2, 1, 0.5)


def call(who="me", left=None):
    return SimpleNamespace(peer=lambda: who, time_remaining=lambda: left)


def test_every_list_is_short_or_comes_as_the_bytes_of_all_of_it(monkeypatch):
    monkeypatch.setattr("aggregator.engine.listed.AT_ONCE", 2)
    with House() as house:
        parts = (house.trips, house.bulk, house.contexts, house.appender, house.attender)
        contexts, nodes, runs = (
            AttentionApi(*parts),
            Api(house.membership, house.bulk),
            TrainingApi(house.runs),
        )
        names = ["a", "b", "c"]

        async def lists():
            return (
                await contexts.list_contexts(ListContextsRequest(), call()),
                await nodes.list_nodes(ListNodesRequest(), call()),
                await runs.list(ListRunsRequest(), call()),
            )

        assert not any(isinstance(found, bytes) for found in asyncio.run(lists()))
        for name in names:
            asyncio.run(house.contexts.create(ContextSpec(name, 1, 1, 2, 2)))
            house.membership.register(Register(PROTOCOL, "0", name, "i", "", "cpu", 1, 1), 0.0)
        monkeypatch.setattr(house.runs, "list", lambda: (RUN,) * 3)
        found = asyncio.run(lists())
        methods = (services.LIST_CONTEXTS, services.LIST_NODES, services.LIST_RUNS)
        listed_, known, started = (m.response.decode(data) for m, data in zip(methods, found, strict=True))
        assert [context.spec.name for context in listed_.contexts] == names
        assert [node.name for node in known.nodes] == names
        assert started.runs == (RUN,) * 3


def test_a_long_list_is_no_work_of_the_loop_and_each_waits_for_its_turn():
    async def scenario():
        turns, loop, at_once, most = Turns(), threading.get_ident(), 0, 0
        go, order = threading.Event(), []

        def make(who):
            nonlocal at_once, most
            order.append(who)
            assert threading.get_ident() != loop
            at_once += 1
            most = max(most, at_once)
            go.wait(180)
            at_once -= 1
            return EMPTY

        def asked(who, left=None):
            return listed(services.LIST_CONTEXTS, call(who, left), AT_ONCE + 1, lambda: make(who), turns)

        greedy = [asyncio.create_task(asked("greedy")) for _ in range(20)]
        await asyncio.sleep(0)
        other = asyncio.create_task(asked("other"))
        with pytest.raises(Overloaded, match="bound list-turns"):
            await asked("late", 0.05)
        go.set()
        await asyncio.gather(other, *greedy)
        assert order.index("other") <= 2
        assert most == 1
        assert turns.lists.admission.running == 0

    asyncio.run(scenario())
