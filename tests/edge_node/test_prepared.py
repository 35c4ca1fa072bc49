"""Prepared programs at the node: known by digest, bounded, frozen; what a call must be."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest
import small_graphs
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import (
    EdgeAttentionError,
    InvalidProgram,
    NotFound,
    OutOfMemory,
    UnknownProgram,
)
from edge_attention.core.messages.program import (
    Append,
    Batch,
    Call,
    Drop,
    Frozen,
    PreparedProgram,
    Repeat,
    Return,
    Run,
    Slot,
    Stored,
)
from edge_attention.core.release import column
from edge_attention.core.tensors import DataType
from edge_attention.graphs.attention import library
from edge_attention.wire.link import prepared_program
from edge_node import freezing as freezing_module
from edge_node import frozen
from edge_node import programs as module
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.direct import BoundRun
from edge_node.executor import Execution, LocalNode
from edge_node.programs import PreparedPrograms
from edge_node.release import Releases
from edge_node.runtime import Runtime
from edge_node.store.store import Origin, Store

PRODUCT, DATA = small_graphs.product()
W = np.arange(6, dtype=np.float32).reshape(2, 3)
X = np.array([[1, 2], [3, 4]], np.float32)
FULL = X.tobytes()
SLOT = Slot("task/x", DataType.FLOAT32, (2, 2))
STEPS = (
    Run(PRODUCT, {"x": Stored("task/x"), "w": Stored("job/j/w")}, {"y": "task/y"}),
    Return("task/y", "y"),
)


def call(program, slots=FULL, data=None, **fields):
    """A call of `program` that brings it, or other bytes in its place."""
    written = prepared_program.encode(program)
    digest = sha256(written).digest()
    return Call("t", "s", range(2), 1, None, digest, slots, "", written if data is None else data, **fields)


class Box:
    """What a node has of it, without a link."""

    def __init__(self, limit=1 << 24, releases=(), runtime=None):
        self.store, self.runtime = Store(limit), runtime or Runtime()
        self.node = LocalNode(self.store, {}, Releases(releases))
        self.programs = PreparedPrograms(self.store, self.runtime)
        self.store.freed = self.programs.forget
        self.graphs = {PRODUCT: self.runtime.load(PRODUCT, DATA)}

    def frozen(self, asked):
        found = self.programs.find(asked)
        if not found.ready:
            self.programs.freeze(found, self.graphs)
        return found

    def run(self, asked):
        """The tensors of the answer; raises what it says."""
        found = self.frozen(asked)
        (only,) = Execution(found.called(asked), self.node, self.graphs).contributions()
        if only.error is not None:
            raise AssertionError(f"{only.error.name}: {only.error.message}")
        return only.tensors


def freezing(*steps, digest="", version=0):
    return PreparedProgram(steps or STEPS, (SLOT,), (Frozen("job/j/w", digest, version),))


def test_a_call_is_its_program_with_the_slots_filled():
    box = Box()
    box.store.put("job/j/w", W)
    program = PreparedProgram(STEPS, (SLOT,), releases=("text",))
    found = box.programs.find(call(program))
    made = found.called(call(program))
    assert (made.task_id, made.shard, made.coverage, made.version) == ("t", "s", range(2), 1)
    assert (made.instructions, made.releases) == (STEPS, ("text",))
    np.testing.assert_array_equal(made.tensors["task/x"], X)
    np.testing.assert_array_equal(box.run(call(program))["y"], X @ W)


def test_a_program_that_is_not_known_is_asked_for_and_then_known():
    box = Box()
    program = PreparedProgram((Return("task/x", "x"),), (SLOT,))
    with pytest.raises(UnknownProgram, match=r"knows no program [0-9a-f]{64}: send it with the call"):
        box.programs.find(call(program, data=b""))
    found = box.programs.find(call(program))
    assert box.programs.find(call(program, data=b"")) is found


def test_a_program_under_another_digest_is_refused():
    box = Box()
    other = prepared_program.encode(PreparedProgram((Return("task/x", "y"),), (SLOT,)))
    with pytest.raises(InvalidProgram, match="has another digest"):
        box.programs.find(call(PreparedProgram((Return("task/x", "x"),), (SLOT,)), data=other))
    assert len(box.programs) == 0


DTYPES = ["float32", "float64", "int8", "int64", "bool", "float16"]


@given(
    slots=st.lists(st.sampled_from(DTYPES), max_size=4),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=4, max_size=4),
    data=st.data(),
)
def test_slots_are_what_they_were(slots, shapes, data):
    arrays = {}
    for n, (dtype, shape) in enumerate(zip(slots, shapes, strict=False)):
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = data.draw(st.binary(min_size=count, max_size=count))
        raw = bytes(b & 1 for b in raw) if dtype == "bool" else raw
        arrays[f"task/{n}"] = np.frombuffer(bytearray(raw), dtype).reshape(shape)
    described = tuple(Slot(n, DataType.of(a.dtype), a.shape) for n, a in arrays.items())
    asked = call(
        PreparedProgram((Return("task/0", "x"),), described), b"".join(a.tobytes() for a in arrays.values())
    )
    made = PreparedPrograms(Store(1), Runtime()).find(asked).called(asked)
    assert made.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        found = made.tensors[name]
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize(
    ("program", "slots", "said"),
    [
        (PreparedProgram((), (SLOT,)), b"1234", "brings 4 bytes for slots of 16"),
        (PreparedProgram((), (Slot("task/x", DataType.BOOL, (2,)),)), b"\1\2", "a BOOL element is one byte"),
        (PreparedProgram((), (SLOT, SLOT)), X.tobytes() * 2, "names a slot or a frozen tensor twice"),
        (PreparedProgram((), (Slot("x", DataType.INT8),)), b"1", "'x' is not a name in a store"),
        (PreparedProgram((), (Slot("task/x", DataType.INT8, (-1,)),)), b"", "is not a shape"),
        (PreparedProgram((), (Slot("task/x", DataType.INT8, (1,) * 9),)), b"1", "is not a shape"),
        (PreparedProgram((), tuple(Slot(f"task/{n}", DataType.INT8) for n in range(1025))), b"", "1024 slot"),
        (PreparedProgram((Run("g", {}, {}),)), b"", "is not the digest of a graph"),
        (PreparedProgram((), releases=("x",) * 17), b"", "16 releases at most"),
        (PreparedProgram(STEPS, (SLOT,), (Frozen("task/w"),)), FULL, "task/w cannot be frozen"),
        (PreparedProgram(STEPS, (SLOT,), (Frozen("job/j/"),)), FULL, "job/j/ cannot be frozen"),
        (PreparedProgram(STEPS, (SLOT,), (Frozen("job/j/v"),)), FULL, "job/j/v is frozen, and no"),
        (freezing(*STEPS, Append("job/j/w", X, tile=2)), FULL, "frozen and written by the same"),
        (freezing(*STEPS, Repeat(2, (Batch("d", {"*": "job/j/w"}),))), FULL, "frozen and written"),
        (freezing(*STEPS, Run(PRODUCT, {}, {"y": "job/j/w"})), FULL, "frozen and written by the same"),
    ],
)  # fmt: skip
def test_a_program_or_a_call_that_cannot_be_is_refused(program, slots, said):
    programs = PreparedPrograms(Store(1 << 20), Runtime())
    with pytest.raises(EdgeAttentionError, match=said):
        programs.find(call(program, slots)).called(call(program, slots))


def test_bytes_that_are_no_program_are_refused():
    data = b"\xff\xff"
    asked = Call("t", "s", range(1), program=sha256(data).digest(), prepared=data)
    with pytest.raises(EdgeAttentionError, match="are not a prepared program"):
        PreparedPrograms(Store(1), Runtime()).find(asked)


def test_those_not_called_for_longest_go_first(monkeypatch):
    monkeypatch.setattr(module, "MAX_PREPARED", 3)
    box = Box()
    asked = [call(PreparedProgram((Return("task/x", str(n)),), (SLOT,))) for n in range(4)]
    for one in asked[:3]:
        box.programs.find(one)
    box.programs.find(call(PreparedProgram((Return("task/x", "0"),), (SLOT,)), data=b""))
    box.programs.find(asked[3])
    assert [one.program in box.programs._kept for one in asked] == [True, False, True, True]


def test_their_bytes_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "PREPARED_BYTES", 1000)
    box = Box()
    for n in range(50):
        box.programs.find(call(PreparedProgram((Return("task/x", f"{n:0200}"),), (SLOT,))))
        assert box.programs._bytes <= 1000 or len(box.programs) == 1
    assert 1 < len(box.programs) < 10


# Frozen


def test_what_is_frozen_is_a_constant():
    box = Box()
    box.store.put("job/j/w", W)
    found = box.frozen(call(freezing()))
    (run, _) = found.instructions
    assert isinstance(run, BoundRun)
    assert (run.graph, run.inputs.keys(), run.constants.keys()) == (PRODUCT, {"x"}, {"w"})
    assert "w" not in run.session._inputs
    assert not found.wanted
    np.testing.assert_array_equal(box.run(call(freezing()))["y"], X @ W)


def test_graphs_of_this_project_freeze_as_well():
    rng, box, digest = np.random.default_rng(0), Box(1 << 24), library.digest("attention_decode")
    box.graphs[digest] = box.runtime.find(digest)
    for name in ("keys", "values"):
        box.store.append(f"context/c/{name}", rng.standard_normal((700, 2, 8), np.float32), tile=512)
    feeds = {"scale": np.array(0.3, np.float32), "lo": np.zeros(1, np.int64), "hi": np.full(1, 700)}
    inputs = {**feeds, "q": Stored("task/q"), **{n: Stored(f"context/c/{n}") for n in ("keys", "values")}}
    steps = (Run(digest, inputs, {"out": "task/out", "lse": "task/lse"}), Return("task/out", "out"))
    q = rng.standard_normal((1, 4, 8), np.float32)
    slots = (Slot("task/q", DataType.FLOAT32, (1, 4, 8)),)
    plain = box.run(call(PreparedProgram(steps, slots), q.tobytes()))["out"]
    memory = tuple(Frozen(f"context/c/{name}") for name in ("keys", "values"))
    frozen = box.run(call(PreparedProgram(steps, slots, memory), q.tobytes()))["out"]
    np.testing.assert_allclose(frozen, plain, rtol=1e-5, atol=1e-6)
    found = box.frozen(call(PreparedProgram(steps, slots, memory), q.tobytes()))
    assert found.instructions[0].session.ours


def test_a_new_version_is_a_new_program_and_the_old_one_serves():
    box = Box()
    box.store.put("job/j/w", W)
    old, new = call(freezing(version=1)), call(freezing(version=2))
    np.testing.assert_array_equal(box.run(old)["y"], X @ W)
    box.store.put("job/j/w", 10 * W)
    np.testing.assert_array_equal(box.run(old)["y"], X @ W)
    np.testing.assert_array_equal(box.run(new)["y"], X @ (10 * W))
    np.testing.assert_array_equal(box.run(old)["y"], X @ W)
    box.store.drop("job/j/w")
    np.testing.assert_array_equal(box.run(new)["y"], X @ (10 * W))


def test_of_a_digest_nothing_else_is_frozen():
    box = Box()
    digest = sha256(W.tobytes()).hexdigest()
    box.store.put("job/j/w", 2 * W)
    with pytest.raises(InvalidProgram, match="another digest"):
        box.frozen(call(freezing(digest=digest)))
    assert box.store.used == W.nbytes, "and nothing is counted for it"
    box.store.put("job/j/w", W)
    np.testing.assert_array_equal(box.run(call(freezing(digest=digest)))["y"], X @ W)


@pytest.mark.parametrize(
    ("stored", "cls", "said"),
    [
        (None, NotFound, "stores nothing called 'job/j/w'"),
        (W.astype(np.float64), InvalidProgram, "input 'w' must be float32"),
        (W[0], InvalidProgram, "input 'w' must be"),
    ],
)
def test_what_cannot_be_frozen_is_said_and_counts_nothing(stored, cls, said):
    box = Box()
    if stored is not None:
        box.store.put("job/j/w", stored)
    before = box.store.used
    for _ in range(2):
        with pytest.raises(cls, match=said):
            box.frozen(call(freezing()))
    assert box.store.used == before


def test_an_input_that_the_graph_has_not_cannot_be_frozen():
    box = Box()
    box.store.put("job/j/w", W)
    steps = (Run(PRODUCT, {"x": Stored("task/x"), "v": Stored("job/j/w")}, {"y": "task/y"}),)
    with pytest.raises(InvalidProgram, match="has no input v"):
        box.frozen(call(freezing(*steps)))


@pytest.fixture
def bare(monkeypatch):
    """A session that takes nothing beside its constants, so that small numbers are all there is to count."""
    monkeypatch.setattr(frozen, "SESSION_BYTES", 0)


def versions(box):
    return [kept.program.frozen[0].version for kept in box.programs._kept.values()]


def test_what_is_frozen_counts_and_older_programs_make_room(bare):
    box = Box(limit=W.nbytes * 8)
    for version in range(5):
        box.store.put("job/j/w", version + W)
        np.testing.assert_array_equal(box.run(call(freezing(version=version)))["y"], X @ (version + W))
        assert box.store.used <= box.store.limit
    assert versions(box) == [2, 3, 4]
    assert box.store.used == 6 * W.nbytes, "three sessions, what is stored, and what two of them are made of"
    box.store.put("job/j/v", np.zeros(6, np.float32))
    box.store.drop("job/j/")
    assert box.store.used == 0, "what a scope owned is freed with it"
    assert len(box.programs) == 0


def lane(number, name="job/j/w", digest=""):
    """A program that differs from others in what it calls the tensors of a call, and their weights."""
    steps = (
        Run(PRODUCT, {"x": Stored(f"task/{number}"), "w": Stored(name)}, {"y": "task/y"}),
        Return("task/y", "y"),
    )
    return PreparedProgram(
        steps, (Slot(f"task/{number}", DataType.FLOAT32, (2, 2)),), (Frozen(name, digest),)
    )


def test_programs_that_freeze_the_same_share_a_session(bare):
    box = Box(limit=W.nbytes * 4)
    box.store.put("job/j/w", W)
    asked = [call(lane(number)) for number in range(5)]
    for one in asked:
        np.testing.assert_array_equal(box.run(one)["y"], X @ W)
    assert len({id(box.frozen(one).instructions[0].session) for one in asked}) == 1
    assert box.store.used == 2 * W.nbytes, "it is packed once"
    for kept in list(box.programs._kept.values())[:4]:
        box.programs._drop(kept)
    assert box.store.used == 2 * W.nbytes, "the last program has it still"
    np.testing.assert_array_equal(box.run(asked[4])["y"], X @ W)
    box.programs._drop(*box.programs._kept.values())
    assert box.store.used == W.nbytes


def test_of_a_digest_tensors_of_two_names_are_the_same_and_others_are_not(bare):
    box, digest = Box(), sha256(W.tobytes()).hexdigest()
    box.store.put("job/j/w", W)
    box.store.put("job/k/w", W.copy())
    box.store.put("job/k/v", 2 * W)
    asked = [lane(0, digest=digest), lane(1, "job/k/w", digest), lane(2, "job/k/w"), lane(3, "job/k/v")]
    first, second, unsaid, other = [box.frozen(call(one)).instructions[0].session for one in asked]
    assert first is second
    assert len({id(first), id(unsaid), id(other)}) == 3
    np.testing.assert_array_equal(box.run(call(asked[3]))["y"], X @ (2 * W))


def test_what_two_threads_freeze_at_a_time_is_made_once_and_again_if_it_fails(bare):
    box = Box()
    box.store.put("job/j/w", W)
    made, going, failing = [], threading.Event(), [True]
    plain = box.runtime.frozen

    def slow(*args):
        made.append(args)
        going.wait(180)
        if failing.pop() if failing else False:
            raise OutOfMemory("no memory for it")
        return plain(*args)

    box.runtime.frozen = slow
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(box.frozen, call(lane(number))) for number in range(4)]
        while not made:
            time.sleep(0.001)
        going.set()
        failed = [job for job in jobs if job.exception() is not None]
    assert (len(failed), len(made)) == (1, 2)
    assert box.store.used == 2 * W.nbytes


def test_two_threads_that_freeze_first_share_what_there_is(monkeypatch):
    box, made, begin = Box(), [], freezing_module.Freezer.__init__
    box.store.put("job/j/w", W)
    asked = [call(lane(number)) for number in range(2)]
    second = threading.Thread(target=box.frozen, args=(asked[1],))

    def slow(self, *args):
        made.append(self)
        if len(made) == 1:
            second.start()
            second.join(0.2)  # it would make another one now
        begin(self, *args)

    monkeypatch.setattr(freezing_module.Freezer, "__init__", slow)
    box.frozen(asked[0])
    second.join()
    assert len(made) == 1
    first, other = (box.frozen(one).instructions[0].session for one in asked)
    assert first is other


@pytest.mark.e2e
def test_what_nodes_of_one_process_freeze_into_a_graph_is_each_one_s_own_in_their_cell():
    runtime = Runtime(limit=64 << 20, graphs=RefusedGraphs())
    try:
        boxes = [Box(runtime=runtime) for _ in range(3)]
        for turn in range(2):
            for times, box in enumerate(boxes, 1):
                if not turn:
                    box.store.put("job/j/w", times * W)
                np.testing.assert_array_equal(box.run(call(freezing()))["y"], X @ (times * W))
        assert runtime.cells.public.counts.started == 1
    finally:
        runtime.close()


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["call", "put", "drop", "forget"]), st.integers(0, 3), st.integers(0, 1)),
        max_size=12,
    )
)
def test_whatever_comes_and_goes_what_counts_is_what_is_there(steps):
    """At the end nothing is stored and no program kept, so nothing counts; never more than there may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "SESSION_BYTES", 8)
        box = Box(limit=W.nbytes * 6)
        box.runtime.frozen = lambda graph, digest, constants: graph
        for what, number, name in steps:
            stored = f"job/{name}/w"
            with contextlib.suppress(EdgeAttentionError):
                match what:
                    case "call":
                        box.frozen(call(lane(number, stored)))
                    case "put":
                        box.store.put(stored, number + W)
                    case "drop":
                        box.store.drop(stored)
                    case "forget":
                        box.store.drop(f"job/{name}/")
            assert 0 <= box.programs._freezer.sessions.size <= frozen.FROZEN_PART * box.store.limit
            assert box.store.used <= box.store.limit
        for name in range(2):
            box.store.drop(f"job/{name}/")
        assert (box.store.used, len(box.programs._freezer.sessions)) == (0, 0)


