"""The trip: what it lends and takes back, what it takes of what comes, and how it says that it ended."""

from __future__ import annotations

import ast
import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from house import House, until

import aggregator
from aggregator.engine import trip
from aggregator.engine.bulk import INLINE_LIMIT
from aggregator.engine.outcome import MissingKind
from aggregator.engine.prepared import prepare
from aggregator.engine.spool import SpooledTensor
from aggregator.engine.trip import Errand, Errands, misfit
from edge_attention.core.errors import (
    DeadlineExceeded,
    InvalidTensor,
    MessageTooLarge,
    NotFound,
    OutOfMemory,
    PermissionDenied,
    Unavailable,
)
from edge_attention.core.messages.link import UploadChunk
from edge_attention.core.messages.program import (
    CALL_BYTES,
    BulkTensor,
    Contribution,
    Drop,
    Fault,
    Frozen,
    Program,
    Repeat,
    Return,
    Run,
    Stored,
)
from edge_attention.core.tensors import DataType, Encoding
from edge_attention.wire.link import prepared_program

FLOAT32 = np.dtype(np.float32)
X = np.arange(6, dtype=np.float32).reshape(2, 3)
LARGE = np.arange(INLINE_LIMIT // 4 + 1, dtype=np.float32)


def errand(shard="s", holders=("a",), **fields):
    """Asks for a tensor x of shape [2, 3] back."""
    made = Errand(
        shard=shard,
        holders=holders,
        coverage=range(2),
        instructions=(Return("task/x", "x"),),
        wanted={"x": (FLOAT32, (2, 3))},
        inline={"task/x": X},
    )
    return replace(made, **fields)


def run(scenario):
    with House() as house:

        async def whole():
            found = await scenario(house)
            assert not house.bulk._loans, "whatever happened, nothing is lent any more"
            assert not house.dispatcher._running
            return found

        found = asyncio.run(whole())
        assert not list((house.state.directory / "spool").iterdir()), "nor left on the disk"
        return found


def answer(program, **fields):
    made = Contribution(
        program.task_id, program.shard, program.coverage, program.version, 0, tensors={"x": X}, final=True
    )
    return replace(made, **fields)


async def asked(house, boxes, errands, seconds=5.0, **options):
    """A trip under way of which `boxes` have the programs and answer none by themselves."""
    for box in boxes:
        box.mute = True
    task = asyncio.create_task(house.trips.make(errands, seconds, **options))
    await until(lambda: sum(len(box.programs) for box in boxes) == len(errands))
    return task


def test_a_recipe_in_one_file():
    """The sum of what nodes hold, exactly once each: a recipe of ten lines."""

    async def total(trips, nodes):
        found = {}
        outcome = await trips.make(
            [errand(node, (node,), inline={"task/x": X * n}) for n, node in enumerate(nodes)],
            5.0,
            lambda answer: found.update({answer.shard: answer.array("x")}),
        )
        return sum(found[node] for node in nodes if node in found), outcome

    async def scenario(house):
        for name in "abc":
            house.node(name)
        return await total(house.trips, "abcd")

    found, outcome = run(scenario)
    np.testing.assert_array_equal(found, 3 * X)
    assert outcome.answered == {"a": "a", "b": "b", "c": "c"}
    assert outcome.missing["d"].kind is MissingKind.LOST
    assert set(outcome.seconds) == set("abc")


@pytest.mark.parametrize("lying", [False, True])
def test_a_recipe_gets_arrays_as_they_lie_in_a_message_only_where_it_says_so(lying):
    message = memoryview(b"x" + X.tobytes())[1:]
    came = np.frombuffer(message, np.float32).reshape(2, 3)

    async def scenario(house):
        house.node("a", tamper=lambda one: replace(one, tensors={"x": came}))
        taken, each = [], []
        await house.trips.make([errand()], 5.0, taken.append, each=each.append, lying=lying)
        return [one.array("x") for one in (*taken, *each)]

    for found in run(scenario):
        assert (found is came) == lying
        assert found.flags.aligned != lying
        np.testing.assert_array_equal(found, X)


def test_a_node_that_dies_midway_has_another_asked_and_what_it_had_sent_is_forgotten():
    """The first holder returns a part and is lost; the second returns all of it."""

    async def scenario(house):
        first, second = house.node("a"), house.node("b")
        answers, parts = [], []
        wanted = {"x": (FLOAT32, (2, 3)), "y": (FLOAT32, ("any",))}
        both = (Return("task/x", "x"), Return("task/x", "y"))
        task = await asked(
            house, [first], [errand(holders=("a", "b"), instructions=both, wanted=wanted)],
            take=answers.append, each=parts.append,
        )  # fmt: skip
        second.mute = True
        y = np.ones(4, np.float32)
        house.dispatcher.contribution("a", answer(first.programs[0], tensors={"y": y}, final=False))
        first.lose()
        await until(lambda: second.programs)
        program = second.programs[0]
        house.dispatcher.contribution("b", answer(program, final=False))
        house.dispatcher.contribution("b", answer(program, number=1, tensors={"y": 2 * y}))
        return await task, answers, parts

    outcome, (whole,), parts = run(scenario)
    assert outcome.answered == {"s": "b"}
    assert whole.node == "b"
    np.testing.assert_array_equal(whole.array("x"), X)
    np.testing.assert_array_equal(whole.array("y"), [2, 2, 2, 2])
    assert [(part.node, part.final) for part in parts] == [("a", False), ("b", False), ("b", True)]


def test_a_lone_holder_that_dies_is_lost():
    async def scenario(house):
        box = house.node("a")
        task = await asked(house, [box], [errand()])
        box.lose()
        return await task

    missing = run(scenario).missing["s"]
    assert (missing.kind, missing.node, missing.cause) == (MissingKind.LOST, "a", Unavailable)


def test_one_that_is_late_is_late_and_what_is_left_of_its_answer_goes():
    async def scenario(house):
        box = house.node("a")
        task = await asked(house, [box], [errand()], seconds=0.05)
        house.dispatcher.contribution("a", answer(box.programs[0], final=False, tensors={}))
        outcome = await task
        assert box.cancelled == [box.programs[0].task_id]
        return outcome

    outcome = run(scenario)
    missing = outcome.missing["s"]
    assert (missing.kind, missing.node, outcome.cause) == (MissingKind.LATE, "a", DeadlineExceeded)


@pytest.mark.parametrize("text", ["full", "it has not answered in time"])
def test_what_a_node_says_is_told_as_what_it_says(text):
    async def scenario(house):
        box = house.node("a")
        task = await asked(house, [box], [errand()])
        fault = Fault("OutOfMemory", text)
        house.dispatcher.contribution("a", answer(box.programs[0], tensors={}, error=fault))
        return await task

    outcome = run(scenario)
    assert outcome.missing["s"].kind is MissingKind.FAILED
    assert outcome.cause is OutOfMemory


def test_a_refusal_that_is_believed_ends_the_trip_and_one_that_is_not_is_data():
    async def scenario(house, **options):
        box, other = house.node("a"), house.node("b")
        task = await asked(house, [box, other], [errand(), errand("t", ("b",))], **options)
        fault = Fault("PermissionDenied", "not here")
        house.dispatcher.contribution("a", answer(box.programs[0], tensors={}, error=fault))
        if options:
            house.dispatcher.contribution("b", answer(other.programs[0]))
            return await task
        with pytest.raises(PermissionDenied, match="node 'a': not here"):
            await task
        assert other.cancelled == [other.programs[0].task_id], "once"

    run(scenario)
    outcome = run(lambda house: scenario(house, believed=()))
    assert outcome.missing["s"].kind is MissingKind.REFUSED
    assert outcome.answered == {"t": "b"}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"x": X[:1]}, r"x as float32 \[1, 3\]; it must be float32 \[2, 3\]"),
        ({"x": X[0]}, r"x as float32 \[3\]"),
        ({"x": X.astype(np.float64)}, r"x as float64 \[2, 3\]; it must be float32 \[2, 3\]"),
        ({"x": X, "y": X}, "'y', which nobody asked for"),
        ({}, "did not return x"),
    ],
)
def test_what_was_not_asked_for_is_refused_and_another_is_asked(tensors, said):
    async def scenario(house):
        first, second = house.node("a"), house.node("b")
        task = await asked(house, [first], [errand(holders=("a", "b")), errand("t")])
        second.mute = True
        for program in first.programs:
            house.dispatcher.contribution("a", answer(program, tensors=tensors))
        await until(lambda: second.programs)
        house.dispatcher.contribution("b", answer(second.programs[0]))
        return await task

    outcome = run(scenario)
    assert outcome.answered == {"s": "b"}
    missing = outcome.missing["t"]
    assert (missing.kind, missing.node, missing.cause) == (MissingKind.WRONG, "a", Unavailable)
    with pytest.raises(InvalidTensor, match=f"node 'a': it .*{said}"):
        raise missing.error


