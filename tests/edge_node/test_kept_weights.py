"""Large tensors that are kept, as the real `edge-node` has them: over kills, in a cell, not sent twice."""

from __future__ import annotations

import asyncio
import os
import signal
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import small_graphs
from fake_aggregator import FakeAggregator
from onnx import helper
from test_node_process import children_of, node

from edge_attention.core.messages.link import Cancel
from edge_attention.core.messages.program import (
    BulkTensor,
    Call,
    Frozen,
    PreparedProgram,
    Program,
    Return,
    Run,
    Slot,
    Stored,
)
from edge_attention.core.tensors import DataType, Encoding
from edge_attention.wire.link import prepared_program
from edge_node.cell.cells import LANES
from edge_node.crew import WORKERS

pytestmark = pytest.mark.e2e

SIZE, COUNT = 400, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, SIZE), np.float32)
WEIGHTS = [RNG.standard_normal((SIZE, SIZE), np.float32) / SIZE**0.5 for _ in range(COUNT)]
DIGESTS = [sha256(w.tobytes()).hexdigest() for w in WEIGHTS]
NAMES = [f"job/m/kept/w/{n}" for n in range(COUNT)]


def chain():
    """y = x w0 w1 ... ."""
    square = ["n", "n"]
    nodes = [helper.make_node("MatMul", [f"h{n}", f"w{n}"], [f"h{n + 1}"]) for n in range(COUNT)]
    inputs = [small_graphs.value("h0", small_graphs.FLOAT, ["t", "n"])]
    inputs += [small_graphs.value(f"w{n}", small_graphs.FLOAT, square) for n in range(COUNT)]
    outputs = [small_graphs.value(f"h{COUNT}", small_graphs.FLOAT, ["t", "n"])]
    return small_graphs.named(small_graphs.model(nodes, inputs, outputs))


GRAPH, DATA = chain()
FILES = {GRAPH: DATA, **{d: w.tobytes() for d, w in zip(DIGESTS, WEIGHTS, strict=True)}}


def weights(task):
    """Has the node store all of them."""
    bulk = [
        BulkTensor(name, DataType.FLOAT32, w.shape, Encoding.RAW, digest, w.nbytes)
        for name, w, digest in zip(NAMES, WEIGHTS, DIGESTS, strict=True)
    ]
    return Program(task, "", range(0), (), bulk_tensors=tuple(bulk))


def product(task):
    inputs = {"h0": Stored("task/x"), **{f"w{n}": Stored(name) for n, name in enumerate(NAMES)}}
    program = PreparedProgram(
        (Run(GRAPH, inputs, {f"h{COUNT}": "task/y"}), Return("task/y", "y")),
        (Slot("task/x", DataType.FLOAT32, X.shape),),
        tuple(map(Frozen, NAMES, DIGESTS)),
    )
    data = prepared_program.encode(program)
    return Call(task, "", range(0), 0, None, sha256(data).digest(), X.tobytes(), "", data)


class Sends(FakeAggregator):
    """Notes what is downloaded; `stuck_at`: of that many files the next one never ends."""

    def __init__(self):
        super().__init__(FILES)
        self.sent, self.stuck_at = [], COUNT + 1

    async def _download(self, request, context):
        self.sent.append(request.digest)
        count = 0
        async for chunk in super()._download(request, context):
            count += 1
            if len(self.sent) > self.stuck_at and count > 2:
                await asyncio.sleep(60)
            yield chunk


async def lives(folder, *scenarios):
    """What each of `scenarios` gives, which have one life of a node each: it is killed at their ends."""
    found = []
    for scenario in scenarios:
        aggregator = await Sends().start()
        process = node(aggregator.port, "--store", str(folder), "--memory-limit", "6MB")
        try:
            await aggregator.until(lambda a=aggregator: a._outgoing is not None)
            found.append(await scenario(aggregator, process))
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
            await aggregator.stop()
    return found


async def run(aggregator, *asked):
    answers = [(await aggregator.run(one))[-1] for one in asked]
    assert [answer.error for answer in answers] == [None] * len(asked)
    return answers[-1]


