"""The data plane, and several requests on a stream."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
from offered import Counting, Doubler, Source, asked

from aggregator.bounds.bounds import INFERENCE_BYTES, INFERENCE_STREAMS, INFERENCES
from aggregator.bounds.budget import Budgets
from aggregator.inference.protocol import streaming
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.inference.protocol.streaming import AT_ONCE, RequestStream
from edge_attention.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Overloaded,
    Unimplemented,
)
from edge_attention.core.messages.open_inference import InferenceRequest, RequestedOutput, TraceSetting


def plane(*models):
    budgets = Budgets()
    return DataPlane([Source(*models)], budgets), budgets


def unused(budgets):
    return not any(budgets[bound].used for bound in (INFERENCES, INFERENCE_BYTES, INFERENCE_STREAMS))


async def until(condition):
    async with asyncio.timeout(180):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_an_answer_and_what_it_holds_meanwhile():
    async def scenario():
        model = Doubler()
        made, budgets = plane(model)
        work = asyncio.ensure_future(
            made.infer(asked(parameters={"timeout": 2_500_000, "priority": 4}), "me")
        )
        await until(lambda: model.asked)
        assert budgets[INFERENCES].of("me") == 1
        assert budgets[INFERENCE_BYTES].of("me") == 8
        (request,) = model.asked
        assert (request.seconds, request.priority, request.caller) == (2.5, 4, "me")
        model.event("1").set()
        answer = await work
        assert (answer.model, answer.version, answer.id) == ("doubler", "3", "1")
        assert [(one.name, one.datatype, one.shape) for one in answer.outputs] == [("y", "INT32", (2,))]
        assert answer.outputs[0].data.tolist() == [2, 4]
        assert unused(budgets)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "error", "why"),
    [
        (asked(version="4"), NotFound, "'doubler' version 4 is not found"),
        (asked(version="x"), InvalidArgument, "integral value"),
        (asked(parameters={"timeout": -1}), InvalidArgument, "'timeout' must be a whole number"),
        (asked(parameters={"timeout": 1 << 63}), InvalidArgument, "'timeout' must be a whole number"),
        (asked(parameters={"timeout": 10**400}), InvalidArgument, "'timeout' must be a whole number"),
        (asked(parameters={"priority": True}), InvalidArgument, "'priority' must be a whole number"),
        (asked(values=()), InvalidArgument, "is empty"),
        (
            asked(outputs=(RequestedOutput("y", {"shared_memory_region": "r"}),)),
            NotFound,
            "Unable to find shared memory region: 'r'.*take the tensor from the answer",
        ),
        (asked(model="counting"), Unimplemented, "decoupled.* ask it with ModelStreamInfer"),
        (InferenceRequest("doubler"), InvalidArgument, "expected 1 inputs but got 0"),
    ],
)
def test_what_is_refused_leaves_nothing(request_, error, why):
    made, budgets = plane(Doubler(), Counting())
    with pytest.raises(error, match=why):
        asyncio.run(made.infer(request_, "me"))
    assert unused(budgets)


def test_a_version_is_a_number_however_it_is_written():
    made, _ = plane(Doubler())
    assert made.model_metadata("doubler", "03").name == "doubler"
    assert made.model_ready("doubler", "0003")
    assert not made.model_ready("doubler", "0")


def test_a_caller_has_no_more_under_way_than_is_left_free():
    async def scenario():
        model = Doubler()
        made, budgets = plane(model)
        taken = budgets.take(INFERENCE_BYTES, "me", INFERENCE_BYTES.total // 2)
        with pytest.raises(Overloaded, match="inference-bytes"):
            await made.infer(asked(), "me")
        taken.give_back()
        assert unused(budgets)

    asyncio.run(scenario())


def test_a_source_that_is_added_is_asked_last():
    async def scenario():
        first, second = Source(Doubler()), Source(Doubler(), Counting())
        made = DataPlane([first])
        made.add(second)
        assert made.require("doubler", "") is first.models["doubler"]
        await made.load("counting", caller="me")
        assert first.loaded == second.loaded == [("counting", "me")]
        await made.unload("doubler")
        assert made.require("doubler", "") is second.models["doubler"]
        with pytest.raises(NotFound, match="failed to load 'no'"):
            await made.load("no")
        with pytest.raises(Unimplemented):
            made.trace_settings({"trace_rate": TraceSetting(("1",))})

    asyncio.run(scenario())


# Streams


def streamed(made, budgets, requests):
    async def coming():
        for request in requests:
            yield request

    return RequestStream(made, budgets, "me").answers(coming())


def test_answers_come_in_the_order_in_which_requests_end():
    async def scenario():
        model = Doubler()
        made, budgets = plane(model)
        answers = streamed(made, budgets, [asked("a"), asked("bad"), asked("c", model="no"), asked("d")])
        said = []
        for id in ("d", "bad", "a"):
            model.event(id)
        first = await anext(answers)
        said.append((first.response.id, first.error))  # nobody has to be waited for to say that there is none
        for id in ("d", "bad", "a"):
            await until(lambda: len(model.asked) == 3)
            model.event(id).set()
            answer = await anext(answers)
            said.append((answer.response.id, answer.error))
        assert [one async for one in answers] == []
        assert [id for id, _ in said] == ["c", "d", "bad", "a"]
        assert "unknown model: 'no'" in said[0][1]
        assert [error for _, error in said[1:]] == ["", "no node is here", ""]
        assert unused(budgets)

    asyncio.run(scenario())


def test_a_stream_that_is_left_ends_what_it_began():
    async def scenario():
        model = Doubler()
        made, budgets = plane(model)
        model.event("done").set()
        answers = streamed(made, budgets, [asked("done"), *(asked(f"r{n}") for n in range(5))])
        await anext(answers)
        await until(lambda: len(model.asked) == 6)
        await answers.aclose()
        assert sorted(model.cancelled) == [f"r{n}" for n in range(5)]
        assert unused(budgets)

    asyncio.run(scenario())


def test_a_stream_has_so_many_requests_under_way():
    async def scenario():
        model = Doubler()
        made, budgets = plane(model)
        read = 0

        async def coming():
            nonlocal read
            for number in range(3 * AT_ONCE):
                read += 1
                yield asked(str(number))

        answers = RequestStream(made, budgets, "me").answers(coming())
        work = asyncio.ensure_future(anext(answers))
        await until(lambda: len(model.asked) == AT_ONCE)
        await asyncio.sleep(0.01)
        assert read == AT_ONCE
        for number in range(3 * AT_ONCE):
            model.event(str(number)).set()
        found = {(await work).response.id} | {one.response.id async for one in answers}
        assert found == set(map(str, range(3 * AT_ONCE)))

    asyncio.run(scenario())


def test_a_stream_of_which_no_answer_is_taken_ends_and_gives_back_what_the_others_held(monkeypatch):
    monkeypatch.setattr(streaming, "ABANDONED_SECONDS", 0.05)

    async def scenario():
        model = Doubler()
        made, budgets = plane(model)
        async with aclosing(streamed(made, budgets, [asked("a"), asked("b"), asked("c")])) as answers:
            taking = asyncio.ensure_future(anext(answers))
            await until(lambda: len(model.asked) == 3)
            model.event("a").set()
            first = (await taking).response
            await until(lambda: sorted(model.cancelled) == ["b", "c"] and not budgets[INFERENCES].used)
            # gRPC still has the first.
            assert budgets[INFERENCE_BYTES].of("me") == first.nbytes
            assert budgets[INFERENCE_STREAMS].of("me") == 1
            with pytest.raises(DeadlineExceeded, match=r"was taken for 0\.05 s"):
                await anext(answers)
        assert unused(budgets)

    asyncio.run(scenario())


def test_what_cannot_be_read_of_a_stream_ends_it():
    async def scenario():
        made, budgets = plane(Doubler())

        async def coming():
            raise InvalidArgument("no message")
            yield

        with pytest.raises(InvalidArgument, match="no message"):
            await anext(RequestStream(made, budgets, "me").answers(coming()))
        assert unused(budgets)

    asyncio.run(scenario())


def test_a_request_may_have_many_answers():
    async def scenario():
        made, budgets = plane(Counting())
        answers = [one async for one in streamed(made, budgets, [asked("7", (5, 6, 7), "counting")])]
        assert [one.response.outputs[0].data.tolist() for one in answers] == [[5], [6], [7]]
        assert [one.response.parameters["last"] for one in answers] == [False, False, True]
        assert {one.response.id for one in answers} == {"7"}
        assert np.all([one.error == "" for one in answers])

    asyncio.run(scenario())


def test_classes_take_room_as_long_as_the_answer_does():
    async def scenario():
        model = Doubler()
        made, budgets = plane(model)
        model.event("1").set()
        outputs = (RequestedOutput("y", {"classification": 2}),)
        with made.room("me") as room:
            answer = await made.infer(asked(outputs=outputs), "me", room)
            assert answer.outputs[0].data.tolist() == [b"4:1", b"2:0"]
            assert room.amount > 8 + sum(map(len, answer.outputs[0].data))
        assert unused(budgets)

    asyncio.run(scenario())


def test_answers_that_nobody_has_taken_are_counted():
    async def unread():
        model = Doubler()
        made, budgets = plane(model)
        read = 0

        async def coming():
            nonlocal read
            for number in range(2 * AT_ONCE):
                read += 1
                model.event(str(number)).set()
                yield asked(str(number))

        answers = RequestStream(made, budgets, "me").answers(coming())
        await anext(answers)
        await until(lambda: len(model.asked) == AT_ONCE and not budgets[INFERENCES].used)
        await asyncio.sleep(0.01)
        assert read == AT_ONCE, "no more are read than may wait"
        assert budgets[INFERENCE_BYTES].of("me") == 8 * AT_ONCE
        await anext(answers)
        await until(lambda: read == AT_ONCE + 1)
        await answers.aclose()
        assert unused(budgets)

    asyncio.run(unread())
