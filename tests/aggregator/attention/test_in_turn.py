"""Appends that go to nodes in turn: a segment a node, not one an append, and exact whatever a query sees."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import reference
from house import House

from aggregator.attention import growing
from aggregator.bounds.bounds import CONTEXT_BYTES
from edge_attention.core.errors import ResourceExhausted
from edge_attention.core.messages.attention import AttendRequest, ContextSpec
from edge_attention.core.positions import joined

SPEC = ContextSpec("c", query_heads=4, key_heads=2, key_dim=8, value_dim=6)
RANDOM = np.random.default_rng(0)
TURNS = [(("a", "b", "c")[RANDOM.integers(3)], int(RANDOM.integers(1, 4))) for _ in range(90)]
TOKENS = sum(count for _, count in TURNS)
KEYS = RANDOM.standard_normal((TOKENS, 2, 8)).astype(np.float32)
VALUES = RANDOM.standard_normal((TOKENS, 2, 6)).astype(np.float32)
QUERIES = RANDOM.standard_normal((5, 4, 8)).astype(np.float32)
SCORES = reference.scores(QUERIES, KEYS, 8**-0.5)
OWNED = {
    name: [
        position
        for turn, (who, count) in enumerate(TURNS)
        if who == name
        for position in range(sum(n for _, n in TURNS[:turn]), sum(n for _, n in TURNS[:turn]) + count)
    ]
    for name in "abc"
}


async def filled(house):
    """Nodes by name, and the tokens appended to them in turn."""
    boxes = {name: house.node(name) for name in "abc"}
    await house.contexts.create(SPEC)
    at = 0
    for name, count in TURNS:
        appended = await house.appender.append("c", name, KEYS[at : at + count], VALUES[at : at + count])
        assert appended.tokens == range(at, at + count)
        at += count
    return boxes


def run(scenario, folder=None):
    with House(folder) as house:
        return asyncio.run(scenario(house))


def test_each_node_has_one_segment_of_just_its_positions():
    async def scenario(house):
        await filled(house)
        described = house.contexts.describe(house.contexts.get("c"), whole=True)
        assert described.tokens == TOKENS
        of = {segment.holders[0]: segment for segment in described.segments}
        assert len(described.segments) == len(of) == 3
        for name, segment in of.items():
            assert [p for stretch in segment.stretches for p in stretch] == OWNED[name]
            assert segment.count == len(OWNED[name])
            assert segment.tokens == range(OWNED[name][0], OWNED[name][-1] + 1)

    run(scenario)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"causal": True},
        {"causal": True, "positions": np.array([0, 3, 50, 51, TOKENS - 1])},
        {"window": 7, "positions": np.array([2, 30, 31, 77, TOKENS - 2])},
        {"window": 1, "positions": np.array([0, 1, 2, 3, 4])},
        {"until": 100, "causal": True},
        {"until": 1},
    ],
    ids=lambda asked: "-".join(asked) or "all",
)
@pytest.mark.parametrize("deadline", [None, 30.0])
def test_what_queries_see_of_it_is_exact(asked, deadline):
    until = asked.get("until", TOKENS)
    at = asked.get("positions", np.maximum(np.arange(until - 5, until), 0))
    p = np.arange(TOKENS)[None]
    visible = np.broadcast_to(p < until, (5, TOKENS)).copy()
    if asked.get("causal") or asked.get("window"):
        visible &= p <= at[:, None]
    if window := asked.get("window"):
        visible &= p > at[:, None] - window
    out, lse = reference.attend(SCORES, VALUES, visible)
    weights = np.where(visible[:, None], np.exp(SCORES - lse[..., None]), 0.0)

    async def scenario(house):
        await filled(house)
        request = AttendRequest("c", QUERIES, weights=True, deadline_seconds=deadline, **asked)
        return [await house.attender.attend(request) for _ in range(2)]

    first, second = run(scenario)
    assert first.exact
    np.testing.assert_allclose(first.out.array, out, atol=1e-5)
    np.testing.assert_allclose(first.lse, lse, atol=1e-5)
    np.testing.assert_allclose(first.weights, weights, atol=1e-5)
    for mass in first.mass:
        of = weights[..., OWNED[mass.node]].sum(-1)
        np.testing.assert_allclose(mass.mass, of, atol=1e-5)
        assert mass.count == len(OWNED[mass.node])
    assert (first.out.array == second.out.array).all(), "same plan, same bits"


def test_a_node_that_is_lost_is_missing_by_its_positions():
    async def scenario(house):
        boxes = await filled(house)
        boxes["b"].lose()
        return await house.attender.attend(AttendRequest("c", QUERIES, weights=True))

    response = run(scenario)
    (missing,) = response.missing
    there = sorted(OWNED["a"] + OWNED["c"])
    assert not response.exact
    assert [p for stretch in missing.stretches for p in stretch] == OWNED["b"]
    assert missing.count == len(OWNED["b"])
    assert [p for stretch in response.coverage for p in stretch] == there
    visible = np.isin(np.arange(TOKENS), there)[None].repeat(5, 0)
    out, _ = reference.attend(SCORES, VALUES, visible)
    np.testing.assert_allclose(response.out.array, out, atol=1e-5)
    whole, _ = reference.attend(SCORES, VALUES)
    assert (np.abs(response.out.array - whole) <= response.bound.error).all()
    assert np.isnan(response.weights[..., OWNED["b"]]).all()
    np.testing.assert_allclose(response.weights[..., there].sum(-1), 1, atol=1e-5)


def test_they_are_there_after_a_restart_and_grow_on(tmp_path):
    async def first(house):
        await filled(house)
        return house.contexts._budgets[CONTEXT_BYTES].used

    async def second(house):
        context = house.contexts.get("c")
        assert {s.holders[0]: s.positions.count for s in context.segments} == {
            name: len(OWNED[name]) for name in "abc"
        }
        assert joined([s.positions for s in context.segments]) == (range(TOKENS),)
        return house.contexts._budgets[CONTEXT_BYTES].used

    assert run(first, tmp_path) == run(second, tmp_path) > 3 * 24 * 20, "what is known of positions counts"


def test_a_segment_has_so_many_stretches_and_the_next_ones_make_another(monkeypatch):
    monkeypatch.setattr(growing, "STRETCHES", 10)

    async def scenario(house):
        await filled(house)
        context = house.contexts.get("c")
        assert all(segment.positions.number <= 10 for segment in context.segments)
        assert 3 < len(context.segments) <= 3 + len(TURNS) // 10
        response = await house.attender.attend(AttendRequest("c", QUERIES))
        np.testing.assert_allclose(response.out.array, reference.attend(SCORES, VALUES)[0], atol=1e-5)

    run(scenario)


def test_a_segment_that_is_not_the_last_grows_no_longer_than_small_appends_make_one(monkeypatch):
    monkeypatch.setattr(growing, "SEGMENT_LIMIT", 20)

    async def scenario(house):
        await filled(house)
        for segment in house.contexts.get("c").segments:
            assert sum(map(len, segment.positions.stretches[:-1])) < 20, "the last one grows in place"

    run(scenario)


@pytest.mark.parametrize("bound", ["CONTEXT_SEGMENTS", "CONTEXT_STRETCHES"])
def test_what_one_context_may_have_is_bounded_by_name(monkeypatch, bound):
    monkeypatch.setattr(growing, bound, 2)

    async def scenario(house):
        for name in "abc":
            house.node(name)
        await house.contexts.create(SPEC)
        await house.contexts.create(replace(SPEC, name="other"))
        one = KEYS[:1], VALUES[:1]
        for name in "ab":
            await house.appender.append("c", name, *one)
        with pytest.raises(ResourceExhausted, match=f"bound {bound.lower().replace('_', '-')}.*'c'.*in turn"):
            await house.appender.append("c", "c", *one)
        context = house.contexts.get("c")
        assert (context.tokens, context.appending) == (2, set())
        await house.appender.append("c", "b", *one)  # grows the last: neither one more nor another stretch
        await house.appender.append("other", "c", *one)

    run(scenario)


def test_with_replicas_each_set_of_holders_has_its_segment():
    async def scenario(house):
        boxes = {name: house.node(name) for name in "abc"}
        await house.contexts.create(replace(SPEC, replicas=2))
        for at in range(0, 60, 2):
            away = boxes["abc"[at % 3]]
            away.lose()  # whoever is away at the time, the other two take them
            await house.appender.append("c", "", KEYS[at : at + 2], VALUES[at : at + 2])
            away.connect()
        context = house.contexts.get("c")
        assert len(context.segments) == len({frozenset(s.holders) for s in context.segments}) == 3
        response = await house.attender.attend(AttendRequest("c", QUERIES))
        out, _ = reference.attend(SCORES[..., :60], VALUES[:60])
        assert response.exact
        np.testing.assert_allclose(response.out.array, out, atol=1e-5)

    run(scenario)
