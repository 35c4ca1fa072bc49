"""The exchange as transcripts: programs out, contributions in, nodes that come and go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aggregator.engine.exchange import Exchange
from aggregator.engine.outcome import MissingKind
from aggregator.engine.prepared import prepare
from aggregator.engine.shards import Assignment, Deliver, Revoke, SendProgram, ShardState
from edge_attention.core import errors
from edge_attention.core.errors import (
    Damaged,
    DuplicateContribution,
    InvalidArgument,
    InvalidProgram,
    InvalidTensor,
    NotFound,
    PrivateTensor,
    StaleVersion,
)
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.program import Call, Contribution, Fault, Return
from edge_attention.core.transitions import told
from edge_attention.wire.link import from_node, task_of, to_node

READY, SUSPECT, LOST, DRAINING = NodeState.READY, NodeState.SUSPECT, NodeState.LOST, NodeState.DRAINING


class Fleet:
    """An exchange over `shards` (name -> holders), and the states of the nodes."""

    def __init__(self, **shards):
        self.states = {holder: READY for holders in shards.values() for holder in holders}
        self.assignments = [
            Assignment(shard, tuple(holders), range(10 * i, 10 * i + 10), ())
            for i, (shard, holders) in enumerate(shards.items())
        ]
        self.exchange = Exchange("x", self.assignments, lambda name: self.states.get(name, LOST), version=3)

    def becomes(self, node, state):
        self.states[node] = state
        return self.exchange.node(node)

    def answer(self, node, send, number=0, final=True, error=None, **changed):
        """What the exchange does when `node` answers the program of `send`."""
        program = send.program
        answer = Contribution(
            program.task_id,
            program.shard,
            program.coverage,
            program.version,
            number,
            final=final,
            error=error,
        )
        return self.exchange.contribution(node, replace(answer, **changed))


def missing(fleet):
    """Shard -> (kind, node, text)."""
    return {shard: (m.kind, m.node, m.text) for shard, m in fleet.exchange.missing.items()}


def sends(actions):
    return [action for action in actions if isinstance(action, SendProgram)]


def test_each_shard_is_asked_once_and_load_is_spread():
    fleet = Fleet(s="ab", t="ab", u="ab")
    first = sends(fleet.exchange.start())
    assert [send.node for send in first] == ["a", "b", "a"]
    assert len({send.program.task_id for send in first}) == 3
    for send in first:
        (deliver,) = fleet.answer(send.node, send)
        assert isinstance(deliver, Deliver)
    assert fleet.exchange.done
    assert fleet.exchange.answered == {"s": "a", "t": "b", "u": "a"}
    assert fleet.exchange.missing == {}


def test_many_shards_are_asked_some_at_a_time():
    fleet = Fleet(s="ab", t="ab", u="ab", v="a")
    (first, second) = sends(fleet.exchange.start(2))
    assert (first.program.shard, second.program.shard) == ("s", "t")
    assert not fleet.exchange.started
    fleet.answer("a", first)
    (again,) = sends(fleet.becomes("b", LOST))
    assert (again.node, again.program.shard) == ("a", "t"), "and what is asked of nobody yet is not"
    assert [send.program.shard for send in sends(fleet.exchange.start(5))] == ["u", "v"]
    assert fleet.exchange.started
    assert not fleet.exchange.done
    assert fleet.exchange.start(5) == []


def test_what_was_asked_of_nobody_when_its_time_is_up_is_missing():
    fleet = Fleet(s="a", t="a")
    (send,) = sends(fleet.exchange.start(1))
    assert fleet.exchange.deadline() == [Revoke("a", send.program.task_id)]
    assert fleet.exchange.done
    assert set(missing(fleet)) == {"s", "t"}
    assert fleet.exchange.start(1) == []


def test_a_contribution_counts_once():
    fleet = Fleet(s="a", t="a")
    send, _ = fleet.exchange.start()
    fleet.answer("a", send, final=False)
    with pytest.raises(DuplicateContribution):
        fleet.answer("a", send, final=False)
    with pytest.raises(InvalidArgument, match="before number 1"):
        fleet.answer("a", send, number=2)
    fleet.answer("a", send, number=1)
    with pytest.raises(NotFound):
        fleet.answer("a", send, number=2)
    assert fleet.exchange.answered == {"s": "a"}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"version": 2}, StaleVersion),
        ({"coverage": range(0, 9)}, InvalidArgument),
        ({"coverage": range(0, 20)}, InvalidArgument),
        ({"shard": "t"}, InvalidArgument),
    ],
)
def test_what_was_not_asked_for_is_refused_and_changes_nothing(fields, error):
    fleet = Fleet(s="a", t="a")
    send, _ = fleet.exchange.start()
    with pytest.raises(error):
        fleet.answer("a", send, **fields)
    assert fleet.exchange.answered == {}
    fleet.answer("a", send)
    assert fleet.exchange.answered == {"s": "a"}


def test_another_nodes_answer_to_a_task_is_refused():
    fleet = Fleet(s="ab")
    (send,) = fleet.exchange.start()
    with pytest.raises(NotFound):
        fleet.answer("b", send)
    with pytest.raises(NotFound):
        fleet.exchange.contribution("a", Contribution("x.0.9", "s", range(10), 3, 0, final=True))
    assert fleet.exchange.damaged("b", send.program.task_id, InvalidTensor("no")) == []
    assert fleet.exchange.waits == {"s": "a"}


def test_a_lost_node_is_replaced_by_another_holder_and_its_late_answer_is_refused():
    fleet = Fleet(s="ab")
    (send,) = fleet.exchange.start()
    fleet.answer("a", send, final=False)
    (retry,) = fleet.becomes("a", LOST)
    assert (retry.node, retry.program.shard) == ("b", "s")
    assert retry.program.task_id != send.program.task_id
    with pytest.raises(NotFound):
        fleet.answer("a", send, number=1)
    fleet.answer("b", retry)
    assert fleet.exchange.answered == {"s": "b"}


def test_without_another_holder_a_suspect_node_keeps_its_task_until_its_lease_ends():
    fleet = Fleet(s="a")
    (send,) = fleet.exchange.start()
    assert fleet.becomes("a", SUSPECT) == []
    assert not fleet.exchange.done
    (again,) = fleet.becomes("a", READY)
    assert again == send, "the same task: the node repeats what it has"
    assert fleet.becomes("a", SUSPECT) == []
    assert fleet.becomes("a", LOST) == []
    assert fleet.exchange.done
    assert missing(fleet) == {"s": (MissingKind.LOST, "a", "node 'a' is lost")}


def test_with_another_holder_nobody_waits_for_a_suspect():
    fleet = Fleet(s="ab")
    (send,) = fleet.exchange.start()
    (retry,) = fleet.becomes("a", SUSPECT)
    assert retry.node == "b"
    assert fleet.becomes("a", READY) == [], "it is not asked besides"
    with pytest.raises(NotFound):
        fleet.answer("a", send)


def test_a_node_that_was_away_is_asked_again_when_the_other_holder_goes():
    fleet = Fleet(s="ab")
    fleet.exchange.start()
    fleet.becomes("a", SUSPECT)
    assert fleet.becomes("a", READY) == []
    (third,) = fleet.becomes("b", LOST)
    assert third.node == "a"
    fleet.answer("a", third)
    assert fleet.exchange.answered == {"s": "a"}


def test_a_shard_nobody_can_be_asked_for_waits_for_a_suspect_holder():
    fleet = Fleet(s="a")
    fleet.states["a"] = SUSPECT
    assert fleet.exchange.start() == []
    assert fleet.exchange.waits == {"s": ""}
    (send,) = fleet.becomes("a", READY)
    fleet.answer("a", send)
    assert fleet.exchange.done


def test_a_shard_of_lost_holders_is_missing_at_once():
    fleet = Fleet(s="a", t="b")
    fleet.states["a"] = LOST
    fleet.exchange.start()
    assert missing(fleet) == {"s": (MissingKind.LOST, "", "node 'a' is lost")}
    assert not fleet.exchange.done


def test_a_nodes_own_trouble_is_retried_elsewhere_then_told():
    fleet = Fleet(s="ab")
    (send,) = fleet.exchange.start()
    (retry,) = fleet.answer("a", send, error=Fault("OutOfMemory", "full"))
    assert retry.node == "b"
    assert fleet.answer("b", retry, error=Fault("NotFound", "gone")) == []
    assert fleet.exchange.done
    assert missing(fleet)["s"] == (MissingKind.FAILED, "b", "node 'a': full; node 'b': gone")
    assert isinstance(fleet.exchange.missing["s"].error, NotFound)


@pytest.mark.parametrize(
    ("name", "error"), [("InvalidProgram", InvalidProgram), ("PrivateTensor", PrivateTensor)]
)
def test_what_every_holder_refuses_ends_the_exchange(name, error):
    fleet = Fleet(s="ab", t="ab")
    first, second = fleet.exchange.start()
    (again,) = fleet.answer("a", first, error=Fault(name, "no"))
    assert again.node == "b", "what one says is its word: the other is asked"
    assert fleet.exchange.failure is None
    assert fleet.answer("b", again, error=Fault(name, "nor here")) == [Revoke("b", second.program.task_id)]
    assert fleet.exchange.done
    assert type(fleet.exchange.failure) is error
    assert str(fleet.exchange.failure) == "node 'a': no; node 'b': nor here"


@pytest.mark.parametrize("name", [*sorted(errors.__all__), "", "ValueError", "\x1b[31m"])
def test_one_bad_holder_costs_nothing_whatever_it_says(name):
    fleet = Fleet(s="ab")
    (send,) = fleet.exchange.start()
    (again,) = fleet.answer("a", send, error=Fault(name, "nonsense"))
    assert isinstance(fleet.answer("b", again)[0], Deliver)
    assert (fleet.exchange.failure, fleet.exchange.answered) == (None, {"s": "b"})


def test_an_answer_beside_a_refusal_leaves_the_shard_missing_not_the_call_failed():
    fleet = Fleet(s="ab")
    (send,) = fleet.exchange.start()
    (again,) = fleet.answer("a", send, error=Fault("InvalidArgument", "nonsense"))
    fleet.answer("b", again, error=Fault("OutOfMemory", "full"))
    assert fleet.exchange.failure is None
    assert missing(fleet) == {"s": (MissingKind.FAILED, "b", "node 'a': nonsense; node 'b': full")}


def test_a_refusal_that_the_recipe_does_not_believe_leaves_the_shard_missing():
    fleet = Fleet(s="a")
    fleet.exchange = Exchange(
        "x", fleet.assignments, lambda name: READY, believed=(PrivateTensor,), version=3
    )
    (send,) = fleet.exchange.start()
    fleet.answer("a", send, error=Fault("InvalidArgument", "nonsense"))
    assert fleet.exchange.failure is None
    assert missing(fleet) == {"s": (MissingKind.REFUSED, "a", "node 'a': nonsense")}


def test_an_answer_that_cannot_be_folded_is_asked_of_another_holder():
    fleet = Fleet(s="ab")
    (send,) = fleet.exchange.start()
    fleet.answer("a", send)
    assert fleet.exchange.done
    revoke, retry = fleet.exchange.refuse(send.program.task_id, InvalidTensor("NaN"))
    assert (revoke, retry.node) == (Revoke("a", send.program.task_id), "b")
    assert not fleet.exchange.done
    assert fleet.exchange.refuse("x.7.1", InvalidTensor("NaN")) == []


def test_a_damaged_message_after_the_answer_does_not_undo_it():
    fleet = Fleet(s="ab", t="ab")
    send, _ = fleet.exchange.start()
    fleet.answer("a", send)
    assert fleet.exchange.damaged("a", send.program.task_id, InvalidTensor("damaged")) == []
    assert fleet.exchange.answered == {"s": "a"}


def test_the_deadline_revokes_and_labels():
    fleet = Fleet(s="a", t="b")
    first, second = fleet.exchange.start()
    fleet.answer("a", first)
    assert fleet.exchange.deadline() == [Revoke("b", second.program.task_id)]
    assert missing(fleet) == {"t": (MissingKind.LATE, "b", "node 'b' has not answered in time")}
    assert fleet.exchange.done
    with pytest.raises(NotFound):
        fleet.answer("b", second)
    assert fleet.exchange.deadline() == []


def test_a_node_that_was_away_at_the_deadline_is_lost_not_late():
    fleet = Fleet(s="a")
    fleet.exchange.start()
    fleet.becomes("a", SUSPECT)
    fleet.exchange.deadline()
    assert missing(fleet) == {"s": (MissingKind.LOST, "a", "node 'a' is suspect")}


def test_of_a_failure_and_a_node_that_is_late_the_late_one_counts():
    fleet = Fleet(s="ab")
    (send,) = fleet.exchange.start()
    fleet.answer("a", send, error=Fault("OutOfMemory", "full"))
    fleet.exchange.deadline()
    assert missing(fleet) == {
        "s": (MissingKind.LATE, "b", "node 'a': full; node 'b' has not answered in time")
    }


@pytest.mark.parametrize("text", ["in time", "node 'a' has not answered in time", "by the deadline"])
@pytest.mark.parametrize("name", ["DeadlineExceeded", "Internal"])
def test_what_a_node_says_of_time_is_no_lateness(name, text):
    fleet = Fleet(s="a")
    (send,) = fleet.exchange.start()
    fleet.answer("a", send, error=Fault(name, text))
    assert fleet.exchange.missing["s"].kind is MissingKind.FAILED


def test_what_came_wrong_or_damaged_is_told_apart_and_names_its_node_once():
    fleet = Fleet(s="a", t="b")
    first, second = fleet.exchange.start()
    fleet.exchange.refuse(first.program.task_id, InvalidTensor("it returned NaN"))
    fleet.exchange.damaged("b", second.program.task_id, InvalidTensor("no tensor"))
    assert missing(fleet) == {
        "s": (MissingKind.WRONG, "a", "node 'a': it returned NaN"),
        "t": (MissingKind.DAMAGED, "b", "node 'b': no tensor"),
    }
    assert fleet.exchange.missing["s"].error.message == "node 'a': it returned NaN"


def test_whom_a_shard_without_an_answer_was_asked_of_last():
    fleet = Fleet(s0=["a"], s1=["b"], s2=["c"])
    fleet.states["c"] = LOST
    first, _ = sends(fleet.exchange.start())
    fleet.answer("a", first)
    fleet.exchange.deadline()
    assert {shard: m.node for shard, m in fleet.exchange.missing.items()} == {"s1": "b", "s2": ""}


def test_cancelling_revokes_what_is_open():
    fleet = Fleet(s="a", t="b")
    first, second = fleet.exchange.start()
    fleet.answer("a", first)
    assert fleet.exchange.cancel() == [Revoke("b", second.program.task_id)]


def test_a_draining_node_still_answers():
    fleet = Fleet(s="a")
    fleet.states["a"] = DRAINING
    (send,) = fleet.exchange.start()
    fleet.answer("a", send)
    assert fleet.exchange.done


def test_one_shard_twice_is_refused():
    with pytest.raises(InvalidArgument):
        Exchange("x", [Assignment("s", ("a",), range(1), ())] * 2, lambda name: READY)


SHARDS = {"s": "ab", "t": "bc", "u": "c", "v": "abc"}


class AnyExchange(RuleBasedStateMachine):
    """Whatever nodes, the clock and the recipe do, in any order; and what a recipe has in hand then."""

    def __init__(self):
        super().__init__()
        self.fleet = Fleet(**SHARDS)
        self.exchange = self.fleet.exchange
        self.sent = []
        self.folded = {}
        """Shard -> numbers of the messages of its present task that were delivered."""
        self.task = {}
        """Shard -> the task that was sent last."""
        self.whole = {}
        """Shard -> the send whose last message was delivered, and not refused."""
        self.over = False
        self.note(self.exchange.start(1))

    def note(self, actions):
        for action in actions:
            if isinstance(action, SendProgram):
                assert not self.over, "nobody is asked once it is over"
                shard = action.program.shard
                assert action.node in SHARDS[shard]
                if self.task.get(shard) != action.program.task_id:
                    assert shard not in self.whole, "asked again of what was answered"
                    self.folded[shard] = []
                self.task[shard] = action.program.task_id
                self.sent.append(action)
            elif isinstance(action, Deliver):
                assert not self.over, "nothing is folded once it is over"
                shard, number = action.assignment.shard, action.contribution.number
                assert action.contribution.task_id == self.task[shard], "of a task that was given up"
                assert number == len(self.folded[shard]), "folded twice, or not in order"
                self.folded[shard].append(number)

    @precondition(lambda self: not self.exchange.started)
    @rule()
    def more_is_asked(self):
        self.note(self.exchange.start(1))

    @rule(node=st.sampled_from("abc"), state=st.sampled_from(list(NodeState)))
    def a_node_becomes(self, node, state):
        self.note(self.fleet.becomes(node, state))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), number=st.integers(0, 3), final=st.booleans(), by=st.sampled_from(["", *"abc"]))
    def a_message_comes(self, data, number, final, by):
        send = data.draw(st.sampled_from(self.sent))
        try:
            self.note(self.fleet.answer(by or send.node, send, number=number, final=final))
        except (NotFound, DuplicateContribution, InvalidArgument):
            return
        if final:
            self.whole[send.program.shard] = send

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), name=st.sampled_from(["Unavailable", "InvalidArgument", "PrivateTensor"]))
    def a_node_fails(self, data, name):
        send = data.draw(st.sampled_from(self.sent))
        number = len(self.folded[send.program.shard])
        try:
            actions = self.fleet.answer(send.node, send, number=number, error=Fault(name, "trouble"))
        except (NotFound, DuplicateContribution, InvalidArgument):
            return
        self.over = self.over or self.exchange.failure is not None
        self.note(actions)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_message_comes_damaged(self, data):
        send = data.draw(st.sampled_from(self.sent))
        self.note(self.exchange.damaged(send.node, send.program.task_id, InvalidTensor("damaged")))

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def the_recipe_refuses(self, data):
        send = self.whole.pop(data.draw(st.sampled_from(sorted(self.whole))))
        self.note(self.exchange.refuse(send.program.task_id, InvalidTensor("NaN")))

    @rule()
    def its_time_is_up(self):
        self.over = True
        self.note(self.exchange.deadline())
        assert self.exchange.done

    @rule()
    def it_is_cancelled(self):
        self.over = True
        self.note(self.exchange.cancel())
        assert self.exchange.done

    @invariant()
    def what_it_says_is_what_was_delivered(self):
        self.exchange.check()
        answered = {shard: send.node for shard, send in self.whole.items()}
        assert self.exchange.answered == answered
        assert not self.exchange.answered.keys() & self.exchange.missing.keys()
        assert not self.exchange.waits.keys() & (self.exchange.answered.keys() | self.exchange.missing.keys())

    def teardown(self):
        if not self.over:
            self.its_time_is_up()
            assert self.exchange.answered.keys() | self.exchange.missing.keys() == SHARDS.keys()


TestWhateverHappensEachShardIsAskedOnceAtATimeAndFoldedOnce = AnyExchange.TestCase


def test_its_last_transitions_say_how_it_came_to_its_end():
    fleet = Fleet(s="ab")
    times = iter(range(10))
    fleet.exchange = Exchange(
        "x", fleet.assignments, lambda name: READY, clock=lambda: float(next(times)), version=3
    )
    (send,) = fleet.exchange.start()
    (again,) = fleet.answer("a", send, error=Fault("OutOfMemory", "full"))
    fleet.answer("b", again)
    revoke, *_ = fleet.exchange.refuse(again.program.task_id, InvalidTensor("NaN"))
    assert isinstance(revoke, Revoke)
    assert told(fleet.exchange.transitions) == (
        "0.000 s: s asked of a: waiting -> asked; 1.000 s: s asked of b: asked -> asked; "
        "2.000 s: s answered by b: asked -> answered; 3.000 s: s wrong: answered -> missing"
    )


def test_an_answer_refused_once_its_time_is_up_is_missing_and_asked_of_nobody():
    fleet = Fleet(s="ab", t="a")
    send, _ = fleet.exchange.start()
    fleet.answer("a", send)
    fleet.exchange.deadline()
    assert fleet.exchange.refuse(send.program.task_id, InvalidTensor("NaN")) == [
        Revoke("a", send.program.task_id)
    ]
    assert fleet.exchange.done
    assert missing(fleet)["s"][0] is MissingKind.WRONG


@pytest.mark.parametrize("broken", [
    lambda shard: setattr(shard, "node", "z"),
    lambda shard: setattr(shard, "task_id", "x.0.9"),
    lambda shard: setattr(shard, "state", ShardState.MISSING),
    lambda shard: setattr(shard, "state", ShardState.WAITING),
    lambda shard: shard.tried.update(a="it failed"),
    lambda shard: shard.tried.update(z="it holds nothing"),
])  # fmt: skip
def test_check_finds_a_state_that_cannot_be(broken):
    fleet = Fleet(s="ab")
    fleet.exchange.start()
    fleet.exchange.check()
    broken(fleet.exchange._shards["s"])
    with pytest.raises(AssertionError):
        fleet.exchange.check()


def test_a_program_that_a_node_cannot_read_is_asked_of_another_at_once():
    """Its answer knows nothing of the program but whose task it was."""
    assignment = Assignment(
        "s0", ("a", "b"), range(0, 5), (Return("task/q", "q"),), {"task/q": np.ones(4, np.float32)}
    )
    exchange = Exchange("x", [assignment], lambda name: NodeState.READY, version=3)
    (send,) = exchange.start()
    data = bytearray(to_node.encode(send.program))
    data[data.index(np.ones(4, np.float32).tobytes()) + 2] ^= 0x5A
    with pytest.raises(Damaged) as caught:
        to_node.decode(bytes(data))
    task = task_of(bytes(data))
    assert task == send.program.task_id
    said = Fault(type(caught.value).__name__, caught.value.message)
    answer = Contribution(task, "", range(0), 0, 0, final=True, error=said)
    (again,) = exchange.contribution("a", from_node.decode(from_node.encode(answer)))
    assert again.node == "b"
    answer = replace(answer, task_id=again.program.task_id)
    assert exchange.contribution("b", answer) == []
    assert exchange.done
    assert exchange.missing["s0"].text.count("wrong checksum") == 2


def prepared(**shards):
    """A fleet whose shards are asked by calls of a program with one slot."""
    fleet = Fleet(**shards)
    tensors = {"task/x": np.ones((2, 3), np.float32)}
    program = prepare((Return("task/x", "x"),), tensors)
    asked = [replace(a, instructions=(), prepared=program) for a in fleet.assignments]
    fleet.exchange = Exchange(
        "x", asked, lambda name: fleet.states.get(name, LOST), version=3, tensors=tensors
    )
    return fleet, program


UNKNOWN = Fault("UnknownProgram", "send it")


def test_a_call_brings_the_slots_and_names_the_program_by_its_digest():
    fleet, program = prepared(s="a")
    (send,) = fleet.exchange.start()
    assert send.program == Call(
        "x.0.1", "s", range(10), 3, None, program.digest, np.ones(6, np.float32).tobytes(), "", program.data
    )
    assert to_node.decode(to_node.encode(send.program)) == send.program
    assert task_of(to_node.encode(send.program)) == "x.0.1"
    assert isinstance(fleet.answer("a", send)[0], Deliver)
    assert fleet.exchange.done


def test_a_node_that_does_not_know_the_program_is_asked_once_more():
    fleet, _ = prepared(s="ab")
    (first,) = fleet.exchange.start()
    (again,) = fleet.answer("a", first, error=UNKNOWN)
    assert (again.node, again.program.task_id) == ("a", "x.0.2")
    with pytest.raises(NotFound):  # of a task that was given up nothing is folded any more
        fleet.answer("a", first)
    assert isinstance(fleet.answer("a", again)[0], Deliver)
    assert fleet.exchange.answered == {"s": "a"}


def test_one_that_never_knows_it_has_failed_and_another_is_asked():
    fleet, _ = prepared(s="ab")
    (first,) = fleet.exchange.start()
    (again,) = fleet.answer("a", first, error=UNKNOWN)
    (other,) = fleet.answer("a", again, error=UNKNOWN)
    assert other.node == "b"
    (known,) = fleet.answer("b", other, error=UNKNOWN)
    assert fleet.answer("b", known, error=UNKNOWN) == []
    assert missing(fleet)["s"][:2] == (MissingKind.FAILED, "b")


def test_of_a_program_that_was_not_called_no_node_can_say_that_it_is_unknown():
    fleet = Fleet(s="a")
    (send,) = fleet.exchange.start()
    assert fleet.answer("a", send, error=UNKNOWN) == []
    assert missing(fleet)["s"][0] is MissingKind.FAILED


def test_a_call_is_sent_again_to_a_node_that_is_back():
    fleet, _ = prepared(s="a")
    (send,) = fleet.exchange.start()
    fleet.becomes("a", SUSPECT)
    assert fleet.becomes("a", READY) == [send]
