"""The real `edge-node` process against a fake aggregator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import small_graphs
from fake_aggregator import FakeAggregator

from aggregator.observe.node_metrics import checked
from edge_attention.core.errors import AlreadyExists, InvalidTensor
from edge_attention.core.messages.link import Cancel
from edge_attention.core.messages.program import Append, Batch, BulkTensor, Program, Return, Run, Stored
from edge_attention.core.messages.table import ColumnRead, TensorRead
from edge_attention.core.tensors import DataType, Encoding
from edge_attention.wire import checksum
from edge_attention.wire.link import to_node
from protos.edge_attention.v1 import link_pb2

pytestmark = pytest.mark.e2e


def node(port, *flags, name="n1"):
    command = [sys.executable, "-c", "from edge_node.main import main; main()"]
    command += ["--aggregator", f"127.0.0.1:{port}", "--name", name, "--threads", "1", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@contextlib.asynccontextmanager
async def house(*flags, files=None, **options):
    aggregator = await FakeAggregator(files, **options).start()
    process = node(aggregator.port, *flags)
    try:
        await aggregator.until(lambda: aggregator._outgoing is not None)
        yield aggregator, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()
        await aggregator.stop()


async def ended(process):
    return await asyncio.to_thread(process.wait, 20)


def children_of(pid):
    folders = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in folders for child in (task / "children").read_text().split()]


def program(task, *instructions, **fields):
    return Program(task, "shard", range(3, 7), instructions, version=5, **fields)


COUNTED = 'edge_attention_node_tasks_total{outcome="ok"} 1.0'


def test_a_program_runs_and_comes_back():
    digest, graph = small_graphs.doubled()
    x = np.array([[1, 2], [3, 4]], np.float32)
    run = Run(digest, {"x": x}, {"y": "task/y", "z": "task/z"})

    async def scenario():
        async with house("--metrics-port", "0", files={digest: graph}) as (aggregator, process):
            (only,) = await aggregator.run(program("t", run, Return("task/y", "y"), Return("task/z", "z")))
            line = ""
            while "metrics on" not in line:
                line = process.stderr.readline()
            url = re.search(r"http://\S+", line)[0]
            metrics, until = "", time.monotonic() + 20
            while COUNTED not in metrics and time.monotonic() < until:  # it is counted behind its answer
                page = await asyncio.to_thread(urllib.request.urlopen, url)
                metrics = page.read().decode()
            return only, metrics, aggregator.registers

    only, metrics, registers = asyncio.run(scenario())
    np.testing.assert_array_equal(only.tensors["y"], 2 * x)
    np.testing.assert_array_equal(only.tensors["z"], 10)
    assert (only.final, only.error, only.shard, only.coverage, only.version) == (
        True,
        None,
        "shard",
        range(3, 7),
        5,
    )
    assert only.task_seconds >= only.run_seconds > 0
    assert COUNTED in metrics
    assert "edge_attention_node_connected 1.0" in metrics
    assert (registers[0].name, registers[0].provider, registers[0].threads) == (
        "n1",
        "CPUExecutionProvider",
        1,
    )


@pytest.mark.parametrize("flags", [(), ("--no-cell",)])
def test_where_graphs_of_others_run_is_the_operator_s_and_said(flags):
    digest, graph = small_graphs.doubled()
    x = np.ones((2, 2), np.float32)
    run = Run(digest, {"x": x}, {"y": "task/y"})

    async def scenario():
        async with house(*flags, files={digest: graph}) as (aggregator, process):
            (only,) = await aggregator.run(program("t", run, Return("task/y", "y")))
            children = children_of(process.pid)
            await aggregator.until(lambda: any(beat.metrics for beat in aggregator.heartbeats))
            process.kill()
            said = process.stderr.read()
            return only, children, said, next(b.metrics for b in aggregator.heartbeats if b.metrics)

    only, children, said, metrics = asyncio.run(scenario())
    np.testing.assert_array_equal(only.tensors["y"], 2 * x)
    assert len(children) == (0 if flags else 1)
    assert ("graphs of others run in this process" in said) == bool(flags)
    assert ("cell is process" in said) == (not flags)
    assert f"edge_attention_node_cells_enabled {float(not flags)}".encode() in metrics


def test_its_metrics_travel_with_a_heartbeat_and_are_what_the_aggregator_takes():
    async def scenario():
        async with house() as (aggregator, _):
            await aggregator.until(lambda: any(beat.metrics for beat in aggregator.heartbeats))
            await aggregator.until(lambda: len(aggregator.heartbeats) > 3)
            return [beat.metrics for beat in aggregator.heartbeats if beat.metrics]

    (text,) = asyncio.run(scenario())
    assert checked(text) == text
    assert b"edge_attention_node_connected 1.0\n" in text
    assert b"\nprocess_resident_memory_bytes " in text


def test_a_tensor_that_is_not_taken_ends_the_task_in_its_place():
    """The aggregator takes contributions in the order of their numbers: none may be left out."""
    large = np.ones((300_000,), np.float32)
    key = small_graphs.named(large.tobytes())[0]
    bulk = BulkTensor("task/x", DataType.FLOAT32, large.shape, Encoding.RAW, key, large.nbytes)

    async def scenario():
        async with house(files={key: large.tobytes()}) as (aggregator, _):
            aggregator.refuse_uploads = InvalidTensor("not this one")
            return await aggregator.run(program("t", Return("task/x", "x"), bulk_tensors=(bulk,)))

    (only,) = asyncio.run(scenario())
    assert (only.number, only.final) == (0, True)
    assert (only.error.name, only.error.message) == ("InvalidTensor", "not this one")


def test_bulk_goes_both_ways_and_resumes():
    digest, graph = small_graphs.doubled()
    x = np.random.default_rng(0).standard_normal((200_000, 2)).astype(np.float32)
    data = x.tobytes()
    key = small_graphs.named(data)[0]
    bulk = BulkTensor("task/x", DataType.FLOAT32, x.shape, Encoding.RAW, key, len(data))
    run = Run(digest, {"x": Stored("task/x")}, {"y": "task/y"})

    async def scenario():
        async with house(files={digest: graph, key: data}) as (aggregator, _):
            aggregator.break_downloads = 1
            (only,) = await aggregator.run(program("t", run, Return("task/y", "y"), bulk_tensors=(bulk,)))
            await aggregator.until(lambda: aggregator.heartbeats)
            before = len(aggregator.heartbeats)
            await aggregator.until(lambda: len(aggregator.heartbeats) > before)
            return only, aggregator

    only, aggregator = asyncio.run(scenario())
    assert only.error is None
    (sent,) = only.bulk_tensors
    y = np.frombuffer(aggregator.uploads[sent.digest], np.float32).reshape(sent.shape)
    np.testing.assert_array_equal(y, 2 * x)
    assert aggregator.heartbeats[-1].memory == 0  # nothing of the task is left, nor reserved
    assert aggregator.break_downloads == 0


def test_what_is_stored_survives_a_kill(tmp_path):
    keys = np.random.default_rng(1).standard_normal((10, 2, 3)).astype(np.float32)
    append = Append("context/c/keys", keys, at=0, tile=4)
    flags = ("--store", str(tmp_path))

    async def scenario():
        async with house(*flags) as (aggregator, process):
            await aggregator.run(program("t", append))
            process.kill()
            process.wait()
            again = node(aggregator.port, *flags)
            try:
                await aggregator.until(lambda: len(aggregator.registers) == 2)
                (only,) = await aggregator.run(program("t2", Return("context/c/keys", "keys")))
                return aggregator.registers[1], only
            finally:
                again.kill()
                again.wait()
                again.stderr.close()

    register, only = asyncio.run(scenario())
    assert [(s.name, s.tokens) for s in register.sequences] == [("context/c/keys", 10)]
    tiles = only.tensors["keys"]
    np.testing.assert_array_equal(tiles.transpose(0, 2, 1, 3).reshape(-1, 2, 3)[:10], keys)


def test_sigterm_finishes_the_task_and_leaves_with_zero():
    digest, graph = small_graphs.endless()
    run = Run(digest, {"x": np.ones(1, np.float32)}, {"y": "task/y"})

    async def scenario():
        async with house(files={digest: graph}) as (aggregator, process):
            aggregator.send(program("t", run))
            await aggregator.until(lambda: aggregator.heartbeats and aggregator.heartbeats[-1].tasks == 1)
            process.send_signal(signal.SIGTERM)
            await aggregator.until(lambda: aggregator.heartbeats[-1].draining)
            (refused,) = await aggregator.run(program("t2"))
            assert process.poll() is None
            aggregator.send(Cancel("t"))
            (cancelled,) = await aggregator.result("t")
            return refused, cancelled, await ended(process)

    refused, cancelled, code = asyncio.run(scenario())
    assert (refused.error.name, cancelled.error.name, code) == ("Unavailable", "Cancelled", 0)


def test_a_second_signal_leaves_at_once():
    digest, graph = small_graphs.endless()
    run = Run(digest, {"x": np.ones(1, np.float32)}, {"y": "task/y"})

    async def scenario():
        async with house(files={digest: graph}) as (aggregator, process):
            aggregator.send(program("t", run))
            await aggregator.until(lambda: aggregator.heartbeats and aggregator.heartbeats[-1].tasks == 1)
            process.send_signal(signal.SIGTERM)
            await aggregator.until(lambda: aggregator.heartbeats[-1].draining)
            process.send_signal(signal.SIGTERM)
            return await ended(process)

    assert asyncio.run(scenario()) == 1


def test_a_deadline_ends_a_graph_that_does_not():
    digest, graph = small_graphs.endless()
    run = Run(digest, {"x": np.ones(1, np.float32)}, {"y": "task/y"})

    async def scenario():
        async with house(files={digest: graph}) as (aggregator, _):
            return await aggregator.run(program("t", run, deadline_seconds=0.3))

    (only,) = asyncio.run(scenario())
    assert only.error.name == "DeadlineExceeded"


def test_it_comes_back_to_a_restarted_aggregator():
    async def scenario():
        async with house() as (aggregator, _):
            x = np.ones((3, 1, 2), np.float32)
            await aggregator.run(program("t", Append("context/c/keys", x, tile=2)))
            await aggregator.stop()
            aggregator._outgoing = None
            await aggregator.start(aggregator.port)
            await aggregator.until(lambda: len(aggregator.registers) >= 2)
            (again,) = await aggregator.run(program("t2", Return("context/c/keys", "x")))
            return aggregator.registers, again

    registers, again = asyncio.run(scenario())
    assert registers[-1].session == "s1"
    assert registers[-1].instance == registers[0].instance
    assert again.tensors["x"].shape == (2, 1, 2, 2)


def test_a_task_that_is_done_is_not_run_again():
    async def scenario():
        async with house() as (aggregator, _):
            task = program("t", Append("context/c/x", np.ones((3, 1, 2), np.float32), tile=2))
            await aggregator.run(task)
            aggregator.send(task)
            await aggregator.until(lambda: len(aggregator.contributions) == 2)
            (after,) = await aggregator.run(program("t2", Return("context/c/x", "x")))
            return aggregator.contributions[:2], after

    (first, second), after = asyncio.run(scenario())
    assert (first.task_id, first.number, first.final) == (second.task_id, second.number, second.final)
    assert len(after.tensors["x"]) == 2  # three tokens, not six


def test_messages_that_cannot_be_read_are_answered():
    """They came as they were sent: a defect of the aggregator's, or worse."""
    odd = link_pb2.ConnectResponse(
        program={"task_id": "t", "tensors": [{"data_type": 1, "shape": [0], "crc32": 1}]}
    )
    unknown = link_pb2.ConnectResponse(program={"task_id": "u", "instructions": [{}]})

    async def scenario():
        async with house() as (aggregator, _):
            aggregator.send(*map(checksum.seal, (b"\xff\xff\xff", b"", odd.SerializeToString())))
            (first,) = await aggregator.result("t")
            aggregator.send(checksum.seal(unknown.SerializeToString()))
            (second,) = await aggregator.result("u")
            (alive,) = await aggregator.run(program("t2"))
            return first, second, alive, aggregator.registers

    first, second, alive, registers = asyncio.run(scenario())
    assert first.error.name == second.error.name == "Internal"
    assert "the program cannot be read: " in first.error.message
    assert "own checksum is right" in first.error.message
    assert "Instruction is empty or of an unknown kind" in second.error.message
    assert alive.error is None
    assert len(registers) == 1


