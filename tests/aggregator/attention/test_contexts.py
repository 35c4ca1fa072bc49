"""Contexts: durable, and what is known of who holds what."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
from house import House

from aggregator.attention.contexts import StoredSegment
from edge_attention.core.bounds import Summary
from edge_attention.core.errors import AlreadyExists, InvalidArgument, NotFound
from edge_attention.core.messages.attention import ContextSpec
from edge_attention.core.messages.link import PROTOCOL, Register, Sequence
from edge_attention.core.positions import Positions

SPEC = ContextSpec("c", 4, 2, 8, 8)


def segment(id="s1", tokens=range(0, 10), holders=("a",)):
    summary = Summary(np.ones(2, np.float32), np.zeros((2, 8), np.float32), np.ones((2, 8), np.float32))
    return StoredSegment(id, Positions.of(tokens), holders, summary)


def register(house, name, sequences):
    told = tuple(Sequence(sequence, tokens) for sequence, tokens in sequences.items())
    given = Register(PROTOCOL, "0", name, "1", "", "CPU", 1, 100, (), told)
    return house.membership.register(given, 0.0).member


def test_a_context_survives_the_process(tmp_path):
    with House(tmp_path) as house:
        context = asyncio.run(house.contexts.create(SPEC))
        asyncio.run(house.contexts.commit(context, [segment("s2", range(10, 30)), segment()]))
        asyncio.run(house.contexts.commit(context, [segment("s2", range(10, 40))]))
    with House(tmp_path) as house:
        again = house.contexts.get("c")
        assert (again.id, again.spec, again.tokens) == (context.id, SPEC, 40)
        assert [(s.id, s.positions.hull, s.holders) for s in again.segments] == [
            ("s1", range(0, 10), ("a",)),
            ("s2", range(10, 40), ("a",)),
        ]
        np.testing.assert_array_equal(again.segments[0].summary.value_max, np.ones((2, 8)))
        assert again.segments[0].summary.key_norm.dtype == np.float32
        asyncio.run(house.contexts.drop(house.contexts.get("c")))
    with House(tmp_path) as house:
        assert house.contexts.list() == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a b"}, {"name": ""}, {"query_heads": 0}, {"key_heads": 3}, {"key_heads": 8},
        {"key_dim": 0}, {"value_dim": 5000}, {"replicas": 65}, {"query_heads": -2},
    ],
)  # fmt: skip
def test_there_can_be_no_such_context(wrong):
    with House() as house, pytest.raises(InvalidArgument, match=r"context"):
        asyncio.run(house.contexts.create(replace(SPEC, **wrong)))


def test_a_name_is_taken_or_unknown():
    with House() as house:
        asyncio.run(house.contexts.create(SPEC))
        with pytest.raises(AlreadyExists, match="drop it"):
            asyncio.run(house.contexts.create(SPEC))
        with pytest.raises(NotFound, match="contexts here: c"):
            house.contexts.get("d")


def test_holders_serve_what_they_have_told_of():
    with House() as house:
        context = asyncio.run(house.contexts.create(SPEC))
        one = segment(holders=("a", "b", "c"))
        asyncio.run(house.contexts.commit(context, [one]))
        keys, values = context.keys("s1"), context.values("s1")

        # b came back empty; c has fewer tokens; a has not been seen since the aggregator started.
        register(house, "b", {})
        register(house, "c", {keys: 10, values: 9})
        assert house.contexts.serving(context, one) == ("a",)
        register(house, "d", {keys: 10, values: 10})
        assert house.contexts.serving(context, one) == ("a",), "only who was given it"
        assert house.contexts.describe(context).segments[0].live == ()
        house.membership.get("c").sequences = {keys: 12, values: 12}
        assert house.contexts.serving(context, one) == ("a", "c")
        assert house.contexts.describe(context).segments[0].live == ("c",)


def test_a_node_is_told_to_forget_what_no_context_has():
    with House() as house:
        context = asyncio.run(house.contexts.create(SPEC))
        asyncio.run(house.contexts.commit(context, [segment()]))
        known, dropped = context.keys("s1"), f"context/{house.state.id}-gone/s1/keys"
        elsewhere = {known: 10, dropped: 5, "job/r/keys": 1}
        member = register(house, "a", elsewhere)
        assert house.contexts.unknown(member) == (dropped,)
        other = register(house, "b", elsewhere)
        assert set(house.contexts.unknown(other)) == {known, dropped}
        context.appending.add("gone")
        other.sequences = {context.keys("gone"): 5, known: 10}
        assert house.contexts.unknown(other) == (known,), "an append under way may still be committed"


def test_another_states_contexts_are_left_alone(caplog):
    with House() as house:
        member = register(house, "a", {"context/0badc0de-1/s/keys": 10, "context/old/s/values": 10})
        assert house.contexts.unknown(member) == ()
        assert "node a keeps 2 sequences" in caplog.text


def test_a_state_keeps_its_identity(tmp_path):
    with House(tmp_path) as house:
        first = house.state.id
    with House(tmp_path) as house, House() as other:
        assert house.state.id == first != other.state.id


def test_a_commit_that_fails_changes_nothing(monkeypatch):
    with House() as house:
        context = asyncio.run(house.contexts.create(SPEC))
        asyncio.run(house.contexts.commit(context, [segment()]))
        put, calls = house.state.put_segment, []

        def failing(*given):
            calls.append(given)
            if len(calls) == 2:
                raise NotFound("the disk is gone")
            put(*given)

        monkeypatch.setattr(house.state, "put_segment", failing)
        with pytest.raises(NotFound):
            asyncio.run(
                house.contexts.commit(context, [segment("s2", range(10, 20)), segment("s3", range(20, 30))])
            )
        assert context.tokens == 10
        assert [s.id for s in house.state.list_segments(context.id)] == ["s1"]


def test_a_segment_is_stored_short_and_one_of_a_release_before_is_read():
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in ((2,), (2, 3), (2, 3))]
    one = StoredSegment("s", Positions.of(range(10)), ("a",), Summary(*arrays))
    spec = json.loads(json.dumps(one.to_json()))
    lists = {name: array.tolist() for name, array in vars(one.summary).items()}
    before = {"tokens": [0, 10], "holders": ["a"], **lists}
    for stored in (spec, before):
        read = StoredSegment.from_json("s", stored)
        assert (read.positions.stretches, read.holders) == ((range(10),), ("a",))
        for array, name in zip(arrays, ("key_norm", "value_min", "value_max"), strict=True):
            np.testing.assert_array_equal(getattr(read.summary, name), array)
    assert len(json.dumps(spec)) < 400
