"""Transcripts: what happens, and what the node does about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_attention.core.errors import (
    AlreadyExists,
    Damaged,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Revoked,
    Unauthenticated,
    Unavailable,
)
from edge_attention.core.messages.link import Cancel, Credit, Heartbeat, HeartbeatAck, Register, Registered
from edge_attention.core.messages.program import Program
from edge_attention.core.rounds.credit import CreditWindow, Debt
from edge_node import session as sessions
from edge_node.session import (
    AT_ONCE,
    AT_ONCE_SECONDS,
    BEAT_SECONDS,
    LEASE_SECONDS,
    PROGRAMS,
    Connect,
    Disconnect,
    End,
    Forget,
    Leave,
    Say,
    SendMessage,
    Session,
    SessionPhase,
    Start,
)

AWAY = Unavailable("away")


def register(session):
    return Register(1, "0", "n", "i", session, "cpu", 1, 100)


def begin(random=0.5):
    return Session("n", "hub:1", register, lambda: 42, lambda: random)


def welcome(credit=Credit(1000, 10), resumed=False, drop=(), taken=0):  # noqa: B008
    return Registered("s", 10.0, 3.0, resumed, credit, drop, taken)


def registered(**terms):
    session = begin()
    session.tick(0)
    session.connected(0)
    session.received(welcome(**terms), 1, 0)
    return session


def program(task="t"):
    return Program(task, "s", range(1), ())


def heartbeat(number, tasks=0, **said):
    return Heartbeat(number, 42, tasks, **{"interval_seconds": 3.0, **said})


def sent(actions):
    return [a.message for a in actions if isinstance(a, SendMessage)]


def test_it_connects_registers_and_says_so():
    session = begin()
    assert session.wake == 0
    assert session.tick(0) == [Connect()]
    assert session.tick(0) == []
    assert session.connected(1) == [SendMessage(register(""))]
    actions = session.received(welcome(drop=("context/c/",)), 1, 2)
    assert actions == [SendMessage(PROGRAMS), Forget(("context/c/",)), Say("registered with hub:1 as n")]
    assert session.wake == 5
    assert session.tick(4.9) == []
    assert session.tick(5) == [SendMessage(heartbeat(1, sent=2, received=1))]
    assert session.received(HeartbeatAck(1), 1, 5) == []
    assert session.tick(8) == [SendMessage(heartbeat(2, sent=3, received=2))]


def beats(session, until):
    """When it beats, each answered at once."""
    times = []
    while session.wake <= until:
        now = session.wake
        for message in sent(session.tick(now)):
            times.append(now)
            session.received(HeartbeatAck(message.number), 1, now)
    return times


def test_it_beats_as_the_aggregator_says_and_says_so():
    session = registered()
    assert beats(session, 7) == [3, 6]
    session.received(HeartbeatAck(2, 0, 20.0, 6.0), 1, 7)
    assert beats(session, 30) == [9, 15, 21, 27], "the next one is not put off"
    assert sent(session.tick(33)) == [heartbeat(7, sent=8, received=8, interval_seconds=6.0)]
    assert session.wake == 39
    session.received(HeartbeatAck(7, 0, 10.0, 3.0), 1, 34)
    assert session.wake == 37, "sooner than it had in mind"
    assert session.tick(44.1)[0] == Disconnect(), "after the shorter lease"


def test_of_an_aggregator_that_does_not_say_it_goes_by_the_registration():
    session = registered()
    session.received(HeartbeatAck(1), 1, 1)
    assert beats(session, 10) == [3, 6, 9]


def test_a_longer_lease_bears_a_longer_silence():
    session = registered()
    session.received(HeartbeatAck(1, 0, 20.0, 6.0), 1, 0)
    for now in (3, 9, 15):
        (message,) = session.tick(now)
        assert isinstance(message.message, Heartbeat)
    assert session.tick(20)[0] == Disconnect()


@pytest.mark.parametrize(
    ("lease", "asked", "kept"),
    [
        (10.0, 1e-6, BEAT_SECONDS[0]),
        (10.0, -1.0, BEAT_SECONDS[0]),
        (10.0, float("nan"), BEAT_SECONDS[0]),
        (10.0, 1e9, BEAT_SECONDS[1]),
        (float("inf"), float("inf"), BEAT_SECONDS[1]),
        (float("nan"), 2.0, 2.0),
        (0.0, 2.0, 2.0),
    ],
)
@pytest.mark.parametrize("by", ["registration", "answer"])
def test_it_beats_within_bounds_of_its_own(by, lease, asked, kept):
    session = begin()
    session.tick(0)
    session.connected(0)
    terms = (lease, asked) if by == "registration" else (10.0, 3.0)
    session.received(Registered("s", *terms, False, Credit(1000, 10)), 1, 0)
    if by == "answer":
        session.received(HeartbeatAck(1, 0, lease, asked), 1, 0)
    first, second = beats(session, 1000)[:2]
    assert first == min(kept, 3.0 if by == "answer" else kept)
    assert second - first == pytest.approx(kept)
    last = session._heard
    while session.registered:
        session.tick(session.wake)
    silent = session.transitions[-1][0] - last
    assert 2 * kept <= silent <= LEASE_SECONDS[1], "it neither gives up between two beats nor waits for ever"


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 40))
def test_backoff_has_full_jitter_and_a_cap(random, failures):
    session = begin(random)
    now = 0.0
    for attempt in range(failures + 1):
        now = session.wake
        assert session.tick(now) == [Connect()]
        session.lost(AWAY, now)
        assert session.wake - now == pytest.approx(random * min(30, 0.25 * 2**attempt), abs=1e-6)


def test_it_tells_of_trouble_once_and_resumes_its_session():
    session = registered()
    (say,) = session.lost(AWAY, 10)
    assert say == Say("away; trying again until it answers", warning=True)
    assert session.wake == 10.125
    assert session.tick(10.125) == [Connect()]
    assert session.lost(AWAY, 11) == []
    assert session.tick(11.25) == [Connect()]
    assert session.connected(12) == [SendMessage(register("s"))]
    assert Say("registered with hub:1 as n (session resumed)") in session.received(
        welcome(resumed=True), 1, 12
    )
    assert session.reconnects == 1


@pytest.mark.parametrize("error", [AlreadyExists("taken"), InvalidArgument("odd"), PermissionDenied("no")])
def test_a_refusal_is_final_only_the_first_time(error):
    session = begin()
    session.tick(0)
    session.connected(0)
    assert session.lost(error, 0) == [Leave(1, error.message)]
    assert session.wake is None
    session = registered()
    assert not any(isinstance(a, Leave) for a in session.lost(error, 1))
    assert session.wake is not None


def test_silence_counts_as_loss():
    session = registered()
    for now in (3, 6, 9):
        assert sent(session.tick(now))
    assert session.wake == 10
    assert session.tick(10)[0] == Disconnect()
    assert session.phase is SessionPhase.WAITING
    session = begin()
    session.tick(0)
    session.connected(0)
    assert session.tick(10)[0] == Disconnect()


def test_a_program_starts_once_and_its_contributions_are_given_again():
    session = registered()
    assert session.received(program(), 10, 1) == [Start(program())]
    assert session.received(program(), 10, 1) == []
    assert session.tasks == 1
    assert sent(session.produced("t", b"a", 2, final=False)) == [b"a"]
    assert sent(session.produced("t", b"b", 3, final=True)) == [b"b"]
    assert session.tasks == 0
    assert sent(session.received(program(), 10, 4)) == [b"a", b"b"]
    assert session.tasks == 0


def test_a_task_that_sent_bulk_runs_again():
    session = registered()
    session.received(program(), 10, 1)
    session.produced("t", b"a", 2, final=True, keep=False)
    assert session.received(program(), 10, 3) == [], "its answer is on the way"
    session.tick(3)
    session.received(HeartbeatAck(1), 1, 4)
    assert session.received(program(), 10, 5) == [Start(program())]


def test_a_task_that_sent_bulk_does_not_run_again_while_its_answer_may_be_lost():
    session = registered()
    for task in ("t", "u"):
        session.received(program(task), 10, 1)
        session.produced(task, f"of {task}".encode(), 2, final=True, keep=False)
    session.received(Credit(1, 1), 1, 2)  # that of t was taken
    session.lost(AWAY, 2)
    session.tick(9)
    session.connected(9)
    assert b"of u" in sent(session.received(welcome(resumed=True), 1, 9))
    assert session.received(program("u"), 10, 9) == []
    assert session.received(program("t"), 10, 9) == [Start(program("t"))]
    session.received(Credit(1, 1), 1, 10)
    assert not session._leaving


def test_credit_holds_contributions_back():
    session = registered(credit=Credit(3, 10))
    assert sent(session.produced("t", b"12", 1, final=False)) == [b"12"]
    assert sent(session.produced("t", b"34", 1, final=False)) == [b"34"]  # the last may overdraw
    assert session.produced("t", b"5", 1, final=True) == []
    assert session.outbox.backlog == 1
    assert session.received(Credit(1, 1), 1, 2) == []
    assert sent(session.received(Credit(1, 1), 1, 2)) == [b"5"]
    assert session.outbox.backlog == 0


def test_what_was_not_taken_is_sent_again_in_order():
    session = registered(credit=Credit(1000, 3))
    for data in (b"a", b"b", b"c", b"d"):
        session.produced("t", data, 1, final=False)
    session.received(Credit(1, 1), 1, 1)  # a was taken; d went
    session.produced("t", b"e", 1, final=True)
    session.lost(AWAY, 2)
    session.produced("u", b"f", 2, final=True)
    assert session.outbox.backlog == 5
    session.tick(3)
    session.connected(3)
    assert sent(session.received(welcome(resumed=True), 1, 3))[1:] == [b"b", b"c", b"d", b"e", b"f"]


def test_programs_are_granted_back_when_they_end_on_the_same_stream():
    session = registered()
    size = PROGRAMS.bytes // 4
    session.received(program(), size, 1)
    assert Credit(size, 1) in sent(session.produced("t", b"a", 2, final=True))
    session.received(program("u"), size, 1)
    session.lost(AWAY, 2)
    session.tick(9)
    session.connected(9)
    session.received(welcome(), 1, 9)
    assert sent(session.produced("u", b"a", 10, final=True)) == [b"a"]


def test_more_programs_than_granted_are_refused():
    session = registered()
    starts = [session.received(program(f"t{n}"), 1, 1)[0] for n in range(2 * PROGRAMS.messages + 1)]
    assert [s.refusal is None for s in starts] == [True] * 2 * PROGRAMS.messages + [False]


def test_more_bytes_of_programs_than_granted_are_refused():
    session = registered()
    size = PROGRAMS.bytes // 4
    starts = [session.received(program(f"t{n}"), size, 1)[0] for n in range(10)]
    assert [s.refusal is None for s in starts] == [True] * 9 + [False]  # the last may overdraw
    for n in range(10):
        session.produced(f"t{n}", b"a", 1, final=True)
    (start,) = session.received(program("u"), size, 2)
    assert start.refusal is None


@pytest.mark.parametrize("credit", [Credit(0, 0), Credit(1 << 60, 1 << 60)])
@pytest.mark.parametrize("unread", [False, True])
def test_an_aggregator_that_asks_and_takes_no_answer_is_left(credit, unread, monkeypatch):
    monkeypatch.setattr(sessions, "UNTAKEN_BYTES", 100_000)
    session = registered(credit=credit)
    answer = bytes(1000)

    def ask_on():
        for n in range(200):
            session.received(None if unread else program(f"t{n}"), 1, 1)
            session.produced(f"t{n}", b"%d" % n + answer, 1, final=True)

    with pytest.raises(ResourceExhausted, match="does not take the answers"):
        ask_on()
    assert session.outbox.backlog + session.outbox.flying <= 100_000 + 2 * len(answer)
    # It takes them after all, on the next stream.
    session.lost(AWAY, 2)
    session.tick(9)
    session.connected(9)
    session.received(welcome(Credit(1 << 60, 1 << 60), resumed=True), 1, 9)
    session.received(Credit(0, 1000), 1, 9)
    assert isinstance(session.received(program("last"), 1, 9)[0], Start)


def test_nor_are_small_answers_kept_without_end(monkeypatch):
    monkeypatch.setattr(sessions, "UNTAKEN", 100)
    session = registered(credit=Credit(0, 0))

    def ask_on():
        for n in range(200):
            session.received(program(f"t{n}"), 1, 1)
            session.produced(f"t{n}", b"%d" % n, 1, final=True)

    with pytest.raises(ResourceExhausted, match="does not take the answers"):
        ask_on()
    assert len(session.outbox) <= 101


def test_cancel_stops_a_running_task_only():
    session = registered()
    session.received(program(), 1, 1)
    (stop,) = session.received(Cancel("t"), 1, 1)
    assert isinstance(stop, End)
    assert stop.task_id == "t"
    assert session.received(Cancel("other"), 1, 1) == []


def test_draining_finishes_refuses_and_leaves():
    session = registered()
    session.received(program(), 1, 1)
    say, beat = session.drain(2)
    assert isinstance(say, Say)
    assert beat == SendMessage(heartbeat(1, tasks=1, draining=True, sent=2, received=2))
    (refuse,) = session.received(program("u"), 1, 2)
    assert isinstance(refuse.refusal, Unavailable)
    assert sent(session.produced("u", b"no", 2, final=True)) == [b"no"]
    assert session.produced("t", b"a", 3, final=True) == [SendMessage(b"a"), Leave(0)]
    assert session.lost(AWAY, 4) == []


def test_draining_waits_for_credit_and_a_connection_but_not_for_ever():
    session = registered(credit=Credit(1, 0))
    session.produced("t", b"a", 1, final=True)
    session.drain(2)
    assert session.registered
    session.lost(AWAY, 3)
    assert session.wake <= 12
    (leave,) = session.tick(12)
    assert leave.code == 1
    session = begin()
    assert session.drain(0)[-1] == Leave(0)


def test_draining_with_nothing_left_to_deliver_does_not_wait_for_an_aggregator_that_is_away():
    """Credit comes back in lumps; that the answers arrived is known from the heartbeats' own answers."""
    session = registered()
    session.received(program(), 1, 1)
    assert sent(session.produced("t", b"a", 2, final=True)) == [b"a"]
    session.tick(3)
    session.received(HeartbeatAck(1), 1, 3)
    session.lost(AWAY, 4)
    assert session.drain(5)[-1] == Leave(0)


