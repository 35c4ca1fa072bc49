"""Simulated nodes that share a process: one that fails is gone until another takes its name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import edge_node.link
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition, Unavailable
from edge_attention.tables.table import Table
from edge_attention.trust.dial import Dial
from edge_node.crew import Threads
from edge_node.executor import LocalNode
from edge_node.here import Here
from edge_node.link import NodeLink
from edge_node.many import ManyNodes, SimulatedNode, _Brief, _Crew, _machine
from edge_node.release import Releases
from edge_node.runtime import Runtime
from edge_node.store.store import Store


class Counted(Dial):
    """Reaches nobody, and says how often it was to."""

    def __init__(self):
        super().__init__("127.0.0.1:1")
        self.opened = 0
        self.dialled = asyncio.Event()

    def open_caller(self):
        self.opened += 1
        self.dialled.set()
        raise ConnectionRefusedError("nobody is there")


def link(dial):
    return NodeLink(dial, "n", LocalNode(Store(1 << 20), {}, Releases()), Runtime())


def test_a_node_that_was_vanished_does_not_dial_again(monkeypatch):
    monkeypatch.setattr(edge_node.link.random, "random", lambda: 0.0)  # at once, that is

    async def scenario():
        dial = Counted()
        one = link(dial)
        life = asyncio.create_task(one.run())
        await dial.dialled.wait()
        one.vanish()
        assert await life == (1, "")
        before = dial.opened
        for _ in range(200):
            await asyncio.sleep(0)
        assert dial.opened == before

    asyncio.run(scenario())


def test_one_that_is_vanished_before_it_begins_does_not_begin():
    async def scenario():
        dial = Counted()
        one = link(dial)
        one.vanish()
        assert await one.run() == (1, "")
        assert not dial.opened

    asyncio.run(scenario())


class DoorOfOne:
    """An aggregator that says what came, and ends as it is told."""

    def __init__(self, error=None):
        self.came = []
        self.error = error
        self.first = asyncio.Event()

    async def connect(self, requests, context):
        async for data in requests:
            self.came.append(data)
            self.first.set()
            if self.error is not None:
                raise self.error
            await context.write(b"answer to " + data)


async def _spoken(door, *messages):
    """What a node that says `messages` is answered, to the end of its stream."""
    line = Here(door).open_caller()
    stream = line.duplex(None)
    waiting = list(messages)
    writer = stream.writer(lambda: waiting.pop(0) if waiting else None, lambda size: None)
    writer.kick()
    await stream.done_writing()
    answers = [data async for data in stream]
    await line.close()
    return answers


def test_in_one_process_messages_go_both_ways_in_order_and_the_stream_ends():
    door = DoorOfOne()
    assert asyncio.run(_spoken(door, b"1", b"2")) == [b"answer to 1", b"answer to 2"]
    assert door.came == [b"1", b"2"]


@pytest.mark.parametrize("error", [FailedPrecondition("not so"), Unavailable("gone")])
def test_in_one_process_a_node_hears_why_its_stream_ended(error):
    with pytest.raises(type(error), match=error.message):
        asyncio.run(_spoken(DoorOfOne(error), b"1"))


def test_what_fails_in_the_aggregator_is_an_error_of_the_catalogue():
    with pytest.raises(EdgeAttentionError, match="ZeroDivisionError"):
        asyncio.run(_spoken(DoorOfOne(ZeroDivisionError()), b"1"))


def test_a_line_that_is_closed_ends_the_aggregators_side_too():
    async def scenario():
        door = DoorOfOne()
        line = Here(door).open_caller()
        stream = line.duplex(None)
        said = [b"1"]
        stream.writer(lambda: said.pop() if said else None, lambda size: None).kick()
        await door.first.wait()
        await line.close()
        with pytest.raises(EdgeAttentionError, match="closed"):
            _ = [data async for data in stream]
        assert not stream.open

    asyncio.run(scenario())


def test_messages_put_in_by_threads_all_come():
    async def scenario():
        door = DoorOfOne()
        stream = Here(door).open_caller().duplex(None)
        await asyncio.gather(
            *(asyncio.to_thread(stream._up.put, str(number).encode()) for number in range(200))
        )
        await stream.done_writing()
        answers = [data async for data in stream]
        assert sorted(answers) == sorted(f"answer to {number}".encode() for number in range(200))

    asyncio.run(scenario())


def test_of_a_slow_node_what_is_done_leaves_later_and_no_thread_waits_for_it(monkeypatch):
    async def scenario():
        threads = Threads(1)
        slow, quick = _Crew(threads, 1, 3.0), _Crew(threads, 1, 1.0)
        clock = iter([100.0, 110.0])
        monkeypatch.setattr("edge_node.many.time", SimpleNamespace(monotonic=lambda: next(clock)))
        running, later = asyncio.get_running_loop(), []
        monkeypatch.setattr(running, "call_later", lambda seconds, call: later.append((seconds, call)))
        left, done = [], asyncio.Event()
        slow.put(lambda: lambda: left.append("slow"), 1)
        quick.put(lambda: lambda: running.call_soon_threadsafe(done.set), 1)
        await done.wait()
        await asyncio.sleep(0)
        threads.close()
        [(seconds, leave)] = later
        assert seconds == 20.0  # twice what it took, above that
        assert not left
        leave()
        assert left == ["slow"]

    asyncio.run(scenario())


def test_a_program_runs_on_the_loop_once_it_was_short_and_no_more_when_it_was_not():
    brief = _Brief()
    assert not brief.may("kind", 0.0)
    brief.took("kind", 0.0001, 0.0, on_loop=False)
    assert brief.may("kind", 0.0)
    brief.took("kind", 1.0, 0.0, on_loop=True)
    assert not brief.may("kind", 0.0)
    brief.took(None, 0.0001, 0.0, on_loop=False)
    assert not brief.may(None, 0.0)


def test_one_that_comes_later_tells_the_time_though_the_machine_was_looked_at_before(monkeypatch):
    first = _machine(None)
    later = first.time_seconds + 3600
    monkeypatch.setattr("edge_node.many.time", SimpleNamespace(time=lambda: later))
    assert _machine(None) == replace(first, time_seconds=later)


def test_all_leave_at_once_those_that_have_not_come_too():
    async def scenario():
        nodes = [SimulatedNode("now", {}), SimulatedNode("late", {}, after=1e6)]
        dial = Counted()
        many = ManyNodes(nodes, lambda: dial, {"rows": Table({"x": np.zeros(2, np.float32)})}, Runtime())
        life = asyncio.create_task(many.run())
        await dial.dialled.wait()
        many.leave()
        await life

    asyncio.run(scenario())
