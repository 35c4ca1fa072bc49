"""Short programs run on the loop's own thread; what must not, or has become long, runs in a worker."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small_graphs
from fake_aggregator import FakeAggregator

from edge_attention.core.messages.link import Cancel
from edge_attention.core.messages.program import Append, BulkTensor, Drop, Program, Return, Run, Stored
from edge_attention.core.tensors import DataType, Encoding
from edge_attention.trust.dial import Dial
from edge_node import link
from edge_node.data import datasets
from edge_node.direct import BoundRun
from edge_node.executor import LocalNode
from edge_node.link import BACKLOG, NodeLink
from edge_node.release import Releases
from edge_node.runtime import Graph, Runtime
from edge_node.short import IDLE_PART, RUNS, SHORT_SECONDS, Short, kind_of
from edge_node.store.store import Held, Origin, Store
from edge_node.transfers import INLINE

DIGEST, DATA = small_graphs.doubled()
X = np.array([[1, 2], [3, 4]], np.float32)
RUN = Run(DIGEST, {"x": Stored("task/x")}, {"y": "task/y"})


def program(task="t", *instructions, **fields):
    fields = {"tensors": {"task/x": X}, **fields}
    return Program(task, "s", range(3), instructions or (RUN, Return("task/y", "y")), **fields)


# What is decided


def learned(short, kind="k", seconds=SHORT_SECONDS, now=0.0, runs=RUNS):
    for _ in range(runs):
        short.took(kind, seconds, now, on_loop=False)
    return short


def test_a_kind_is_short_after_so_many_runs_that_were():
    assert not Short().may("k", 0.0)
    assert not learned(Short(), runs=RUNS - 1).may("k", 0.0)
    assert learned(Short()).may("k", 0.0)
    assert not learned(Short()).may("another", 0.0)
    assert not learned(Short(), kind=None).may(None, 0.0)


@pytest.mark.parametrize("on_loop", [False, True])
def test_one_long_run_and_it_is_learned_anew(on_loop):
    short = learned(Short())
    short.took("k", 1.01 * SHORT_SECONDS, 0.0, on_loop)
    assert not short.may("k", 100.0)
    assert not learned(short, runs=RUNS - 1).may("k", 100.0)
    assert learned(short, runs=1).may("k", 100.0)


def test_after_a_task_the_loop_is_everybodys_for_a_while():
    short = learned(Short())
    short.took("k", 0.001, 5.0, on_loop=True)
    assert not short.may("k", 5.0 + 0.9 * IDLE_PART * 0.001)
    assert short.may("k", 5.0 + 1.1 * IDLE_PART * 0.001)


def test_after_one_that_a_worker_went_on_with_the_loop_takes_others():
    short = learned(learned(Short()), kind="another")
    short.took("k", math.inf, 5.0, on_loop=True)
    assert not short.may("another", 5.0)
    assert short.may("another", 5.0 + IDLE_PART * SHORT_SECONDS)
    assert not short.may("k", 6.0)
    assert learned(short).may("k", 6.0)


def test_what_is_remembered_has_a_bound():
    short = Short()
    for n in range(10_000):
        short.took(n, 0.0, 0.0, on_loop=False)
    assert len(short._runs) <= 256


OURS = {DIGEST: SimpleNamespace(ours=True, digest=DIGEST)}


def kind(given, graphs=OURS, layout=lambda name: (1, 512, 64)):
    return kind_of(given, graphs, layout)


def over(tiles, **fields):
    run = Run(DIGEST, {"x": Stored("task/x"), "k": Stored("context/1/k", tiles)}, {"y": "task/y"})
    return program("t", run, Return("task/y", "y"), **fields)


def test_programs_of_a_kind_take_about_as_long():
    assert kind(program()) == kind(program("another"))
    assert kind(over(range(4, 8))) == kind(over(range(1, 6)))
    assert kind(over(range(4))) != kind(over(range(8)))
    assert kind(over(range(4))) != kind(program())
    assert kind(program()) != kind(program(tensors={"task/x": np.ones((50, 2), np.float32)}))


def test_what_is_as_large_in_another_shape_is_another_kind():
    """Of a small context of 16 dimensions nobody learns how long one of 16,384 takes."""
    few, many = np.ones((1, 4096), np.float32), np.ones((4096, 1), np.float32)
    assert kind(program(tensors={"task/x": few})) != kind(program(tensors={"task/x": many}))
    small = kind(over(range(4)))
    assert small == kind(over(range(4)), layout=lambda name: (1, 512, 127))
    for larger in ((1, 512, 16_384), (64, 512, 64), (1, 4096, 64)):
        assert small != kind(over(range(4)), layout=lambda name, larger=larger: larger)
    inline = [replace(RUN, inputs={"x": np.ones((n, 2), np.float32)}) for n in (4, 7, 4000)]
    kinds = [kind(program("t", run)) for run in inline]
    assert kinds[0] == kinds[1] != kinds[2]


def test_what_never_runs_on_the_loop():
    assert kind(program(), {DIGEST: SimpleNamespace(ours=False, digest=DIGEST)}) is None
    assert kind(over(range(4)), layout=lambda name: None) is None
    assert kind(over(None)) is None  # nobody knows how much that is
    assert kind(program("t", RUN, Append("context/1/k", Stored("task/y")))) is None
    assert kind(program("t", RUN, Drop(("context/1/",)))) is None
    assert kind(program("t", replace(RUN, outputs={"y": "job/1/y"}))) is None
    assert kind(program("t", RUN, Return("context/1/k", "k"))) is None  # it is copied, and may be large
    assert kind(program(tensors={"task/x": X, "job/1/kept/x": X})) is None  # that goes to the disk
    bulk = BulkTensor("task/z", DataType.FLOAT32, (1,), Encoding.RAW, "ab" * 32, 4)
    assert kind(program(bulk_tensors=(bulk,))) is None


def test_a_program_that_freezes_something_private_never_does():
    session = SimpleNamespace(ours=True, digest="another")
    bound = BoundRun(DIGEST, {"x": Stored("task/x")}, {"y": "task/y"}, session, {"w": Held(X)})
    assert kind(program("t", bound), {}) not in (None, kind(program()))
    private = {"v": Held(X, Origin("", "column x"))}
    assert kind(program("t", replace(bound, given=private)), {}) is None


def test_only_of_what_is_public_the_layout_is_told():
    store = Store(1 << 20)
    store.put("job/1/a", X)
    store.put("job/1/b", X, Origin("", "column x"))
    store.append("context/1/k", np.zeros((2, 1, 2), np.float32), None, 4)
    store.append("context/1/v", np.zeros((2, 1, 2), np.float32), None, 4, Origin("", "column x"))
    names = ("job/1/a", "job/1/b", "job/1/c", "context/1/k", "context/1/v")
    assert [store.layout(name) for name in names] == [(2, 2), None, None, (1, 4, 2), None]


# What is done


class House:
    """A node's link in this process and loop, against a fake aggregator, and where its graph ran."""

    def __init__(self, monkeypatch, datasets=None):
        self.threads, self.takes = [], 0.0
        self.meanwhile = lambda: None
        self.runtime, self.store = Runtime(), Store(1 << 26)
        self.runtime._keep(self.runtime._open(DIGEST, DATA, ours=True))
        self.node = LocalNode(self.store, datasets or {}, Releases())
        run = Graph.run

        def observed(graph, *args):
            self.threads.append(threading.current_thread() is threading.main_thread())
            self.meanwhile()
            time.sleep(self.takes)
            return run(graph, *args)

        monkeypatch.setattr(Graph, "run", observed)

    @contextlib.asynccontextmanager
    async def open(self):
        self.aggregator = await FakeAggregator().start()
        self.link = NodeLink(Dial(f"127.0.0.1:{self.aggregator.port}"), "n", self.node, self.runtime)
        # A busy machine must not make the test's short runs long.
        self.link._short.took = self.took
        self.learn = Short.took.__get__(self.link._short)
        run = self.aggregator.run

        async def over(task):
            """It is over behind its answer, and beside one that is not none runs on the loop."""
            found = await run(task)
            await self.aggregator.until(lambda: task.task_id not in self.link._stops)
            return found

        self.aggregator.run = over
        running = asyncio.create_task(self.link.run())
        try:
            await self.aggregator.until(self.link.registered)
            yield self.aggregator
        finally:
            self.link.drain()
            self.link.drain()
            await running
            await self.aggregator.stop()

    def took(self, kind, seconds, now, on_loop):
        self.learn(kind, seconds if seconds > 0.05 else 0.0, now, on_loop)

    async def short(self):
        for n in range(RUNS):
            await self.aggregator.run(program(f"first-{n}"))
        self.threads.clear()


