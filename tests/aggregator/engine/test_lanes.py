"""Lanes: all items come in order, a few streams at a time, and a slow one holds nobody up."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import pytest
from house import until
from hypothesis import given
from hypothesis import strategies as st

from aggregator.engine.lanes import Lanes


async def of(items) -> AsyncIterator:
    for item in items:
        await asyncio.sleep(0)
        yield item


@given(st.integers(1, 3), st.lists(st.lists(st.integers()), max_size=6))
def test_every_stream_has_all_its_items_and_few_are_used_at_a_time(count, streams) -> None:
    using, most = 0, 0

    async def use(lanes, items):
        nonlocal using, most
        got = []
        async for item in lanes.each(of(items)):
            using += 1
            most = max(most, using)
            await asyncio.sleep(0)
            got.append(item)
            using -= 1
        return got

    async def scenario():
        lanes = Lanes(count)
        return await asyncio.gather(*(use(lanes, items) for items in streams))

    assert asyncio.run(scenario()) == streams
    assert most <= count


def test_a_stream_that_is_slow_gives_its_lane_up() -> None:
    async def scenario():
        lanes, come = Lanes(1, patience=0.001), asyncio.Event()

        async def slow():
            await come.wait()
            yield "late"

        async def use(items):
            return [item async for item in lanes.each(items)]

        late = asyncio.create_task(use(slow()))
        await asyncio.sleep(0)
        assert await asyncio.wait_for(use(of([1, 2])), 180) == [1, 2]
        come.set()
        assert await late == ["late"]

    asyncio.run(scenario())


@pytest.mark.parametrize("waiting", [False, True])
def test_a_lane_is_free_again_whatever_ends_the_stream(waiting) -> None:
    async def scenario():
        lanes = Lanes(1, patience=0.001 if waiting else 60.0)

        async def broken():
            yield 1
            if waiting:
                await asyncio.sleep(0.01)
            raise ValueError("broken")

        async def never():
            yield 1
            await asyncio.Event().wait()

        with pytest.raises(ValueError, match="broken"):
            [item async for item in lanes.each(broken())]
        left = lanes.each(of([1, 2]))
        assert await anext(left) == 1
        await left.aclose()

        async def use():
            async for _ in lanes.each(never()):
                pass

        task = asyncio.create_task(use())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        assert [item async for item in lanes.each(of([3]))] == [3]

    asyncio.run(scenario())


class Item:
    """Something a weak reference can point to."""


def test_an_item_that_was_used_is_not_kept_while_the_next_is_waited_for() -> None:
    async def scenario():
        lanes, wait = Lanes(1), asyncio.Event()
        seen: list[weakref.ref[Item]] = []

        async def items():
            yield Item()
            await wait.wait()
            yield Item()

        async def use():
            async for item in lanes.each(items()):
                seen.append(weakref.ref(item))
                del item

        task = asyncio.create_task(use())
        await until(lambda: seen)
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
        assert seen[0]() is None
        wait.set()
        await task

    asyncio.run(scenario())