def test_what_went_after_a_heartbeat_is_not_taken_with_its_answer():
    session = registered()
    session.produced("t", b"a", 1, final=False)
    session.tick(3)
    session.produced("t", b"b", 4, final=False)
    session.received(HeartbeatAck(1), 1, 5)
    session.received(Credit(1, 1), 1, 5)  # for a, once more: it says nothing of b
    session.lost(AWAY, 6)
    session.tick(9)
    session.connected(9)
    session.received(HeartbeatAck(1), 1, 9)  # of a connection that is gone
    assert sent(session.received(welcome(resumed=True), 1, 9))[1:] == [b"b"]


def test_a_second_drain_leaves_at_once():
    session = registered()
    session.received(program(), 1, 1)
    session.drain(2)
    (leave,) = session.drain(2)
    assert leave.code == 1


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 100), st.integers(1, 9))
def test_credit_never_runs_dry_or_over(sizes, limit, messages):
    """A sender and a receiver that takes everything: all arrives, at most a window and a message ahead."""
    total = Credit(limit, messages)
    window, debt = CreditWindow(total), Debt(total)
    flight = []
    for size in sizes:
        while not window.take(size):
            assert flight, "nothing under way, and yet no credit"
            credit = debt.consumed(flight.pop(0))
            if credit:
                window.grant(credit)
        flight.append(size)
        assert len(flight) <= messages
        assert sum(flight[:-1]) < limit


