"""Whom nodes are told that a program is for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from aggregator.engine.exchange import Exchange
from aggregator.engine.shards import Assignment
from aggregator.trust import guard
from aggregator.trust.acting import acting_for, context_of
from edge_attention.core.messages.fleet import NodeState


def test_a_program_says_who_it_is_for():
    given = Assignment("s", ("a",), range(1), ())
    exchange = Exchange("x", [given], lambda name: NodeState.READY, caller="user/ana")
    assert [send.program.caller for send in exchange.start()] == ["user/ana"]


def test_it_is_who_calls_and_in_a_run_who_started_it():
    assert acting_for() == ""

    async def scenario():
        call = SimpleNamespace(peer=SimpleNamespace(subject="operator/oz"))
        guard._current.set(call)
        assert acting_for() == "operator/oz"

        async def run():
            await asyncio.sleep(0)
            return acting_for()

        # Resumed by the operator, it goes on for who started it; also where that was nobody with a name.
        for starter in ("user/ana", ""):
            assert await asyncio.create_task(run(), context=context_of(starter)) == starter
        assert acting_for() == "operator/oz"

    asyncio.run(scenario())
