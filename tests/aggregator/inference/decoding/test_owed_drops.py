"""What nodes are to drop (`aggregator.inference.decoding.owed_drops`)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from aggregator.inference.decoding.owed_drops import OwedDrops


def test_two_nodes_that_are_to_drop_one_scope_are_both_asked():
    """They were tried with one part, and went away one after the other."""

    async def scenario() -> list[tuple[str, tuple[str, ...]]]:
        there, asked, work = False, [], []

        async def make(errands, *_, **__):
            (errand,) = errands
            asked.append((*errand.holders, errand.instructions[0].stored))
            return SimpleNamespace(answered=True)

        member = SimpleNamespace(register=SimpleNamespace(instance="life"))
        owed = OwedDrops(
            SimpleNamespace(make=make),
            SimpleNamespace(get=lambda _: member, live=lambda _: there),
            lambda doing: work.append(asyncio.ensure_future(doing)),
            lambda _: None,
        )
        owed.owe("warm.p0/", ("a",))
        owed.owe("warm.p0/", ("b",))
        there = True
        owed.look()
        while work:
            await work.pop()
        assert len(owed) == 0
        return sorted(asked)

    assert asyncio.run(scenario()) == [("a", ("warm.p0/",)), ("b", ("warm.p0/",))]
