"""Plans that are kept: what they depend on, and what never makes another."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
from house import House

from aggregator.attention import attend_plan
from aggregator.attention.attend_plan import MAX_DEADLINE, Plans, deadline_of
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.attention import AttendRequest, ContextSpec

SPEC = ContextSpec("c", query_heads=4, key_heads=2, key_dim=8, value_dim=6)
REQUEST = AttendRequest("c", np.ones((3, 4, 8), np.float32))


async def filled(house):
    context = await house.contexts.create(SPEC)
    await house.appender.append("c", "", np.ones((100, 2, 8), np.float32), np.ones((100, 2, 6), np.float32))
    return context


def test_what_is_left_of_a_deadline_is_no_part_of_a_plan():
    """A client gives what is left of its own: a number that never comes again. 300 are no 300 plans."""

    async def scenario(house):
        house.node("a")
        context = await filled(house)
        plans = Plans()
        others = plans.get(context, REQUEST)
        first = plans.get(context, replace(REQUEST, deadline_seconds=5.0))
        # Whether there is one says whether nodes return their lse early: that is another plan.
        assert first is not others
        for n in range(300):
            assert plans.get(context, replace(REQUEST, deadline_seconds=5.0 - n / 1000)) is first
        assert plans.get(context, REQUEST) is others

    with House() as house:
        asyncio.run(scenario(house))


def test_each_attend_has_the_deadline_it_asked_for_though_the_plan_is_one(monkeypatch):
    made = []
    make = attend_plan.make_plan
    monkeypatch.setattr(attend_plan, "make_plan", lambda *given: made.append(1) or make(*given))

    async def scenario(house):
        box = house.node("a")
        await filled(house)
        box.programs.clear()
        for deadline in (7.0, 3.0, 900.0):
            assert (await house.attender.attend(replace(REQUEST, deadline_seconds=deadline))).exact
        return [program.deadline_seconds for program in box.programs]

    with House() as house:
        seconds = asyncio.run(scenario(house))
    assert [math.ceil(second) for second in seconds] == [7, 3, 900]
    assert len(made) == 1


@pytest.mark.parametrize("deadline", [0.0, -1.0, math.nan, math.inf, MAX_DEADLINE + 1])
def test_a_deadline_that_is_none_is_refused_also_where_the_plan_is_known(deadline):
    assert deadline_of(replace(REQUEST, deadline_seconds=MAX_DEADLINE)) == MAX_DEADLINE
    assert deadline_of(REQUEST) == attend_plan.DEFAULT_DEADLINE

    async def scenario(house):
        house.node("a")
        await filled(house)
        assert (await house.attender.attend(replace(REQUEST, deadline_seconds=1.0))).exact
        with pytest.raises(InvalidArgument, match="it must be above 0 and at most 3600"):
            await house.attender.attend(replace(REQUEST, deadline_seconds=deadline))

    with House() as house:
        asyncio.run(scenario(house))