def test_heartbeats_carry_what_there_is_to_report_at_that_time():
    session = Session("n", "hub:1", register, lambda: 42, lambda: 0.5, lambda now: b"at %d" % now)
    session.tick(0)
    session.connected(0)
    session.received(welcome(), 1, 0)
    assert sent(session.tick(3)) == [heartbeat(1, metrics=b"at 3", sent=2, received=1)]
    assert sent(session.drain(4))[0] == heartbeat(2, draining=True, metrics=b"at 4", sent=3, received=1)


def test_revoked_it_leaves_and_refused_for_what_may_pass_it_tries_again():
    session = registered()
    assert session.lost(Revoked("out"), 5) == [Leave(1, "out")]
    session = begin()
    session.tick(0)
    ended = session.lost(Unauthenticated("the certificate ended"), 1)
    assert ended == [Say("the certificate ended; trying again until it answers", warning=True)]
    assert session.phase is SessionPhase.WAITING


def test_it_says_each_new_reason_once():
    session = begin()
    said = []
    for text in ("away", "away", "wants TLS", "wants TLS", "away"):
        session.tick(session.wake)
        said += [action.text for action in session.lost(Unavailable(text), session.wake)]
    assert [text.split(";")[0] for text in said] == ["away", "wants TLS", "away"]


