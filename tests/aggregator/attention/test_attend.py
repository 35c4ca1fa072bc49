"""The attend recipe over nodes in this process, against float64; what hostile and silent nodes cost."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import reference
from house import House, until

from aggregator.attention import attend
from edge_attention.core.errors import (
    EmptyContext,
    InvalidArgument,
    InvalidTensor,
    NotFound,
    Overloaded,
    PrivateTensor,
)
from edge_attention.core.halves import from_wire, to_wire
from edge_attention.core.messages.attention import AttendRequest, ContextSpec
from edge_attention.core.messages.program import Fault
from edge_attention.core.tensors import Encoded, Encoding

SPEC = ContextSpec("c", query_heads=4, key_heads=2, key_dim=8, value_dim=6)
RANDOM = np.random.default_rng(0)
KEYS = RANDOM.standard_normal((1500, 2, 8)).astype(np.float32)
VALUES = RANDOM.standard_normal((1500, 2, 6)).astype(np.float32)
QUERIES = RANDOM.standard_normal((5, 4, 8)).astype(np.float32)
OUT, LSE = reference.attend(reference.scores(QUERIES, KEYS, 8**-0.5), VALUES)


async def filled(house, *nodes, replicas=1, pinned=True):
    """Nodes by name; the tokens spread over them, an even share each."""
    boxes = {name: house.node(name) for name in nodes}
    await house.contexts.create(replace(SPEC, replicas=replicas))
    for index, name in enumerate(nodes):
        part = slice(index * 1500 // len(nodes), (index + 1) * 1500 // len(nodes))
        await house.appender.append("c", name if pinned else "", KEYS[part], VALUES[part])
    return boxes


def request(**fields):
    return AttendRequest("c", QUERIES, **fields)


def out_of(response):
    return response.out.array if isinstance(response.out, Encoded) else response.out


def exact(response):
    assert response.exact
    assert response.missing == ()
    np.testing.assert_allclose(out_of(response), OUT, atol=1e-5)
    np.testing.assert_allclose(response.lse, LSE, atol=1e-5)
    np.testing.assert_allclose(sum(m.mass for m in response.mass), 1, atol=1e-5)


def certified(response, missing):
    assert not response.exact
    assert {m.holders for m in response.missing} == {(name,) for name in missing}
    assert (np.abs(out_of(response) - OUT) <= response.bound.error).all()


def test_coverage_is_of_what_the_queries_may_see():
    positions = np.array([10, 12, 700, 1400, 1499])

    async def scenario(house):
        await filled(house, "a", "b")
        ask = house.attender.attend
        return (
            await ask(request(until=900)),
            await ask(request(window=5, positions=positions)),
            await ask(request(causal=True, positions=np.array([3, 4, 5, 6, 99]))),
        )

    with House() as house:
        until, window, causal = asyncio.run(scenario(house))
    assert until.coverage == (range(900),)
    assert window.coverage == (range(6, 13), range(696, 701), range(1396, 1401), range(1495, 1500))
    assert causal.coverage == (range(100),)
    assert all(response.exact for response in (until, window, causal))


@pytest.mark.parametrize("nodes", ["a", "ab", "abc"])
@pytest.mark.parametrize("deadline", [None, 5.0])
def test_an_attend_over_any_number_of_nodes_is_exact(nodes, deadline):
    async def scenario(house):
        await filled(house, *nodes)
        return await house.attender.attend(request(deadline_seconds=deadline))

    with House() as house:
        response = asyncio.run(scenario(house))
    exact(response)
    assert response.coverage == (range(0, 1500),)
    assert {m.node for m in response.mass} == set(nodes)


def poisoned(contribution):
    tensors = {name: np.full_like(array, np.nan) for name, array in contribution.tensors.items()}
    return replace(contribution, tensors=tensors)


def misshapen(contribution):
    return replace(contribution, tensors={n: a[..., :1] for n, a in contribution.tensors.items()})


def early(contribution):
    return replace(contribution, final=False)


def emptied(contribution):
    return replace(contribution, tensors={})


def strange(contribution):
    return replace(contribution, coverage=range(3))


def stale(contribution):
    return replace(contribution, version=9)


def silent(contribution):
    return None


def refusing(name):
    def tamper(contribution):
        return replace(contribution, tensors={}, final=True, error=Fault(name, "nonsense"))

    return tamper


@pytest.mark.parametrize("name", ["InvalidArgument", "PermissionDenied", "Internal", "Revoked", "nonsense"])
@pytest.mark.parametrize("weights", [False, True])
def test_a_bad_replica_costs_nothing_whatever_it_says(name, weights):
    async def scenario(house):
        boxes = await filled(house, "a", "b", replicas=2, pinned=False)
        boxes["a"].tamper = refusing(name)
        for _ in range(4):
            response = await house.attender.attend(request(weights=weights))
            exact(response)
            assert {m.node for m in response.mass} == {"b"}
            assert response.weights is None or np.isfinite(response.weights).all()

    with House() as house:
        asyncio.run(scenario(house))


def test_a_lone_holder_that_calls_a_good_request_wrong_is_missing_and_the_call_is_not_failed():
    async def scenario(house):
        boxes = await filled(house, "a", "b")
        boxes["a"].tamper = refusing("InvalidArgument")
        response = await house.attender.attend(request())
        certified(response, ["a"])
        assert response.missing[0].reason == "node 'a': nonsense"
        boxes["a"].tamper = refusing("PrivateTensor")
        with pytest.raises(PrivateTensor, match="node 'a': nonsense"):
            await house.attender.attend(request())

    with House() as house:
        asyncio.run(scenario(house))


@pytest.mark.parametrize("tamper", [poisoned, misshapen, early, emptied, strange, stale, silent])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_hostile_node_costs_a_retry_or_a_labelled_answer(tamper, replicas):
    async def scenario(house):
        boxes = await filled(house, "a", "b", replicas=replicas, pinned=replicas == 1)
        hostile = house.contexts.get("c").segments[-1].holders[0]
        boxes[hostile].tamper = tamper
        return hostile, await house.attender.attend(request(deadline_seconds=2.0))

    with House() as house:
        hostile, response = asyncio.run(scenario(house))
    # Who stays silent until the deadline leaves no time for another try.
    if replicas == 2 and tamper in (poisoned, misshapen, early, emptied):
        exact(response)
        assert hostile not in {m.node for m in response.mass}
    elif replicas == 1:
        certified(response, hostile)
    else:
        assert not response.exact
        assert (np.abs(out_of(response) - OUT) <= response.bound.error).all()


def test_what_comes_twice_or_damaged_or_late_is_counted_and_changes_nothing():
    async def scenario(house):
        boxes = await filled(house, "a")
        seen = []
        boxes["a"].tamper = lambda contribution: seen.append(contribution) or contribution
        response = await house.attender.attend(request(deadline_seconds=60.0))
        late = house.counted("late")
        for contribution in seen:
            house.dispatcher.contribution("a", contribution)
        assert house.counted("late") == late + len(seen)
        return response

    with House() as house:
        exact(asyncio.run(scenario(house)))


def test_an_early_lse_makes_the_bound_tight():
    async def scenario(house):
        boxes = await filled(house, "a", "b")
        boxes["b"].tamper = lambda contribution: None if contribution.final else contribution
        return await house.attender.attend(request(deadline_seconds=2.0))

    with House() as house:
        response = asyncio.run(scenario(house))
    certified(response, "b")
    assert response.bound.tight


@pytest.mark.parametrize("encoding", [Encoding.FLOAT16, Encoding.BFLOAT16])
def test_a_bound_holds_for_out_that_travels_in_half(encoding):
    async def scenario(house):
        # What is missing weighs next to nothing: the encoding is all the error there is.
        await house.contexts.create(SPEC)
        boxes = {name: house.node(name) for name in "ab"}
        await house.appender.append("c", "a", KEYS, 100 * VALUES)
        await house.appender.append(
            "c", "b", np.zeros((1, 2, 8), np.float32), np.zeros((1, 2, 6), np.float32)
        )
        boxes["b"].tamper = lambda contribution: None if contribution.final else contribution
        return await house.attender.attend(
            AttendRequest("c", 20 * QUERIES, deadline_seconds=0.2, encoding=encoding)
        )

    with House() as house:
        response = asyncio.run(scenario(house))
    keys, values = np.concatenate([KEYS, 0 * KEYS[:1]]), np.concatenate([100 * VALUES, 0 * VALUES[:1]])
    truth, _ = reference.attend(reference.scores(20 * QUERIES, keys, 8**-0.5), values)
    sent = from_wire(to_wire(response.out.array, encoding), encoding).astype(np.float64)
    assert np.abs(sent - truth).max() > 1e-3
    assert (np.abs(sent - truth) <= response.bound.error).all()


def test_nobody_answers_and_the_answer_says_so():
    async def scenario(house):
        boxes = await filled(house, "a", "b")
        for box in boxes.values():
            box.lose()
        return await house.attender.attend(request())

    with House() as house:
        response = asyncio.run(scenario(house))
    certified(response, "ab")
    assert response.coverage == ()
    assert "is lost" in response.missing[0].reason


def test_a_node_that_is_lost_in_the_middle_is_replaced():
    async def scenario(house):
        boxes = await filled(house, "a", "b", replicas=2, pinned=False)
        boxes["a"].mute = True
        asked = asyncio.create_task(house.attender.attend(request()))
        await until(lambda: any(program.coverage for program in boxes["a"].programs[-1:]))
        await asyncio.sleep(0)
        boxes["a"].lose()
        return await asked

    with House() as house:
        exact(asyncio.run(scenario(house)))


@pytest.mark.parametrize("deadline", [None, 10.0])
def test_an_attend_that_is_asked_again_is_a_call(deadline):
    async def scenario(house):
        boxes = await filled(house, "a", "b")
        before = [len(box.calls) for box in boxes.values()]
        answers = [await house.attender.attend(request(deadline_seconds=deadline)) for _ in range(4)]
        return answers, [len(box.calls) - n for box, n in zip(boxes.values(), before, strict=True)]

    with House() as house:
        answers, calls = asyncio.run(scenario(house))
    for answer in answers:
        exact(answer)
        np.testing.assert_array_equal(out_of(answer), out_of(answers[0]))
    assert calls == [3, 3], "all but the first"


def test_a_cancelled_attend_revokes_its_tasks():
    async def scenario(house):
        boxes = await filled(house, "a", "b")
        for box in boxes.values():
            box.mute = True
            box.programs.clear()
        asked = asyncio.create_task(house.attender.attend(request()))
        await until(lambda: all(box.programs for box in boxes.values()))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        return boxes

    with House() as house:
        boxes = asyncio.run(scenario(house))
        for box in boxes.values():
            assert box.cancelled == [program.task_id for program in box.programs]


def test_weights_are_the_global_ones_and_unknown_where_a_node_is_missing():
    async def scenario(house):
        boxes = await filled(house, "a", "b")
        whole = await house.attender.attend(request(weights=True))
        boxes["b"].mute = True
        return whole, await house.attender.attend(request(weights=True, deadline_seconds=2.0))

    with House() as house:
        whole, part = asyncio.run(scenario(house))
    truth = np.exp(reference.scores(QUERIES, KEYS, 8**-0.5) - LSE[..., None])
    np.testing.assert_allclose(whole.weights, truth, atol=1e-6)
    assert np.isnan(part.weights[..., 750:]).all()
    np.testing.assert_allclose(part.weights[..., :750].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"queries": np.zeros((1, 4, 7), np.float32)}, InvalidTensor),
        ({"queries": np.zeros((1, 2, 8), np.float32)}, InvalidTensor),
        ({"queries": np.zeros((1, 4, 8), np.float64)}, InvalidTensor),
        ({"queries": np.zeros((0, 4, 8), np.float32)}, InvalidTensor),
        ({"queries": np.array(1.0, np.float32)}, InvalidTensor),
        ({"queries": np.full((1, 4, 8), np.nan, np.float32)}, InvalidTensor),
        ({"positions": np.zeros(4, np.int64)}, InvalidTensor),
        ({"positions": np.zeros(5, np.int32)}, InvalidTensor),
        ({"positions": np.full(5, -1), "causal": True}, InvalidArgument),
        ({"window": 0}, InvalidArgument),
        ({"scale": float("nan")}, InvalidArgument),
        ({"deadline_seconds": 0.0}, InvalidArgument),
        ({"deadline_seconds": -1.0}, InvalidArgument),
        ({"deadline_seconds": float("nan")}, InvalidArgument),
        ({"deadline_seconds": float("inf")}, InvalidArgument),
        ({"until": 0}, InvalidArgument),
    ],
)
def test_a_bad_request_asks_nobody(fields, error):
    async def scenario(house):
        boxes = await filled(house, "a")
        boxes["a"].programs.clear()
        with pytest.raises(error):
            await house.attender.attend(replace(request(), **fields))
        assert boxes["a"].programs == []
        return await house.attender.attend(request())

    with House() as house:
        exact(asyncio.run(scenario(house)))


def test_an_empty_and_an_unknown_context():
    async def scenario(house):
        await house.contexts.create(SPEC)
        with pytest.raises(EmptyContext, match="append some first"):
            await house.attender.attend(request())
        with pytest.raises(NotFound, match="contexts here: c"):
            await house.attender.attend(AttendRequest("d", QUERIES))

    with House() as house:
        asyncio.run(scenario(house))


def test_positions_default_to_the_end_and_until_hides_what_came_later():
    async def scenario(house):
        await filled(house, "a", "b")
        response = await house.attender.attend(request(causal=True, until=700))
        assert not any(m.tokens.start >= 750 for m in response.mass)
        return response

    with House() as house:
        response = asyncio.run(scenario(house))
    visible = np.arange(1500)[None] <= np.arange(695, 700)[:, None]
    out, _ = reference.attend(reference.scores(QUERIES, KEYS, 8**-0.5), VALUES, visible)
    np.testing.assert_allclose(response.out.array, out, atol=1e-5)


def test_an_answer_says_how_many_tokens_there_were_when_it_was_asked():
    """The context grows between two attends alike, and while one is under way."""

    async def scenario(house):
        boxes = await filled(house, "a")
        first = await house.attender.attend(request(weights=True))
        boxes["a"].mute = True
        boxes["a"].programs.clear()
        under_way = asyncio.create_task(house.attender.attend(request()))
        await until(lambda: boxes["a"].programs)
        boxes["a"].mute = False
        await house.appender.append("c", "a", KEYS[:600], VALUES[:600])
        boxes["a"].run(boxes["a"].programs[0])
        return first, await under_way, await house.attender.attend(request())

    with House() as house:
        first, under_way, last = asyncio.run(scenario(house))
    exact(first)
    exact(under_way)
    assert (first.tokens, under_way.tokens, last.tokens) == (1500, 1500, 2100)
    scores = reference.scores(QUERIES, np.concatenate([KEYS, KEYS[:600]]), 8**-0.5)
    out, _ = reference.attend(scores, np.concatenate([VALUES, VALUES[:600]]))
    np.testing.assert_allclose(out_of(last), out, atol=1e-5)


@pytest.mark.parametrize("name", ["DeadlineExceeded", "Internal"])
def test_a_node_that_speaks_of_time_does_not_make_turns_fewer(name):
    """Whether attends queue is told by this side's clock, whatever a node says of itself."""

    def late(contribution):
        fault = Fault(name, "node 'a' has not answered in time")
        return replace(contribution, tensors={}, final=True, error=fault)

    seen = []

    async def scenario(house):
        boxes = await filled(house, "a", "b")
        for box in boxes.values():
            box.tamper = late
        made = house.attender._trips.make

        async def make(*args, **options):
            seen.append(await made(*args, **options))
            return seen[-1]

        house.attender._trips.make = make
        await house.attender.attend(request(deadline_seconds=60.0))
        for box in boxes.values():
            box.tamper = silent
        await house.attender.attend(request(deadline_seconds=0.1))

    with House() as house:
        asyncio.run(scenario(house))
    assert [attend._congested(outcome) for outcome in seen] == [False, True]