def scenario(house, body):
    async def run():
        async with asyncio.timeout(180), house.open() as aggregator:
            await body(aggregator)

    asyncio.run(run())


def of(aggregator, task):
    return [c for c in aggregator.contributions if c.task_id == task]


def right(contributions):
    (last,) = contributions
    assert last.final
    assert last.error is None
    assert np.array_equal(last.tensors["y"], X + X)


def test_a_short_program_runs_where_its_message_arrives(monkeypatch):
    house = House(monkeypatch)

    async def body(aggregator):
        for n in range(RUNS + 3):
            right(await aggregator.run(program(f"t{n}")))
        assert house.threads == [False] * RUNS + [True] * 3
        assert house.store.used == 0
        # The same task again has no further effect, and the same answer.
        aggregator.send(program(f"t{RUNS}"))
        await aggregator.until(lambda: len(of(aggregator, f"t{RUNS}")) == 2)
        right(of(aggregator, f"t{RUNS}")[1:])
        assert len(house.threads) == RUNS + 3

    scenario(house, body)


def test_a_program_that_has_become_long_holds_the_loop_once(monkeypatch):
    house = House(monkeypatch)

    async def body(aggregator):
        await house.short()
        house.takes = 0.1
        for n in range(3):
            right(await aggregator.run(program(f"long-{n}")))
        house.takes = 0.0
        for n in range(RUNS + 1):
            right(await aggregator.run(program(f"short-{n}")))
        assert house.threads == [True, False, False, *[False] * RUNS, True]

    scenario(house, body)