@pytest.mark.parametrize("resumed", [True, False])
def test_tasks_of_an_aggregator_that_is_gone_are_ended_and_those_of_one_that_is_there_go_on(resumed):
    session = registered()
    session.received(program("t"), 1, 1)
    session.lost(AWAY, 2)
    session.tick(3)
    session.connected(3)
    ended = [a for a in session.received(welcome(resumed=resumed), 1, 4) if isinstance(a, End)]
    assert [end.task_id for end in ended] == ([] if resumed else ["t"])
    assert all("is gone" in end.error.message for end in ended)
    session.produced("t", b"its last word", 5, final=True)
    assert session.tasks == 0


def reconnected(session, now):
    assert session.wake <= now
    assert session.tick(now) == [Connect()]
    (register,) = sent(session.connected(now))
    assert register.session == "s"
    return session.received(welcome(resumed=True), 1, now)


def test_damage_is_answered_at_once_and_nothing_is_lost():
    session = registered()
    session.received(program(), 10, 1)
    assert sent(session.produced("t", b"a", 2, final=False)) == [b"a"]
    (say,) = session.lost(Damaged("odd"), 3)
    assert say == Say("odd; trying again until it answers", warning=True)
    assert session.produced("t", b"b", 3, final=True) == []
    assert sent(reconnected(session, 3))[1:] == [b"a", b"b"]
    assert sent(session.received(program(), 10, 3)) == [b"a", b"b"], "it is not run twice"


