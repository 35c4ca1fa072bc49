"""Appends whose place a call says, step by step and by the executor: the same, and refused alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_attention.core.messages.program import Append, Call, PreparedProgram, Return, Run, Slot, Stored
from edge_attention.core.tensors import DataType
from edge_attention.graphs.attention import library
from edge_node.direct import DirectCall
from edge_node.executor import Execution, LocalNode
from edge_node.prepared import Prepared
from edge_node.release import Releases
from edge_node.runtime import Runtime, Stop
from edge_node.store.store import Origin, Store

ROWS, WIDTH = 3, 2
GRAPH = library.digest("cached_decode")
FLOAT, INT = DataType.FLOAT32, DataType.INT64
SLOTS = (
    Slot("task/q", FLOAT, (ROWS, 1, 1, WIDTH)),
    Slot("task/k", FLOAT, (ROWS, 1, WIDTH)),
    Slot("task/at", INT, (3,)),
    Slot("task/rows", INT, (2,)),
    Slot("task/lo", INT, (ROWS,)),
    Slot("task/hi", INT, (ROWS,)),
)
KEYS = "job/j/k"
RUN = Run(
    GRAPH,
    {
        "q": Stored("task/q"),
        "keys": Stored(KEYS),
        "values": Stored(KEYS),
        "scale": np.array(1, np.float32),
        "rows": Stored("task/rows"),
        "lo": Stored("task/lo"),
        "hi": Stored("task/hi"),
        "before": np.zeros((1, 1, 1, 1), np.float32),
        "before_lse": np.full((1, 1, 1, 1), -np.inf, np.float32),
    },
    {"out": "task/out", "lse": "task/lse"},
)
APPEND = Append(KEYS, Stored("task/k"), tile=4, place="task/at")


class Caller:
    """A node without a link, and one program that appends and attends."""

    def __init__(self, direct, append=APPEND):
        self.direct, self.store, runtime = direct, Store(1 << 20), Runtime()
        self.node = LocalNode(self.store, {}, Releases(()))
        self.graphs = {GRAPH: runtime.find(GRAPH)}
        program = PreparedProgram((append, RUN, Return("task/out", "out"), Return("task/lse", "lse")), SLOTS)
        self.prepared = Prepared(b"digest", program, 1)
        assert (self.prepared.direct is not None) == (append is APPEND or append.tile != 5)

    def call(self, keys, at, queries=None, seen=None, place_dtype=np.int64):
        keys = np.asarray(keys, np.float32).reshape(ROWS, 1, WIDTH)
        hi = np.array([0, 0, 0] if seen is None else seen, np.int64)
        q = np.zeros((ROWS, 1, 1, WIDTH), np.float32) if queries is None else queries
        parts = (q, keys, np.array(at, place_dtype), np.array([0, ROWS]), np.zeros(ROWS, np.int64), hi)
        slots = b"".join(part.tobytes() for part in parts)
        call = Call("t", "s", range(1), 0, None, b"digest", slots, "someone")

        def executed():
            return Execution(self.prepared.called(call), self.node, self.graphs, stop=Stop())

        if not self.direct:
            return list(executed().contributions())[-1]
        tensors = self.prepared.tensors(call)
        task = DirectCall(call, self.prepared.direct, tensors, self.graphs, self.store, Stop(), executed)
        return list(task.contributions())[-1]

    def stored(self):
        tokens = self.store.sequences().get(KEYS, 0)
        return self.store.get(KEYS).array.transpose(0, 2, 1, 3).reshape(-1, WIDTH)[:tokens]


@pytest.fixture(params=[True, False], ids=["step by step", "by the executor"])
def caller(request):
    return Caller(request.param)


def test_one_program_appends_at_another_place_at_each_call(caller):
    rng = np.random.default_rng(0)
    wanted = np.zeros((0, WIDTH), np.float32)
    for first, count, at in ((0, 3, 0), (1, 2, 3), (0, 1, 5), (2, 1, 2), (0, 3, 4)):
        keys = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
        message = caller.call(keys, (first, count, at), seen=(at + 1,) * ROWS)
        assert message.error is None
        end = max(len(wanted), at + count)
        wanted = np.concatenate([wanted, np.zeros((end - len(wanted), WIDTH), np.float32)])
        wanted[at : at + count] = keys[first : first + count]
        np.testing.assert_array_equal(caller.stored(), wanted)
        # Queries of zero: the mean of what they see, what was appended just now included.
        np.testing.assert_allclose(message.tensors["out"][0, 0, 0], wanted[: at + 1].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("at", "name", "words"),
    [
        ((0, 4, 0), "InvalidProgram", "says rows 0 to 4"),
        ((-1, 1, 0), "InvalidProgram", "says rows -1"),
        ((2, -1, 0), "InvalidProgram", "says rows 2 to 1"),
        ((0, 1, 7), "InvalidProgram", "leaves a gap"),
        ((0, 1, -1), "InvalidProgram", "gap"),
    ],
)
def test_a_place_that_is_none_is_refused_and_nothing_is_written(caller, at, name, words):
    assert caller.call(np.ones((ROWS, WIDTH)), (0, 2, 0)).error is None
    before = caller.stored().copy()
    message = caller.call(2 * np.ones((ROWS, WIDTH)), at)
    assert message.error.name == name
    assert words in message.error.message
    np.testing.assert_array_equal(caller.stored(), before)


def test_a_sequence_that_is_gone_is_not_found(caller):
    message = caller.call(np.ones((ROWS, WIDTH)), (0, 1, 5))
    assert message.error.name == "NotFound"
    assert KEYS not in caller.store.sequences()


def test_a_sequence_that_is_private_is_never_read_so(caller):
    caller.store.append(KEYS, np.ones((2, 1, WIDTH), np.float32), None, 4, Origin("", "column"))
    message = caller.call(np.ones((ROWS, WIDTH)), (0, 1, 2))
    assert message.error is not None
    assert not message.tensors


def test_an_append_with_a_place_and_a_token_is_refused():
    caller = Caller(False, replace(APPEND, at=0, tile=5))
    message = caller.call(np.ones((ROWS, WIDTH)), (0, 1, 0))
    assert message.error.name == "InvalidProgram"