def test_a_cancel_that_comes_while_it_runs_finds_it_done(monkeypatch):
    house = House(monkeypatch)

    async def body(aggregator):
        await house.short()
        house.meanwhile = lambda: aggregator.send(Cancel("t"))
        right(await aggregator.run(program("t")))
        house.meanwhile = lambda: None
        right(await aggregator.run(program("t2")))
        assert len(of(aggregator, "t")) == 1
        assert house.link._stops == {}

    scenario(house, body)


def test_a_cancel_before_its_end_ends_one_in_a_worker(monkeypatch):
    house = House(monkeypatch)
    free = threading.Event()

    async def body(aggregator):
        house.meanwhile = lambda: free.wait(180)
        aggregator.send(program("t"))
        await aggregator.until(lambda: house.threads == [False])
        aggregator.send(Cancel("t"))
        await aggregator.until(lambda: house.link._stops["t"].error is not None)
        free.set()
        (last,) = await aggregator.result("t")
        assert last.error.name == "Cancelled"

    scenario(house, body)


def test_heartbeats_go_on_while_short_programs_follow_each_other(monkeypatch):
    house = House(monkeypatch)

    async def body(aggregator):
        await house.short()
        before, n = len(aggregator.heartbeats), 0
        while len(aggregator.heartbeats) < before + 3:
            aggregator.send(*(program(f"t{n}-{m}") for m in range(20)))
            await aggregator.result(f"t{n}-19")
            n += 1
        assert sum(house.threads) > 0

    scenario(house, body)


def test_beside_another_task_it_runs_in_a_worker(monkeypatch):
    house = House(monkeypatch)
    free = threading.Event()

    async def body(aggregator):
        await house.short()
        house.meanwhile = lambda: free.wait(180) if len(house.threads) == 1 else None
        aggregator.send(program("slow", RUN, RUN, Return("task/y", "y")))
        await aggregator.until(lambda: house.threads == [False])
        right(await aggregator.run(program("t")))
        free.set()
        right(await aggregator.result("slow"))
        assert house.threads[:2] == [False, False]

    scenario(house, body)


@pytest.mark.parametrize("deadline", [0.0, SHORT_SECONDS])
def test_with_no_time_to_spare_it_runs_in_a_worker(monkeypatch, deadline):
    house = House(monkeypatch)

    async def body(aggregator):
        await house.short()
        await aggregator.run(program("t", deadline_seconds=deadline))
        assert True not in house.threads
        right(await aggregator.run(program("t2", deadline_seconds=30.0)))
        assert house.threads[-1]

    scenario(house, body)


def test_on_a_node_with_datasets_nothing_does(monkeypatch, tmp_path):
    np.savez(tmp_path / "d.npz", x=X)
    dataset = datasets.read(f"d={tmp_path / 'd.npz'}")
    house = House(monkeypatch, {"d": dataset})

    async def body(aggregator):
        for n in range(2 * RUNS):
            right(await aggregator.run(program(f"t{n}")))
        assert house.threads == [False] * 2 * RUNS

    scenario(house, body)


def test_an_answer_that_has_to_be_uploaded_is_handed_to_a_worker(monkeypatch):
    house = House(monkeypatch)
    large = np.ones((INLINE // 8 + 1, 2), np.float32)

    async def body(aggregator):
        again = program("t", tensors={"task/x": large})
        kind = kind_of(again, OURS, house.store.layout)
        for _ in range(RUNS):
            house.learn(kind, 0.0, 0.0, False)
        (last,) = await aggregator.run(again)
        assert house.threads == [True]
        (bulk,) = last.bulk_tensors
        assert bytes(aggregator.uploads[bulk.digest]) == (large + large).tobytes()
        assert not house.link._short.may(kind, 1e9)

    scenario(house, body)


def test_while_answers_wait_for_credit_it_is_handed_to_a_worker(monkeypatch):
    house = House(monkeypatch)

    async def body(aggregator):
        await house.short()
        monkeypatch.setattr(link, "BACKLOG", -1)  # nothing that waits is too much already
        aggregator.send(program("t"))
        await aggregator.until(lambda: house.threads == [True])
        await aggregator.until(lambda: house.link._session.tasks == 1)
        monkeypatch.setattr(link, "BACKLOG", BACKLOG)
        right(await aggregator.result("t"))

    scenario(house, body)


def test_a_failure_on_the_loop_is_an_answer(monkeypatch):
    house = House(monkeypatch)

    async def body(aggregator):
        await house.short()

        def fall():
            raise RuntimeError("it fell")

        house.meanwhile = fall
        (last,) = await aggregator.run(program("t"))
        assert (last.error.name, house.threads) == ("Internal", [True])
        house.meanwhile = lambda: None
        right(await aggregator.run(program("t2")))

    scenario(house, body)