def test_after_a_damaged_message_the_node_is_back_at_once_and_does_nothing_twice():
    task = program("t", Append("context/c/x", np.ones((3, 1, 2), np.float32), tile=2))
    sent = to_node.encode(task)

    async def scenario():
        async with house() as (aggregator, _):
            await aggregator.run(task)
            aggregator.send(sent[:9] + bytes([sent[9] ^ 1]) + sent[10:])
            await aggregator.until(lambda: len(aggregator.registers) == 2)
            aggregator.send(task)
            await aggregator.until(lambda: len(aggregator.contributions) >= 2)
            (after,) = await aggregator.run(program("t2", Return("context/c/x", "x")))
            return aggregator.registers, after

    (first, second), after = asyncio.run(scenario())
    assert (first.session, second.session, second.instance) == ("", "s1", first.instance)
    assert len(after.tensors["x"]) == 2  # three tokens, not six


def test_a_taken_name_ends_the_process():
    async def scenario():
        aggregator = await FakeAggregator(refuse=AlreadyExists("the name n1 is taken by a live node")).start()
        process = node(aggregator.port)
        try:
            return await ended(process), process.stderr.read()
        finally:
            process.stderr.close()
            await aggregator.stop()

    code, said = asyncio.run(scenario())
    assert code == 1
    assert "the name n1 is taken by a live node" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "x"], "NAME=FILE"),
        (["--data", "x=/nowhere.csv"], "No such file"),
        (["--allow-release", "everything"], "use a release"),
        (["--memory-limit", "much"], "not a size"),
        (["--aggregator", "here"], "HOST:PORT"),
        (["--provider", "abacus"], "abacus"),
        (["--name", "a b"], "letters"),
        (["--metrics-port", "0", "--metrics-host", "0.0.0.0"], "scrape /nodes/NAME/metrics"),
    ],
)
def test_bad_flags_give_one_line_and_exit_two(flags, said):
    process = node(1, *flags)
    _, error = process.communicate(timeout=180)
    assert process.returncode == 2
    assert said in error.splitlines()[-1]
    assert "Traceback" not in error


