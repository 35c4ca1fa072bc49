"""The way back through an attend over nodes in this process, against float64; what is refused, and why."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import numpy as np
import pytest
import reference
from house import House

from aggregator.attention.gradients import AttendGradients
from aggregator.attention.upkeep import Upkeep
from aggregator.bounds.turns import Turns
from edge_attention.core.errors import (
    DeadlineExceeded,
    EmptyContext,
    FailedPrecondition,
    InvalidArgument,
    InvalidTensor,
    MessageTooLarge,
    Overloaded,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.messages.attention import AttendGradientsRequest, AttendRequest, ContextSpec

SPEC = ContextSpec("c", query_heads=4, key_heads=2, key_dim=8, value_dim=6)
RANDOM = np.random.default_rng(0)
KEYS = RANDOM.standard_normal((1500, 2, 8)).astype(np.float32)
VALUES = RANDOM.standard_normal((1500, 2, 6)).astype(np.float32)
QUERIES = RANDOM.standard_normal((5, 4, 8)).astype(np.float32)
DOUT = RANDOM.standard_normal((5, 4, 6)).astype(np.float32)
POSITIONS = np.array([0, 3, 700, 1100, 1499])


def truth(visible):
    """dq, dkeys, dvalues in float64 by the formulae, and (out, lse)."""
    s = reference.scores(QUERIES, KEYS, 8**-0.5)
    out, lse = reference.attend(s, VALUES, visible)
    p = np.exp(np.where(visible[:, None], s, -np.inf) - lse[..., None])
    keys, values = (np.repeat(a.astype(np.float64), 2, axis=1) for a in (KEYS, VALUES))
    delta = (DOUT * out).sum(2)
    ds = p * (np.einsum("qhd,thd->qht", DOUT, values) - delta[..., None])
    by_key = lambda a: a.reshape(1500, 2, 2, -1).sum(2)  # noqa: E731
    dkeys = by_key(8**-0.5 * np.einsum("qht,qhd->thd", ds, QUERIES))
    return (
        8**-0.5 * np.einsum("qht,thd->qhd", ds, keys),
        dkeys,
        by_key(np.einsum("qht,qhd->thd", p, DOUT)),
        out,
        lse,
    )


def request(out, lse, **fields):
    delta = (DOUT * out).sum(2).astype(np.float32)
    return AttendGradientsRequest("c", QUERIES, lse.astype(np.float32), DOUT, delta, **fields)


def seen(causal=False, window=None):
    at = np.arange(1500)
    some = at[None] <= POSITIONS[:, None] if causal or window else np.ones((5, 1500), bool)
    return some & (at[None] > POSITIONS[:, None] - window) if window else some


async def filled(house, nodes="ab", turns=False):
    boxes = {name: house.node(name) for name in nodes}
    await house.contexts.create(SPEC)
    step = 250 if turns else 1500 // len(nodes)
    for number, at in enumerate(range(0, 1500, step)):
        part = slice(at, at + step)
        await house.appender.append("c", nodes[number % len(nodes)], KEYS[part], VALUES[part])
    return boxes, AttendGradients(house.contexts, house.trips)


@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"causal": True, "window": 40}])
@pytest.mark.parametrize("turns", [False, True])
def test_gradients_over_nodes_are_those_of_the_whole_in_any_ranges(mask, turns):
    dq, dkeys, dvalues, out, lse = truth(seen(**mask))

    async def scenario(house):
        _, gradients = await filled(house, "abc", turns)
        asked = request(out, lse, positions=POSITIONS, tokens=True, **mask)
        whole = await gradients.find(asked)
        again = await gradients.find(asked)
        bounds = [0, 1, 513, 800, 1500]
        parts = [
            await gradients.find(replace(asked, first=start, until=stop))
            for start, stop in itertools.pairwise(bounds)
        ]
        return whole, again, parts, await gradients.find(replace(asked, tokens=False))

    with House() as house:
        whole, again, parts, alone = asyncio.run(scenario(house))
    near = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(whole.dqueries, dq, **near)
    np.testing.assert_allclose(whole.dkeys, dkeys, **near)
    np.testing.assert_allclose(whole.dvalues, dvalues, **near)
    assert np.array_equal(whole.dkeys, again.dkeys)
    assert np.array_equal(whole.dqueries, again.dqueries)
    np.testing.assert_allclose(sum(part.dqueries for part in parts), dq, **near)
    np.testing.assert_allclose(np.concatenate([part.dkeys for part in parts]), dkeys, **near)
    assert alone.dkeys is None
    assert np.array_equal(alone.dqueries, whole.dqueries)


def test_they_are_those_of_what_attend_answers():
    async def scenario(house):
        _, gradients = await filled(house)
        answer = await house.attender.attend(AttendRequest("c", QUERIES))
        return await gradients.find(request(answer.out.array, answer.lse, tokens=True))

    dq, dkeys, *_ = truth(seen())
    with House() as house:
        found = asyncio.run(scenario(house))
    np.testing.assert_allclose(found.dqueries, dq, atol=1e-5)
    np.testing.assert_allclose(found.dkeys, dkeys, atol=1e-5)


def test_a_gradient_is_whole_or_none():
    *_, out, lse = truth(seen())

    async def scenario(house):
        boxes, gradients = await filled(house)
        boxes["b"].lose()
        with pytest.raises(Unavailable, match=r"lack 1 of 2 segments .*node 'b'.* whole or none"):
            await gradients.find(request(out, lse))
        boxes["b"].connect()
        boxes["b"].mute = True
        with pytest.raises(DeadlineExceeded, match="lack 1 of 2 segments"):
            await gradients.find(request(out, lse, deadline_seconds=2.0))

    with House() as house:
        asyncio.run(scenario(house))


def test_what_cannot_be_is_refused_by_its_name():
    *_, out, lse = truth(seen())
    good = request(out, lse)
    wrong = {
        "lse": (InvalidTensor, replace(good, lse=lse[:2].astype(np.float32))),
        "dout has": (InvalidTensor, replace(good, dout=DOUT[..., :2])),
        "delta": (InvalidTensor, replace(good, delta=np.full((5, 4), np.nan, np.float32))),
        "first is 1500": (InvalidArgument, replace(good, first=1500)),
        "first is -1": (InvalidArgument, replace(good, first=-1)),
        "need the queries' positions": (InvalidArgument, replace(good, causal=True)),
    }

    async def scenario(house):
        _, gradients = await filled(house)
        for said, (kind, asked) in wrong.items():
            with pytest.raises(kind, match=said):
                await gradients.find(asked)
        many = np.ones((3000, 4, 8), np.float32)
        per = np.zeros((3000, 4), np.float32)
        asked = AttendGradientsRequest("c", many, per, np.ones((3000, 4, 6), np.float32), per)
        with pytest.raises(ResourceExhausted, match="bound gradient-scores"):
            await gradients.find(asked)
        with pytest.raises(MessageTooLarge, match="ask for fewer queries or tokens"):
            await gradients.find(
                replace(
                    asked,
                    queries=np.ones((40_000, 4, 8), np.float32),
                    lse=np.zeros((40_000, 4), np.float32),
                    delta=np.zeros((40_000, 4), np.float32),
                    dout=np.ones((40_000, 4, 6), np.float32),
                )
            )

    with House() as house:
        asyncio.run(scenario(house))


def test_a_query_that_saw_nothing_adds_nothing():
    async def scenario(house):
        _, gradients = await filled(house)
        nothing = np.full((5, 4), -np.inf, np.float32)
        zero = np.zeros((5, 4), np.float32)
        return await gradients.find(AttendGradientsRequest("c", QUERIES, nothing, DOUT, zero, tokens=True))

    with House() as house:
        found = asyncio.run(scenario(house))
    assert not found.dqueries.any()
    assert not found.dkeys.any()


def alike(count):
    per = np.zeros((count, 4), np.float32)
    return AttendGradientsRequest(
        "c", np.ones((count, 4, 8), np.float32), per, np.ones((count, 4, 6), np.float32), per
    )


def test_what_a_node_computes_counts_in_whole_tiles():
    async def scenario(house):
        _, gradients = await filled(house)
        with pytest.raises(
            ResourceExhausted, match=r"bound gradient-scores: 10,000 .* over tiles of 512 tokens"
        ):
            await gradients.find(replace(alike(10_000), until=2))

    with House() as house:
        asyncio.run(scenario(house))


def test_shares_that_wait_to_be_summed_are_bounded_and_counted(monkeypatch):
    *_, out, lse = truth(seen())

    async def scenario(house):
        _, gradients = await filled(house, "abc")
        monkeypatch.setattr("aggregator.attention.gradients.ATTEND_BYTES", 4 * QUERIES.nbytes)
        assert (await gradients.find(request(out, lse))).dqueries.any()
        monkeypatch.setattr("aggregator.attention.gradients.ATTEND_BYTES", 4 * QUERIES.nbytes - 1)
        with pytest.raises(ResourceExhausted, match="bound attend-bytes: gradients of 5 queries over 3 segm"):
            await gradients.find(request(out, lse))

    with House() as house:
        asyncio.run(scenario(house))


def test_large_ones_are_planned_in_turn(monkeypatch):
    *_, out, lse = truth(seen())
    monkeypatch.setattr("aggregator.attention.gradients._large", lambda context, request: True)

    async def scenario(house):
        turns = Turns()
        await filled(house)
        gradients = AttendGradients(house.contexts, house.trips, turns)
        async with turns.plans.turn("other", 0, 60):
            with pytest.raises(Overloaded):
                await gradients.find(request(out, lse, deadline_seconds=0.1), "me")
        return await gradients.find(request(out, lse), "me")

    with House() as house:
        found = asyncio.run(scenario(house))
    np.testing.assert_allclose(found.dqueries, truth(seen())[0], atol=1e-5)


def test_coverage_of_more_ranges_than_a_context_has_is_refused():
    async def scenario(house):
        _, gradients = await filled(house)
        answer = await house.attender.attend(AttendRequest("c", QUERIES))
        asked = request(answer.out.array, answer.lse, coverage=(range(1),) * 131_073)
        with pytest.raises(InvalidArgument, match="coverage has 131,073 ranges"):
            await gradients.find(asked)
        many = request(answer.out.array, answer.lse, coverage=tuple(range(at, at + 1) for at in range(1500)))
        again = request(answer.out.array, answer.lse, coverage=answer.coverage)
        assert np.array_equal((await gradients.find(many)).dqueries, (await gradients.find(again)).dqueries)

    with House() as house:
        asyncio.run(scenario(house))


@pytest.mark.parametrize(
    ("trimmed", "said"),
    [
        (range(100, 200), "tokens 100 to 200"),
        (range(400), "tokens 0 to 400"),
        (range(1400, 1500), "tokens 1,400 to 1,500"),
        (range(750), "tokens 0 to 750"),
        (range(1500), "has no tokens"),
    ],
)
def test_gradients_of_an_attend_whose_tokens_were_trimmed_since_are_refused(trimmed, said):
    async def scenario(house):
        _, gradients = await filled(house)
        answer = await house.attender.attend(AttendRequest("c", QUERIES))
        await Upkeep(house.contexts, house.membership, house.trips).trim("c", trimmed)
        asked = request(answer.out.array, answer.lse, coverage=answer.coverage)
        with pytest.raises((FailedPrecondition, EmptyContext), match=said):
            await gradients.find(asked)
        if len(trimmed) == 1500:
            return
        # Of one that came after, whose tokens lie in several stretches, they are all there.
        answer = await house.attender.attend(AttendRequest("c", QUERIES))
        found = await gradients.find(
            request(answer.out.array, answer.lse, coverage=answer.coverage, tokens=True)
        )
        here = np.isin(np.arange(1500), list(trimmed), invert=True)
        dq, dkeys, dvalues, _, _ = truth(np.broadcast_to(here, (5, 1500)))
        np.testing.assert_allclose(found.dqueries, dq, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.dkeys, dkeys[: len(found.dkeys)], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.dvalues, dvalues[: len(found.dvalues)], rtol=1e-5, atol=1e-5)

    with House() as house:
        asyncio.run(scenario(house))
