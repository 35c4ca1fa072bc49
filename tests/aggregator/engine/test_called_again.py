"""Which programs are called: those that run again, and only those a call is good for."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from aggregator.engine import prepared
from aggregator.engine.connection import NodeConnection
from aggregator.engine.prepared import KNOWN, Repeated, prepare
from edge_attention.core.errors import MessageTooLarge
from edge_attention.core.messages.link import Cancel, Credit
from edge_attention.core.messages.program import CALL_BYTES, SLOT_BYTES, Call, Frozen, Return, Run, Stored
from edge_attention.wire.link import prepared_program, to_node

STEPS = (Run("0" * 64, {"x": Stored("task/x")}, {"y": "task/y"}), Return("task/y", "y"))
X = {"task/x": np.arange(6, dtype=np.float32).reshape(2, 3), "job/j/n": np.array(7)}


def again(steps, tensors=X, **fields):
    """What is found of it at its second time."""
    repeated = Repeated()
    assert repeated.find(steps, tensors, **fields) is None
    return repeated.find(steps, tensors, **fields)


def test_what_comes_again_is_called_from_then_on():
    repeated = Repeated()
    assert repeated.find(STEPS, X) is None
    found = repeated.find(STEPS, X)
    assert repeated.find(STEPS, {name: 2 * array for name, array in X.items()}) is found
    program = prepared_program.decode(found.data)
    assert (program.instructions, program.frozen, program.releases) == (STEPS, (), ())
    assert [(s.name, s.data_type.value, s.shape) for s in program.slots] == [
        ("task/x", "float32", (2, 3)),
        ("job/j/n", "int64", ()),
    ]
    assert found.digest == sha256(found.data).digest()
    assert found.packed(dict(reversed(X.items()))) == X["task/x"].tobytes() + X["job/j/n"].tobytes()


def test_other_instructions_shapes_and_releases_are_other_programs():
    repeated = Repeated()
    repeated.find(STEPS, X)
    assert repeated.find((*STEPS,), X) is None, "equal is not the same: to compare takes too long"
    assert repeated.find(STEPS, X | {"task/x": np.zeros((3, 3), np.float32)}) is None
    assert repeated.find(STEPS, X | {"task/x": np.zeros((2, 3), np.float64)}) is None
    assert repeated.find(STEPS, X, ("text",)) is None
    assert repeated.find(STEPS, X) is not None


def test_what_a_call_is_no_good_for_is_sent_as_it_is():
    large = {"task/x": np.zeros(SLOT_BYTES + 1, np.int8)}
    assert again(STEPS, large) is None
    assert again(STEPS, {"task/x": np.zeros(SLOT_BYTES, np.int8)}) is not None
    assert again(STEPS, X, limit=28) is None
    assert again(STEPS, {f"task/{n}": np.zeros((), np.int8) for n in range(1025)}) is None
    assert again((), {}) is None, "of a program of no bytes nobody could say that it has come"
    assert again((Return("task/x", "x" * prepared._BYTES),)) is None
    assert again(STEPS, {"task/x": np.zeros(2, np.complex64)}) is None


def test_instructions_with_much_in_them_are_not_kept():
    repeated = Repeated()
    heavy = (Run("0" * 64, {"x": np.zeros(prepared._INLINE + 1, np.int8)}, {}),)
    assert [repeated.find(heavy, X) for _ in range(3)] == [None] * 3
    assert not repeated._seen


def test_programs_are_remembered_so_long():
    repeated = Repeated()
    programs = [(Return("task/x", str(n)),) for n in range(KNOWN + 1)]
    for steps in programs:
        repeated.find(steps, X)
    assert repeated.find(programs[0], X) is None
    assert repeated.find(programs[-1], X) is not None
    assert len(repeated._seen) == KNOWN


def test_what_freezes_is_called_at_once_or_not_at_all():
    repeated, frozen = Repeated(), (Frozen("job/j/w", version=1),)
    found = repeated.find(STEPS, X, (), frozen)
    assert prepared_program.decode(found.data).frozen == frozen
    assert repeated.find(STEPS, X, (), frozen) is found
    assert repeated.find(STEPS, X, (), (Frozen("job/j/w", version=2),)).digest != found.digest
    with pytest.raises(MessageTooLarge, match="of 3,670,016 bytes together"):
        repeated.find(STEPS, {"task/x": np.zeros(CALL_BYTES + 1, np.int8)}, (), frozen)


# What of it goes to a node


class Ends:
    """A connection of which all is read that is sent."""

    def __init__(self):
        self.connection = NodeConnection()
        self.connection.grant(Credit(1 << 30, 1 << 10))

    def sent(self, *messages):
        for message in messages:
            self.connection.send(message)
        found = []
        while (one := self.connection._next()) is not None:
            found.append(to_node.decode(one[1]))
        return found


def call(task, steps=STEPS):
    program = prepare(steps, X)
    return Call(task, "s", range(1), program=program.digest, slots=program.packed(X), prepared=program.data)


def test_a_program_goes_with_its_first_call():
    ends, other = Ends(), (Return("task/x", "x"),)
    assert ends.sent(call("a"), call("b"), call("c", other)) == [
        call("a"),
        replace(call("b"), prepared=b""),
        call("c", other),
    ]
    ends.connection.unknown()
    assert ends.sent(call("d"), call("e")) == [call("d"), replace(call("e"), prepared=b"")]


def test_a_new_connection_knows_of_nothing_that_came_before():
    assert Ends().sent(call("a")) == Ends().sent(call("a")) == [call("a")]


def test_a_call_that_nobody_waits_for_any_more_does_not_leave():
    ends = Ends()
    ends.connection.send(call("a"))
    ends.connection.send(Cancel("a"))
    assert ends.sent() == []
    assert not ends.connection._control
