"""A graph may take over its cell: what that says is checked; a lie ends it, never the daemon or a wait."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import lying_cell
import numpy as np
import pytest
import small_graphs

from edge_attention.core.errors import DeadlineExceeded, GraphDied, OutOfMemory, Unavailable
from edge_node import shared_memory
from edge_node.cell import process as cell_process
from edge_node.cell import state as cell_state
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.runtime import Runtime, Stop

pytestmark = pytest.mark.e2e

SCRIPT = Path(lying_cell.__file__)
LIES = [*lying_cell.LOADED, *lying_cell.DONE, *re.findall(r'lie == "([^"]+)"', SCRIPT.read_text())]
OTHERWISE = {
    "not ready",
    "ready: other threads",
    "threads without number",
    "silent",
    "gone",
    "need: all memory",
}
X = np.ones((2, 2), np.float32)


@pytest.fixture
def lying(monkeypatch):
    """A runtime whose cells tell this lie."""
    made = Runtime(limit=256 << 20, graphs=RefusedGraphs())

    def start(lie):
        monkeypatch.setattr(cell_process, "COMMAND", (str(SCRIPT), lie))
        return made

    yield start
    made.close()


def run(runtime, stop=None):
    made = small_graphs.doubled()
    return (runtime.cached(made[0]) or runtime.load(*made)).run({"x": X}, ["y"], stop or Stop())


def test_there_are_lies():
    assert len(LIES) > 35
    assert set(LIES) >= OTHERWISE


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie not in OTHERWISE])
def test_a_lie_ends_the_cell_and_is_said(lying, lie, monkeypatch, caplog):
    runtime = lying(lie)
    live = shared_memory.Region.live
    with pytest.raises(GraphDied, match="made its process answer what cannot be"):
        run(runtime)
    assert shared_memory.Region.live <= live + 1
    assert "\x1b" not in caplog.text
    monkeypatch.undo()
    np.testing.assert_array_equal(run(runtime)[0], 2 * X)


@pytest.mark.parametrize("lie", ["not ready", "ready: other threads"])
def test_one_that_does_not_start_as_it_should_is_ended(lying, lie, monkeypatch):
    runtime = lying(lie)
    with pytest.raises(Unavailable, match="could not start"):
        run(runtime)
    monkeypatch.undo()
    np.testing.assert_array_equal(run(runtime)[0], 2 * X)


def test_one_that_cannot_start_is_said_with_its_words_in_the_log(lying, monkeypatch, caplog):
    runtime = lying("gone")
    monkeypatch.setattr(cell_process, "COMMAND", ("-c", "import nothing_like_it"))
    with pytest.raises(Unavailable, match="could not start"):
        run(runtime)
    assert "No module named 'nothing_like_it'" in caplog.text
    monkeypatch.undo()
    np.testing.assert_array_equal(run(runtime)[0], 2 * X)


def test_one_that_never_is_ready_is_ended(lying, monkeypatch):
    runtime = lying("gone")
    monkeypatch.setattr(cell_state, "START_SECONDS", 0.5)
    monkeypatch.setattr(cell_process, "COMMAND", ("-c", "import time; time.sleep(600)"))
    with pytest.raises(Unavailable, match="could not start"):
        run(runtime)


def test_one_that_is_silent_ends_with_the_task(lying):
    stop = Stop()
    timer = threading.Timer(0.2, stop.set, [DeadlineExceeded("late")])
    timer.start()
    with pytest.raises(DeadlineExceeded, match="late"):
        run(lying("silent"), stop)


def test_one_that_leaves_in_the_middle_was_ended_by_its_graph(lying):
    with pytest.raises(GraphDied, match=r"ended its process: exit code 0"):
        run(lying("gone"))


def test_one_that_says_again_that_it_is_ready_and_lies_is_ended(lying, monkeypatch):
    runtime = lying("threads without number")
    with pytest.raises(GraphDied, match=r"ended its process"):
        run(runtime)
    monkeypatch.undo()
    np.testing.assert_array_equal(run(runtime)[0], 2 * X)


def test_one_that_writes_without_end_keeps_nobody_from_looking_at_the_clock(monkeypatch):
    process = cell_process.CellProcess.__new__(cell_process.CellProcess)
    process.name, process.words, process._lines, process._rest = "public", -1, 0, b""
    reads = []
    monkeypatch.setattr(os, "read", lambda descriptor, size: reads.append(1) or b"words\n" * 100)
    process.listen()
    assert 0 < len(reads) < 100


def test_memory_that_it_asks_for_is_bounded(lying):
    with pytest.raises(OutOfMemory, match="outputs take"):
        run(lying("need: all memory"))


def test_what_it_says_lies_in_one_place_is_not_copied_again_and_again(lying):
    graph = lying("done: on top of each other").load(*small_graphs.doubled())
    with pytest.raises(GraphDied, match="on top of each other"):
        graph.run({"x": X}, ["y", "z"], Stop())


def test_its_words_are_cut_and_harmless(lying, caplog):
    with pytest.raises(GraphDied):
        run(lying("no JSON"))
    said = [record.getMessage() for record in caplog.records if "cell says" in record.getMessage()]
    assert said
    assert all(len(line) < 2 * cell_process._LETTERS and "\x1b" not in line for line in said)