def test_what_the_aggregator_found_damaged_is_sent_again_at_once():
    session = registered()
    session.received(program(), 10, 1)
    session.produced("t", b"a", 2, final=True)
    session.lost(Damaged("yours was"), 3)
    assert sent(reconnected(session, 3))[1:] == [b"a"]


def test_damage_that_does_not_end_is_paced():
    session, now, waits = registered(), 5.0, []
    for _ in range(50):
        session.lost(Damaged("odd"), now)
        waits.append(session.wake - now)
        now = session.wake
        reconnected(session, now)
    assert waits[:AT_ONCE] == [0.0] * AT_ONCE
    assert waits[AT_ONCE] == 0.75 * AT_ONCE_SECONDS, "by the test's own random numbers"
    assert max(waits) < 1.0, "the shortest lease"
    assert 50 / (now - 5) < AT_ONCE / AT_ONCE_SECONDS * 2


def test_a_registration_that_keeps_being_damaged_is_backed_off_from():
    session, waits = registered(), []
    session.lost(Damaged("odd"), 5.0)
    assert session.wake == 5.0
    for _ in range(6):
        now = session.wake
        session.tick(now)
        session.connected(now)
        session.lost(Damaged("odd"), now)
        waits.append(session.wake - now)
    assert waits == sorted(waits)
    assert waits[-1] == 8.0


