"""Calls of prepared programs to the real `edge-node`: unknown, exactly once, stopped, frozen, private."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import small_graphs
from fake_aggregator import FakeAggregator
from test_node_process import house

from edge_attention.core.messages.link import Cancel
from edge_attention.core.messages.program import (
    Append,
    Batch,
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
from edge_attention.core.messages.table import ColumnRead, TensorRead
from edge_attention.core.tensors import DataType, Encoding
from edge_attention.wire import checksum
from edge_attention.wire.link import prepared_program
from edge_node.programs import MAX_PREPARED
from protos.edge_attention.v1 import link_pb2

pytestmark = pytest.mark.e2e

PRODUCT, DATA = small_graphs.product()
X = np.array([[1, 2], [3, 4]], np.float32)
W = np.arange(6, dtype=np.float32).reshape(2, 3)
SLOT = Slot("task/x", DataType.FLOAT32, (2, 2))
STEPS = (
    Run(PRODUCT, {"x": Stored("task/x"), "w": Stored("job/j/w")}, {"y": "task/y"}),
    Return("task/y", "y"),
)
FILES = {PRODUCT: DATA}


def call(task, program, slots=None, known=False, **fields):
    """`known`: without the program."""
    data = prepared_program.encode(program)
    slots = X.tobytes() if slots is None else slots
    brought = b"" if known else data
    made = Call(task, "shard", range(3, 7), 5, None, sha256(data).digest(), slots, "", brought)
    return replace(made, **fields)


def store(task, **tensors):
    return Program(task, "", range(0), (), tensors={f"job/j/{n}": array for n, array in tensors.items()})


def freezing(version=0):
    return PreparedProgram(STEPS, (SLOT,), (Frozen("job/j/w", "", version),))


def test_a_program_that_is_not_known_is_asked_for_and_its_calls_are_programs():
    program = PreparedProgram(STEPS, (SLOT,))

    async def scenario():
        async with house(files=FILES) as (aggregator, process):
            await aggregator.run(store("w", w=W))
            (unknown,) = await aggregator.run(call("a", program, known=True))
            (first,) = await aggregator.run(call("b", program))
            (second,) = await aggregator.run(call("c", program, (2 * X).tobytes(), known=True))
            (wrong,) = await aggregator.run(
                replace(call("d", program), prepared=b"\x12\x00", program=bytes(32))
            )
            (short,) = await aggregator.run(call("e", program, b"12", known=True))
            (unread,) = await aggregator.run(replace(call("f", program, known=True), program=b"x"))
            odd = link_pb2.ConnectResponse(call={"task_id": "g", "coverage": {"start": 2, "stop": 1}})
            aggregator.send(checksum.seal(odd.SerializeToString()))
            (odd,) = await aggregator.result("g")
            (alive,) = await aggregator.run(call("h", program, known=True))
            process.kill()
            return unknown, first, second, wrong, short, unread, odd, alive, process.stderr.read()

    unknown, first, second, wrong, short, unread, odd, alive, log = asyncio.run(scenario())
    assert unknown.error.name == unread.error.name == "UnknownProgram"
    assert (unknown.shard, unknown.coverage, unknown.version) == ("shard", range(3, 7), 5)
    assert (first.shard, first.coverage, first.version, first.error) == ("shard", range(3, 7), 5, None)
    np.testing.assert_array_equal(first.tensors["y"], X @ W)
    np.testing.assert_array_equal(second.tensors["y"], 2 * X @ W)
    assert (wrong.error.name, short.error.name) == ("InvalidProgram", "InvalidProgram")
    assert "has another digest" in wrong.error.message
    assert "brings 2 bytes for slots of 16" in short.error.message
    assert "cannot be read" in odd.error.message
    np.testing.assert_array_equal(alive.tensors["y"], X @ W)
    assert "knows no program" not in log, "nothing has failed"


def test_a_call_that_comes_again_is_carried_out_once():
    slots = (Slot("task/x", DataType.FLOAT32, (3, 1, 2)),)
    program = PreparedProgram((Append("context/c/x", Stored("task/x"), tile=2),), slots)
    tokens = np.ones((3, 1, 2), np.float32).tobytes()

    async def scenario():
        async with house() as (aggregator, _):
            await aggregator.run(call("a", program, tokens))
            for again in (False, True):
                aggregator.send(call("a", program, tokens, known=again))
            await aggregator.until(lambda: len(aggregator.contributions) == 3)
            (after,) = await aggregator.run(Program("b", "", range(0), (Return("context/c/x", "x"),)))
            return aggregator.contributions[:3], after

    answers, after = asyncio.run(scenario())
    assert {(a.task_id, a.number, a.final, a.error) for a in answers} == {("a", 0, True, None)}
    assert len(after.tensors["x"]) == 2, "three tokens, not nine"


def test_calls_end_at_their_deadline_and_when_nobody_waits():
    digest, graph = small_graphs.endless()
    steps = (Run(digest, {"x": Stored("task/x")}, {"y": "task/y"}),)
    program = PreparedProgram(steps, (Slot("task/x", DataType.FLOAT32, (1,)),))
    one = np.ones(1, np.float32).tobytes()

    async def scenario():
        async with house(files={digest: graph}) as (aggregator, _):
            (late,) = await aggregator.run(call("a", program, one, deadline_seconds=0.3))
            aggregator.send(call("b", program, one, known=True))
            aggregator.send(Cancel("b"))
            (cancelled,) = await aggregator.result("b")
            return late, cancelled

    late, cancelled = asyncio.run(scenario())
    assert (late.error.name, cancelled.error.name) == ("DeadlineExceeded", "Cancelled")


@pytest.mark.parametrize("flags", [(), ("--no-cell",)])
def test_what_is_frozen_changes_by_a_new_program_while_calls_run(flags):
    async def scenario():
        async with house(*flags, files=FILES) as (aggregator, _):
            (none,) = await aggregator.run(call("n", freezing(1)))
            await aggregator.run(store("w1", w=W))
            # All at once: the first of them is still being made ready when the others come.
            aggregator.send(*(call(f"a{n}", freezing(1), known=n > 0) for n in range(4)))
            first = [(await aggregator.result(f"a{n}"))[-1] for n in range(4)]
            # Calls of the old program, while what it froze is replaced, and then of both.
            aggregator.send(*(call(f"o{n}", freezing(1), known=True) for n in range(4)))
            await aggregator.run(store("w2", w=10 * W))
            first += [(await aggregator.result(f"o{n}"))[-1] for n in range(4)]
            aggregator.send(
                *(call(f"b{n}", freezing(1 + n % 2), known=n % 2 == 0 or n > 1) for n in range(8)),
            )
            then = [(await aggregator.result(f"b{n}"))[-1] for n in range(8)]
            return none, first, then

    none, first, then = asyncio.run(scenario())
    assert none.error.name == "NotFound"
    assert "stores nothing called 'job/j/w'" in none.error.message
    for answer in first:
        assert answer.error is None
        np.testing.assert_array_equal(answer.tensors["y"], X @ W)
    for n, answer in enumerate(then):
        np.testing.assert_array_equal(answer.tensors["y"], X @ (W if n % 2 == 0 else 10 * W))


def test_a_private_tensor_does_not_leave_by_a_call(tmp_path):
    (tmp_path / "d.csv").write_text("id,a,b\np1,1.5,2.5\np2,3.5,4.5\n")
    rows = (Slot("task/rows", DataType.INT64, (2,)),)
    columns = (ColumnRead("a", of_all=True), ColumnRead("b", of_all=True))
    whole = TensorRead("job/j/x", DataType.FLOAT32, columns, side_by_side=True)
    batch = Batch("d", {}, Stored("task/rows"), tensors=(whole,))
    run = Run(PRODUCT, {"x": Stored("job/j/x"), "w": Stored("job/j/w")}, {"y": "task/y"})
    raw = PreparedProgram((batch, Return("job/j/x", "x")), rows)
    made = PreparedProgram((batch, run, Return("task/y", "y")), rows)
    frozen = PreparedProgram((run, Return("task/y", "y")), (), (Frozen("job/j/x"),))
    guess = PreparedProgram((run, Return("task/y", "y")), (), (Frozen("job/j/x", "0" * 64),))
    both = np.array([0, 1]).tobytes()

    async def scenario():
        async with house("--data", f"d={tmp_path}/d.csv", files=FILES) as (aggregator, _):
            await aggregator.run(store("w", w=W))
            asked = [(raw, both), (made, both), (frozen, b""), (guess, b"")]
            return [(await aggregator.run(call(f"t{n}", *one)))[-1] for n, one in enumerate(asked)]

    answers = asyncio.run(scenario())
    assert [answer.error.name for answer in answers] == ["PrivateTensor"] * 3 + ["InvalidProgram"]
    assert all(not answer.tensors for answer in answers)


def test_a_node_knows_so_many_programs_and_no_more():
    def program(n):
        return PreparedProgram((Return("task/x", f"{n:04}"),), (SLOT,))

    async def scenario():
        async with house() as (aggregator, _):
            for start in range(0, MAX_PREPARED + 100, 100):
                aggregator.send(*(call(f"t{n}", program(n)) for n in range(start, start + 100)))
                await aggregator.result(f"t{start + 99}")
            (oldest,) = await aggregator.run(call("old", program(0), known=True))
            (newest,) = await aggregator.run(call("new", program(start + 99), known=True))
            return oldest, newest

    oldest, newest = asyncio.run(scenario())
    assert oldest.error.name == "UnknownProgram"
    ((_, array),) = newest.tensors.items()
    np.testing.assert_array_equal(array, X)


def test_a_call_that_freezes_brings_and_returns_more_than_a_message_holds():
    """Its slots fill a message; what is larger comes in bulk. Of the answer, no message but for one tensor is
    too large: that is uploaded."""
    graph, data = small_graphs.product()
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((900, 1000), np.float32), rng.standard_normal((1200, 1000), np.float32)
    w = rng.standard_normal((1000, 1000), np.float32)
    slots = (Slot("task/x", DataType.FLOAT32, x.shape),)
    runs = [Run(graph, {"x": Stored(f"task/{n}"), "w": Stored("job/j/w")}, {"y": f"task/{n}y"}) for n in "xv"]
    returns = (Return("task/xy", "first"), Return("task/vy", "large"), Return("task/x", "second"))
    program = PreparedProgram((*runs, *returns), slots, (Frozen("job/j/w"),))
    digest = sha256(v.tobytes()).hexdigest()
    bulk = (BulkTensor("task/v", DataType.FLOAT32, v.shape, Encoding.RAW, digest, v.nbytes),)

    async def scenario():
        async with house(files={graph: data, digest: v.tobytes()}) as (aggregator, _):
            stored = Program("w", "", range(0), (), bulk_tensors=(weights(aggregator, w),))
            assert (await aggregator.run(stored))[-1].error is None
            asked = call("a", program, x.tobytes(), bulk_tensors=bulk)
            parts = await aggregator.run(asked)
            (twice,) = await aggregator.run(
                replace(asked, task_id="b", bulk_tensors=(replace(bulk[0], name="task/x"),))
            )
            (lacking,) = await aggregator.run(replace(asked, task_id="c", bulk_tensors=()))
            return parts, twice, lacking, aggregator.uploads

    parts, twice, lacking, uploads = asyncio.run(scenario())
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [part.final for part in parts] == [False] * (len(parts) - 1) + [True]
    tensors = {name: array for part in parts for name, array in part.tensors.items()}
    np.testing.assert_allclose(tensors["first"], x @ w, atol=1e-3)
    np.testing.assert_array_equal(tensors["second"], x)
    ((tensor,),) = [part.bulk_tensors for part in parts if part.bulk_tensors]
    assert tensor.name == "large"
    large = np.frombuffer(bytes(uploads[tensor.digest]), np.float32).reshape(v.shape)
    np.testing.assert_allclose(large, v @ w, atol=1e-3)
    assert twice.error.message == "task/x is a slot, or frozen: it does not come in bulk"
    assert "stores nothing called 'task/v'" in lacking.error.message


def weights(aggregator, w):
    """`w` as a tensor that comes in bulk and is stored as job/j/w."""
    digest = sha256(w.tobytes()).hexdigest()
    aggregator.files[digest] = w.tobytes()
    return BulkTensor("job/j/w", DataType.FLOAT32, w.shape, Encoding.RAW, digest, w.nbytes)


def test_a_call_that_is_ready_later_than_others_runs_over_what_they_froze(monkeypatch):
    """One waits for a tensor of its own, which comes once the store has something else."""
    gate, asked, download = asyncio.Event(), [], FakeAggregator._download
    late = np.arange(8, dtype=np.float32)

    async def slow(self, request, context):
        asked.append(request.digest)
        if request.digest == sha256(late.tobytes()).hexdigest():
            await gate.wait()
        async for chunk in download(self, request, context):
            yield chunk

    monkeypatch.setattr(FakeAggregator, "_download", slow)

    async def scenario():
        async with house(files=FILES) as (aggregator, _):
            await aggregator.run(store("w1", w=W))
            own = replace(weights(aggregator, late), name="task/late")
            aggregator.send(call("a", freezing(1)), call("b", freezing(1), known=True, bulk_tensors=(own,)))
            await aggregator.until(lambda: own.digest in asked)
            await aggregator.until(lambda: any(c.final for c in aggregator.contributions[1:]))
            await aggregator.run(store("w2", w=10 * W))
            gate.set()
            return [(await aggregator.result(task))[-1] for task in "ab"]

    for answer in asyncio.run(scenario()):
        assert answer.error is None
        np.testing.assert_array_equal(answer.tensors["y"], X @ W)