def test_flags_come_from_the_environment():
    environment = {**os.environ, "EDGE_NODE_MEMORY_LIMIT": "lots"}
    command = [sys.executable, "-c", "from edge_node.main import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "'lots' is not a size" in done.stderr


def test_private_data_stays(tmp_path):
    (tmp_path / "d.csv").write_text("id,a,b\np1,1.5,2.5\np2,3.5,4.5\n")
    digest, graph = small_graphs.doubled()
    rows = np.array([0, 1])
    columns = (ColumnRead("a", of_all=True), ColumnRead("b", of_all=True))
    whole = TensorRead("task/x", DataType.FLOAT32, columns, side_by_side=True)

    def task(name, *returned):
        return program(
            name,
            Batch("d", {}, rows, "task/ids", b"key", (whole,)),
            Run(digest, {"x": Stored("task/x")}, {"y": "task/y", "z": "task/z"}),
            *(Return(r, r) for r in returned),
        )

    async def scenario():
        flags = ["--data", f"d={tmp_path}/d.csv", "--allow-release", f"{digest}:z@d/*"]
        async with house(*flags, files={digest: graph}) as (aggregator, _):
            tasks = [task("x", "task/x"), task("y", "task/y"), task("ids", "task/ids"), task("z", "task/z")]
            answers = [(await aggregator.run(one))[-1] for one in tasks]
            return answers, aggregator.registers[0]

    (x, y, ids, z), register = asyncio.run(scenario())
    assert [a.error.name for a in (x, y, ids)] == ["PrivateTensor"] * 3
    assert f"--allow-release {digest}:y@d/*" in y.error.message
    assert "--allow-release alignment" in ids.error.message
    assert (z.error, z.tensors["task/z"]) == (None, 12)
    assert register.releases == (f"{digest}:z@d/*",)
    assert [(c.name, c.shape) for c in register.datasets[0].columns] == [("a", ()), ("b", ())]