def test_what_is_kept_is_not_sent_again_and_gives_the_same_bits(tmp_path):
    """Also once the cell has been killed, and with the node."""

    async def first(aggregator, process):
        before = (await run(aggregator, weights("a"), product("b"))).tensors["y"]
        for cell in children_of(process.pid):
            os.kill(int(cell), signal.SIGKILL)
        after = (await run(aggregator, product("c"))).tensors["y"]
        return before, after, aggregator.sent

    async def second(aggregator, process):
        answer = await run(aggregator, weights("a"), product("b"))
        await aggregator.until(lambda: len(aggregator.heartbeats) > 2)
        return answer.tensors["y"], aggregator.sent, aggregator.heartbeats[-1].memory

    (before, after, sent), (later, again, memory) = asyncio.run(lives(tmp_path, first, second))
    expected = X
    for w in WEIGHTS:
        expected = expected @ w
    np.testing.assert_allclose(before, expected, atol=1e-5)
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(later, before)
    assert sorted(sent) == sorted(FILES)
    assert again == [GRAPH]
    taken = sum(w.nbytes for w in WEIGHTS)
    assert memory < 1.5 * taken, "as they are packed, and no more"


def names_of_threads(pid):
    return [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/comm")]


def test_many_calls_at_a_time_are_all_answered_by_so_many_threads(tmp_path):
    """More than a cell has lanes, of a session that they share, beside a graph that does not end."""
    digest, graph = small_graphs.endless()
    endless = Program("e", "", range(0), (Run(digest, {"x": np.ones(1, np.float32)}, {"y": "task/y"}),))

    async def scenario(aggregator, process):
        aggregator.files[digest] = graph
        await run(aggregator, weights("a"), product("b"))
        aggregator.send(endless)
        aggregator.send(*(product(f"c{n}") for n in range(40)))
        await aggregator.until(lambda: sum(c.final for c in aggregator.contributions) >= 42, seconds=60)
        threads = names_of_threads(process.pid)
        (cell,) = children_of(process.pid)
        lanes = len(os.listdir(f"/proc/{cell}/task"))
        aggregator.send(Cancel("e"))
        (cancelled,) = await aggregator.result("e")
        return aggregator.contributions[2:-1], threads, lanes, cancelled

    ((answers, threads, lanes, cancelled),) = asyncio.run(lives(tmp_path, scenario))
    assert {answer.task_id for answer in answers} == {f"c{n}" for n in range(40)}
    assert len({answer.tensors["y"].tobytes() for answer in answers}) == 1
    assert sum(name.startswith("task_") for name in threads) <= WORKERS
    assert lanes < LANES + 8, "its lanes, and what ONNX Runtime and NumPy have"
    assert cancelled.error.name == "Cancelled"


@pytest.mark.parametrize("stuck_at", [0, 3])
def test_a_node_that_is_killed_while_weights_arrive_is_sent_what_it_lacks(tmp_path, stuck_at):
    async def first(aggregator, process):
        aggregator.stuck_at = stuck_at
        for n in range(stuck_at):
            one = weights(f"a{n}")
            await run(
                aggregator, Program(one.task_id, "", range(0), (), bulk_tensors=one.bulk_tensors[n : n + 1])
            )
        aggregator.send(weights("a"))
        await aggregator.until(lambda: len(aggregator.sent) > stuck_at)
        await asyncio.sleep(0.1)

    async def second(aggregator, process):
        return (await run(aggregator, weights("a"), product("b"))).tensors["y"], aggregator.sent

    _, (y, sent) = asyncio.run(lives(tmp_path, first, second))
    assert sorted(sent) == sorted([*DIGESTS[stuck_at:], GRAPH])
    expected = X
    for w in WEIGHTS:
        expected = expected @ w
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_what_the_disk_has_damaged_is_asked_for_again(tmp_path):
    async def first(aggregator, process):
        await run(aggregator, weights("a"))

    async def second(aggregator, process):
        (damaged,) = await aggregator.run(product("b"))
        answer = await run(aggregator, weights("c"), product("d"))
        return damaged.error, aggregator.sent, answer.tensors["y"]

    asyncio.run(lives(tmp_path, first))
    for path in (tmp_path / "kept").iterdir():
        data = bytearray(path.read_bytes())
        if NAMES[2].encode() in data[:4096]:
            data[-1] ^= 1
            path.write_bytes(data)
    ((error, sent, y),) = asyncio.run(lives(tmp_path, second))
    assert error.name == "NotFound"
    assert "job/m/kept/w/2 was damaged on this node's disk and is dropped: store it again" in error.message
    assert sorted(sent) == sorted([DIGESTS[2], GRAPH])
    assert y.shape == X.shape
