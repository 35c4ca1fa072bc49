"""Choices of a request that are made side by side, where there is room for few of them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial

import pytest

from aggregator.http import choices
from aggregator.http.choices import AT_ONCE, Choices
from aggregator.inference.generation.request import GenerationEvent
from edge_attention.core.errors import InvalidArgument, Overloaded


class Rooms:
    """Generations of three events, `most` of which there is room for at a time.

    Once the first has ended, `others` times somebody else has the room.
    """

    def __init__(self, most, others=0):
        self.most, self.others = most, others
        self.open = self.highest = self.refused = self.ended = 0

    async def generation(self, place, wrong=None):
        if self.open >= self.most or (self.ended and self.others):
            self.others -= bool(self.ended and self.others)
            self.refused += 1
            raise Overloaded("no room")
        self.open += 1
        self.highest = max(self.highest, self.open)
        try:
            for number in range(3):
                await asyncio.sleep(0)
                if wrong is not None and number == wrong:
                    raise InvalidArgument("it is wrong")
                yield GenerationEvent(f"{place}.{number} ")
        finally:
            self.open -= 1
            self.ended += 1


async def texts(rooms, count, until=1e12, **more):
    found = [""] * count
    made = Choices([partial(rooms.generation, place, **more) for place in range(count)], until)
    async with aclosing(made.events()) as events:
        async for one in events:
            if one is not None:
                found[one[0]] += one[1].text
    return found


@pytest.mark.parametrize("most", [1, 3, 100])
def test_what_finds_no_room_is_made_when_another_has_ended(most):
    rooms = Rooms(most)
    found = asyncio.run(texts(rooms, 20))
    assert found == [f"{place}.0 {place}.1 {place}.2 " for place in range(20)]
    assert rooms.highest == min(most, AT_ONCE)
    assert (rooms.refused > 0) is (most < AT_ONCE)
    assert not rooms.open


def test_where_there_is_room_for_none_it_is_refused():
    with pytest.raises(Overloaded, match="no room"):
        asyncio.run(texts(Rooms(0), 20))


def test_one_whose_room_another_took_waits_for_it(monkeypatch):
    """Between two choices of one request somebody else may come."""
    monkeypatch.setattr(choices, "AGAIN_SECONDS", 0.001)
    rooms = Rooms(1, others=5)
    assert asyncio.run(texts(rooms, 2)) == ["0.0 0.1 0.2 ", "1.0 1.1 1.2 "]
    assert rooms.refused >= 5


def test_its_time_ends_the_waiting(monkeypatch):
    monkeypatch.setattr(choices, "AGAIN_SECONDS", 0.001)
    with pytest.raises(Overloaded, match="no room"):
        asyncio.run(texts(Rooms(1, others=1 << 60), 2, until=0.0))


def test_the_first_that_fails_ends_all():
    rooms = Rooms(100)
    with pytest.raises(InvalidArgument, match="it is wrong"):
        asyncio.run(texts(rooms, 20, wrong=1))
    assert not rooms.open