def test_a_tensor_comes_as_often_as_the_instructions_return_it():
    async def scenario(house, times):
        box = house.node("a")
        came = []
        instructions = (Return("task/x", "x"), Repeat(2, (Return("task/x", "x"),)))
        task = await asked(house, [box], [errand(instructions=instructions)], each=came.append)
        for number in range(times):
            part = answer(box.programs[0], number=number, final=number == times - 1)
            house.dispatcher.contribution("a", part)
        return await task, len(came)

    outcome, came = run(lambda house: scenario(house, 3))
    assert (outcome.answered, came) == ({"s": "a"}, 3)
    outcome, _ = run(lambda house: scenario(house, 4))
    assert "x too often" in outcome.missing["s"].text


async def uploaded(house, array):
    data = array.tobytes()
    digest = hashlib.sha256(data).hexdigest()

    async def chunks():
        yield UploadChunk("", digest, 0, len(data), data)

    await house.bulk.upload("s", chunks(), keep=False)
    large = BulkTensor("x", DataType.FLOAT32, array.shape, Encoding.RAW, digest, len(data))
    return house.bulk.received("s", [large])


@pytest.mark.parametrize("spooled", [False, True])
def test_large_tensors_come_as_arrays_or_as_handles_that_the_recipe_closes(spooled):
    async def scenario(house):
        box = house.node("a")
        answers = []
        task = await asked(house, [box], [errand()], take=answers.append, spooled=spooled)
        large = await uploaded(house, X)
        house.dispatcher.contribution("a", answer(box.programs[0], tensors={}), lambda: large)
        await task
        tensor = answers[0].tensors["x"]
        assert isinstance(tensor, SpooledTensor if spooled else np.ndarray)
        np.testing.assert_array_equal(answers[0].array("x"), X)
        answers[0].close()

    run(scenario)