def test_where_there_is_no_room_at_all_it_is_said_and_nobody_goes_for_it(bare):
    box = Box(limit=W.nbytes * 4)
    box.store.put("job/j/w", W)
    box.frozen(call(freezing()))
    box.store.put("job/k/w", np.zeros((2, 6), np.float32))
    with pytest.raises(OutOfMemory, match="what a program freezes takes 96 bytes, and such programs have 84"):
        box.frozen(call(lane(1, "job/k/w")))


def test_sessions_are_not_too_many(bare, monkeypatch):
    monkeypatch.setattr(frozen, "FROZEN_SESSIONS", 2)
    box = Box()
    plain = call(PreparedProgram((Return("task/x", "x"),), (SLOT,)))
    box.programs.find(plain)
    for version in range(4):
        box.store.put("job/j/w", version + W)
        box.run(call(freezing(version=version)))
    assert len(box.programs._freezer.sessions) == 2
    assert len(box.programs) == 3
    assert plain.program in box.programs._kept


def test_a_frozen_sequence_does_not_grow():
    box = Box()
    box.store.append("context/c/w", np.ones((2, 1, 3), np.float32), tile=2)
    digest, data = small_graphs.reshaped()
    box.graphs[digest] = box.runtime.load(digest, data)
    steps = (Run(digest, {"x": Stored("context/c/w")}, {"y": "task/y"}), Return("task/y", "y"))
    program = PreparedProgram(steps, (), (Frozen("context/c/w"),))
    np.testing.assert_array_equal(box.run(call(program, b""))["y"], np.ones((2, 3)))
    box.store.append("context/c/w", np.zeros((1, 1, 3), np.float32), at=0)
    np.testing.assert_array_equal(box.run(call(program, b""))["y"], np.ones((2, 3)))


