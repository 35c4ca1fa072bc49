"""A call whose graph runs in a cell is waited for on the loop's own thread, for a while; then by a worker."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import signal
import socket
import threading
from hashlib import sha256

import numpy as np
import pytest
import small_graphs
from fake_aggregator import FakeAggregator

from edge_attention.core.messages.program import Append, Call, PreparedProgram, Return, Run, Slot, Stored
from edge_attention.core.tensors import DataType
from edge_attention.trust.dial import Dial
from edge_attention.wire.link import prepared_program
from edge_node import link
from edge_node.cell import calls
from edge_node.cell.messages import KEPT_BYTES, WINDOW, CellKind, Channel
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.direct import DirectCall
from edge_node.executor import LocalNode
from edge_node.link import NodeLink
from edge_node.prepared import Prepared
from edge_node.release import Releases
from edge_node.runtime import Runtime, Stop
from edge_node.short import RUNS, Short, kind_of
from edge_node.steps import ANYTHING, at_once, readable
from edge_node.store.store import Store

pytestmark = pytest.mark.e2e

DIGEST, DATA = small_graphs.doubled()
X = np.array([[1, 2], [3, 4]], np.float32)
PROGRAM = PreparedProgram(
    (Run(DIGEST, {"x": Stored("task/x")}, {"y": "job/j/y"}), Return("job/j/y", "y")),
    (Slot("task/x", DataType.FLOAT32, X.shape),),
)
BYTES = prepared_program.encode(PROGRAM)
KNOWN = sha256(BYTES).digest()


@pytest.fixture
def runtime():
    made = Runtime(limit=256 << 20, graphs=RefusedGraphs())
    made.load(DIGEST, DATA)
    yield made
    made.close()


def call(task, x=X):
    return Call(task, "s", range(1), 0, 300.0, KNOWN, x.tobytes(), "someone", BYTES)


class House:
    """A node's link in this process, and in which threads its calls took their steps."""

    def __init__(self, runtime, monkeypatch, patience):
        self.runtime, self.threads, self.waits = runtime, [], []
        self.node = LocalNode(Store(1 << 26), {}, Releases())
        whole = DirectCall.steps

        def observed(task):
            for one in whole(task):
                self.threads.append(threading.current_thread() is threading.main_thread())
                yield one

        def waited(descriptor, seconds):
            self.waits.append(descriptor)
            return readable(descriptor, 60.0) if patience or len(self.waits) > 1 else False

        monkeypatch.setattr(DirectCall, "steps", observed)
        monkeypatch.setattr(link, "readable", waited)

    @contextlib.asynccontextmanager
    async def open(self):
        aggregator = await FakeAggregator().start()
        self.link = NodeLink(Dial(f"127.0.0.1:{aggregator.port}"), "n", self.node, self.runtime)
        learn = Short.took.__get__(self.link._short)
        # A busy machine must not make the test's short runs long.
        self.link._short.took = lambda kind, seconds, now, on_loop: learn(
            kind, seconds if math.isinf(seconds) else 0.0, now - 1.0, on_loop
        )
        running = asyncio.create_task(self.link.run())
        try:
            await aggregator.until(self.link.registered)
            yield aggregator
        finally:
            self.link.drain()
            self.link.drain()
            await running
            await aggregator.stop()


def scenario(house, calls):
    async def run():
        async with asyncio.timeout(120), house.open() as aggregator:
            for number in range(calls):
                house.threads.append(number)
                x = X + number
                (last,) = await aggregator.run(call(f"t{number}", x))
                # It is over behind its answer, and beside one that is not none runs on the loop.
                await aggregator.until(lambda: not house.link._stops)
                assert last.error is None
                assert np.array_equal(last.tensors["y"], 2 * x)

    asyncio.run(run())
    turns, found = [], house.threads
    for number in range(calls):
        begin = found.index(number) if number else 0
        end = found.index(number + 1, begin + 1) if number + 1 < calls else len(found)
        turns.append([one for one in found[begin:end] if isinstance(one, bool)])
    return turns


