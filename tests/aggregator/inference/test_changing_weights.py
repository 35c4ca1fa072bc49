"""Weights that change from version to version: bound as they are stored, by who holds that version."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest
from house import House, until
from small_cut import SmallCut

from aggregator.inference import delivery
from aggregator.inference.calls import CallTerms
from aggregator.inference.runner import ChangingWeights
from edge_attention.core.errors import DeadlineExceeded
from edge_attention.core.schedule.extents import take

CHANGING = frozenset({"a0", "b1", "b2"})


class Trained:
    """A small cut model some of whose weights change, over nodes of this process."""

    def __init__(self, house, folder, names="ab", **options):
        self.house, self.cut, self.version = house, SmallCut(folder, **options), 0
        self.boxes = {name: house.node(name) for name in names}

    @property
    def changing(self):
        weights = {name: array.copy() for name, array in self.cut.weights.items()}
        return ChangingWeights(self.version, lambda weight: take(weights[weight.name], weight.extent))

    async def prepare(self, holders, shape="s", **options):
        terms = CallTerms(changing=CHANGING)
        await self.house.runner.prepare(
            "m", shape, self.cut.schedule, self.cut, holders, seconds=30.0, terms=terms,
            version=self.changing, **options,
        )  # fmt: skip

    async def next(self, seconds=30.0, shape="s"):
        """The next version: all that changes is another."""
        self.version += 1
        rng = np.random.default_rng(self.version)
        for name in CHANGING:
            array = self.cut.weights[name]
            array += rng.standard_normal(array.shape).astype(np.float32) / 10
        await self.house.runner.renew("m", shape, self.changing, seconds)

    async def exact(self, seed=0, shape="s"):
        answer = await self.house.runner.infer("m", shape, self.cut.feeds(seed), 30.0)
        np.testing.assert_allclose(answer.results["out"], self.cut.whole(self.cut.feeds(seed)), atol=2e-5)
        return answer


class Gate:
    """What changes is held on its way to nodes until it is let through."""

    def __init__(self, house):
        self.held, self._runner = [], house.runner
        self._renew = house.runner._deliveries.renew
        house.runner._deliveries.renew = self._gated

    async def _gated(self, node, pieces, seconds):
        self.held.append((turn := asyncio.Event(), over := asyncio.Event()))
        await turn.wait()
        try:
            await self._renew(node, pieces, seconds)
        finally:
            over.set()

    def giving(self):
        return sum(len(s.holders._giving) for s in self._runner._deployed["m"].shapes.values())

    async def full(self):
        """All that is being given is held."""
        await until(lambda: self.giving() and len(self.held) == self.giving())

    async def open(self, which=0):
        """One after the other, each over before the next: the first of those held, or the last (-1)."""
        while self.giving():
            await self.full()
            turn, over = self.held.pop(which)
            turn.set()
            await over.wait()
            left = len(self.held)
            await until(lambda left=left: self.giving() == left or len(self.held) > left)
        self._runner._deliveries.renew = self._renew


@asynccontextmanager
async def trained(tmp_path, names="ab", **options):
    with House() as house:
        yield Trained(house, tmp_path / "cut", names, **options)
        await house.runner.close()
        assert not house.bulk._lent


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_each_version_is_what_is_computed_with_and_no_program_is_new(tmp_path, monkeypatch, small):
    monkeypatch.setattr(delivery, "SMALL", small)  # all are fetched, or all come with the message

    async def scenario():
        async with trained(tmp_path) as model:
            await model.prepare({0: ["a"], 1: ["b"]})
            await model.exact()
            box = model.boxes["a"]
            known, sent = {call.program for call in box.calls}, len(box.programs)
            for version in range(4):
                await model.next()
                await model.exact(version)
            again = [call.program for call in box.calls if call.shard.startswith("part")]
            assert set(again) <= known, "a version is no other program"
            assert len(again) == 5 * 4
            changing = [name for name in box.node.store._held if name.startswith("job/m/p/")]
            assert len(changing) == 3
            kept = [name for name in box.node.store._held if "/kept/w/" in name]
            assert len(kept) == 3, "what does not change is not sent again"
            assert len(box.programs) - sent == 4 * 4 + 4 * 1, "segments, and one message a version"

    asyncio.run(scenario())


def test_who_takes_over_between_two_versions_has_the_new_one(tmp_path):
    async def scenario():
        async with trained(tmp_path, "abc") as model:
            await model.prepare({0: ["a"], 1: ["b"]})
            await model.exact()
            model.boxes["b"].lose()
            await model.next()
            answer = await model.exact()
            assert "b" not in {one.node for one in answer.segments}
            await model.next()
            await model.exact()

    asyncio.run(scenario())


def test_a_node_that_is_back_with_an_old_version_is_given_the_new_one_before_it_is_asked(tmp_path):
    async def scenario():
        async with trained(tmp_path) as model:
            await model.prepare({0: ["a"], 1: ["b"]})
            model.boxes["b"].disconnect()
            waiting = asyncio.create_task(model.next())
            await asyncio.sleep(0.05)
            assert not waiting.done(), "nobody holds part 1 in that version"
            model.boxes["b"].connect()
            await waiting
            await model.exact()
            model.boxes["b"].disconnect()
            model.boxes["b"].connect(fresh=True)
            await model.exact()

    asyncio.run(scenario())


def test_a_part_goes_to_nobody_who_may_not_hold_it_and_the_wait_says_for_whom(tmp_path):
    async def scenario():
        async with trained(tmp_path, "abc") as model:
            await model.prepare({0: ["a"], 1: ["b"]}, may=lambda part, node: node == "b")
            model.boxes["b"].lose()
            with pytest.raises(DeadlineExceeded, match=r"part 1 after 0\.3 s: node 'b' is lost"):
                await model.next(0.3)
            assert "job/m/" not in " ".join(model.boxes["c"].node.store._held)

    asyncio.run(scenario())


@pytest.mark.parametrize("order", [0, -1])
@pytest.mark.parametrize(("before", "after"), [("evaluate", "s"), ("s", "evaluate")])
def test_a_new_life_is_given_the_weights_of_the_shape_that_was_renewed_last(tmp_path, before, after, order):
    async def scenario():
        async with trained(tmp_path) as model:
            for shape in (after, before):
                await model.prepare({0: ["a"], 1: ["b"]}, shape)
            for _ in range(5):
                await model.next(shape=before)
            await model.exact(shape=before)
            for _ in range(4):
                await model.next(shape=after)
            await model.exact(shape=after)
            gate = Gate(model.house)
            model.boxes["b"].disconnect()
            model.boxes["b"].connect(fresh=True)
            await gate.full()
            await gate.open(order)
            await model.exact(shape=after)
            await model.next(shape=before)
            await model.exact(1, shape=before)

    asyncio.run(scenario())


def test_a_shape_is_renewed_once_the_other_shapes_weights_are_on_no_way_any_more(tmp_path):
    async def scenario():
        async with trained(tmp_path) as model:
            for shape in ("s", "evaluate"):
                await model.prepare({0: ["a"], 1: ["b"]}, shape)
            gate = Gate(model.house)
            model.boxes["b"].disconnect()
            model.boxes["b"].connect(fresh=True)
            await gate.full()
            waiting = asyncio.create_task(model.next())
            await until(lambda: model.house.runner._deployed["m"].shapes["evaluate"].holders._resting)
            assert gate.giving() == 1, "nothing is given for the other shape meanwhile"
            await gate.open()
            await waiting
            await model.exact()

            gate = Gate(model.house)
            model.boxes["b"].disconnect()
            model.boxes["b"].connect(fresh=True)
            await gate.full()
            with pytest.raises(DeadlineExceeded, match="still being given weights for inputs of shape 's'"):
                await model.next(0.05, "evaluate")
            await gate.open()
            await model.next(shape="evaluate")
            await model.exact(shape="evaluate")

    asyncio.run(scenario())


def test_a_shape_that_is_prepared_after_a_node_has_gone_has_its_part_elsewhere(tmp_path):
    async def scenario():
        async with trained(tmp_path, "abc") as model:
            await model.prepare({0: ["a"], 1: ["b"]})
            model.boxes["b"].lose()
            await model.prepare({0: ["a"], 1: ["b"]}, "evaluate", seek=True)
            answer = await model.exact(shape="evaluate")
            assert "b" not in {one.node for one in answer.segments}

    asyncio.run(scenario())