@pytest.mark.parametrize("end", ["late", "failed", "cancelled", "another fails", "refused", "no end"])
@pytest.mark.parametrize("spooled", [False, True])
def test_nothing_stays_lent_or_on_the_disk_however_it_ends(end, spooled):
    async def scenario(house):
        box = house.node("a")

        def take(answer):
            if end == "refused":
                raise InvalidTensor("no")

        lent = errand(tensors={"task/large": LARGE})
        errands = [lent, errand("t", tensors={"task/large": LARGE})]
        seconds = 0.2 if end in ("late", "no end") else 5.0
        task = await asked(house, [box], errands, seconds, take=take, spooled=spooled)
        first, second = box.programs
        assert first.bulk_tensors == second.bulk_tensors
        assert house.bulk._loans
        large = await uploaded(house, X)
        final = end != "no end"
        house.dispatcher.contribution("a", answer(first, tensors={}, final=final), lambda: large)
        if end == "failed":
            fault = Fault("OutOfMemory", "full")
            house.dispatcher.contribution("a", answer(second, tensors={}, error=fault))
        elif end == "another fails":
            fault = Fault("InvalidArgument", "bad")
            house.dispatcher.contribution("a", answer(second, tensors={}, error=fault))
            with pytest.raises(Exception, match="bad"):
                await task
            return
        elif end == "refused":
            house.dispatcher.contribution("a", answer(second))
        elif end == "cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return
        outcome = await task
        if spooled and "s" in outcome.answered:
            for tensor in large.values():
                tensor.close()  # as who took it does

    run(scenario)


