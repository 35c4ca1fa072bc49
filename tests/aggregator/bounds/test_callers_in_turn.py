"""Callers take turns: who asks often holds up nobody who asks once."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.bounds.callers_in_turn import CallersInTurn


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_asks_once_waits_for_one_turn_of_who_asks_a_hundred_times():
    async def scenario():
        turns, order = CallersInTurn(), []

        async def ask(caller):
            async with turns.turn(caller):
                order.append(caller)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(ask("ana")) for _ in range(100)]
        await settled()
        before = len(order)
        tasks += [asyncio.create_task(ask(caller)) for caller in ("ben", "cleo")]
        await asyncio.gather(*tasks)
        turns.check()
        return before, order

    before, order = asyncio.run(scenario())
    assert len(order) == 102
    assert {"ben", "cleo"} <= set(order[before : before + 5])


def test_of_several_places_a_caller_alone_leaves_one_for_whoever_comes():
    async def scenario():
        turns = CallersInTurn(4)
        greedy = [asyncio.create_task(turns.enter("ana")) for _ in range(8)]
        await settled()
        assert sum(task.done() for task in greedy) == 2
        await asyncio.wait_for(turns.enter("ben"), 10)
        turns.leave("ana")
        await settled()
        turns.check()
        for task in greedy:
            task.cancel()

    asyncio.run(scenario())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["ask", "leave", "go"])), max_size=60))
def test_whoever_goes_away_no_place_is_lost(events):
    async def scenario():
        turns = CallersInTurn(3)
        waiting, having = [], []

        async def look():
            await settled()
            for one in [one for one in waiting if one[1].done()]:
                waiting.remove(one)
                having.append(one[0])

        for caller, what in events:
            if what == "ask":
                waiting.append((caller, asyncio.create_task(turns.enter(caller))))
                await look()
            elif what == "leave" and having:
                turns.leave(having.pop())  # and whoever was next may go in the very same moment
                if waiting:
                    waiting.pop(0)[1].cancel()
            elif waiting:
                waiting.pop()[1].cancel()
            await look()
            turns.check()
        for _, task in waiting:
            task.cancel()
        await settled()
        for caller in having:
            turns.leave(caller)
        assert not turns.busy
        await asyncio.wait_for(turns.enter("d"), 10)

    asyncio.run(scenario())


def test_a_question_that_is_given_up_as_its_turn_comes_costs_its_caller_no_turn():
    async def scenario():
        turns, order = CallersInTurn(), []

        async def ask(caller, name):
            async with turns.turn(caller):
                order.append(name)

        await turns.enter("ben")
        asked = [("ana", "ana 1"), ("ana", "ana 2"), ("cleo", "cleo 1"), ("cleo", "cleo 2")]
        tasks = [asyncio.create_task(ask(*one)) for one in asked]
        await settled()
        tasks[0].cancel()
        turns.leave("ben")
        await asyncio.wait(tasks)
        turns.check()
        return order

    assert asyncio.run(scenario()) == ["ana 2", "cleo 1", "cleo 2"]


def test_an_error_in_a_turn_ends_it():
    async def scenario():
        turns = CallersInTurn()
        with pytest.raises(ValueError, match="no"):
            async with turns.turn("ana"):
                raise ValueError("no")
        assert not turns.busy

    asyncio.run(scenario())