def test_a_call_of_anothers_graph_is_waited_for_where_its_message_arrives(runtime, monkeypatch):
    house = House(runtime, monkeypatch, patience=True)
    turns = scenario(house, RUNS + 3)
    # Before it is known to be short, and as its cell starts and loads it, it is a worker's.
    assert all(not any(turn) for turn in turns[:RUNS])
    assert all(all(turn) for turn in turns[-3:])
    assert len(house.waits) == 3
    assert ANYTHING not in house.waits


def test_one_that_takes_longer_is_a_workers_from_there_on(runtime, monkeypatch):
    house = House(runtime, monkeypatch, patience=False)
    turns = scenario(house, 2 * RUNS + 2)
    assert turns[RUNS][0] is True
    assert turns[RUNS][-1] is False
    # And it is to be learned anew; which it is.
    assert not any(turns[RUNS + 1])
    assert all(turns[-1])


def test_steps_given_up_amid_a_run_end_the_process_and_the_next_has_its_own_answer(runtime):
    graph = runtime.cached(DIGEST)
    assert np.array_equal(graph.run({"x": X}, ["y"], Stop())[0], 2 * X)
    cell = runtime.cells.public
    pid, running = cell.pid, graph.steps({"x": X + 7}, ["y"], Stop())
    assert readable(next(running), 60.0)  # the answer that nobody takes is there
    running.close()
    assert np.array_equal(graph.run({"x": X}, ["y"], Stop())[0], 2 * X)
    assert cell.pid != pid


def test_an_answer_there_was_no_memory_to_read_is_not_the_next_run_s(runtime, monkeypatch):
    graph = runtime.cached(DIGEST)
    graph.run({"x": X}, ["y"], Stop())
    running = graph.steps({"x": X + 7}, ["y"], Stop())
    assert readable(next(running), 60.0)

    def full(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "take", full)
        with pytest.raises(MemoryError):
            at_once(running)
    assert np.array_equal(graph.run({"x": X}, ["y"], Stop())[0], 2 * X)


def test_an_answer_that_could_not_be_taken_is_nobody_s_while_its_process_is_still_there(runtime, monkeypatch):
    graph = runtime.cached(DIGEST)
    graph.run({"x": X}, ["y"], Stop())
    process = runtime.cells.public._process
    running = graph.steps({"x": X + 7}, ["y"], Stop())
    assert readable(next(running), 60.0)
    os.kill(process.pid, signal.SIGSTOP)  # what it was asked next it would write over that answer

    def no_room(*_):
        raise OSError(errno.ENOBUFS, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "take", no_room)
        assert next(running) == ANYTHING
    monkeypatch.setattr(process, "end_if_it_lives", lambda: None)  # it takes its time
    running.close()
    assert np.array_equal(graph.run({"x": X}, ["y"], Stop())[0], 2 * X)


def test_steps_given_up_end_no_other_process_than_the_one_they_ran_in(runtime):
    graph = runtime.cached(DIGEST)
    graph.run({"x": X}, ["y"], Stop())
    cell = runtime.cells.public
    pid, running = cell.pid, graph.steps({"x": X + 7}, ["y"], Stop())
    next(running)
    os.kill(pid, signal.SIGKILL)
    with cell._changed:
        assert cell._changed.wait_for(lambda: cell._grants, 60.0)  # its turn in the next one
    running.close()
    pid = cell.pid
    assert np.array_equal(graph.run({"x": X}, ["y"], Stop())[0], 2 * X)
    assert cell.pid == pid