def test_what_is_private_stays_private_when_it_is_frozen():
    """It is an input at each run, and not packed: to load a graph tells nothing of it."""
    box = Box()
    box.store.put("job/j/w", W, Origin("", column("d", "w"), chosen=False, flow=frozenset()))
    found = box.frozen(call(freezing()))
    (run, _) = found.instructions
    assert (run.session, dict(run.constants)) == (box.graphs[PRODUCT], {})
    with pytest.raises(AssertionError, match=r"PrivateTensor: task/y is private"):
        box.run(call(freezing()))
    with pytest.raises(InvalidProgram, match="no program names the digest"):
        box.frozen(call(freezing(digest=sha256(W.tobytes()).hexdigest())))


@pytest.mark.parametrize("columns", [1, 30_000, 30_001])
def test_what_private_data_has_sized_is_not_frozen_and_nothing_tells_how_large_it_is(columns):
    box = Box(limit=1 << 20)
    box.store.put("job/j/w", W)
    first = box.frozen(call(freezing()))
    box.store.put("job/j/w", np.zeros((2, columns), np.float32), Origin("f" * 64, "out", flow=frozenset()))
    with pytest.raises(InvalidProgram, match="cannot be frozen: a graph has made it of private data") as told:
        box.frozen(call(freezing(version=1)))
    assert str(columns) not in str(told.value)
    assert box.programs.find(call(freezing(), data=b"")) is first  # it had to make no room


