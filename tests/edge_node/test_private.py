"""What a task on private data tells: of any two datasets the same, but for done or failed, and where."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small_graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.core.errors import Cancelled, DeadlineExceeded, InvalidProgram, OutOfMemory, Unavailable
from edge_attention.core.messages.program import Append, Batch, Drop, Program, Repeat, Return, Run, Stored
from edge_attention.core.release import column
from edge_attention.graphs.attention import library
from edge_attention.metrics.node import NodeMetrics
from edge_attention.tables.table import Table
from edge_attention.wire.link import from_node
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.data.datasets import LocalDataset
from edge_node.discretion import FAILED_STEP_SECONDS, MOMENTS, STEP_SECONDS, moment, private_error
from edge_node.executor import Execution, LocalNode
from edge_node.failures import Failures
from edge_node.release import Releases
from edge_node.runtime import ForeignGraph, Runtime, Stop
from edge_node.store.store import Origin, Store

SIZED, WHOLE, DRAWN, FILLED, GATHERED, DOUBLED, DIVIDED = (
    made()[0]
    for made in (
        small_graphs.sized,
        small_graphs.whole,
        small_graphs.drawn,
        small_graphs.filled,
        small_graphs.gathered,
        small_graphs.doubled,
        small_graphs.divided,
    )
)
ROW = Batch("d", {"x": "task/x"}, np.array([0]))
OF_X = {"x": Stored("task/x")}
SIZE = Run(SIZED, OF_X, {"y": "task/y"})
NUMBERS = Run(WHOLE, OF_X, {"y": "task/i"})
PUBLIC = {"task/public": np.ones((1, 2), np.float32)}
SAYS = Return("task/public", "public")
LOOK = f" (what edge-node prints: task t, {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(1.8e9))})"


@pytest.fixture(scope="module", params=["cells", "no cells"])
def graphs(request):
    made = ("sized", "whole", "drawn", "filled", "gathered", "doubled", "divided")
    runtime = Runtime("cpu", 1, 1 << 28, RefusedGraphs() if request.param == "cells" else None)
    loaded = [runtime.load(*getattr(small_graphs, name)()) for name in made]
    loaded.append(runtime.find(library.digest("segment_summary")))
    yield {graph.digest: graph for graph in loaded}
    runtime.close()


def node_of(secret, *releases, **fields):
    column = np.array([secret, 1, 2, 3], np.float32)
    data = LocalDataset("d", Table.of({"x": column}, ["a", "b", "c", "d"]))
    return LocalNode(Store(1 << 20), {"d": data}, Releases(releases), **fields)


def run(node, graphs, *instructions, **fields):
    fields = {"tensors": PUBLIC, **fields}
    program = Program("t", "s", range(1), instructions, **fields)
    execution = Execution(
        program, node, graphs, clock=lambda: 0.0, sleep=lambda seconds: None, wall=lambda: 1.8e9
    )
    return list(execution.contributions())


def told(node, graphs, *instructions, **fields):
    """All that leaves, byte for byte: contributions, heartbeats, a registration."""
    answer = [from_node.encode(message) for message in run(node, graphs, *instructions, **fields)]
    return (*answer, node.store.used, tuple(node.store.sequences().items()), report(node))


def report(node):
    session = SimpleNamespace(registered=True, reconnects=0, tasks=0)
    lines = NodeMetrics(node.store, session, "cpu", 1, quiet=True).report(0.0).splitlines()
    return tuple(lines)


FAILS_LATE = (
    ROW,
    NUMBERS,
    Repeat(
        4,
        (
            Run(GATHERED, {"x": np.arange(9, dtype=np.float32), "i": Stored("task/i")}, {"y": "task/g"}),
            SAYS,
        ),
    ),
)
LEAKS = {
    "the shape of what is appended": (
        ROW, SIZE, Append("job/j/q", Stored("task/y"), None, 4, (3, 1, 1)),
    ),
    "the shape of what is appended, unsaid": (ROW, SIZE, Append("job/j/q", Stored("task/y"), None, 4)),
    "the shape of an input": (ROW, SIZE, Run(DOUBLED, {"x": Stored("task/y")}, {"y": "task/z"})),
    "the shape of an input of a released graph": (
        ROW,
        SIZE,
        Run(
            library.digest("segment_summary"),
            {"keys": Stored("task/y"), "values": Stored("task/y")},
            {"key_norm": "task/n"},
        ),
        Return("task/n", "n"),
    ),
    "an index": FAILS_LATE,
    "how much memory is asked for": (ROW, Run(SIZED, OF_X, {"y": "job/j/big"}), SAYS),
    "which rows are read": (ROW, NUMBERS, Batch("d", {"x": "task/z"}, Stored("task/i")), SAYS),
    "hashes of rows": (
        ROW, NUMBERS, Batch("d", {}, Stored("task/i"), "task/ids", b"k"), Return("task/ids", "ids"),
    ),
    "a tensor itself": (ROW, SIZE, Return("task/y", "y")),
    "a row itself": (ROW, Return("task/x", "x")),
    "the same name written over": (
        ROW, SIZE, Run(SIZED, OF_X, {"y": "task/public"}), SAYS,
    ),
    "what comes before a failure": (*FAILS_LATE, Append("job/j/q", Stored("task/g"), None, 4, (9, 1, 1))),
}  # fmt: skip


@pytest.mark.parametrize("leak", LEAKS)
def test_of_many_secrets_only_done_or_failed_is_told(graphs, leak):
    """There are as many answers as places at which it can fail, and one; not as many as secrets."""
    secrets = [0, 1, 2, 3, 5, 8, 12, 17, 40, 333, 4444, 55_555, 300_000, -1, -7, 2**31, float("nan")]
    answers = {told(node_of(s, "alignment", "attention"), graphs, *LEAKS[leak]) for s in secrets}
    assert len(answers) <= 3


@settings(max_examples=30, deadline=None)
@given(
    leak=st.sampled_from(sorted(LEAKS)),
    secrets=st.tuples(*2 * [st.floats(-1e6, 1e6, width=32)]),
    released=st.booleans(),
)
def test_any_two_datasets_tell_the_same(graphs, leak, secrets, released):
    """Two that fail at the same place with the same class cannot be told apart, nor two that do not fail."""
    releases = ("alignment", "attention") if released else ()
    first, second = (run(node_of(s, *releases), graphs, *LEAKS[leak]) for s in secrets)
    ends = [(m[-1].error and (m[-1].error.name, m[-1].error.message.split(":")[0])) for m in (first, second)]
    if ends[0] == ends[1]:
        a, b = (told(node_of(s, *releases), graphs, *LEAKS[leak]) for s in secrets)
        assert a == b


def test_a_failure_says_where_and_of_which_graph_and_no_more(graphs, caplog):
    (only,) = run(
        node_of(333), graphs, ROW, Repeat(2, (SIZE, Append("job/j/q", Stored("task/y"), 0, 4, (3, 1, 1))))
    )
    assert (only.error.name, only.error.message) == (
        "InvalidProgram",
        f"instruction 2.2: Append of [3, 1, 1], graph {SIZED}: failed on private data; "
        "why is in the node's own log alone" + LOOK,
    )
    assert "is [333], and the program says [3, 1, 1]" in caplog.text


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((ROW, Run(SIZED, {"z": Stored("task/x")}, {"y": "task/y"})), "input 'x' is not bound"),
        ((ROW, Run(SIZED, OF_X, {"z": "task/y"})), "has no output z; it has y"),
        ((ROW, Run(DOUBLED, OF_X, {"y": "task/y"})), "must be float32 [n, 2]; it is float32 [1]"),
        ((ROW, NUMBERS, Run(DOUBLED, {"x": Stored("task/i")}, {"y": "task/y"})), "[n, 2]; it is int64"),
        ((ROW, Batch("d", {"q": "task/q"})), "has no column 'q'; it has x"),
        ((ROW, Batch("d", {"x": "task/q"}, np.array([9]))), "dataset 'd' has 4 rows; others were asked for"),
        ((ROW, Append("job/j/q", Stored("task/x"), None, 4)), "the program has to say its shape"),
        ((ROW, SIZE, Run(SIZED, {"x": Stored("task/none")}, {"y": "task/q"})), "nothing called 'task/none'"),
        ((ROW, SIZE, Run(DOUBLED, {"x": np.ones(3, np.float32)}, {"y": "task/q"})), "it is float32 [3]"),
        ((ROW, SIZE, Return("task/public", "")), "under a name of none"),
        ((ROW, SIZE, Return("task/y", "y")), f"--allow-release {SIZED}"),
    ],
)
def test_what_no_data_can_change_is_said_as_before(graphs, steps, said):
    node = node_of(3)
    assert said in run(node, graphs, *steps)[-1].error.message
    assert node.failures.count("") == 0


def test_nothing_leaves_before_all_that_may_fail_is_done(graphs):
    early = (SAYS, ROW, NUMBERS, SAYS, Run(WHOLE, OF_X, {"y": "task/j"}), SAYS, SAYS, Drop(("task/j",)))
    seen, slept = [], []
    program = Program("t", "s", range(1), early, tensors=PUBLIC)
    execution = Execution(
        program, node_of(1), graphs, clock=lambda: 1.0, sleep=lambda s: slept.append(len(seen))
    )
    seen.extend(execution.contributions())
    assert [m.number for m in seen] == list(range(len(seen)))
    assert slept == [1]  # the first had left before the first private step
    assert [len(m.tensors) for m in seen] == [1, 1, 1, 1]
    assert execution._store.used_apart == 0
    # One that fails after it returned something has not returned it.
    assert [bool(m.tensors) for m in run(node_of(99), graphs, SAYS, *FAILS_LATE)] == [True, False]


def test_what_is_held_back_is_counted(graphs):
    large = {"task/public": np.zeros(200_000, np.uint8)}
    steps = (ROW, Repeat(9, (NUMBERS, SAYS)))
    node = node_of(1)
    (only,) = run(node, graphs, *steps, tensors=large)
    assert only.error.name == "OutOfMemory"
    assert (node.store.used, node.store.used_apart) == (0, 0)


def test_released_graphs_stream_as_before(graphs):
    """Attention over private sequences: early numbers leave early, times are exact, nothing is counted."""
    node = node_of(1, f"{WHOLE}:y@d/x", failures=Failures(0))
    messages = run(node, graphs, ROW, NUMBERS, Return("task/i", "i"), NUMBERS, Return("task/i", "i"))
    assert [set(m.tensors) for m in messages] == [{"i"}, {"i"}]


# Time


@given(st.floats(0, 1e6), st.sampled_from([STEP_SECONDS, FAILED_STEP_SECONDS]))
def test_moments_are_few_and_near(seconds, step):
    found = moment(seconds, step)
    assert seconds <= found * (1 + 1e-12)
    assert found - seconds <= max(step, seconds / MOMENTS) * (1 + 1e-9)


def test_an_hour_has_some_three_hundred_moments():
    moments = {moment(s, STEP_SECONDS) for s in np.geomspace(1e-4, 3600, 200_000)}
    assert 200 < len(moments) < MOMENTS * math.log2(3600 / STEP_SECONDS)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Slow:
    """A graph that takes the seconds it is given; or fails, if that is a negative number."""

    remembers = False

    def __init__(self, clock):
        self.clock = clock

    def check(self, *_):
        pass

    def run(self, feeds, outputs, stop, private):
        seconds = float(feeds["x"][0])
        self.clock.now += abs(seconds)
        if seconds < 0:
            raise InvalidProgram(f"{seconds}")
        stop.check()
        return [feeds["x"] for _ in outputs]


def timed(secret, *releases, stop=None):
    clock = Clock()
    program = Program("t", "s", range(1), (ROW, SIZE, SAYS), tensors=PUBLIC)
    task = Execution(
        program, node_of(secret, *releases), {SIZED: Slow(clock)}, clock=clock, sleep=clock.sleep, stop=stop
    )
    (only,) = task.contributions()
    return clock.now - 100, only


@pytest.mark.parametrize(("secrets", "seconds"), [((0.0103, 0.0117), 0.012), ((1.01, 1.02), 1.024)])
def test_an_unreleased_task_is_over_at_a_step(secrets, seconds):
    ends = [timed(secret) for secret in secrets]
    assert [end for end, _ in ends] == pytest.approx([seconds] * 2)
    assert len({(m.run_seconds, m.task_seconds) for _, m in ends}) == 1
    assert timed(secrets[0], f"{SIZED}@d/x")[1].run_seconds == pytest.approx(
        secrets[0]
    )  # a released one says its time


def test_a_failed_one_at_a_larger_step():
    ends = [timed(-secret) for secret in (0.003, 0.17)]
    assert [end for end, _ in ends] == pytest.approx([FAILED_STEP_SECONDS] * 2)
    assert {from_node.encode(message) for _, message in ends} == {from_node.encode(ends[0][1])}


def test_who_cancels_does_not_see_between_steps():
    """Cancelled before its moment, a task that was done counts as one that was not."""
    stop = Stop()
    clock = Clock()

    def sleep(seconds):
        stop.set(Cancelled("nobody waits"))
        clock.sleep(seconds)

    program = Program("t", "s", range(1), (ROW, SIZE, SAYS), tensors=PUBLIC)
    node = node_of(0.0103)
    task = Execution(program, node, {SIZED: Slow(clock)}, clock=clock, sleep=sleep, stop=stop)
    (only,) = task.contributions()
    assert (only.error.name, only.error.message) == ("Cancelled", "nobody waits")
    assert node.failures.count("") == 0


@pytest.mark.parametrize(("error", "counts"), [(Cancelled, 0), (Unavailable, 0), (DeadlineExceeded, 1)])
def test_what_stops_a_task_from_outside_is_no_failure_of_it(error, counts):
    stop, node, clock = Stop(), node_of(1), Clock()

    class Stopped(Slow):
        def run(self, feeds, outputs, stop, private):
            stop.set(error("the reason"))
            stop.check()

    program = Program("t", "s", range(1), (ROW, SIZE), caller="user/ana")
    (only,) = Execution(
        program, node, {SIZED: Stopped(clock)}, clock=clock, sleep=clock.sleep, stop=stop
    ).contributions()
    assert (only.error.name, only.error.message) == (error.__name__, "the reason")
    assert node.failures.count("user/ana") == counts


# Memory


def test_what_graphs_make_of_private_data_takes_no_room_from_others(graphs):
    """Else who asks for more and more memory until there is none would read a size, bit by bit."""
    seen = []
    for secret in (10, 200_000):
        node = node_of(secret)
        run(node, graphs, ROW, Run(SIZED, OF_X, {"y": "job/j/y"}))
        assert node.store.used_apart == 4 * secret
        steps = [Run(FILLED, {"x": np.array([n])}, {"y": f"job/p/{n}"}) for n in (150_000, 112_144, 1)]
        messages = run(node, graphs, *steps, tensors={})
        seen.append([from_node.encode(m) for m in messages])
    assert seen[0] == seen[1]


def test_a_graph_that_finds_no_memory_gives_no_figures(graphs, caplog):
    if isinstance(graphs[FILLED], ForeignGraph):
        return  # the cell for what is not private tells of its own memory only
    huge = Run(FILLED, {"x": np.array([1 << 50])}, {"y": "task/y"})
    error = run(node_of(1), graphs, huge)[-1].error
    assert error.name == "OutOfMemory"
    assert not set("0123456789") & set(error.message.replace(FILLED[:12], ""))
    assert FILLED[:12] in caplog.text


# Between tasks


def test_random_numbers_do_not_tell_how_many_were_drawn(graphs):
    """The generator of an operator goes on from run to run: a private loop would tell its length by it."""
    draw = Run(DRAWN, OF_X, {"y": "task/y"})
    node = node_of(7)
    one = {"tensors": {"task/x": np.ones(1, np.float32)}}
    fresh = Runtime().load(*small_graphs.drawn()).run({"x": np.full(1, 3, np.float32)}, ["y"], Stop())[0]
    before = run(node, graphs, draw, Return("task/y", "y"), **one)
    assert before[-1].tensors["y"] == fresh[0]
    assert run(node, graphs, ROW, draw)[-1].error is None
    (after,) = run(node, graphs, draw, Return("task/y", "y"), **one)
    if graphs[DRAWN].remembers:
        assert after.error.name == "PrivateTensor"
    else:  # in the cell for private data others were drawn: these go on where they were
        assert after.tensors["y"] == fresh[1]
    assert run(node, graphs, Run(DOUBLED, {"x": PUBLIC["task/public"]}, {"y": "task/y"}))[-1].error is None


def test_labels_last_through_names_written_over_dropped_and_repeated(graphs):
    node = node_of(3)
    again = Repeat(2, (Run(WHOLE, {"x": Stored("job/j/x")}, {"y": "job/j/i"}), Drop(("task/",))))
    run(node, graphs, Batch("d", {"x": "job/j/x"}), again, Drop(("job/j/x",)))
    flow = frozenset({(WHOLE, "x", column("d", "x"))})
    assert node.store.get("job/j/i").origin == Origin(WHOLE, "y", flow=flow)
    # Written over with something public it is that.
    run(node, graphs, Run(WHOLE, {"x": np.ones(2, np.float32)}, {"y": "job/j/i"}))
    assert node.store.get("job/j/i").origin is None


def test_a_graph_that_ends_its_process_says_only_that(graphs):
    """It does so for one value and not for others."""
    if not isinstance(graphs[DIVIDED], ForeignGraph):
        return
    steps = (Run(DIVIDED, {"a": np.array([-(2**31)], np.int32), "b": Stored("job/j/b")}, {"y": "task/y"}),)
    node = node_of(0)
    node.store.put("job/j/b", np.array([-1], np.int32), Origin(WHOLE, "y"))
    (only,) = run(node, graphs, *steps)
    assert only.error.name == "GraphDied"
    assert only.error.message == (
        f"instruction 1: Run, graph {DIVIDED}: failed on private data; why is in the node's own log alone"
        + LOOK
    )
    assert node.failures.count("") == 1


def test_an_error_is_one_of_a_few_classes():
    class Strange(OutOfMemory):
        pass

    for error, name in (
        (Strange("1"), "OutOfMemory"),
        (InvalidProgram("1"), "InvalidProgram"),
        (KeyError("1"), "Internal"),
        (MemoryError("1"), "OutOfMemory"),
        (Unavailable("1"), "Unavailable"),
    ):
        found = private_error(error, "instruction 1: Run", "", "here")
        assert type(found).__name__ == name
        assert found.message == (
            "instruction 1: Run: failed on private data; why is in the node's own log alone (here)"
        )


def test_the_node_s_own_log_has_no_control_characters_and_is_bounded(graphs, caplog):
    clock = Clock()

    class Loud(Slow):
        def run(self, *_):
            raise InvalidProgram("\x1b[2Jsecret" + 100_000 * "x")

    program = Program("t\x1b", "s", range(1), (ROW, SIZE))
    (only,) = Execution(
        program, node_of(1), {SIZED: Loud(clock)}, clock=clock, sleep=clock.sleep
    ).contributions()
    assert "secret" not in only.error.message
    assert "\\x1b[2Jsecret" in caplog.text
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 10_000


# Failures by caller


def failing(node, graphs, caller):
    return run(node, graphs, *LEAKS["the shape of an input"], caller=caller)[-1].error


def test_failures_are_counted_by_caller_and_then_refused(graphs):
    node = node_of(3, failures=Failures(2))
    assert [failing(node, graphs, "user/ana").name for _ in range(3)] == [
        "InvalidProgram", "InvalidProgram", "PrivateLimit",
    ]  # fmt: skip
    refusal = failing(node, graphs, "user/ana").message
    assert "'user/ana'" in refusal
    assert "--private-failures 2" in refusal
    assert failing(node, graphs, "user/ben").name == "InvalidProgram"
    # What is released goes on, and so does what is public; nothing that may fail on private data does.
    released = replace(node, releases=Releases([f"{WHOLE}@d/x"]))
    assert run(released, graphs, ROW, NUMBERS, Return("task/i", "i"), caller="user/ana")[-1].error is None
    public = Run(DOUBLED, {"x": PUBLIC["task/public"]}, {"y": "task/y"})
    assert run(node, graphs, public, caller="user/ana")[-1].error is None
    for steps in (
        LEAKS["which rows are read"],
        (ROW, SIZE),
        (ROW, Batch("d", {"x": "task/z"}, Stored("task/x"))),
    ):
        assert run(node, graphs, *steps, caller="user/ana")[-1].error.name == "PrivateLimit"


def test_what_an_unreleased_graph_left_behind_is_no_way_on(graphs):
    """A released graph on what an unreleased one made fails by a shape that one chose."""
    summary = library.digest("segment_summary")
    node = node_of(3, "attention", failures=Failures(1))
    run(node, graphs, ROW, Run(SIZED, OF_X, {"y": "job/j/y"}), caller="user/ana")
    probe = Run(summary, {"keys": Stored("job/j/y"), "values": Stored("job/j/y")}, {"key_norm": "task/n"})
    assert [run(node, graphs, probe, caller="user/ana")[-1].error.name for _ in range(2)] == [
        "InvalidProgram", "PrivateLimit",
    ]  # fmt: skip


def test_a_good_task_counts_nothing(graphs):
    node = node_of(3, failures=Failures(1))
    for _ in range(3):
        assert run(node, graphs, ROW, SIZE)[-1].error is None
    assert node.failures.count("") == 0


def test_the_type_of_what_a_cell_made_of_private_data_is_not_told_and_counts():
    """A cell that was taken over can choose one by a private value."""
    lying = SimpleNamespace(
        digest="a" * 64,
        remembers=False,
        check=lambda *_: None,
        run=lambda feeds, *_: [np.zeros((1, 1, 1), np.float32 if feeds["x"][0] > 5 else np.float64)],
    )
    node = node_of(1)
    grown = Append("job/j/q", Stored("task/y"), None, 4, (1, 1, 1))
    last = run(node, {lying.digest: lying}, ROW, Run(lying.digest, OF_X, {"y": "task/y"}), grown)[-1]
    assert "float" not in last.error.message
    assert node.failures.count("") == 1
