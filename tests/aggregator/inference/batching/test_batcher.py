"""Requests joined, run and split again: each has its own rows, whatever becomes of the others."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from aggregator.inference.batching.batch_queue import BatchQueue
from aggregator.inference.batching.batcher import Batcher
from aggregator.inference.batching.rows import joined, padded_rows
from aggregator.inference.model_answer import ModelAnswer
from edge_attention.core.errors import Cancelled, DeadlineExceeded, InvalidTensor, Overloaded, Unavailable


class Model:
    """Answers each row with its double, once it is let; a row of -1 is none that it can be computed of."""

    def __init__(self, slots=1, max_batch=8, delay=0.0, **options):
        self.free = asyncio.Event()
        self.free.set()
        self.ran = []
        self.cancelled = 0
        self.fails = None
        self.batcher = Batcher(BatchQueue("m", slots, max_batch, delay, **options), self.run)

    async def run(self, feeds, seconds, partial, caller):
        self.ran.append(feeds["x"].tolist())
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails is not None:
            raise self.fails
        if (feeds["x"] == -1).any():
            raise InvalidTensor("a row of -1")
        sent = {"a": 8 * len(feeds["x"])}
        return ModelAnswer({"y": 2 * feeds["x"]}, True, 1.0, "", {"all": 0.0}, sent, {}, segments=())

    def ask(self, *rows, seconds=10.0, **options):
        feeds = {"x": np.array(rows)}
        return asyncio.ensure_future(self.batcher.infer(feeds, seconds, "ana", joins=True, **options))


def scenario(**options):
    def run(test):
        async def whole():
            model = Model(**options)
            await test(model)
            assert not model.batcher._all
            model.batcher.queue.check()
            await model.batcher.close(Cancelled("over"))

        asyncio.run(whole())

    return run


async def held(model, *first):
    """One request that runs, so that others wait."""
    model.free.clear()
    task = model.ask(*first)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def test_what_waits_is_joined_and_each_has_its_own_rows():
    @scenario()
    async def _(model):
        first = await held(model, 0)
        others = [model.ask(1, 2), model.ask(3), model.ask(4, 5, 6)]
        await asyncio.sleep(0.02)
        model.free.set()
        answers = [await one for one in (first, *others)]
        assert model.ran == [[0], [1, 2, 3, 4, 5, 6]]
        assert [a.results["y"].tolist() for a in answers] == [[0], [2, 4], [6], [8, 10, 12]]
        assert [a.sent["a"] for a in answers] == [8, 16, 8, 24]
        assert [a.rows for a in answers] == [0, 6, 6, 6]
        assert answers[1].seconds["queue"] >= 0.02


def test_rows_that_pad_a_batch_are_nobodys():
    @scenario(sizes=lambda kind, rows: padded_rows(rows, 8))
    async def _(model):
        first = await held(model, 0)
        others = [model.ask(1), model.ask(2, 3)]
        await asyncio.sleep(0)
        model.free.set()
        answers = [await one for one in (first, *others)]
        assert model.ran == [[0], [1, 2, 3, 3]]
        assert [a.results["y"].tolist() for a in answers] == [[0], [2], [4, 6]]

    assert [padded_rows(n, 12) for n in (1, 2, 3, 5, 9, 12)] == [1, 2, 4, 8, 12, 12]
    assert joined([{"x": np.array([[1], [2]])}], 2)["x"].shape == (2, 1)


def test_one_requests_fault_is_its_own():
    @scenario()
    async def _(model):
        first = await held(model, 0)
        good, bad, also = model.ask(1), model.ask(-1), model.ask(3)
        await asyncio.sleep(0)
        model.free.set()
        assert (await first).rows == 0
        with pytest.raises(InvalidTensor):
            await bad
        assert [(await one).results["y"].tolist() for one in (good, also)] == [[2], [6]]
        assert model.ran == [[0], [1, -1, 3], [1], [-1], [3]]


def test_what_no_request_is_the_reason_for_is_not_tried_again():
    @scenario()
    async def _(model):
        first = await held(model, 0)
        others = [model.ask(1), model.ask(2)]
        await asyncio.sleep(0)
        model.fails = Unavailable("no node")
        model.free.set()
        for one in (first, *others):
            with pytest.raises(Unavailable):
                await one
        assert len(model.ran) == 2


def test_who_goes_away_is_in_no_batch_and_ends_one_that_nobody_waits_for():
    @scenario()
    async def _(model):
        first = await held(model, 0)
        gone, stays = model.ask(1), model.ask(2)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0.01)
        assert model.cancelled == 1
        assert model.ran == [[0], [2]]
        model.free.set()
        assert (await stays).results["y"].tolist() == [4]


def test_a_deadline_ends_the_wait_of_its_request_alone():
    @scenario()
    async def _(model):
        first = await held(model, 0)
        late, other = model.ask(1, seconds=0.02), model.ask(2)
        with pytest.raises(DeadlineExceeded, match=r"waited [\d.e+-]+ m?s for its turn"):
            await late
        model.free.set()
        assert (await other).results["y"].tolist() == [4]
        assert (await first).results["y"].tolist() == [0]
        last = await held(model, 5)
        with pytest.raises(DeadlineExceeded):
            await model.ask(6, seconds=0.01)
        model.free.set()
        assert (await last).results["y"].tolist() == [10]


def test_too_many_are_refused_and_closing_tells_who_waits():
    @scenario(most=4)
    async def _(model):
        first = await held(model, 0)
        waiting = [model.ask(1, 2), model.ask(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="queued-requests"):
            await model.ask(4)
        await model.batcher.close(Unavailable("the aggregator is ending"))
        for one in (first, *waiting):
            with pytest.raises((Unavailable, Cancelled)):
                await one
        with pytest.raises(Unavailable, match="takes no requests any more"):
            await model.ask(5)


def test_a_batch_that_ends_before_it_has_begun_gives_its_slot_back():
    never_begun = []
    for steps in range(8):  # at one of them its batch is a task that has not run yet

        @scenario()
        async def _(model, steps=steps):
            first = await held(model, 0)
            gone = model.ask(1)
            await asyncio.sleep(0)
            model.free.set()
            for _ in range(steps):
                await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait([first, gone])
            async with asyncio.timeout(180):
                assert (await model.ask(2)).results["y"].tolist() == [4]
            started = model.batcher.queue._numbers
            never_begun.append(started - len(model.ran))

    assert max(never_begun) == 1

    @scenario()
    async def _(model):
        refused = model.ask(3)
        await asyncio.sleep(0)
        assert model.batcher.queue.under_way == 1
        await model.batcher.close(Unavailable("the aggregator is ending"))
        with pytest.raises(Cancelled, match="released"):
            await refused
        assert model.ran == []
        assert model.batcher.queue.under_way == 0