def test_large_attends_are_planned_one_after_the_other_callers_in_turn(monkeypatch):
    """By threads, of which others' appends need some too."""
    go, at_once, most, plan = threading.Event(), 0, 0, attend.make_plan
    order = []

    def planned(context, asked):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        order.append(asked.until)
        go.wait(180)
        at_once -= 1
        return plan(context, asked)

    monkeypatch.setattr(attend, "is_large", lambda context, asked: True)
    monkeypatch.setattr(attend, "make_plan", planned)

    async def scenario():
        with House() as house:
            await filled(house, "a")
            asked = [request(until=1000 + n) for n in range(21)]  # of plans that are alike one is made
            greedy = [asyncio.create_task(house.attender.attend(one, "greedy")) for one in asked[:20]]
            await asyncio.sleep(0)
            other = asyncio.create_task(house.attender.attend(asked[20], "other"))
            with pytest.raises(Overloaded, match="bound plan-turns"):
                await house.attender.attend(request(until=999, deadline_seconds=0.05), "late")
            go.set()
            assert (await other).exact
            assert all([(await task).exact for task in greedy])
            assert order.index(1020) <= 2
            assert most == 1

    asyncio.run(scenario())


def test_the_time_that_planning_took_is_of_the_deadline(monkeypatch):
    plan = attend.make_plan
    monkeypatch.setattr(attend, "is_large", lambda context, asked: True)
    monkeypatch.setattr(attend, "make_plan", lambda *given: time.sleep(0.4) or plan(*given))

    async def scenario():
        with House() as house:
            await filled(house, "a")
            left, make = [], house.trips.make

            async def trip(errands, seconds, *given, **options):
                left.append(seconds)
                return await make(errands, seconds, *given, **options)

            monkeypatch.setattr(house.trips, "make", trip)
            await house.attender.attend(request(deadline_seconds=60.0))
            assert left[0] <= 59.6

    asyncio.run(scenario())