def test_what_is_lent_is_taken_back_where_a_later_part_cannot_be():
    """The second errand's tensor has no dtype that travels: the first one's was lent by then."""

    async def scenario(house):
        house.node("a")
        good = errand(tensors={"task/large": LARGE})
        bad = errand("t", tensors={"task/large": np.zeros(LARGE.shape, np.complex128)})
        with pytest.raises(InvalidTensor, match="complex128"):
            await house.trips.make([good, bad], 5.0)

    run(scenario)


def test_more_than_is_loaded_is_refused(monkeypatch):
    monkeypatch.setattr(trip, "ARRAYS_LIMIT", X.nbytes - 1)

    async def scenario(house):
        box = house.node("a")
        task = await asked(house, [box], [errand()])
        large = await uploaded(house, X)
        house.dispatcher.contribution("a", answer(box.programs[0], tensors={}), lambda: large)
        return await task

    assert f"{X.nbytes} bytes where {X.nbytes - 1} are loaded" in run(scenario).missing["s"].text


def test_errands_share_what_travels_with_their_programs():
    """So that it is encoded once for all of them."""

    async def scenario(house):
        sent = []

        class Wire:
            def send(self, message):
                if isinstance(message, Program):
                    sent.append(message)

        house.node("a", mute=True)
        house.dispatcher.connected("a", Wire())
        inline = {"task/x": X}
        await house.trips.make([errand("s", inline=inline), errand("t", inline=inline)], 0.05)
        return sent, inline

    sent, inline = run(scenario)
    assert [program.tensors is inline for program in sent] == [True, True]


def test_errands_that_are_kept_are_calls_of_what_each_trip_brings():
    """The third trip finds all of it made; other shapes, and other tensors, are what they are."""

    async def scenario(house):
        box = house.node("a")
        kept = Errands([errand(s, inline={}, wanted={"x": (None, None)}) for s in "st"])
        got = []
        for tensors in (X, 2 * X, 3 * X, X[:1], 4 * X, 4 * X.astype(np.float64)):
            answers = {}
            outcome = await house.trips.make(
                kept,
                5.0,
                lambda answer, answers=answers: answers.update({answer.shard: answer.array("x")}),
                tensors={"task/x": tensors},
                version=len(got),
            )
            assert outcome.answered == {"s": "a", "t": "a"}
            for array in answers.values():
                np.testing.assert_array_equal(array, tensors)
            got.append(len(box.calls))
        assert {call.version for call in box.calls} == {1, 2, 4}
        assert {call.deadline_seconds for call in box.calls} == {5.0}
        return got

    with House() as house:
        called = asyncio.run(scenario(house))
    assert called == [0, 2, 4, 4, 6, 6]


def test_errands_with_programs_of_their_own_are_kept_from_the_first_trip_on():
    made = errand("s", inline={}, wanted={"x": (None, None)})
    kept = Errands([replace(made, prepared=prepare(made.instructions, {"task/x": X}))])
    assert kept.calls({"task/x": X}) is None

    async def scenario(house):
        house.node("a")
        for tensors in (X, 2 * X):
            answers = []
            await house.trips.make(kept, 5.0, answers.append, tensors={"task/x": tensors})
            np.testing.assert_array_equal(answers[0].array("x"), tensors)
            assert kept.calls({"task/x": X}) is not None
        assert kept.calls({"task/x": X[:1]}) is None

    run(scenario)


