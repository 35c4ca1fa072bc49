"""Whatever is given up, at any of its waits: nothing stays of it, and who comes next has its own numbers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from decoder_runs import WholeDecoder
from house import House, until
from interrupted import at_each_wait
from small_cut import SmallCut

from aggregator.bounds.bounds import GENERATIONS
from aggregator.bounds.budget import Budgets
from aggregator.inference import running_request
from aggregator.inference.batching.batch_queue import BatchQueue
from aggregator.inference.batching.batcher import Batcher
from aggregator.inference.boundary_room import BoundaryRoom
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.metrics import GenerationMetrics
from aggregator.inference.generation.request import GenerationRequest
from aggregator.inference.generation.texts import DeploymentTexts
from aggregator.inference.lanes import RequestLanes
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.runner import ModelRunner
from aggregator.observe.metrics import Metrics
from edge_attention.core.generation.sampling import Sampling
from edge_attention.core.messages.attention import AttendRequest, ContextSpec
from edge_attention.demo.local_decoder import LocalDecoder
from tests.aggregator.inference.decoding.test_decoder_serving import scenario as decoding
from tests.aggregator.inference.generation.local_sessions import LocalSessions, random_decoder

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize("beside", [False, True])
def test_a_request_through_a_cut_model(tmp_path, monkeypatch, beside):
    if beside:  # the loop: what is made and folded
        monkeypatch.setattr(running_request, "BESIDE", 0)

    async def test():
        with House() as house:
            for name in "ab":
                house.node(name)
            cut = SmallCut(tmp_path / "cut")
            runner = ModelRunner(
                SimpleNamespace(trips=house.trips, bulk=house.bulk, membership=house.membership)
            )
            await runner.prepare("m", "s", cut.schedule, cut, {0: ["a"], 1: ["b"]}, seconds=30)
            wanted = [cut.whole(cut.feeds(seed)) for seed in range(2)]
            lent, waits = dict(house.bulk._lent), 0
            async for wait, answer in at_each_wait(lambda: runner.infer("m", "s", cut.feeds(0), 30.0)):
                waits = wait
                if answer is not None:
                    np.testing.assert_allclose(answer.results["out"], wanted[0], atol=2e-5)
                assert not runner._running
                assert (runner._room.used, runner._record.used) == (0, 0)
                lanes = runner._deployed["m"].lanes
                assert len(lanes._free) == len(set(lanes._free)) == 32
                other = await runner.infer("m", "s", cut.feeds(1), 30.0)
                np.testing.assert_allclose(other.results["out"], wanted[1], atol=2e-5)
                await until(lambda: not house.dispatcher._running)
                assert house.bulk._lent == lent
            assert waits > 0
            await runner.close()

    asyncio.run(test())


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("word", ["heads", "layers"])
def test_tokens_of_a_session(tmp_path, word, greedy):
    @decoding(tmp_path, word=word)
    async def _(fleet):
        session, whole, waits = fleet.serving.open("me", greedy=greedy), WholeDecoder(fleet.path), 0
        await fleet.extend(session, [3, 1])
        for token in (3, 1):
            whole.step(token)
        async for wait, logits in at_each_wait(lambda: fleet.extend(session, [4, 5])):
            waits = wait
            assert not fleet.serving._answers
            if logits is not None:
                fleet.serving.truncate(session.number, 2)
            assert session.tokens == [3, 1]
            await until(lambda: not fleet.serving.machine._flights)
            again = WholeDecoder(fleet.path)
            wanted = [again.step(token) for token in (3, 1, 7)][-1]
            found = await fleet.extend(session, [7])
            assert np.abs(found[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
            fleet.serving.truncate(session.number, 2)
            fleet.serving.machine.check()
        assert waits > 0


def test_an_append_is_made_wholly_or_not_at_all():
    async def test():
        with House() as house:
            for name in "abc":
                house.node(name)
            context = await house.contexts.create(ContextSpec("c", 2, 1, 4, 4, 2))
            keys, values = (np.zeros((0, 1, 4), np.float32) for _ in range(2))
            queries, number = RANDOM.standard_normal((2, 2, 4)).astype(np.float32), 0

            def append():
                return house.appender.append("c", "", *more, request_id=f"r{number}")

            more = RANDOM.standard_normal((2, 5, 1, 4)).astype(np.float32)
            waits = 0
            async for wait, _ in at_each_wait(append):
                waits = wait
                made = context.tokens - len(keys)
                assert made in (0, 5)
                assert (await append()).tokens == range(len(keys), len(keys) + 5)  # once, asked again or not
                keys, values = np.concatenate([keys, more[0]]), np.concatenate([values, more[1]])
                assert context.tokens == len(keys)
                assert not context.lock.locked()
                assert not context.appending
                answer = await house.attender.attend(AttendRequest("c", queries))
                out, _ = reference.attend(reference.scores(queries, keys, 0.5), values)
                assert answer.exact
                np.testing.assert_allclose(answer.out.array, out, atol=1e-5)
                number += 1
                more = RANDOM.standard_normal((2, 5, 1, 4)).astype(np.float32)
            assert waits > 0
            assert house.appender._turns.appends.admission.running == 0

    asyncio.run(test())


def test_an_attend():
    async def test():
        with House() as house:
            for name in "ab":
                house.node(name)
            await house.contexts.create(ContextSpec("c", 2, 1, 4, 4))
            keys, values = RANDOM.standard_normal((2, 200, 1, 4)).astype(np.float32)
            await house.appender.append("c", "", keys, values)
            asked = [RANDOM.standard_normal((2, 2, 4)).astype(np.float32) for _ in range(2)]
            wanted = [reference.attend(reference.scores(one, keys, 0.5), values)[0] for one in asked]
            waits = 0
            async for wait, answer in at_each_wait(
                lambda: house.attender.attend(AttendRequest("c", asked[0], weights=True))
            ):
                waits = wait
                if answer is not None:
                    np.testing.assert_allclose(answer.out.array, wanted[0], atol=1e-5)
                other = await house.attender.attend(AttendRequest("c", asked[1]))
                assert other.exact
                np.testing.assert_allclose(other.out.array, wanted[1], atol=1e-5)
                gates = house.attender._turns.kinds.values()
                assert [gate.admission.running for gate in gates] == [0] * len(gates)
                assert not house.dispatcher._running
            assert waits > 0

    asyncio.run(test())


@pytest.mark.parametrize("others", [0, 2])
def test_a_request_in_a_batch(others):
    """Its batch goes on for the others, with their own rows, and ends where there are none."""

    async def test():
        running = []

        async def run(feeds, seconds, partial, caller):
            running.append(1)
            try:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                return ModelAnswer({"y": 2 * feeds["x"]}, True, 1.0, "", {"all": 0.0}, {}, {}, segments=())
            finally:
                running.pop()

        batcher = Batcher(BatchQueue("m", 1, 8, 0.0), run)

        def ask(*rows):
            return batcher.infer({"x": np.array(rows)}, 30.0, "me", joins=True)

        waits = 0

        async def beside():
            first = asyncio.ensure_future(ask(9))  # who comes now waits, and is in one batch
            asking = [asyncio.ensure_future(ask(number, number + 10)) for number in range(others)]
            await asyncio.sleep(0)
            return first, asking

        async for wait, answer in at_each_wait(lambda: ask(1, 2, 3)):
            waits = wait
            if answer is not None:
                assert answer.results["y"].tolist() == [2, 4, 6]
            first, asking = await beside()
            assert (await first).results["y"].tolist() == [18]
            for number, one in enumerate(asking):
                assert (await one).results["y"].tolist() == [2 * number, 2 * number + 20]
            await until(lambda: not running and not batcher._batches)
            assert not batcher._all
            batcher.queue.check()
        assert waits >= 0
        # In one batch with others, which are there already.
        for wait in range(3):
            first, asking = await beside()
            own = asyncio.ensure_future(ask(1, 2, 3))
            for _ in range(wait):
                await asyncio.sleep(0)
            own.cancel()
            await asyncio.wait([own])
            assert (await first).results["y"].tolist() == [18]
            for number, one in enumerate(asking):
                assert (await one).results["y"].tolist() == [2 * number, 2 * number + 20]
            batcher.queue.check()

    asyncio.run(test())


def test_a_place_that_is_waited_for():
    """Lanes, and room for boundaries: given as who waits is cancelled, they go to the next."""

    async def test():
        lanes, room = RequestLanes(1), BoundaryRoom(10)
        for take, give_back in (
            (lambda: lanes.take(30.0), lambda: lanes.give_back(0, True)),
            (lambda: room.take(8, 30.0), lambda: room.give_back(8)),
        ):
            await take()

            async def waited(take=take, give_back=give_back):
                asyncio.get_running_loop().call_later(0.001, give_back)
                await take()
                return "taken"

            async for _, taken in at_each_wait(waited):
                if taken is None:
                    async with asyncio.timeout(30):
                        await take()
            give_back()
        assert lanes._free == [0]
        assert room.used == 0

    asyncio.run(test())


def test_a_generation(tmp_path):
    decoder = random_decoder()
    (tmp_path / "tokenizer.json").write_text('{"edge_attention": "bytes"}')
    wanted = LocalDecoder(decoder).generate("to be", 5, Sampling())

    async def test():
        sessions, budgets = LocalSessions({"small": decoder}), Budgets()
        texts = DeploymentTexts(lambda name: ("small-1", tmp_path))
        generator = Generator(sessions, texts, budgets, GenerationMetrics(Metrics()))

        async def generated():
            found = ()
            async with aclosing(
                generator.generate(GenerationRequest("small", "to be", 5), "me", 60.0)
            ) as events:
                async for event in events:
                    found += event.tokens
            return found

        waits = 0
        async for wait, tokens in at_each_wait(generated):
            waits = wait
            assert tokens in (None, wanted)
            assert not any(session.open for session in sessions.opened)
            assert budgets[GENERATIONS].used == 0
            assert await generated() == wanted
        assert waits > 0

    asyncio.run(test())