def test_messages_that_got_lost_are_missed_at_the_next_heartbeat():
    session = registered()  # Registered came
    session.tick(3)
    assert session.received(HeartbeatAck(1, 1), 1, 3) == []
    session.received(program(), 10, 4)
    session.tick(6)
    assert session.received(HeartbeatAck(2, 3), 1, 6) == []
    session.tick(9)
    with pytest.raises(Damaged, match="hub:1 has sent 6 messages, 4 have come") as caught:
        session.received(HeartbeatAck(3, 6), 1, 9)
    session.lost(caught.value, 9)
    reconnected(session, 9)
    session.tick(12)
    assert session.received(HeartbeatAck(4, 1), 1, 12) == [], "counted anew"


def test_it_counts_all_that_it_sends():
    session = registered()  # Register, Credit
    session.received(program(), PROGRAMS.bytes, 1)
    session.produced("t", b"a", 1, final=False)
    actions = session.produced("t", b"b", 1, final=True)
    assert sent(actions) == [Credit(PROGRAMS.bytes, 1), b"b"]
    (beat,) = sent(session.tick(3))
    assert (beat.sent, beat.received) == (5, 2)
    (beat,) = sent(session.tick(6))
    assert beat.sent == 6


def test_what_the_aggregator_has_is_not_sent_again():
    session = registered()
    for data in (b"a", b"b", b"c", b"d"):
        session.produced("t", data, 1, final=False)
    session.received(Credit(1, 1), 1, 1)  # a
    session.lost(Damaged("odd"), 2)
    session.tick(2)
    (register,) = sent(session.connected(2))
    assert register.taken == 1
    assert sent(session.received(welcome(resumed=True, taken=3), 1, 2))[1:] == [b"d"]
    session.produced("t", b"e", 3, final=True)
    session.lost(Damaged("odd"), 4)
    session.tick(4)
    (register,) = sent(session.connected(4))
    assert register.taken == 3
    again = session.received(welcome(resumed=True, taken=99), 1, 4)
    assert sent(again)[1:] == [], "it says that it has all; what was never sent it cannot have"
    assert sent(session.produced("u", b"f", 5, final=True)) == [b"f"]
    assert session.outbox.backlog == 0