def test_no_lane_is_granted_between_a_process_s_end_and_that_it_is_known(runtime, monkeypatch):
    graph = runtime.cached(DIGEST)
    graph.run({"x": X}, ["y"], Stop())
    cell = runtime.cells.public
    known, free, tell = threading.Event(), [], cell._tell

    def asks():
        free.append(cell._lock.acquire(blocking=False))
        if free[0]:
            cell._lock.release()

    def observed(event, *said):
        if event == cell._state.died:
            other = threading.Thread(target=asks)
            other.start(), other.join()
            known.set()
        tell(event, *said)

    monkeypatch.setattr(cell, "_tell", observed)
    os.kill(cell.pid, signal.SIGKILL)
    assert known.wait(60.0)
    assert free == [False]


def test_to_see_a_cell_end_that_has_hung_up_is_a_wait_of_its_own(runtime, monkeypatch):
    graph = runtime.cached(DIGEST)
    graph.run({"x": X}, ["y"], Stop())
    process, seen = runtime.cells.public._process, []
    end = process.end_if_it_lives

    def hung_up(*_):
        raise BrokenPipeError

    monkeypatch.setattr(process, "end_if_it_lives", lambda: seen.append(end()))
    for lane in process.lanes:
        monkeypatch.setattr(lane, "send", hung_up)
    running = graph.steps({"x": X}, ["y"], Stop())
    assert next(running) == ANYTHING
    assert not seen
    assert np.array_equal(at_once(running)[0], 2 * X)
    assert seen


def test_what_a_cell_says_at_length_is_read_in_a_step_of_its_own():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    windows = [np.zeros(WINDOW, np.uint8) for _ in range(2)]
    cell, node = Channel(theirs, *windows), Channel(ours, *reversed(windows))
    for letters, waits in ((10, [node.descriptor]), (KEPT_BYTES, [node.descriptor, ANYTHING])):
        cell.send(CellKind.DONE, {"out": "x" * letters})
        assert list(calls._answered(node, Stop())) == waits
    ours.close(), theirs.close()


def test_what_runs_there_says_before_it_waits(runtime):
    """Of a cell that is not there, and of one that is."""
    graph = runtime.cached(DIGEST)
    waits = list(graph.steps({"x": X}, ["y"], Stop()))
    assert waits[:-1] == [ANYTHING] * (len(waits) - 1)
    assert len(waits) > 1
    (own,) = list(graph.steps({"x": X}, ["y"], Stop()))
    assert own == waits[-1] != ANYTHING
    assert np.array_equal(at_once(graph.steps({"x": X}, ["y"], Stop()))[0], 2 * X)


def test_a_wait_has_an_end():
    inward, outward = os.pipe()
    assert not readable(inward, 0.001)
    os.write(outward, b"x")
    assert readable(inward, 60.0)
    os.read(inward, 1)
    os.close(outward)
    assert readable(inward, 60.0)  # it has ended
    os.close(inward)


def test_kinds_of_those_that_wait_in_steps(runtime):
    store = Store(1 << 20)
    graphs = {DIGEST: runtime.cached(DIGEST)}

    def kind(*instructions, whole=store.extent):
        prepared = Prepared(b"d", PreparedProgram(instructions, PROGRAM.slots), 1)
        return kind_of(prepared.called(call("t")), graphs, store.layout, whole)

    run, back = PROGRAM.instructions
    assert kind(run, back) is not None
    assert kind(run, back, whole=None) is None
    grows = Append("job/j/k", Stored("task/x"), tile=4, place="task/at")
    reads = Run(DIGEST, {"x": Stored("job/j/k")}, {"y": "task/y"})
    assert kind(grows, reads) is None  # nobody knows how much that is
    sizes = []
    for tokens in (1, 3, 5, 40):
        store.append("job/j/k", np.zeros((tokens, 1, 2), np.float32), 0, 4)
        sizes.append(kind(grows, reads))
    assert sizes[0] == sizes[1] != sizes[2] != sizes[3]
    assert kind(Run(DIGEST, {"x": Stored("task/x")}, {"y": "context/c/y"})) is None
