"""The dispatcher: whom it sends, whose contributions it takes, what it counts, what it waits for."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import numpy as np
import pytest
from house import House, until

from aggregator.engine.connection import UNREAD, NodeConnection
from aggregator.engine.dispatch import WINDOW
from aggregator.engine.outcome import MissingKind
from aggregator.engine.shards import Assignment
from aggregator.engine.spool import SpooledTensor
from edge_attention.core.errors import InvalidProgram, InvalidTensor, MessageTooLarge, ResourceExhausted
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.link import Cancel, Credit, Heartbeat, HeartbeatAck, UploadChunk
from edge_attention.core.messages.program import BulkTensor, Contribution, Drop, Fault, Program
from edge_attention.core.tensors import DataType, Encoding
from edge_attention.wire.link import to_node


def assignment(shard="s", holders=("a",)):
    return Assignment(shard, holders, range(3), ())


def answer(program, **changed):
    contribution = Contribution(
        program.task_id, program.shard, program.coverage, program.version, 0, final=True, run_seconds=0.5
    )
    return replace(contribution, **changed)


async def asked(house, box, *assignments, take=lambda _: None, seconds=5.0, **options):
    """An exchange of which `box` has got its programs and answers none by itself."""
    box.mute = True
    task = asyncio.create_task(house.dispatcher.run(assignments, seconds, take, **options))
    await until(lambda: len(box.programs) == len(assignments))
    return task, box.programs


def run(scenario):
    with House() as house:
        return asyncio.run(scenario(house))


def test_contributions_are_folded_and_counted():
    folded = []

    async def scenario(house):
        box = house.node("a")
        task, (program,) = await asked(house, box, assignment(), take=folded.append)
        house.dispatcher.contribution("b", answer(program))
        house.dispatcher.contribution("a", answer(program, version=1))
        house.dispatcher.contribution("a", answer(program, task_id="1234-0.0.1"))
        house.dispatcher.contribution("a", answer(program, coverage=range(2)))
        house.dispatcher.contribution("a", answer(program))
        outcome = await task
        house.dispatcher.contribution("a", answer(program))
        assert [house.counted(what) for what in ("folded", "late", "stale", "refused")] == [1, 3, 1, 1]
        return outcome

    outcome = run(scenario)
    assert len(folded) == 1
    assert (outcome.answered, outcome.missing) == ({"s": "a"}, {})
    # The node says half a second; it is believed as far as it can be true.
    assert 0 < outcome.run_seconds["s"] <= min(outcome.seconds["s"], 0.5)


def test_an_outcome_says_which_nodes_had_nothing_else_to_do_meanwhile():
    async def scenario(house):
        a, b = house.node("a"), house.node("b")
        a.mute = b.mute = True
        first = asyncio.create_task(
            house.dispatcher.run([assignment("s"), assignment("t", ("b",))], 5.0, lambda _: None)
        )
        await until(lambda: a.programs and b.programs)
        house.dispatcher.contribution("b", answer(b.programs[0]))
        second = asyncio.create_task(
            house.dispatcher.run([assignment("s"), assignment("t", ("b",))], 5.0, lambda _: None)
        )
        await until(lambda: len(a.programs) == 2 and len(b.programs) == 2)
        for box in (a, b):
            house.dispatcher.contribution(box.name, answer(box.programs[1]))
        house.dispatcher.contribution("a", answer(a.programs[0]))
        outcomes = [await first, await second]
        # One that was given up is none that the next one meets.
        late = asyncio.create_task(house.dispatcher.run([assignment()], 0.01, lambda _: None))
        await late
        third = asyncio.create_task(house.dispatcher.run([assignment()], 5.0, lambda _: None))
        await until(lambda: len(a.programs) == 4)
        house.dispatcher.contribution("a", answer(a.programs[3]))
        return *outcomes, await third

    first, second, third = run(scenario)
    assert (first.alone, second.alone, third.alone) == ({"t"}, {"t"}, {"s"})


def test_a_refused_contribution_tells_nothing_of_its_seconds():
    async def scenario(house):
        box = house.node("a")
        task, (program,) = await asked(house, box, assignment())
        for n in range(5):
            house.dispatcher.contribution("a", answer(program, shard=f"made-up-{n}", run_seconds=1e9))
        house.dispatcher.contribution("a", answer(program))
        return await task

    assert list(run(scenario).run_seconds) == ["s"]


@pytest.mark.parametrize("problem", [InvalidTensor("no"), ZeroDivisionError()])
def test_a_fold_that_refuses_has_another_holder_asked(problem):
    async def scenario(house):
        first, second = house.node("a"), house.node("b")

        def take(returned):
            if returned.node == "a":
                raise problem

        task, (program,) = await asked(house, first, assignment(holders=("a", "b")), take=take)
        house.dispatcher.contribution("a", answer(program))
        return await task, first, second, program

    outcome, first, _, program = run(scenario)
    assert outcome.answered == {"s": "b"}
    assert first.cancelled == [program.task_id]


def test_a_fold_that_fails_for_a_reason_of_ours_is_labelled():
    async def scenario(house):
        def take(_):
            raise ZeroDivisionError

        task, (program,) = await asked(house, house.node("a"), assignment(), take=take)
        house.dispatcher.contribution("a", answer(program))
        return await task

    outcome = run(scenario)
    assert outcome.missing["s"].kind is MissingKind.WRONG
    assert "could not be folded" in outcome.missing["s"].text


def test_a_wrong_program_is_an_error_and_the_other_tasks_are_revoked():
    async def scenario(house):
        box = house.node("a")
        task, (first, second) = await asked(house, box, assignment(), assignment("t"))
        house.dispatcher.contribution("a", answer(first, error=Fault("InvalidProgram", "bad")))
        with pytest.raises(InvalidProgram, match="node 'a': bad"):
            await task
        assert box.cancelled == [second.task_id], "once"
        assert house.dispatcher._running == {}

    run(scenario)


def test_the_deadline_ends_an_exchange():
    async def scenario(house):
        box = house.node("a")
        task, (program,) = await asked(house, box, assignment(), seconds=0.05)
        outcome = await task
        assert box.cancelled == [program.task_id]
        return outcome

    missing = run(scenario).missing["s"]
    assert (missing.kind, missing.node) == (MissingKind.LATE, "a")


def test_the_log_says_how_an_exchange_came_to_a_bad_end_but_of_many_at_once_one(caplog):
    caplog.set_level("INFO")

    async def scenario(house):
        house.node("a").mute = True
        for _ in range(3):
            await house.dispatcher.run([assignment()], 0.01, lambda _: None)

    run(scenario)
    (line,) = [message for message in caplog.messages if "ended badly" in message]
    assert "s asked of a: waiting -> asked" in line
    assert line.endswith("s late: asked -> missing")


def test_a_node_that_resumes_is_sent_its_task_again():
    async def scenario(house):
        box = house.node("a")
        task, programs = await asked(house, box, assignment())
        box.disconnect()
        assert house.membership.state("a") is NodeState.SUSPECT
        await asyncio.sleep(0)
        box.connect()
        assert programs[0] == programs[1]
        house.dispatcher.contribution("a", answer(programs[0]))
        return await task

    assert run(scenario).answered == {"s": "a"}


ARRAY = np.arange(50, dtype=np.float32)


async def uploaded(house):
    """A tensor on the spool, as the link hands it on."""
    data = ARRAY.tobytes()
    digest = hashlib.sha256(data).hexdigest()

    async def chunks():
        yield UploadChunk("", digest, 0, len(data), data)

    await house.bulk.upload("s", chunks(), keep=False)
    large = BulkTensor("x", DataType.FLOAT32, (50,), Encoding.RAW, digest, len(data))
    return house.bulk.received("s", [large])


def on_disk(house):
    return len(list((house.state.directory / "spool").iterdir()))


def test_large_tensors_come_as_handles_that_are_closed_by_who_takes_them():
    taken = []

    async def scenario(house):
        task, (program,) = await asked(house, house.node("a"), assignment(), take=taken.append)
        large = await uploaded(house)
        small = {"y": np.ones(2, np.float32)}
        house.dispatcher.contribution("a", answer(program, tensors=small), lambda: large)
        await task
        (returned,) = taken
        assert isinstance(returned.tensors["x"], SpooledTensor)
        np.testing.assert_array_equal(returned.array("x"), ARRAY)
        np.testing.assert_array_equal(returned.array("y"), [1, 1])
        assert on_disk(house) == 1
        returned.close()
        assert on_disk(house) == 0

    run(scenario)


def test_nothing_of_what_is_refused_stays_on_the_disk():
    async def scenario(house):
        def take(_):
            raise InvalidTensor("no")

        box = house.node("a")
        task, (program,) = await asked(house, box, assignment(), take=take)
        for wrong in (
            {"version": 1},
            {"task_id": "1234-0.0.1"},
            {"number": 3},
            {"coverage": range(1)},
            {},  # it is refused
            {},  # late
        ):
            large = await uploaded(house)
            house.dispatcher.contribution("a", answer(program, **wrong), lambda large=large: large)
            assert on_disk(house) == 0, wrong
        assert (await task).missing
        box.programs.clear()
        task, (program,) = await asked(house, box, assignment("t"), take=take)
        fault, large = Fault("NotFound", "gone"), await uploaded(house)
        house.dispatcher.contribution("a", answer(program, error=fault), lambda: large)
        assert "gone" in (await task).missing["t"].text
        assert on_disk(house) == 0

    run(scenario)


def test_waiting_says_for_whom_and_until_when_and_ends():
    said = []

    async def scenario(house):
        wait = asyncio.create_task(house.dispatcher.all_live(["a", "b"], 60.0, said.append))
        await until(lambda: said)
        box = house.node("a")
        await until(lambda: len(said) == 2)
        box.lose()
        await until(lambda: len(said) == 3)
        house.node("b")
        box.connect()
        assert await wait
        assert not await house.dispatcher.all_live(["c"], 0.01, said.append)

    run(scenario)
    assert said[0].startswith("node 'a' (never seen), node 'b' (never seen), until ")
    assert said[1].startswith("node 'b' (never seen), until ")
    assert said[2].startswith("node 'a' (lost), node 'b' (never seen)")
    assert said[-2] == ""


def test_a_node_lost_with_its_stream_open_is_not_there():
    said = []

    async def scenario(house):
        house.node("a")
        house.membership.tick(float("inf"))
        assert not await house.dispatcher.all_live(["a"], 0.01, said.append)

    run(scenario)
    assert said[0].startswith("node 'a' (lost)")


def test_what_is_posted_needs_no_answer_and_no_node():
    async def scenario(house):
        box = house.node("a")
        house.dispatcher.post("a", (Drop(("job/x/",)),))
        house.dispatcher.post("nobody", (Drop(("job/x/",)),))
        await until(lambda: box.programs)
        await asyncio.sleep(0)
        assert house.counted("late") == 0, "nobody waits for it, and it comes in time for that"
        house.dispatcher.contribution("b", answer(box.programs[0]))
        assert house.counted("late") == 1, "it was not posted to that one"

    run(scenario)


def writing(connection):
    """What the connection has written, as it grows: on a stream that takes everything at once."""
    found = []

    async def write(data):
        found.append(to_node.decode(data))

    connection.open(write)
    return found


PROGRAM = Program("t.0.1", "s", range(1), ())


def test_control_goes_before_programs_and_programs_wait_for_credit():
    async def scenario():
        connection = NodeConnection()
        connection.send(PROGRAM)
        connection.send(Cancel("other"))
        written = writing(connection)
        assert written == [Cancel("other")]
        connection.grant(Credit(1, 1))
        assert written == [Cancel("other"), PROGRAM], "in the step that grants it, without a turn of the loop"

    asyncio.run(scenario())


def test_a_node_that_reads_no_answers_and_goes_on_sending_is_known_as_such():
    async def scenario():
        connection = NodeConnection()
        for n in range(UNREAD):
            connection.send(HeartbeatAck(n))
        connection.require_read()
        connection.send(Credit(1, 1))
        with pytest.raises(ResourceExhausted, match="read them, or send less"):
            connection.require_read()
        assert len(writing(connection)) == UNREAD + 1
        connection.require_read()

    asyncio.run(scenario())


def test_a_large_program_waits_as_it_is_and_one_that_cannot_be_sent_is_told_of():
    """The segments of an attend share one array of queries: encoded, each would have its own."""
    queries = np.zeros(40_000, np.float32)
    large = replace(PROGRAM, task_id="t.1.1", tensors={"task/q": queries})
    too_large = replace(PROGRAM, task_id="t.2.1", tensors={"task/q": np.zeros(2_000_000, np.float32)})

    async def scenario():
        told = []
        connection = NodeConnection(lambda task_id, error: told.append((task_id, type(error))))
        connection.send(too_large)
        connection.send(large)
        assert connection._programs["t.1.1"].tensors["task/q"] is queries
        written = writing(connection)
        assert written == []
        assert told == [("t.2.1", MessageTooLarge)]
        connection.grant(Credit(1_000_000, 10))
        (sent,) = written
        assert sent.task_id == "t.1.1"
        np.testing.assert_array_equal(sent.tensors["task/q"], queries)

    asyncio.run(scenario())


def test_a_program_revoked_before_it_was_sent_is_never_sent():
    async def scenario():
        connection = NodeConnection()
        connection.send(PROGRAM)
        connection.send(Cancel(PROGRAM.task_id))
        connection.grant(Credit(1000, 10))
        assert writing(connection) == []

    asyncio.run(scenario())


def test_a_draining_node_gets_nothing_new_from_append_but_finishes():
    async def scenario(house):
        box = house.node("a")
        task, (program,) = await asked(house, box, assignment())
        house.membership.heard("a", 0.0, Heartbeat(1, 0, 1, draining=True))
        house.dispatcher.changed("a")
        house.dispatcher.contribution("a", answer(program))
        return await task

    assert run(scenario).answered == {"s": "a"}


def shards(count, holders=("a",)):
    return [Assignment(f"s{n}", holders, range(n, n + 1), ()) for n in range(count)]


def test_a_node_has_so_many_tasks_of_an_exchange_at_a_time_and_another_exchange_beside_it():
    async def scenario(house):
        box = house.node("a", mute=True)
        many = asyncio.create_task(house.dispatcher.run(shards(4 * WINDOW), 5.0, lambda _: None))
        await until(lambda: len(box.programs) == WINDOW)
        await asyncio.sleep(0.01)
        assert len(box.programs) == WINDOW
        box.mute = False
        outcome = await house.dispatcher.run([assignment("other")], 5.0, lambda _: None)
        assert outcome.answered == {"other": "a"}
        assert len(box.programs) == WINDOW + 1, "it did not wait for the many"
        for program in box.programs[:WINDOW]:
            box.run(program)
        outcome = await many
        assert len(outcome.answered) == 4 * WINDOW
        assert len({program.task_id for program in box.programs}) == 4 * WINDOW + 1

    run(scenario)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_node_that_comes_back_gets_what_it_had_and_what_waited(fresh):
    async def scenario(house):
        box = house.node("a", mute=True)
        task = asyncio.create_task(house.dispatcher.run(shards(3 * WINDOW), 5.0, lambda _: None))
        await until(lambda: len(box.programs) == WINDOW)
        house.dispatcher.contribution("a", answer(box.programs[0]))
        assert len(box.programs) == WINDOW + 1
        box.disconnect()
        box.mute = False
        box.connect(fresh=fresh)
        outcome = await task
        assert len(outcome.answered) == 3 * WINDOW
        assert house.counted("folded") == 3 * WINDOW

    run(scenario)


def test_what_waits_for_a_node_that_is_lost_goes_to_another():
    async def scenario(house):
        boxes = [house.node("a", mute=True), house.node("b", mute=True)]
        task = asyncio.create_task(house.dispatcher.run(shards(3 * WINDOW, "ab"), 5.0, lambda _: None))
        await until(lambda: all(len(box.programs) == WINDOW for box in boxes))
        boxes[1].mute = False
        boxes[0].lose()
        for program in boxes[1].programs[:WINDOW]:
            boxes[1].run(program)
        outcome = await task
        assert set(outcome.answered.values()) == {"b"}
        assert len(outcome.answered) == 3 * WINDOW

    run(scenario)


def test_at_the_deadline_only_what_was_sent_is_cancelled():
    async def scenario(house):
        box = house.node("a", mute=True)
        outcome = await house.dispatcher.run(shards(2 * WINDOW), 0.1, lambda _: None)
        assert len(outcome.missing) == 2 * WINDOW
        assert {missing.kind for missing in outcome.missing.values()} == {MissingKind.LATE}
        assert sorted(box.cancelled) == sorted(program.task_id for program in box.programs)
        assert len(box.programs) == WINDOW

    run(scenario)
