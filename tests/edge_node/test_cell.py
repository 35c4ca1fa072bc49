"""Graphs of others in real cells: the same answers as here, and what becomes of those that end a process."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_graphs
from onnx import TensorProto

from edge_attention.core.errors import (
    Cancelled,
    DeadlineExceeded,
    GraphDied,
    InvalidArgument,
    InvalidGraph,
    InvalidProgram,
    OutOfMemory,
    Unavailable,
)
from edge_attention.graphs import reading
from edge_node import shared_memory
from edge_node.cell import cells
from edge_node.cell import host as cell_host
from edge_node.cell import process as cell_process
from edge_node.cell import state as cell_state
from edge_node.cell.messages import LARGE
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.runtime import ForeignGraph, Runtime, Stop
from edge_node.steps import ANYTHING

pytestmark = pytest.mark.e2e

LOWEST, MINUS = np.array([-(2**31)], np.int32), np.array([-1], np.int32)
ONE = np.ones(1, np.float32)


@pytest.fixture
def runtime():
    made = Runtime(limit=256 << 20, graphs=RefusedGraphs())
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared():
    """For tests that end nothing."""
    made = Runtime(limit=256 << 20, graphs=RefusedGraphs())
    yield made
    made.close()


def run(runtime, made, feeds, *outputs, stop=None, private=False):
    graph = runtime.cached(made[0]) or runtime.load(*made)
    assert isinstance(graph, ForeignGraph)
    return graph.run(feeds, outputs, stop or Stop(), private)


def doubled(runtime, **options):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    z, y = run(runtime, small_graphs.doubled(), {"x": x}, "z", "y", **options)
    np.testing.assert_array_equal(y, 2 * x)
    assert z == 15


def until(condition, seconds=180.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


# Answers


SIZES = [(), (0,), (1,), (3, 0, 2), (777,), (20_000,), (300_000,), (1_000_001,)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bool", "int8", "float16", "int64"])
def test_every_size_and_type_comes_back_as_it_went(shared, shape, dtype):
    """In the window, past it, in memory of its own, and through what was there before."""
    kind = {
        "float32": TensorProto.FLOAT,
        "bool": TensorProto.BOOL,
        "int8": TensorProto.INT8,
        "float16": TensorProto.FLOAT16,
        "int64": TensorProto.INT64,
    }[dtype]
    x = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    for given in (x, shared_memory.shared(x)):
        (y,) = run(shared, small_graphs.copied(kind, rank=len(shape)), {"x0": given}, "y0")
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(y, x)


def test_hundreds_of_tensors_of_all_sizes_at_once(shared):
    rng = np.random.default_rng(1)
    sizes = [10, 70_000, 0, 270_000, 5_000]
    feeds = {f"x{n}": rng.standard_normal(sizes[n % 5]).astype(np.float32) for n in range(400)}
    feeds |= {f"x{n}": shared_memory.shared(feeds[f"x{n}"]) for n in range(0, 400, 2)}
    outputs = [f"y{n}" for n in range(400)]
    results = run(shared, small_graphs.copied(TensorProto.FLOAT, 400), feeds, *outputs)
    for n, y in enumerate(results):
        np.testing.assert_array_equal(y, feeds[f"x{n}"])


def test_runs_that_are_alike_are_told_apart_by_what_is_in_them(shared):
    """Heads are kept on both sides, more than there is room for, and inputs are read where others lay."""
    rng = np.random.default_rng(2)
    two = small_graphs.copied(TensorProto.FLOAT, 2), small_graphs.copied(TensorProto.FLOAT, 3)
    shapes = [(n,) for n in (5, 1, 5, 700, 1, *range(40), 5, 700)]
    for turn in range(3):
        for n, shape in enumerate(shapes):
            made = two[n % 2]
            feeds = {f"x{i}": rng.standard_normal(shape).astype(np.float32) for i in range(2 + n % 2)}
            if turn == 1:
                feeds = dict(reversed(feeds.items()))
            outputs = [f"y{i}" for i in range(len(feeds))]
            for y, name in zip(run(shared, made, feeds, *outputs), outputs, strict=True):
                np.testing.assert_array_equal(y, feeds["x" + name[1:]])


@pytest.mark.parametrize("size", [6, LARGE // 4], ids=["in the window", "in memory of their own"])
@pytest.mark.parametrize(
    "outputs", [("sum",), ("same",), ("x",), ("where",), ("either",), ("seven", "again", "sum", "x")]
)
def test_a_run_like_an_earlier_one_gives_what_its_own_inputs_make(shared, outputs, size):
    """From the second on its outputs have their places; an output of another size then has another."""
    rng = np.random.default_rng(3)
    for turn in range(12):
        x = rng.standard_normal(size).astype(np.float32)
        x = -np.abs(x) if turn in (4, 7) else x  # other sizes in between
        wanted = {
            "where": np.flatnonzero(x > 0)[None],
            "either": np.concatenate([x, x]) if (x > 0).any() else x,
            "x": x,
            "same": x,
            "seven": np.full(1, 7, np.float32),
            "sum": x + x,
            "again": x + x,
        }
        results = run(shared, small_graphs.odd_outputs(), {"x": x}, *outputs)
        for name, result in zip(outputs, results, strict=True):
            assert result.dtype == wanted[name].dtype
            np.testing.assert_array_equal(result, wanted[name], err_msg=f"{name}, turn {turn}")


def test_what_a_run_gave_is_not_changed_by_the_next(shared):
    made, first = small_graphs.doubled(), np.ones((3, 2), np.float32)
    for _ in range(3):
        (kept,) = run(shared, made, {"x": first}, "y")
    run(shared, made, {"x": 5 * first}, "y")
    np.testing.assert_array_equal(kept, 2 * first)


def test_a_dimension_that_differs_and_names_that_are_not_there_are_said_as_here(shared):
    made = small_graphs.doubled()
    here = Runtime().load(*made)
    x = np.ones((2, 2), np.float32)
    for feeds, outputs in (({"x": x[0]}, ["y"]), ({}, ["y"]), ({"x": x, "w": x}, ["y"]), ({"x": x}, ["q"])):
        with pytest.raises(InvalidProgram) as there:
            run(shared, made, feeds, *outputs)
        with pytest.raises(InvalidProgram) as said:
            here.run(feeds, outputs, Stop())
        assert there.value.message == said.value.message
    doubled(shared)


def test_what_a_graph_refuses_is_said(shared):
    """Of something private by the task that ran it: test_private.py."""
    feeds = {"x": np.ones(3, np.float32), "i": np.array([777])}
    with pytest.raises(InvalidProgram, match="777"):
        run(shared, small_graphs.gathered(), feeds, "y")


def test_what_onnx_runtime_cannot_load_is_an_invalid_graph(shared):
    with pytest.raises(InvalidGraph, match=r"ONNX Runtime refused it: .*Type"):
        run(shared, small_graphs.mixed(), {"x": ONE}, "y")


def test_outputs_beyond_the_limit_are_out_of_memory(shared):
    with pytest.raises(OutOfMemory):
        run(shared, small_graphs.filled(), {"x": np.array([1 << 50])}, "y")
    feeds = {"x": np.array([20 << 20])}  # 80 MB: the arena has it, and so has the daemon
    (y,) = run(shared, small_graphs.filled(), feeds, "y")
    assert y.nbytes == 80 << 20
    doubled(shared)


def test_outputs_whose_sizes_change_are_right_and_expected_no_more(runtime):
    """The first run with some inputs teaches what the next with the same shapes gets: here that is wrong."""
    made = small_graphs.filled()
    for size, missed in ((700_000, False), (700_000, False), (800_000, True), (700_000, True), (2, True)):
        (y,) = run(runtime, made, {"x": np.array([size])}, "y")
        np.testing.assert_array_equal(y, np.zeros(size, np.float32))
        assert runtime.cells.public._process.loaded[made[0]].missed == missed


def test_declared_and_learned_outputs_are_computed_where_they_stay(shared):
    x = shared_memory.shared(np.random.default_rng(2).standard_normal((400_000, 2)).astype(np.float32))
    made = small_graphs.doubled()
    for factor in (1, 2, 3):
        z, y = run(shared, made, {"x": factor * x}, "z", "y")
        np.testing.assert_array_equal(y, 2 * factor * x)
        np.testing.assert_allclose(z, factor * x.sum(dtype=np.float64), rtol=1e-3)
        region, _ = shared_memory.find(y)
        assert region.size == y.nbytes
        with pytest.raises(ValueError, match="read-only"):
            y[0] = 1
        with pytest.raises(PermissionError):
            os.pwrite(region.descriptor, b"x", 0)
    assert not shared.cells.public._process.loaded[made[0]].missed


# Where


def test_what_onnx_runtime_ran_is_told_of_each_run_and_no_more_than_it_took(runtime, monkeypatch):
    x = np.ones((30_000, 2), np.float32)
    for _ in range(3):  # as any other, bound, and bound again
        before = runtime.cells.counts()
        run(runtime, small_graphs.doubled(), {"x": x}, "z", "y")
        after = runtime.cells.counts()
        assert 0 < after.graph_seconds - before.graph_seconds < after.seconds - before.seconds
    lied = cell_host.run

    def lies(channel, *rest):
        channel.numbers += 1 << 63
        return lied(channel, *rest)

    monkeypatch.setattr(cell_host, "run", lies)
    doubled(runtime)
    counts = runtime.cells.counts()
    assert counts.graph_seconds <= counts.seconds, "though it says that it ran for three centuries"


def test_a_library_graph_runs_in_the_daemon_and_no_cell_starts(runtime):
    from edge_attention.graphs.attention import library

    graph = runtime.find(library.digest("attention_scores"))
    assert not isinstance(graph, ForeignGraph)
    assert runtime.cells.public.pid is runtime.cells.private.pid is None


def test_what_reads_something_private_has_a_cell_of_its_own(runtime):
    doubled(runtime)
    assert runtime.cells.private.pid is None
    doubled(runtime, private=True)
    assert runtime.cells.private.pid not in (None, runtime.cells.public.pid)


def test_a_cell_has_nothing_of_the_daemon_but_what_it_is_handed(runtime, monkeypatch):
    monkeypatch.setenv("EDGE_NODE_JOIN_TOKEN", "eaj_secret")
    with open(__file__) as something, ThreadPoolExecutor(4) as pool:
        os.set_inheritable(something.fileno(), True)
        list(pool.map(lambda _: doubled(runtime), range(8)))
        pid = runtime.cells.public.pid
        # From outside and as root everything can be seen; a box that allows less shows nothing here.
        held = sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    assert [name for name in held if not name.startswith("socket:")][:2] == ["/dev/null", "/dev/null"]
    assert sum(name.startswith("socket:") for name in held) == 1 + cells.LANES
    assert len(held) == 4 + cells.LANES
    assert b"eaj_secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > 0


def test_a_cell_without_work_ends_and_the_next_need_starts_another(runtime, monkeypatch):
    monkeypatch.setattr(cell_state, "IDLE_SECONDS", 0.3)
    doubled(runtime)
    until(lambda: runtime.cells.public.pid is None)
    doubled(runtime)
    assert runtime.cells.public.counts.started == 2
    assert not runtime.cells.public.counts.died


def test_graphs_that_were_used_least_are_loaded_again(runtime, monkeypatch):
    monkeypatch.setattr(cell_host, "GRAPHS", 2)
    made = [small_graphs.copied(TensorProto.FLOAT, count) for count in (1, 2, 3)]
    for _ in range(2):
        for count, one in enumerate(made, 1):
            run(runtime, one, {f"x{n}": ONE for n in range(count)}, "y0")
    assert len(runtime.cells.public._process.loaded) == 2


# Ends


def test_a_signal_ends_the_cell_the_task_hears_of_it_and_the_next_runs(runtime):
    doubled(runtime)
    with pytest.raises(GraphDied, match=r"ended its process: signal 8 \(SIGFPE\)"):
        run(runtime, small_graphs.divided(), {"a": LOWEST, "b": MINUS}, "y")
    assert isinstance(GraphDied(""), InvalidGraph)
    doubled(runtime)
    assert runtime.cells.public.counts.died == {"SIGFPE": 2}  # it was tried alone


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_cell_that_is_ended_from_outside_while_several_run_costs_nobody_an_answer(runtime, number):
    loops = small_graphs.endless()
    stop = Stop()
    doubled(runtime)
    with ThreadPoolExecutor(4) as pool:
        endless = pool.submit(run, runtime, loops, {"x": ONE}, "y", stop=stop)
        until(lambda: runtime.cells.public._state.jobs == 1)
        first = runtime.cells.public.pid
        others = [pool.submit(doubled, runtime) for _ in range(20)]
        other = pool.submit(run, runtime, small_graphs.endless(), {"x": ONE}, "y", stop=stop)
        until(lambda: runtime.cells.public._state.jobs == 2 and all(o.done() for o in others))
        os.kill(first, number)
        until(lambda: runtime.cells.public.pid not in (None, first))
        assert not endless.done()
        stop.set(Cancelled("enough"))
        for job in (endless, other):
            with pytest.raises(Cancelled):
                job.result(180)
    doubled(runtime)


def test_runs_alike_at_once_have_each_its_own_inputs_and_results(runtime):
    """What is kept of a run is by lane; results are copies, whatever is run there next."""
    good, barrier = small_graphs.long(4), threading.Barrier(4)

    def work(seed):
        rng, found = np.random.default_rng(seed), []
        barrier.wait()
        for _ in range(30):
            x = rng.normal(size=500).astype(np.float32)
            found.append((x, *run(runtime, good, {"x": x}, "y")))
        for x, y in found:
            np.testing.assert_array_equal(y, x)

    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(work, seed) for seed in range(4)]:
            job.result(180)


def test_of_several_the_one_that_ends_it_alone_is_guilty_and_the_others_have_their_results(runtime):
    """The others are under way while one raises SIGFPE again and again."""
    good = small_graphs.long(300)
    x = np.arange(1000, dtype=np.float32)
    barrier = threading.Barrier(3)

    def work():
        barrier.wait()
        for _ in range(20):
            (y,) = run(runtime, good, {"x": x}, "y")
            np.testing.assert_array_equal(y, x)

    def bad():
        barrier.wait()
        with pytest.raises(GraphDied):
            run(runtime, small_graphs.divided(), {"a": LOWEST, "b": MINUS}, "y")

    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(work), pool.submit(work), pool.submit(bad)]:
            job.result(120)


def test_memory_beyond_the_cell_s_is_an_error_or_its_end_never_the_daemon_s(runtime, monkeypatch):
    monkeypatch.setattr(cell_process, "OVERHEAD", 256 << 20)
    # The reader refuses texts; what it does not know of yet has to be held, too.
    read = SimpleNamespace(inputs=("x", "n"), outputs=("y",), types={})
    monkeypatch.setattr(reading, "read_graph", lambda data, where: SimpleNamespace(data=data, **vars(read)))
    feeds = {"x": np.array([1.2345678], np.float32), "n": np.array(40)}
    with pytest.raises((OutOfMemory, GraphDied, InvalidProgram)):
        run(runtime, small_graphs.doubled_strings(), feeds, "y")
    doubled(runtime)


def test_a_graph_is_stopped_within_it_and_the_cell_lives(runtime):
    doubled(runtime)
    pid = runtime.cells.public.pid
    stop = Stop()
    timer = threading.Timer(0.2, stop.set, [DeadlineExceeded("late")])
    timer.start()
    with pytest.raises(DeadlineExceeded, match="late"):
        run(runtime, small_graphs.endless(), {"x": ONE}, "y", stop=stop)
    doubled(runtime)
    assert runtime.cells.public.pid == pid


def test_a_load_that_does_not_end_is_stopped(runtime):
    made = small_graphs.long(30_000)
    stop = Stop()
    timer = threading.Timer(0.2, stop.set, [DeadlineExceeded("late")])
    timer.start()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="late"):
        run(runtime, made, {"x": ONE}, "y", stop=stop)
    assert time.monotonic() - began < 100  # whole, it takes minutes
    doubled(runtime)


def test_what_takes_more_than_its_processor_seconds_is_ended_with_its_cell(runtime, monkeypatch):
    monkeypatch.setattr(cell_state, "RUN_PROCESSOR_SECONDS", 0.3)
    with pytest.raises(GraphDied, match=r"takes over 0\.3 processor seconds a run"):
        run(runtime, small_graphs.endless(), {"x": ONE}, "y")
    monkeypatch.setattr(cell_state, "LOAD_PROCESSOR_SECONDS", 0.3)
    with pytest.raises(GraphDied, match=r"takes over 0\.3 processor seconds to load"):
        run(runtime, small_graphs.long(30_000), {"x": ONE}, "y")
    monkeypatch.undo()
    doubled(runtime)


def test_who_waits_when_the_node_leaves_is_told(runtime):
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run, runtime, small_graphs.endless(), {"x": ONE}, "y")
        until(lambda: runtime.cells.public._state.jobs == 1 and runtime.cells.public.pid is not None)
        runtime.close()
        with pytest.raises(Unavailable, match="has left"):
            job.result(180)


# Twice


def test_a_graph_that_ends_it_twice_is_refused_also_after_a_restart_until_it_is_allowed(tmp_path, caplog):
    made = small_graphs.divided()
    feeds = {"a": LOWEST, "b": MINUS}
    right = {"a": np.array([6], np.int32), "b": np.array([3], np.int32)}

    def start(*allowed):
        return Runtime(graphs=RefusedGraphs(tmp_path, allowed))

    first = start()
    for _ in range(2):
        with pytest.raises(GraphDied, match="ended its process"):
            run(first, made, feeds, "y")
    for runtime in (first, start()):
        with pytest.raises(GraphDied, match=f"refused.* --allow-graph {made[0]}"):
            run(runtime, made, right, "y", private=True)
        assert runtime.cells.private.pid is None
        runtime.close()
    allowed = start(made[0])
    assert run(allowed, made, right, "y")[0] == 2
    for _ in range(3):
        with pytest.raises(GraphDied, match="ended its process"):
            run(allowed, made, feeds, "y")
    allowed.close()
    again = start()  # what was allowed once begins anew
    assert run(again, made, right, "y")[0] == 2
    again.close()
    with pytest.raises(InvalidArgument, match="--allow-graph 'x' is not the digest"):
        RefusedGraphs(None, ["x"])


def test_what_a_graph_does_with_constants_is_counted_against_the_one_that_was_sent(tmp_path):
    digest, data = small_graphs.divided()
    divided = {"a": LOWEST}
    for number in range(2):  # each in a life of its own, with constants that have another name
        runtime = Runtime(graphs=RefusedGraphs(tmp_path))
        frozen = runtime.frozen(runtime.load(digest, data), f"{number:064x}", {"b": MINUS})
        with pytest.raises(GraphDied, match=f"graph {digest[:12]} ended its process"):
            frozen.run(divided, ["y"], Stop())
        runtime.close()
    runtime = Runtime(graphs=RefusedGraphs(tmp_path))
    graph = runtime.load(digest, data)
    frozen = runtime.frozen(graph, f"{3:064x}", {"b": np.array([3], np.int32)})
    for one, feeds in ((frozen, {"a": LOWEST}), (graph, {"a": LOWEST, "b": MINUS})):
        with pytest.raises(GraphDied, match=f"refused.* --allow-graph {digest}"):
            one.run(feeds, ["y"], Stop())
    assert runtime.cells.public.pid is None
    runtime.close()


def test_nobody_waits_for_the_disk_that_is_to_know_of_a_graph_but_who_ran_it(monkeypatch):
    made, feeds = small_graphs.divided(), {"a": LOWEST, "b": MINUS}
    graphs = RefusedGraphs()
    writing, written = threading.Event(), threading.Event()

    def slow():
        writing.set()
        assert written.wait(180)

    monkeypatch.setattr(graphs, "keep", slow)
    runtime = Runtime(limit=256 << 20, graphs=graphs)
    with ThreadPoolExecutor(2) as pool:
        job = pool.submit(run, runtime, made, feeds, "y")
        try:
            assert writing.wait(180)
            # The event loop asks so, too, and waits for nothing.
            other = runtime.load(*small_graphs.doubled())
            steps = other.steps({"x": np.ones((3, 2), np.float32)}, ["y"], Stop())
            assert pool.submit(next, steps).result(60) is ANYTHING
            assert not job.done()
        finally:
            written.set()
        with pytest.raises(GraphDied, match="ended its process"):
            job.result(180)
        # Its process is there by then, and is ended with the cell.
        until(lambda: runtime.cells.public._state.phase is cell_state.CellPhase.READY)
        steps.close()
        runtime.close()
        until(lambda: runtime.cells.public.pid is None)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', '{"' + "a" * 64 + '": "2"}'])
def test_a_damaged_count_is_said_and_refuses_nothing(tmp_path, text, caplog):
    (tmp_path / "ended-by-graphs.json").write_text(text)
    assert RefusedGraphs(tmp_path).refused == 0
    assert "is damaged" in caplog.text


# What is left behind


def test_descriptors_and_memory_are_back_after_two_hundred_runs(runtime):
    def held():
        pid = runtime.cells.public.pid
        regions, mappings = shared_memory.Region.live, len(Path("/proc/self/maps").read_text().splitlines())
        mine, theirs = os.listdir("/proc/self/fd"), os.listdir(f"/proc/{pid}/fd")
        return regions, mappings, len(mine), len(theirs)

    def resident():
        status = Path(f"/proc/{runtime.cells.public.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    big = shared_memory.shared(np.ones((400_000, 2), np.float32))
    plain = np.ones((1_000_000, 2), np.float32)

    def once():
        doubled(runtime)
        for x in (big, plain):
            (y,) = run(runtime, small_graphs.doubled(), {"x": x}, "y")
            assert y[-1, 1] == 2
        with pytest.raises(InvalidProgram):
            run(runtime, small_graphs.gathered(), {"x": ONE, "i": np.array([9])}, "y")

    for _ in range(5):
        once()
    gc.collect()  # what other tests have left behind
    regions, mappings, mine, theirs = held()
    before = resident()
    for _ in range(50):
        once()
    after = held()
    assert after[0] == regions
    assert abs(after[1] - mappings) < 40
    assert (after[2], after[3]) == (mine, theirs)
    assert resident() < before + (32 << 20)


ORPHAN = """
import sys, threading, numpy as np
sys.path.insert(0, sys.argv[1])
import small_graphs
from edge_node.cell.messages import LARGE
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.runtime import Runtime, Stop

runtime = Runtime(graphs=RefusedGraphs())
graph = runtime.load(*small_graphs.endless())
run = threading.Thread(target=graph.run, args=({"x": np.ones(1, np.float32)}, ["y"], Stop()), daemon=True)
run.start()
while runtime.cells.public.pid is None or not runtime.cells.public._process.loaded:
    run.join(0.01)
print(runtime.cells.public.pid, flush=True)
run.join()
"""


def test_a_cell_ends_with_a_daemon_that_was_killed_whatever_it_is_at():
    command = [sys.executable, "-c", ORPHAN, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        pid = int(daemon.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        daemon.kill()
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text())