@pytest.mark.parametrize("shape", [(0, 2**62), (2**31, 2**31, 0), (0, 2**31 + 1), (-1,), (1,) * 40, (-2, -2)])
def test_a_slot_of_a_shape_that_no_tensor_has_is_refused_before_any_call(shape):
    program = PreparedProgram((Return("task/x", "x"),), (Slot("task/x", DataType.FLOAT32, shape),))
    with pytest.raises(EdgeAttentionError, match="slot task/x"):
        Box().programs.find(call(program, b""))


def test_what_is_released_of_a_frozen_private_tensor_leaves():
    box = Box(releases=(f"{PRODUCT}:y@d/w",))
    box.store.put("job/j/w", W, Origin("", column("d", "w"), chosen=False, flow=frozenset()))
    np.testing.assert_array_equal(box.run(call(freezing()))["y"], X @ W)
    box.store.put("job/j/w", 3 * W, Origin("", column("d", "other"), chosen=False, flow=frozenset()))
    np.testing.assert_array_equal(box.run(call(freezing()))["y"], X @ W)  # as it was when it was frozen
    with pytest.raises(AssertionError, match="PrivateTensor"):
        box.run(call(freezing(version=1)))


def test_a_drop_within_the_program_is_no_write():
    box = Box()
    box.store.put("job/j/w", W)
    steps = (*STEPS, Drop(("job/j/w",)))
    np.testing.assert_array_equal(box.run(call(freezing(*steps)))["y"], X @ W)
    np.testing.assert_array_equal(box.run(call(freezing(*steps)))["y"], X @ W)
