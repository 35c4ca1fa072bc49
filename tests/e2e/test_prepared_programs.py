"""Prepared programs from the trip to a real node: known, forgotten, sent again; frozen, stopped, refused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from aggregator.engine.outcome import MissingKind
from aggregator.engine.recipe import Recipe
from aggregator.engine.trip import Errand
from aggregator.server import ServerSettings, running
from edge_attention.core.errors import PermissionDenied
from edge_attention.core.messages.program import Append, Batch, Drop, Frozen, Return, Run, Stored
from edge_attention.core.messages.table import ColumnRead, TensorRead
from edge_attention.core.tensors import DataType

pytestmark = pytest.mark.e2e

FLOAT = TensorProto.FLOAT
X = np.array([[1, 2], [3, 4]], np.float32)
W = np.arange(6, dtype=np.float32).reshape(2, 3)


def product():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info(n, FLOAT, [f"{n}0", f"{n}1"]) for n in "xw"],
        [helper.make_tensor_value_info("y", FLOAT, ["n", "m"])],
    )
    return model(graph)


def endless():
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["v", "v"], ["u"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("u", FLOAT, [1]),
        ],
    )
    true = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    ends = [helper.make_tensor_value_info(name, FLOAT, [1]) for name in "xy"]
    loop = helper.make_node("Loop", ["", "t", "x"], ["y"], body=body)
    return model(helper.make_graph([loop], "g", ends[:1], ends[1:], [true]))


def model(graph):
    opset = [helper.make_opsetid("", 21)]
    data = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    return hashlib.sha256(data).hexdigest(), data


class Fleet:
    """A real aggregator in this process, whose trips a test makes, and one real node, which can be killed."""

    def __init__(self, engine, port, *flags):
        self.trips, self.bulk, self.folder = engine.trips, engine.bulk, engine.state.directory
        self.received = engine.link.bytes_sent
        self.flags = ("--aggregator", f"127.0.0.1:{port}", "--name", "n", "--threads", "1", *flags)
        self.process = None

    def offer(self, graph):
        digest, data = graph
        file = Path(self.folder) / digest
        file.write_bytes(data)
        self.bulk.lend_file(digest, file, 0, len(data))
        return digest

    async def start(self):
        command = [sys.executable, "-c", "from edge_node.main import main; main()", *self.flags]
        self.process = await asyncio.to_thread(subprocess.Popen, command, stderr=subprocess.DEVNULL)
        assert await self.trips.all_live(["n"], 60.0, lambda sentence: None)

    async def kill(self):
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    async def ask(self, steps, seconds=60.0, wanted=("y",), **fields):
        """The tensors that come back, and how it ended."""
        answers = []
        asked = Errand("s", ("n",), range(1), steps, dict.fromkeys(wanted, (None, None)), **fields)
        outcome = await self.trips.make([asked], seconds, answers.append)
        return (answers[0].tensors if answers else {}), outcome

    async def store(self, **tensors):
        placed = {f"job/j/{name}": array for name, array in tensors.items()}
        _, outcome = await self.ask((), wanted=(), tensors=placed)
        assert not outcome.missing


def run(scenario, tmp_path, *flags):
    async def whole():
        engines = []

        def capture(engine):
            engines.append(engine)
            return Recipe("test")

        settings = ServerSettings("127.0.0.1", 0, tmp_path / "state", "127.0.0.1", None, 10.0, 60.0)
        async with running(settings, (capture,)) as port:
            fleet = Fleet(engines[0], port, *flags)
            await fleet.start()
            try:
                return await scenario(fleet)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    await fleet.kill()

    return asyncio.run(whole())


def multiplied(digest):
    inputs = {"x": Stored("task/x"), "w": Stored("job/j/w")}
    return (Run(digest, inputs, {"y": "task/y"}), Return("task/y", "y"))


def test_what_runs_again_is_sent_once_and_again_to_a_node_that_forgot_it(tmp_path):
    """Bytes tell: instructions of 20 KB go down with the second time and, after a restart, once more."""

    async def scenario(fleet):
        steps = (*multiplied(fleet.offer(product())), *(Return("task/y", f"{n:0200}") for n in range(90)))
        names = [step.name for step in steps if isinstance(step, Return)]
        took = []

        async def ask(n):
            before = fleet.received["n"]
            tensors, outcome = await fleet.ask(steps, wanted=names, inline={"task/x": n * X})
            assert not outcome.missing
            np.testing.assert_array_equal(tensors["y"], n * X @ W)
            took.append(fleet.received["n"] - before)

        await fleet.store(w=W)
        for n in range(4):
            await ask(n)
        await fleet.kill()
        lost = asyncio.create_task(ask(4))  # the node is away, and comes back as another process
        await asyncio.sleep(0.3)
        await fleet.start()
        with pytest.raises(AssertionError):
            await lost  # it has lost the weights, and says so
        await fleet.store(w=W)
        await ask(5)
        await ask(6)
        return took

    took = run(scenario, tmp_path)
    assert min(took[:2]) > 18_000, "as it is, then to be known from then on"
    assert max(took[2:4]) < 2_000
    assert max(took[-1:]) < 2_000, "the one that failed has brought it"


def test_a_node_that_forgot_a_program_while_it_was_connected_is_sent_it(tmp_path):
    """It keeps 8 MiB of them. Nobody keeps account: it says so, and the answer is right."""

    async def scenario(fleet):
        def program(n):
            return (Drop(tuple(f"task/{n}/{'x' * 400}{i}" for i in range(120))), Return("task/x", "y"))

        programs = [program(n) for n in range(180)]
        took = []

        async def ask(steps):
            before = fleet.received["n"]
            tensors, outcome = await fleet.ask(steps, inline={"task/x": X})
            assert not outcome.missing, outcome.why
            np.testing.assert_array_equal(tensors["y"], X)
            took.append(fleet.received["n"] - before)

        for _ in range(3):
            await ask(programs[0])
        for steps in programs[1:]:
            for _ in range(2):
                await ask(steps)
        for _ in range(2):
            await ask(programs[0])
        return took[:3] + took[-2:]

    took = run(scenario, tmp_path)
    assert [size > 40_000 for size in took] == [True, True, False, True, False]


def test_frozen_versions_change_while_calls_run(tmp_path):
    async def scenario(fleet):
        steps = multiplied(fleet.offer(product()))
        await fleet.store(w=W)

        async def ask(version, n):
            frozen = (Frozen("job/j/w", version=version),)
            tensors, outcome = await fleet.ask(steps, inline={"task/x": n * X}, frozen=frozen)
            assert not outcome.missing, outcome.why
            return tensors["y"]

        old = await asyncio.gather(*(ask(1, n) for n in range(8)))
        running = [asyncio.create_task(ask(1, n)) for n in range(8)]
        await fleet.store(w=10 * W)
        both = await asyncio.gather(*(ask(1 + n % 2, n) for n in range(16)))
        return old, await asyncio.gather(*running), both

    old, during, both = run(scenario, tmp_path)
    for n, y in enumerate(old + during):
        np.testing.assert_array_equal(y, n % 8 * X @ W)
    for n, y in enumerate(both):
        np.testing.assert_array_equal(y, n * X @ (W if n % 2 == 0 else 10 * W))


def test_calls_end_at_the_deadline_and_when_who_asked_goes(tmp_path):
    async def scenario(fleet):
        steps = (Run(fleet.offer(endless()), {"x": Stored("task/x")}, {"y": "task/y"}), Return("task/y", "y"))
        one = {"task/x": np.ones(1, np.float32)}
        kinds = []
        for _ in range(3):
            _, outcome = await fleet.ask(steps, 0.5, inline=one)
            kinds.append(outcome.missing["s"].kind)
        gone = asyncio.create_task(fleet.ask(steps, 900.0, inline=one))
        await asyncio.sleep(0.3)
        gone.cancel()
        await asyncio.wait([gone])
        # Nothing of these runs on: a node that still worked at them would not come to this.
        tensors, _ = await fleet.ask((Return("task/x", "y"),), 120.0, inline=one)
        return kinds, tensors["y"]

    kinds, y = run(scenario, tmp_path)
    assert set(kinds) <= {MissingKind.LATE, MissingKind.FAILED}
    assert y == 1


def test_an_append_by_a_call_is_made_once(tmp_path):
    async def scenario(fleet):
        steps = (Append("context/c/x", Stored("task/x"), tile=2), Return("context/c/x", "y"))
        sizes = []
        for n in range(4):
            tensors, outcome = await fleet.ask(steps, inline={"task/x": np.full((2, 1, 2), n, np.float32)})
            assert not outcome.missing
            sizes.append(len(tensors["y"]))
        return sizes, tensors["y"][:, 0, 0, 0]

    sizes, first = run(scenario, tmp_path)
    assert sizes == [1, 2, 3, 4]
    np.testing.assert_array_equal(first, np.arange(4))


def test_a_private_tensor_does_not_leave_by_a_call(tmp_path):
    (tmp_path / "d.csv").write_text("id,a,b\np1,1.5,2.5\np2,3.5,4.5\n")

    async def scenario(fleet):
        await fleet.store(w=W)
        run = Run(fleet.offer(product()), {"x": Stored("job/j/x"), "w": Stored("job/j/w")}, {"y": "task/y"})
        columns = (ColumnRead("a", of_all=True), ColumnRead("b", of_all=True))
        whole = TensorRead("job/j/x", DataType.FLOAT32, columns, side_by_side=True)
        batch = Batch("d", {}, Stored("task/rows"), tensors=(whole,))
        rows = {"task/rows": np.array([0, 1])}
        raw, made = (batch, Return("job/j/x", "y")), (batch, run, Return("task/y", "y"))
        said = []
        for steps, tensors, frozen in (
            *[(raw, rows, ())] * 3,
            *[(made, rows, ())] * 3,
            ((run, Return("task/y", "y")), {}, (Frozen("job/j/x"),)),
        ):
            with pytest.raises(PermissionDenied, match="is private") as refused:
                await fleet.ask(steps, inline=tensors, frozen=frozen)
            said.append(refused.value.message)
        return said

    assert len(set(run(scenario, tmp_path, "--data", f"d={tmp_path}/d.csv"))) == 2
