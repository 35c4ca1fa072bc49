"""Calls that are carried out step by step: what they answer is what the executor answers of the same call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small_graphs
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import Cancelled, DataLoss
from edge_attention.core.messages.program import Call, Drop, PreparedProgram, Return, Run, Slot, Stored
from edge_attention.core.tensors import DataType, Encoded, Encoding
from edge_attention.wire.link import from_node
from edge_node.direct import MAX_STEPS, DirectCall
from edge_node.executor import Execution, LocalNode
from edge_node.prepared import Prepared
from edge_node.release import Releases
from edge_node.runtime import Runtime, Stop
from edge_node.store.store import Origin, Store

PRODUCT, PRODUCT_DATA = small_graphs.product()
DOUBLED, DOUBLED_DATA = small_graphs.doubled()
DRAWN, DRAWN_DATA = small_graphs.drawn()
X, W = np.array([[1, 2], [3, 4]], np.float32), np.eye(2, dtype=np.float32)
SLOTS = (Slot("task/x", DataType.FLOAT32, (2, 2)),)


class Box:
    """A node without a link, and a call of `instructions` there."""

    def __init__(self, *instructions, slots=SLOTS, limit=1 << 20, releases=()):
        self.store, runtime = Store(limit), Runtime()
        self.node = LocalNode(self.store, {}, Releases(()))
        files = {PRODUCT: PRODUCT_DATA, DOUBLED: DOUBLED_DATA, DRAWN: DRAWN_DATA}
        self.graphs = {digest: runtime.load(digest, data) for digest, data in files.items()}
        program = PreparedProgram(instructions, slots, (), releases)
        self.prepared = Prepared(b"digest", program, 1)
        self.call = Call("t", "s", range(2, 5), 3, None, b"digest", X.tobytes(), "someone")
        self.stop = Stop()
        self.executed = 0
        self.store.put("job/j/w", W)
        self.before = self.store.used

    def execution(self):
        self.executed += 1
        return Execution(self.prepared.called(self.call), self.node, self.graphs, stop=self.stop)

    def direct(self):
        tensors = self.prepared.tensors(self.call)
        return DirectCall(
            self.call, self.prepared.direct, tensors, self.graphs, self.store, self.stop, self.execution
        )


def plain(message):
    """A contribution, comparable: but for what it says of the time it took."""
    tensors = {
        name: (value.encoding, value.array.tolist()) if isinstance(value, Encoded) else value.tolist()
        for name, value in message.tensors.items()
    }
    head = message.task_id, message.shard, message.coverage, message.version, message.number, message.final
    return head, tensors, message.error


NAMES = ("task/x", "task/y", "task/z", "task/a/b")
SOURCES = st.sampled_from(
    [Stored(name) for name in (*NAMES[:2], *NAMES, "job/j/w", "job/j/w", "job/j/none")] + [W, W]
)
RUNS = st.one_of(
    st.builds(
        lambda x, w, y: Run(PRODUCT, {"x": x, "w": w}, {"y": y}), SOURCES, SOURCES, st.sampled_from(NAMES)
    ),
    st.builds(
        lambda x, y, z: Run(DOUBLED, {"x": x}, {"y": y, "z": z}),
        SOURCES,
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
    ),
)
RETURNS = st.builds(
    Return,
    st.sampled_from((*NAMES, *NAMES, "job/j/w")),
    st.sampled_from(("a", "b", "c", "d", "")),
    st.sampled_from((Encoding.RAW, Encoding.FLOAT16)),
)


@given(st.lists(st.one_of(RUNS, RETURNS), max_size=5))
def test_it_answers_what_the_executor_answers(instructions):
    box = Box(Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"}), Return("task/y", "y"), *instructions)
    if box.prepared.direct is None:
        return
    found = [plain(message) for message in box.direct().contributions()]
    assert box.store.used == box.before, "nothing of it counts any more"
    wanted = [plain(message) for message in box.execution().contributions()]
    if wanted[-1][2] is None:
        assert found == wanted
    else:  # what is stored is looked up before the first graph runs: it may fail earlier, and for that
        assert found[-1][2] is not None
        assert found[-1][2].name in (wanted[-1][2].name, "NotFound")
        assert found[:-1] == wanted[: len(found) - 1]


def test_what_a_step_stores_comes_back_behind_the_steps_after_it():
    first = Run(DOUBLED, {"x": Stored("task/x")}, {"y": "job/j/y"})
    second = Run(PRODUCT, {"x": Stored("task/x"), "w": Stored("job/j/w")}, {"y": "task/y"})
    box = Box(first, second, Return("job/j/y", "first"), Return("task/y", "second"))
    (found,) = map(plain, box.direct().contributions())
    np.testing.assert_array_equal(box.store.get("job/j/y", None).array, 2 * X)
    (wanted,) = map(plain, box.execution().contributions())
    assert found == wanted
    assert found[2] is None


def test_what_returns_before_a_graph_leaves_before_it_runs():
    first = Run(DOUBLED, {"x": Stored("task/x")}, {"z": "task/z", "y": "task/y"})
    second = Run(PRODUCT, {"x": Stored("task/y"), "w": Stored("job/j/w")}, {"y": "task/y"})
    box = Box(first, Return("task/z", "sum"), second, Return("task/y", "y"))
    messages = box.direct().contributions()
    early = next(messages)
    assert (early.number, early.final, list(early.tensors)) == (0, False, ["sum"])
    assert box.store.used > box.before, "what it keeps counts"
    last = next(messages)
    assert (last.number, last.final, last.task_id, last.version) == (1, True, "t", 3)
    np.testing.assert_array_equal(last.tensors["y"], 2 * X @ W)
    assert last.task_seconds >= last.run_seconds > 0
    assert from_node.decode(from_node.encode(last)).coverage == range(2, 5)
    assert box.executed == 0


@pytest.mark.parametrize(
    ("instructions", "slots"),
    [
        ((Run(DOUBLED, {"x": Stored("task/x")}, {"y": "job/j/kept/y"}),), SLOTS),
        ((Run(DOUBLED, {"x": Stored("task/x")}, {"y": "context/c/y"}),), SLOTS),
        ((Run(DOUBLED, {"x": Stored("task/x")}, {"y": "job/j/y"}),
          Run(DOUBLED, {"x": Stored("job/j/y")}, {"y": "task/y"})), SLOTS),
        ((Run(DOUBLED, {"x": Stored("dataset/d")}, {"y": "task/y"}),), SLOTS),
        ((Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"}), Drop(("job/j/",))), SLOTS),
        ((Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"}), Return("job/j/w", "w")), SLOTS),
        ((Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"}),), (Slot("job/j/x", DataType.FLOAT32),)),
        ((Return("task/x", "x"),), SLOTS),
        (MAX_STEPS * (Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"}),), SLOTS),
        ((), SLOTS),
    ],
)  # fmt: skip
def test_what_stores_drops_or_reads_data_is_the_executors(instructions, slots):
    assert Box(*instructions, slots=slots).prepared.direct is None


def test_what_a_step_stores_is_there_for_the_next_call_and_counts():
    first = Run(DOUBLED, {"x": Stored("task/x")}, {"y": "job/j/y", "z": "task/z"})
    second = Run(PRODUCT, {"x": Stored("task/x"), "w": Stored("job/j/w")}, {"y": "task/y"})
    box = Box(first, Return("job/j/y", "twice"), second, Return("task/y", "y"))
    for _ in range(2):
        early, last = box.direct().contributions()
        np.testing.assert_array_equal(early.tensors["twice"], 2 * X)
        np.testing.assert_array_equal(last.tensors["y"], X @ W)
        np.testing.assert_array_equal(box.store.get("job/j/y").array, 2 * X)
        assert box.store.used == box.before + X.nbytes
    assert box.executed == 0
    box.store.put("job/j/w", W, Origin(DOUBLED, "y"))
    list(box.direct().contributions())
    assert box.executed == 1, "who reads what is private"


def test_what_brings_a_release_is_the_executors():
    run = Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"})
    assert Box(run, releases=("text",)).prepared.direct is None


@pytest.mark.parametrize("place", ["job/j/w", "context/c/s/w"])
def test_a_private_tensor_is_the_executors_to_refuse(place):
    run = Run(PRODUCT, {"x": Stored("task/x"), "w": Stored(place)}, {"y": "task/y"})
    box = Box(run, Return("task/y", "y"))
    box.store.drop(place)
    box.store.put(place, W, Origin(DOUBLED, "y"))
    (message,) = box.direct().contributions()
    assert message.error.name == "PrivateTensor"
    assert box.executed == 1
    box.store.put(place, W)  # as public: it is looked at at each call
    (message,) = box.direct().contributions()
    assert message.error is None
    assert box.executed == 1


def test_a_graph_that_remembers_is_the_executors():
    graph = Runtime().load(DRAWN, DRAWN_DATA)
    inputs = {name: Stored("task/x") for name in graph._inputs}
    box = Box(Run(DRAWN, inputs, {graph._outputs[0]: "task/y"}), Return("task/y", "y"))
    list(box.direct().contributions())
    assert box.executed == 1


def test_it_ends_as_it_is_told_to():
    run = Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"})
    box = Box(run, Return("task/y", "y"), run)
    messages = box.direct().contributions()
    assert not next(messages).final
    box.stop.set(Cancelled("nobody waits"))
    last = next(messages)
    assert (last.number, last.final, last.error.name, last.error.message) == (
        1, True, "Cancelled", "nobody waits",
    )  # fmt: skip
    assert list(messages) == []
    assert box.store.used == box.before


def test_it_has_the_room_that_the_store_has():
    run = Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"})
    box = Box(run, Return("task/y", "y"), limit=W.nbytes + X.nbytes)
    (message,) = box.direct().contributions()
    assert message.error.name == "OutOfMemory"
    assert box.store.used == box.before


def test_given_up_in_the_middle_it_frees_what_it_keeps():
    run = Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"})
    box = Box(run, Return("task/y", "y"), run)
    task = box.direct()
    messages = task.contributions()
    next(messages)
    messages.close()
    assert box.store.used == box.before
    failed = task.failure(DataLoss("it cannot be sent"))
    assert (failed.number, failed.final, failed.error.name) == (1, True, "DataLoss")


def test_the_kind_is_found_anew_where_what_is_stored_has_changed():
    run = Run(PRODUCT, {"x": Stored("task/x"), "w": Stored("job/j/w")}, {"y": "task/y"})
    direct = Box(run).prepared.direct
    asked = []

    def find():
        asked.append(1)
        return len(asked)

    layouts = {"job/j/w": (2, 2)}
    assert [direct.kind(0, layouts.get, find), direct.kind(0, layouts.get, find)] == [1, 1]
    assert direct.kind(1, layouts.get, find) == 1, "something else has changed"
    layouts["job/j/w"] = None  # private now
    assert direct.kind(2, layouts.get, find) == 2
    assert direct.kind(2, None, find) == 2, "the store says that nothing has changed: nothing is looked at"


def test_what_a_large_call_brings_lies_in_its_message_and_a_graph_in_this_process_gets_it_aligned():
    shape = (10_000, 2)
    x = np.arange(20_000, dtype=np.float32).reshape(shape)
    steps = Run(DOUBLED, {"x": Stored("task/x")}, {"y": "task/y"}), Return("task/y", "y")
    box = Box(*steps, slots=(Slot("task/x", DataType.FLOAT32, shape),))
    message = memoryview(b"x" + x.tobytes())[1:]
    box.call = replace(box.call, slots=message)
    lying = box.prepared.tensors(box.call, True)["task/x"]
    assert np.shares_memory(lying, np.frombuffer(message, np.uint8))
    assert not lying.flags.aligned
    assert box.prepared.tensors(box.call)["task/x"].flags.aligned
    given = []
    graph = box.graphs[DOUBLED]
    box.graphs[DOUBLED] = Watched(graph, given)
    wanted = [plain(message) for message in box.execution().contributions()]
    task = DirectCall(
        box.call, box.prepared.direct, {"task/x": lying}, box.graphs, box.store, box.stop, box.execution
    )
    assert [plain(message) for message in task.contributions()] == wanted
    assert wanted[-1][2] is None
    assert all(array.flags.aligned for array in given)
    assert len(given) == 2


class Watched:
    """A graph, and what it is given."""

    def __init__(self, graph, given):
        self.graph, self.given = graph, given

    def __getattr__(self, name):
        return getattr(self.graph, name)

    def run(self, feeds, *rest):
        self.given += feeds.values()
        return self.graph.run(feeds, *rest)