class AnySession(RuleBasedStateMachine):
    """A node and an aggregator that says and drops what it likes; each task has three contributions."""

    LAST = 2

    def __init__(self):
        super().__init__()
        self.session = begin()
        self.now = 0.0
        self.trying = False  # a stream is to be opened, or is open
        self.opened = False
        self.welcomed = False
        self.left = False
        self.to_take = []  # contributions on the stream, not taken yet
        self.taken = []
        self.made = {}  # task that runs -> contributions it has made
        self.done = set()
        self.beats = 0

    def note(self, actions):
        for action in actions:
            assert not self.left, "nothing after it has left"
            match action:
                case Connect():
                    assert not self.trying
                    self.trying = True
                case Disconnect():
                    self.closed()
                case SendMessage(message):
                    assert self.opened
                    if isinstance(message, bytes):
                        assert self.welcomed, "a contribution before it is registered"
                        self.to_take.append(message)
                    elif isinstance(message, Heartbeat):
                        assert message.tasks == len(self.made)
                        self.beats = message.number
                case Start(started):
                    assert started.task_id not in self.made, "a task runs once at a time"
                    assert started.task_id not in self.done, "what is kept is sent again, not run again"
                    self.made[started.task_id] = 0
                case End(task_id):
                    assert task_id in self.made
                case Leave(_):
                    self.left = True

    def closed(self):
        self.trying = self.opened = self.welcomed = False
        self.to_take.clear()

    @rule(early=st.booleans())
    def time_passes(self, early):
        wake = self.session.wake
        if wake is not None:
            self.now = max(self.now, wake - early)
        self.note(self.session.tick(self.now))

    @precondition(lambda self: self.trying and not self.opened)
    @rule()
    def the_stream_opens(self):
        self.opened = True
        self.note(self.session.connected(self.now))

    @precondition(lambda self: self.trying)
    @rule(error=st.sampled_from([AWAY, Damaged("odd"), PermissionDenied("no"), Revoked("out")]))
    def the_stream_ends(self, error):
        self.closed()
        self.note(self.session.lost(error, self.now))

    @precondition(lambda self: self.opened and not self.welcomed and not self.left)
    @rule(credit=st.builds(Credit, st.integers(0, 30), st.integers(0, 5)), told=st.booleans())
    def it_is_registered(self, credit, told):
        self.welcomed = True
        taken = len(self.taken) if told else 0
        self.note(self.session.received(welcome(credit, resumed=True, taken=taken), 1, self.now))

    @precondition(lambda self: self.welcomed and not self.left)
    @rule(task=st.sampled_from("tuv"))
    def a_program_comes(self, task):
        self.note(self.session.received(program(task), 10, self.now))

    @precondition(lambda self: self.welcomed and not self.left)
    @rule(task=st.sampled_from("tuv"))
    def a_task_is_cancelled(self, task):
        self.note(self.session.received(Cancel(task), 1, self.now))

    @precondition(lambda self: self.made and not self.left)
    @rule(data=st.data())
    def a_task_has_a_contribution(self, data):
        task = data.draw(st.sampled_from(sorted(self.made)))
        number = self.made[task]
        self.made[task] += 1
        if number == self.LAST:
            del self.made[task]
            self.done.add(task)
        self.note(self.session.produced(task, f"{task}{number}".encode(), self.now, number == self.LAST))

    @precondition(lambda self: self.to_take and not self.left)
    @rule()
    def the_aggregator_takes_one(self):
        message = self.to_take.pop(0)
        self.taken.append(message)
        self.note(self.session.received(Credit(len(message), 1), 1, self.now))

    @precondition(lambda self: self.to_take and self.beats and not self.left)
    @rule()
    def the_aggregator_answers_a_heartbeat(self):
        self.note(self.session.received(HeartbeatAck(self.beats), 1, self.now))

    @precondition(lambda self: self.welcomed and not self.left)
    @rule(lease=st.floats(), heartbeat=st.floats())
    def the_aggregator_says_how_often_to_beat(self, lease, heartbeat):
        self.note(self.session.received(HeartbeatAck(0, 0, lease, heartbeat), 1, self.now))

    @precondition(lambda self: not self.left)
    @rule()
    def it_is_told_to_leave(self):
        self.note(self.session.drain(self.now))

    @invariant()
    def each_task_is_told_in_order(self):
        self.session.check()
        assert self.session.registered == (self.welcomed and not self.left)
        for task in "tuv":
            told = [message.decode() for message in self.taken if message.decode().startswith(task)]
            # What came may come again, from where the receiver was not known to be; never a gap before it.
            for at, text in enumerate(told):
                assert text in [f"{task}0", *(f"{one[0]}{int(one[1]) + 1}" for one in told[:at])], told


TestWhateverHappensATaskRunsOnceAndIsToldInOrder = AnySession.TestCase


@pytest.mark.parametrize("broken", [
    lambda session: setattr(session, "draining", True),
    lambda session: setattr(session, "phase", SessionPhase.WAITING),
    lambda session: setattr(session, "_kept_bytes", 7),
    lambda session: setattr(session.outbox, "backlog", 1),
])  # fmt: skip
def test_check_finds_a_state_that_cannot_be(broken):
    session = registered()
    session.produced("t", b"a", 1, final=False)
    session.received(program(), 1, 1)
    session.produced("t", b"a", 1, final=True)
    session.check()
    broken(session)
    with pytest.raises(AssertionError):
        session.check()
