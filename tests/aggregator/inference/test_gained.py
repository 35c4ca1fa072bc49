"""What a plan made anew gains over the one that serves, and who is given a part that nobody has any more."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from house import House

from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.gained import MOST, gained
from aggregator.inference.holding import PartTaker
from aggregator.inference.plan_nodes import PlanNodes
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.saved_plan import dumps_plan
from tests.core.placement.models_made import encoder

MODEL = encoder(tokens=512)
LAYERS = range(len(MODEL.layers))
NODES = [NodeTold(name, 1 << 32, 0, 1, measured=True) for name in "abc"]
WHOLE = CutPlan((Stage(LAYERS, (0,)),))
IN_ROW = CutPlan((Stage(range(6), (0,)), Stage(range(6, LAYERS.stop), (1,))))


def by_tokens(*shares):
    return CutPlan((Stage(LAYERS, tuple(range(len(shares))), Cut.TOKENS, Crossing.GATHER, shares),))


def gain(plan, holders, before, held, nodes=NODES):
    request = CutRequest("model", "into", nodes=tuple(nodes), before=dumps_plan(before), holders=held)
    return gained(MODEL, plan, holders, request)


def each(names):
    return {part: (name,) for part, name in enumerate(names)}


def test_a_plan_gains_nothing_over_itself():
    for plan, names in ((WHOLE, "a"), (IN_ROW, "ab"), (by_tokens(2.0, 1.0, 1.0), "abc")):
        assert gain(plan, each(names), plan, each(names)) == pytest.approx(1.0)


def test_even_shares_gain_over_a_part_that_went_whole_to_one_node():
    # c is gone, and a does its third as well: two thirds, where a half each would do.
    shared = gain(by_tokens(1.0, 1.0), each("ab"), by_tokens(1.0, 1.0, 1.0), each("aba"))
    assert 1.2 < shared < 4 / 3 + 0.01
    assert gain(by_tokens(1.0, 1.0, 1.0), each("abc"), by_tokens(1.0, 1.0), each("ab")) > 1.2


def test_what_nobody_can_do_is_gained_over_without_bound():
    held = each("ab") | {2: ()}
    assert gain(by_tokens(1.0, 1.0), each("ab"), by_tokens(1.0, 1.0, 1.0), held) == MOST
    assert gain(WHOLE, each("a"), WHOLE, {0: ("z",)}) == MOST


def test_of_replicas_the_quickest_counts():
    slow = [replace(NODES[0], slowness=4.0), NODES[1]]
    assert gain(WHOLE, {0: ("a", "b")}, WHOLE, {0: ("a",)}, slow) == pytest.approx(4.0, rel=0.05)


def test_a_part_goes_to_who_has_room_and_is_predicted_to_do_it_soonest(tmp_path):
    async def run(house):
        for name in "abc":
            house.node(name)
        limit = house.membership.get("a").register.memory_limit
        taken = Counter({"c": 0})
        engine = SimpleNamespace(membership=house.membership, trips=house.trips, bulk=house.bulk)
        nodes = PlanNodes(engine, lambda: taken)
        asked = [PartTaker("a", 1000, 1), PartTaker("b", 1000, 0), PartTaker("c", 1000, 0)]
        assert nodes.quickest(asked) in "bc"
        for name, slowness in (("a", 1.0), ("b", 3.0), ("c", 1.5)):
            nodes.measures._measures.computed(name, [(1.0, slowness)], 0.0)
        # a has another part to do first.
        assert nodes.quickest(asked) == "c"
        assert nodes.quickest([PartTaker("a", 1000, 0), *asked[1:]]) == "a"
        taken["c"] = limit
        assert nodes.quickest(asked) == "a"
        # Where none seems to have room, who has most of it.
        taken.update({"a": limit - 5, "b": limit - 10})
        assert nodes.quickest(asked) == "b"

    with House(tmp_path) as house:
        asyncio.run(run(house))