def test_what_a_tensor_is_to_be():
    assert misfit("x", X, (FLOAT32, ("any", 3))) == ""
    assert misfit("x", X, (None, None)) == ""
    assert misfit("x", X, (FLOAT32, None)) == ""
    assert "it must be int64" in misfit("x", X, (np.dtype(np.int64), None))
    assert "it must be [any, 4]" in misfit("x", X, (None, ("any", 4)))
    assert "nobody asked for" in misfit("x", X, None)


def test_a_trip_says_why_once_and_what_a_node_says_goes_first():
    async def scenario(house):
        box = house.node("a")
        task = await asked(house, [box], [errand("s"), errand("t"), errand("u")], 0.1)
        fault = Fault("NotFound", "no graph")
        for program in box.programs[1:]:
            house.dispatcher.contribution("a", answer(program, tensors={}, error=fault))
        return await task

    outcome = run(scenario)
    assert outcome.cause is NotFound
    assert outcome.why == "node 'a' has not answered in time; node 'a': no graph"


def test_of_what_a_program_that_freezes_is_given_the_largest_is_lent_and_the_rest_is_in_the_call():
    """So it is each time: the program stays the same. What the trip lends is taken back."""
    steps = (Run("0" * 64, {"w": Stored("job/j/w")}, {"y": "task/y"}), Return("task/x", "x"))
    small, large = np.zeros(CALL_BYTES // 8 - 6, np.float32), np.ones(CALL_BYTES // 4, np.float32)
    given = {"task/large": large, "task/small": small, "task/other": small + 1}

    async def scenario(house):
        box, calls = house.node("a"), []
        for _ in range(2):
            asked_for = errand(instructions=steps, tensors=given, frozen=(Frozen("job/j/w"),))
            task = await asked(house, [box], [asked_for])
            (one,) = box.calls
            calls.append(one)
            (bulk,) = one.bulk_tensors
            assert house.bulk.find(bulk.digest) == large.tobytes()
            house.dispatcher.contribution("a", answer(one))
            await task
            box.programs.clear()
            box.calls.clear()
        return calls

    first, second = run(scenario)
    assert first.program == second.program
    program = prepared_program.decode(first.prepared)
    assert {slot.name for slot in program.slots} == {"task/x", "task/small", "task/other"}
    assert len(first.slots) == CALL_BYTES - 24
    assert first.bulk_tensors[0].name == "task/large"


def calls_of_the_dispatcher(path):
    """Lines that call `run` of what they call a dispatcher, or name its class."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "run" and "dispatcher" in ast.unparse(node.value):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "aggregator.engine.dispatch":
            yield from (node.lineno for name in node.names if name.name == "Dispatcher")


def test_only_the_trip_runs_exchanges():
    folder = Path(aggregator.__file__).parent
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if list(calls_of_the_dispatcher(path))
    }
    # The link hands contributions on, and the server puts the parts together.
    assert found == {"engine/trip.py", "engine/link.py", "server.py"}
    runs = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if "dispatcher.run(" in path.read_text()
    ]
    assert runs == ["engine/trip.py"]


@pytest.mark.parametrize("away", [False, True])
def test_a_program_that_does_not_fit_a_message_ends_its_trip_and_no_nodes_connection(away):
    async def scenario(house):
        box = house.node("a")
        if away:
            box.disconnect()
        large = tuple(Drop((f"task/{'x' * 1000}{number}",)) for number in range(5000))
        waits = asyncio.create_task(house.trips.make([Errand("s", ("a",), range(1), large)], 30))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if away:
            assert not waits.done()
            box.connect()
        with pytest.raises(MessageTooLarge, match="split it"):
            await waits
        await house.trips.make([Errand("s", ("a",), range(1), ())], 30)

    with House() as house:
        asyncio.run(scenario(house))
