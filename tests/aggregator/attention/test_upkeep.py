"""Trimming, repairing and exporting contexts: what is left is exact, and copies are whole again."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from house import House, until

from aggregator.attention.contexts import SEGMENT_BYTES
from aggregator.attention.upkeep import Upkeep
from aggregator.bounds import turns
from aggregator.bounds.bounds import CONTEXT_BYTES
from edge_attention.core.errors import EmptyContext, FailedPrecondition, InvalidArgument, Unavailable
from edge_attention.core.messages.attention import AttendRequest, ContextSpec
from edge_attention.core.messages.fleet import NodeState

RANDOM = np.random.default_rng(1)
KEYS = RANDOM.standard_normal((1300, 2, 4)).astype(np.float32)
VALUES = RANDOM.standard_normal((1300, 2, 4)).astype(np.float32)
QUERIES = RANDOM.standard_normal((3, 4, 4)).astype(np.float32)


def run(scenario, folder=None):
    with House(folder) as house:
        house.upkeep = Upkeep(house.contexts, house.membership, house.trips)
        return asyncio.run(scenario(house))


async def filled(house, replicas=1, nodes="ab", parts=((0, 700, "a"), (700, 1300, "b"))):
    house.boxes = {name: house.node(name) for name in nodes}
    context = await house.contexts.create(ContextSpec("c", 4, 2, 4, 4, replicas))
    for start, stop, node in parts:
        await house.appender.append("c", node, KEYS[start:stop], VALUES[start:stop])
    return context


async def exact(house, kept):
    response = await house.attender.attend(AttendRequest("c", QUERIES))
    out, lse = reference.attend(reference.scores(QUERIES, KEYS[kept], 0.5), VALUES[kept])
    assert response.exact, response.missing
    np.testing.assert_allclose(response.out.array, out, atol=1e-5)
    np.testing.assert_allclose(response.lse, lse, atol=1e-5)


@pytest.mark.parametrize(
    "gone", [(0, 700), (0, 10), (1290, 1300), (600, 800), (300, 301), (5, 1295), (1299, 5000)]
)
def test_what_is_trimmed_is_gone_and_the_rest_is_exact(gone):
    async def scenario(house):
        context = await filled(house)
        trimmed = await house.upkeep.trim("c", range(*gone))
        kept = np.setdiff1d(np.arange(1300), np.arange(*gone))
        assert trimmed.trimmed == 1300 - len(kept)
        assert sum(s.positions.count for s in context.segments) == len(kept)
        await exact(house, kept)
        assert not context.appending
        # On the disk, too: and the nodes have forgotten what is no longer named.
        names = {context.keys(s.id) for s in context.segments} | {
            context.values(s.id) for s in context.segments
        }
        await until(lambda: {n for box in house.boxes.values() for n in box.node.store.sequences()} == names)
        rows = house.state.list_segments(context.id)
        assert {row.id for row in rows} == {s.id for s in context.segments}

    run(scenario)


def test_appends_go_on_behind_what_is_left():
    async def scenario(house):
        await filled(house, parts=((0, 700, "a"), (700, 1000, "b")))
        await house.upkeep.trim("c", range(100, 200))
        response = await house.appender.append("c", "", KEYS[1000:], VALUES[1000:])
        assert response.tokens == range(1000, 1300)
        await exact(house, np.setdiff1d(np.arange(1300), np.arange(100, 200)))

    run(scenario)


def test_all_of_it_can_be_trimmed():
    async def scenario(house):
        context = await filled(house)
        assert (await house.upkeep.trim("c", range(10_000))).trimmed == 1300
        assert context.tokens == 0
        with pytest.raises(EmptyContext):
            await house.attender.attend(AttendRequest("c", QUERIES))
        with pytest.raises(InvalidArgument, match="are no range to trim"):
            await house.upkeep.trim("c", range(5, 5))

    run(scenario)


def test_a_segment_whose_holder_is_away_is_trimmed_as_a_whole_or_not_at_all():
    async def scenario(house):
        context = await filled(house)
        house.boxes["b"].lose()
        with pytest.raises(Unavailable, match="held by b, of which none is there"):
            await house.upkeep.trim("c", range(650, 800))
        assert [s.positions.count for s in context.segments] == [700, 600]
        assert (await house.upkeep.trim("c", range(700, 1300))).trimmed == 600
        await exact(house, np.arange(700))

    run(scenario)


def test_copies_are_made_whole():
    async def scenario(house):
        context = await filled(house, 2, "abc", ((0, 1300, ""),))
        assert (await house.upkeep.repair("c", 60)).copied == 0
        house.boxes["a"].lose()
        held = sum(s.positions.count for s in context.segments if "a" in s.holders)
        assert held
        repaired = await house.upkeep.repair("c", 60)
        assert repaired.copied == held
        assert not repaired.missing
        assert all(set(s.holders) == {"b", "c"} for s in context.segments)
        house.boxes["b"].lose()
        await exact(house, np.arange(1300))
        # Now there is nobody to copy to; and what nobody has cannot be copied.
        assert {m.reason.partition(" that")[0] for m in (await house.upkeep.repair("c", 60)).missing} == {
            "no other node is ready"
        }
        house.boxes["c"].lose()
        assert "none of its holders is there" in (await house.upkeep.repair("c", 60)).missing[0].reason

    run(scenario)


def test_an_export_is_all_there_is():
    async def scenario(house):
        await filled(house, parts=((0, 100, "a"), (100, 200, "b"), (200, 700, "a"), (700, 1300, "b")))
        found = [piece async for piece in house.upkeep.export("c")]
        assert found[0].spec.name == "c"
        assert found[0].count == 1300
        assert all(piece.spec is None for piece in found[1:])
        positions = np.concatenate([piece.positions for piece in found])
        order = np.argsort(positions)
        np.testing.assert_array_equal(positions[order], np.arange(1300))
        np.testing.assert_array_equal(np.concatenate([p.keys for p in found])[order], KEYS)
        np.testing.assert_array_equal(np.concatenate([p.values for p in found])[order], VALUES)

    run(scenario)


def test_a_node_that_is_lost_is_forgotten_and_named_no_more():
    async def scenario(house):
        context = await filled(house, 2, "abc", ((0, 1300, ""),))
        with pytest.raises(FailedPrecondition, match="'a' is ready; stop it"):
            house.membership.forget("a")
        house.boxes["a"].lose()
        assert house.membership.state("a") is NodeState.LOST
        assert house.contexts.only_on("a") == ()
        house.membership.forget("a")
        await house.contexts.forget_node("a")
        assert house.membership.get("a") is None
        assert all("a" not in s.holders for s in context.segments)
        assert all("a" not in row.spec["holders"] for row in house.state.list_segments(context.id))

    run(scenario)


def test_a_holder_that_has_lost_its_tokens_gets_them_again():
    async def scenario(house):
        context = await filled(house, 2, "ab", ((0, 1300, ""),))
        house.boxes["b"].disconnect()
        house.boxes["b"].connect(fresh=True)
        repaired = await house.upkeep.repair("c", 60)
        assert (repaired.copied, repaired.missing) == (1300, ())
        assert all(sorted(s.holders) == ["a", "b"] for s in context.segments)
        house.boxes["a"].lose()
        await exact(house, np.arange(1300))

    run(scenario)


def test_of_too_few_copies_none_is_given_up():
    async def scenario(house):
        context = await filled(house, 3, "abc", ((0, 1300, ""),))
        for name in "bc":
            house.boxes[name].lose()
        house.boxes["d"] = house.node("d")
        repaired = await house.upkeep.repair("c", 60)
        assert repaired.copied == 1300
        assert "of 2 copies that lack only 1" in repaired.missing[0].reason
        assert all(sorted(s.holders) == list("abcd") for s in context.segments)
        house.boxes["b"].connect()
        for name in "ad":
            house.boxes[name].lose()
        await exact(house, np.arange(1300))

    run(scenario)


def test_a_node_stays_named_where_the_other_holders_have_lost_what_it_has():
    async def scenario(house):
        context = await filled(house, 2, "ab", ((0, 1300, ""),))
        house.boxes["b"].disconnect()
        house.boxes["b"].connect(fresh=True)
        house.boxes["a"].lose()
        assert house.contexts.only_on("a") == ("1,300 tokens of context 'c'",)
        house.membership.forget("a")
        await house.contexts.forget_node("a")
        assert all("a" in s.holders for s in context.segments)
        house.boxes["a"].connect()
        await exact(house, np.arange(1300))

    run(scenario)


def test_who_has_no_room_left_for_what_is_known_of_segments_can_still_trim():
    async def scenario(house):
        context = await filled(house)
        budget = house.contexts._budgets[CONTEXT_BYTES]
        budget.keep(None, budget.bound.total - budget.used)
        await house.upkeep.trim("c", range(600, 800))
        await exact(house, np.setdiff1d(np.arange(1300), np.arange(600, 800)))
        assert context.leases[1].amount == SEGMENT_BYTES + sum(s.nbytes for s in context.segments)

    run(scenario)


class TrimmedMeanwhile(turns.Turns):
    """Attends are planned, then `gone` is trimmed, and then it is their turn.

    `told`: the nodes that have forgotten it by then; the others will later.
    """

    def __init__(self, house, gone, told):
        super().__init__()
        self.house, self.gone, self.told, self.later = house, gone, told, []

    def attend(self, work, segments=1):
        return self

    @contextlib.asynccontextmanager
    async def turn(self, caller, size, deadline):
        post, self.house.trips.post = self.house.trips.post, self.post
        self.posted = post
        await self.house.upkeep.trim("c", self.gone)
        self.house.trips.post = post
        held = {s.id for s in self.house.contexts.get("c").segments}
        for name in self.told:
            sequences = self.house.boxes[name].node.store.sequences
            await until(lambda names=sequences: {n.split("/")[2] for n in names()} <= held)
        yield SimpleNamespace(waited=0.0, congested=False)
        for one in self.later:
            post(*one)

    def post(self, node, instructions):
        if node in self.told:
            self.posted(node, instructions)
        else:
            self.later.append((node, instructions))


@pytest.mark.parametrize("gone", [(0, 700), (0, 10), (600, 800), (700, 1300), (5, 1295)])
@pytest.mark.parametrize("told", ["", "a", "b", "ab"])
def test_an_attend_that_was_planned_before_a_trim_is_of_all_there_was_or_of_all_that_is_left(gone, told):
    async def scenario(house):
        await filled(house)
        house.attender._turns = TrimmedMeanwhile(house, range(*gone), told)
        whole = np.arange(1300)
        left = np.setdiff1d(whole, np.arange(*gone))
        lost = {"a": gone[0] < 700, "b": gone[1] > 700}
        await exact(house, left if any(lost[name] for name in told) else whole)

    run(scenario)


def test_weights_of_what_was_trimmed_before_they_were_asked_for_are_not_known():
    async def scenario(house):
        await filled(house)
        make, trips = house.trips.make, []

        async def trimmed(*args, **options):
            if trips:
                await house.upkeep.trim("c", range(700, 1300))
                await until(lambda: not house.boxes["b"].node.store.sequences())
            trips.append(await make(*args, **options))
            return trips[-1]

        house.trips.make = trimmed
        response = await house.attender.attend(AttendRequest("c", QUERIES, weights=True))
        scores = reference.scores(QUERIES, KEYS, 0.5)
        _, lse = reference.attend(scores, VALUES)
        weights = np.asarray(response.weights)
        assert np.isnan(weights[:, :, 700:]).all()
        np.testing.assert_allclose(
            weights[:, :, :700], np.exp(scores - lse[..., None])[:, :, :700], atol=1e-6
        )

    run(scenario)
