"""Which rows go on the next trip: transcripts, and everything at random."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.inference.decoding import scheduling
from aggregator.inference.decoding.actions import (
    CallAnswered,
    CallRefused,
    Fly,
    ForgetLane,
    ForgetSession,
    SeekHolder,
    SupplyHolder,
)
from aggregator.inference.decoding.flights import owned_before, part_places, row_inputs
from aggregator.inference.decoding.scheduling import SessionScheduler
from aggregator.inference.decoding.session_bytes import TILE
from edge_attention.core.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.schedule.pieces import CacheForm, DecoderForm

CACHE = CacheForm(2, 4, 4)
ROWS = (1, 2, 4, 8, 16)
EVENTS = ("open", "extend", "extend", "land", "land", "lose", "late", "restart", "close", "cut")


class Nodes:
    """Who is there; `held`: part -> nodes."""

    def __init__(self, **held):
        self.held = {int(part[1:]): nodes for part, nodes in held.items()}
        self.states = {node: NodeState.READY for nodes in self.held.values() for node in nodes}
        self.lives = Counter()

    def state(self, node):
        return self.states[node]

    def life(self, node):
        return f"{node}-{self.lives[node]}"

    def holders(self, part):
        return self.held[part]

    def why(self, part):
        return f"nobody has part {part}"

    def load(self, node):
        return 0

    def restart(self, node):
        self.lives[node] += 1


def machine(nodes=None, lanes=1, length=100, by_tokens=False, room=1 << 30, parts=2):
    nodes = nodes or Nodes(p0=["a"], p1=["b"])
    form = DecoderForm(
        "ids", "at", "logits", 10, length, ROWS, by_tokens, (1.0,) * parts, ((CACHE,),) * parts
    )
    return SessionScheduler(form, nodes, lambda node: room, lanes), nodes


def flights(actions):
    return [action.flight for action in actions if isinstance(action, Fly)]


def logits(flight):
    """Of each row its token, so that answers can be told."""
    found = np.zeros((flight.rows, 10), np.float32)
    ids = [token for chunk in flight.chunks for token in chunk.ids]
    found[np.arange(len(ids)), ids] = 1
    return found


def tokens(answer):
    return answer.logits.argmax(1).tolist()


def test_a_call_flies_and_is_answered_by_its_new_tokens():
    m, _ = machine()
    session = m.open("me", 0.0)
    (flight,) = flights(m.extend(session.number, [3, 1, 4], 0.0, 9.0))
    assert flight.place == ("a", "b")
    assert (flight.rows, flight.chunks[0].start, flight.chunks[0].ids) == (4, 0, (3, 1, 4))
    (answer,) = m.landed(flight.number, logits(flight), 1.0)
    assert tokens(answer) == [3, 1, 4]
    (flight,) = flights(m.extend(session.number, [5], 2.0, 9.0))
    assert (flight.rows, flight.chunks[0].start) == (1, 3)
    (answer,) = m.landed(flight.number, logits(flight), 3.0)
    assert tokens(answer) == [5]
    m.check()


@pytest.mark.parametrize("most", [1, 2, 16])
def test_those_of_the_first_priority_go_first_whatever_they_bring(monkeypatch, most):
    monkeypatch.setattr(scheduling, "FLIGHT_SESSIONS", most)
    m, _ = machine()
    under_way = m.open("me", 0.0)
    (flight,) = flights(m.extend(under_way.number, [1], 0.0, 9.0))
    asked = [(9, [1]), (1, [2] * 12), (0, [3]), (1, [4])]  # 0: the usual one, 8
    sessions = [m.open("me", 0.0, priority=priority) for priority, _ in asked]
    for session, (_, ids) in zip(sessions, asked, strict=True):
        assert not flights(m.extend(session.number, ids, 1.0, 9.0)), "one is under way, and there is one lane"
    flew = []
    while flight is not None:
        actions = m.landed(flight.number, logits(flight), 2.0)
        flight = next(iter(flights(actions)), None)
        flew += [sorted(chunk.session for chunk in flight.chunks)] if flight is not None else []
    order = [sessions[at].number for at in (3, 1, 2, 0)]  # of one priority those with few rows
    wanted = [sorted(order[at : at + most]) for at in range(0, 4, most)]
    assert flew == wanted
    m.check()


@pytest.mark.parametrize(("priority", "ids", "within"), [(16, [1], 17), (1, [1], 2), (8, [1] * 12, 9)])
def test_who_waits_becomes_better_so_that_nobody_waits_for_ever(monkeypatch, priority, ids, within):
    """Sessions of the first priority come without end, one in each trip; a long prompt waits, too."""
    monkeypatch.setattr(scheduling, "FLIGHT_SESSIONS", 1)
    m, _ = machine()
    waits = m.open("me", 0.0, priority=priority)
    (flight,) = flights(m.extend(m.open("me", 0.0).number, [1], 0.0, 99.0))
    m.extend(waits.number, ids, 0.0, 99.0)
    now, order = 0.0, []
    while flight.chunks[0].session != waits.number and now < 60:
        m.extend(m.open("me", now, priority=1).number, [1], now, 99.0)
        now += 0.5
        (flight,) = flights(m.landed(flight.number, logits(flight), now))
        order.append(flight.chunks[0].session)
    assert order[-1] == waits.number
    assert priority - 1 <= now <= within, "before, priorities count; after, it is its turn"


def test_a_long_prompt_waits_not_for_ever_behind_its_own_owners_short_sessions(monkeypatch):
    """An owner's tokens fill each trip, another owner's wait as well: the long prompt rises, too."""
    monkeypatch.setattr(scheduling, "FLIGHT_SESSIONS", 1)
    m, _ = machine()
    (flight,) = flights(m.extend(m.open("me", 0.0).number, [1], 0.0, 999.0))
    waits = m.open("me", 0.0)
    m.extend(waits.number, [1] * 12, 0.0, 999.0)
    now = 0.0
    while flight.chunks[0].session != waits.number and now < 20:
        for owner in ("me", "other"):
            m.extend(m.open(owner, now).number, [1], now, 999.0)
        now += 0.05
        (flight,) = flights(m.landed(flight.number, logits(flight), now))
        m.check()
    assert now <= 9


@pytest.mark.parametrize("own", [8, 1])
def test_who_has_many_sessions_holds_up_nobody_who_has_one(monkeypatch, own):
    """However long its own wait for each other already; `own`: their priority, which counts."""
    monkeypatch.setattr(scheduling, "FLIGHT_SESSIONS", 4)
    m, _ = machine()
    many = [m.open("ana", 0.0, priority=own) for _ in range(40)]
    found = []
    for session in many:
        found += flights(m.extend(session.number, [1], 0.0, 999.0))
    (flight,) = found
    one, now, flown, number = m.open("ben", 30.0), 30.0, [], 0
    m.extend(one.number, [1], now, 999.0)
    while len(flown) < 3 and number < 60:
        number, now = number + 1, now + 0.25
        ended = m.landed(flight.number, logits(flight), now)
        (flight,) = flights(ended)
        if one.number in [chunk.session for chunk in flight.chunks]:
            flown.append(number)
        for answer in ended:
            if isinstance(answer, CallAnswered):  # whoever is answered asks again
                m.extend(answer.session, [1], now, 999.0)
        m.check()
    if own == 8:
        assert flown == [1, 3, 5], "every second trip: the next has begun when it asks again"
    else:
        assert flown[0] >= 7 * 4 - 1, "a better priority goes first, until it has waited for so long"
    m.close(one.number, now)


def test_nodes_go_ahead_for_who_is_alone_and_takes_the_likeliest_token():
    nodes = Nodes(p0=["a"], p1=["b"])
    form = DecoderForm("ids", "at", "logits", 10, 70, ROWS, False, (), ((CACHE,),) * 2)
    m = SessionScheduler(form, nodes, lambda node: 1 << 30, ahead=True)
    one, drawn = m.open("me", 0.0, greedy=True), m.open("me", 0.0)

    def flown(session, ids):
        (flight,) = flights(m.extend(session.number, ids, 1.0, 9.0))
        m.landed(flight.number, logits(flight), 2.0)
        return flight.ahead

    assert not flown(one, [1, 2]), "of several rows"
    assert flown(one, [3])
    assert not flown(drawn, [3]), "who draws its tokens takes others"
    for _ in range(60):
        assert flown(one, [4])
    assert one.length == TILE - 1
    assert not flown(one, [5]), "the next token begins a tile, which is not counted yet"
    assert [flown(one, [5]) for _ in range(6)] == [True] * 5 + [False], "the model has no more positions"
    two = m.open("me", 0.0, greedy=True)
    (first,) = flights(m.extend(drawn.number, [1], 3.0, 9.0))
    assert not flights(m.extend(two.number, [1], 3.0, 9.0))
    assert not first.ahead
    (second,) = flights(m.landed(first.number, logits(first), 4.0))
    assert second.ahead
    m.extend(drawn.number, [1], 5.0, 9.0)
    m.landed(second.number, logits(second), 6.0)
    m.check()


def test_what_others_store_is_not_counted_anew_for_each_token(monkeypatch):
    """Of 200 sessions a token took 7 ms of the event loop: each looked at all the others."""
    m, _ = machine()
    sessions = [m.open("me", 0.0) for _ in range(50)]
    for one in sessions:
        (flight,) = flights(m.extend(one.number, [1, 2], 0.0, 9.0))
        m.landed(flight.number, logits(flight), 0.1)
    looked, size = [], m.bytes.of_part

    def noted(*of):
        looked.append(of)
        return size(*of)

    with monkeypatch.context() as patch:
        patch.setattr(m, "check", lambda: None)  # which every event is followed by in tests
        patch.setattr(m.bytes, "of_part", noted)
        m.extend(sessions[7].number, [3], 1.0, 9.0)
    assert {of[0].number for of in looked} == {sessions[7].number}
    assert m.bytes.on("a") == m.bytes.on("a", owner="me") == 50 * 64 * CACHE.token_bytes
    m.check()
    for one in sessions:
        m.close(one.number, 2.0)
    assert m.bytes.on("a") == 64 * CACHE.token_bytes, "one flies"
    m.check()


def test_a_long_memory_holds_up_nobody(monkeypatch):
    """As a long prompt: a session that joins has what its encoder made stored between others' tokens."""
    monkeypatch.setattr(scheduling, "CHUNK_ROWS", 4)
    memory = CacheForm(2, 4, 4, memory=True)
    form = DecoderForm(
        "ids", "at", "logits", 10, 100, ROWS, caches=((CACHE, memory),), states="states", states_width=4
    )
    m = SessionScheduler(form, Nodes(p0=["a"]), lambda node: 1 << 30)
    nothing = np.zeros((16, 0), np.float32)
    writes = m.open("me", 0.0, np.zeros((1, 4), np.float32))
    (flight,) = flights(m.extend(writes.number, [3], 0.0, 9.0))
    (flight,) = flights(m.landed(flight.number, nothing, 0.1))
    m.landed(flight.number, logits(flight), 0.2)
    joins = m.open("me", 0.3, np.zeros((40, 4), np.float32))
    (flight,) = flights(m.extend(joins.number, [4], 0.3, 9.0))
    for now in (1, 2):
        assert flight.memory
        assert not m.extend(writes.number, [5], now, 9.0 + now)
        (flight,) = flights(m.landed(flight.number, nothing, now + 0.1))
        assert [chunk.ids for chunk in flight.chunks] == [(5,)], (
            "its token is next, and not all of the memory"
        )
        _, went = m.landed(flight.number, logits(flight), now + 0.2)
        flight = went.flight
        m.check()
    while flight.memory:
        (flight,) = flights(m.landed(flight.number, nothing, 5.0))
    assert [chunk.ids for chunk in flight.chunks] == [(4,)]


def test_sessions_that_wait_go_together_and_short_ones_first(monkeypatch):
    monkeypatch.setattr(scheduling, "CHUNK_ROWS", 4)
    m, _ = machine()
    long, one, two = (m.open("me", 0.0) for _ in range(3))
    (first,) = flights(m.extend(long.number, [1] * 30, 0.0, 9.0))
    assert len(first.chunks[0].ids) == 16, "nobody else waits"
    assert not m.extend(one.number, [2], 0.1, 9.0)
    assert not m.extend(two.number, [3], 0.2, 9.0)
    (second,) = flights(m.landed(first.number, logits(first), 1.0))
    assert [(c.session, len(c.ids)) for c in second.chunks] == [
        (long.number, 4),
        (one.number, 1),
        (two.number, 1),
    ], "by their slots"
    ended = m.landed(second.number, logits(second), 2.0)
    assert [tokens(a) for a in ended if isinstance(a, CallAnswered)] == [[2], [3]]
    (third,) = flights(ended)
    assert [(c.session, len(c.ids)) for c in third.chunks] == [(long.number, 10)]
    (answer,) = m.landed(third.number, logits(third), 3.0)
    assert tokens(answer) == [1] * 30


def test_what_is_forgotten_is_written_over():
    m, _ = machine()
    session = m.open("me", 0.0)
    (flight,) = flights(m.extend(session.number, [1, 2, 3], 0.0, 9.0))
    m.landed(flight.number, logits(flight), 0.0)
    m.truncate(session.number, 1, 0.0)
    (flight,) = flights(m.extend(session.number, [7], 0.0, 9.0))
    assert flight.chunks[0].start == 1
    m.landed(flight.number, logits(flight), 0.0)
    assert session.tokens == [1, 7]
    m.check()


def test_what_a_node_stored_that_has_gone_is_stored_again_by_who_takes_over():
    m, nodes = machine(Nodes(p0=["a"], p1=["b", "c"]))
    session = m.open("me", 0.0)
    (flight,) = flights(m.extend(session.number, [1, 2, 3], 0.0, 9.0))
    assert flight.place == ("a", "b")
    m.landed(flight.number, logits(flight), 0.0)
    (flight,) = flights(m.extend(session.number, [4], 0.0, 9.0))
    nodes.states["b"] = NodeState.LOST
    (flight,) = flights(m.lost(flight.number, Unavailable("b went"), 1.0, again=True, clean=False))
    assert flight.place == ("a", "c")
    assert (flight.chunks[0].start, flight.chunks[0].ids) == (0, (1, 2, 3, 4))
    (answer,) = m.landed(flight.number, logits(flight), 2.0)
    assert tokens(answer) == [4], "only what was asked"
    m.check()


def test_a_new_process_of_a_node_has_stored_nothing():
    m, nodes = machine()
    session = m.open("me", 0.0)
    (flight,) = flights(m.extend(session.number, [1, 2], 0.0, 9.0))
    m.landed(flight.number, logits(flight), 0.0)
    nodes.restart("b")
    (flight,) = flights(m.extend(session.number, [3], 0.0, 9.0))
    assert flight.chunks[0].ids == (1, 2, 3)


def test_a_node_that_may_be_back_is_waited_for_and_then_another_is_sought():
    m, nodes = machine()
    session = m.open("me", 0.0)
    (flight,) = flights(m.extend(session.number, [1, 2], 0.0, 9.0))
    m.landed(flight.number, logits(flight), 0.0)
    nodes.states["b"] = NodeState.SUSPECT
    assert m.extend(session.number, [3], 1.0, 9.0) == []
    nodes.states["b"] = NodeState.LOST
    assert m.look(2.0) == [SeekHolder(1)]
    assert "nobody has part 1" in m.waits(session)
    nodes.held[1], nodes.states["d"] = ["b", "d"], NodeState.READY
    (flight,) = flights(m.look(3.0))
    assert flight.place == ("a", "d")
    assert flight.chunks[0].ids == (1, 2, 3)


def test_at_the_deadline_it_says_what_it_waited_for():
    m, nodes = machine()
    session = m.open("me", 0.0)
    nodes.states["b"] = NodeState.LOST
    m.extend(session.number, [1], 0.0, 5.0)
    assert m.wake == 5.0
    refused = next(a for a in m.tick(5.0) if isinstance(a, CallRefused))
    assert isinstance(refused.error, DeadlineExceeded)
    assert "nobody has part 1" in refused.error.message
    assert session.tokens == []


def test_a_node_that_lacks_what_it_was_given_is_given_it_again():
    m, _ = machine()
    session = m.open("me", 0.0)
    (flight,) = flights(m.extend(session.number, [1], 0.0, 9.0))
    actions = m.lost(flight.number, NotFound("gone"), 1.0, again=True, clean=True, lacks=(1, "b"))
    assert actions[0] == SupplyHolder(1, "b")
    assert len(flights(actions)) == 1


def test_nodes_that_go_again_and_again_end_the_call():
    m, _ = machine()
    session = m.open("me", 0.0)
    actions = m.extend(session.number, [1], 0.0, 9.0)
    for _ in range(scheduling.SESSION_TRIES):
        (flight,) = flights(actions)
        actions = m.lost(flight.number, Unavailable("b went"), 1.0, again=True, clean=False)
    assert [type(action) for action in actions] == [ForgetLane, ForgetSession, CallRefused]
    refused = actions[-1]
    assert isinstance(refused.error, Unavailable)
    assert session.tokens == []


def test_whose_fault_it_is_shows_alone():
    m, _ = machine()
    good, bad = m.open("me", 0.0), m.open("me", 0.0)
    (first,) = flights(m.extend(good.number, [1], 0.0, 9.0))
    m.extend(bad.number, [2], 0.0, 9.0)
    m.landed(first.number, logits(first), 0.0)
    (flight,) = m._flights.values()
    assert [c.session for c in flight.chunks] == [bad.number]
    assert not m.extend(good.number, [3], 0.0, 9.0)
    (refused, fly) = m.lost(flight.number, Internal("no"), 1.0, again=False, clean=True)
    assert refused.session == bad.number
    assert fly.flight.chunks[0].session == good.number


def test_of_several_each_is_tried_alone():
    m, _ = machine()
    blocker, one, two = (m.open("me", 0.0) for _ in range(3))
    (first,) = flights(m.extend(blocker.number, [1], 0.0, 9.0))
    m.extend(one.number, [2], 0.0, 9.0)
    m.extend(two.number, [3], 0.0, 9.0)
    (both,) = flights(m.landed(first.number, logits(first), 1.0))
    assert len(both.chunks) == 2
    (alone,) = flights(m.lost(both.number, Internal("no"), 2.0, again=False, clean=True))
    assert len(alone.chunks) == 1
    actions = m.landed(alone.number, logits(alone), 3.0)
    (other,) = flights(actions)
    assert len(other.chunks) == 1
    (refused,) = m.lost(other.number, Internal("no"), 4.0, again=False, clean=True)
    assert refused.session == two.number
    m.check()


def test_a_session_that_is_closed_on_its_trip_goes_when_that_ends():
    m, _ = machine()
    session = m.open("me", 0.0)
    (flight,) = flights(m.extend(session.number, [1], 0.0, 9.0))
    (refused,) = m.close(session.number, 0.5)
    assert isinstance(refused.error, Cancelled)
    with pytest.raises(NotFound):
        m.require(session.number)
    assert m.landed(flight.number, logits(flight), 1.0) == [ForgetSession(0, ("a", "b"))]
    other = m.open("me", 2.0)
    assert other.slot == 1, "nodes may not have forgotten it"
    m.freed(0)
    assert m.open("me", 2.0).slot == 0
    m.check()


def test_a_session_that_nobody_uses_goes():
    m, _ = machine()
    session = m.open("me", 0.0)
    assert m.wake == scheduling.IDLE_SECONDS
    assert m.tick(scheduling.IDLE_SECONDS) == [ForgetSession(0, ())]
    with pytest.raises(NotFound, match="nobody used it"):
        m.extend(session.number, [1], 0.0, 9.0)


def test_bounds_have_names():
    m, _ = machine(length=4)
    session = m.open("me", 0.0)
    with pytest.raises(ResourceExhausted, match="session-tokens"):
        m.extend(session.number, [1] * 5, 0.0, 9.0)
    m, _ = machine(room=1000)
    session = m.open("me", 0.0)
    (refused,) = m.extend(session.number, [1], 0.0, 9.0)
    assert "cache-bytes" in refused.error.message
    m, _ = machine(room=100_000)
    session = m.open("me", 0.0)
    (flight,) = flights(m.extend(session.number, [1], 0.0, 9.0))
    m.landed(flight.number, logits(flight), 0.0)
    m.bytes._room = lambda node: 1000
    with pytest.raises(ResourceExhausted, match="cache-bytes"):
        m.extend(session.number, [1] * 64, 0.0, 9.0)
    assert session.tokens == [1]


def test_two_calls_of_a_session_do_not_mix():
    m, _ = machine()
    session = m.open("me", 0.0)
    m.extend(session.number, [1], 0.0, 9.0)
    for ask in (lambda: m.extend(session.number, [2], 0.0, 9.0), lambda: m.truncate(session.number, 0, 0.0)):
        with pytest.raises(FailedPrecondition, match="being extended"):
            ask()


def test_parts_in_a_row_have_several_trips_under_way():
    m, _ = machine(lanes=2)
    sessions = [m.open("me", 0.0) for _ in range(3)]
    (first,) = flights(m.extend(sessions[0].number, [1], 0.0, 9.0))
    (second,) = flights(m.extend(sessions[1].number, [2], 0.0, 9.0))
    assert {first.lane, second.lane} == {0, 1}
    assert not m.extend(sessions[2].number, [3], 0.0, 9.0)


def test_rows_are_where_their_parts_store_them():
    m, _ = machine(by_tokens=True)
    session = m.open("me", 0.0)
    for ids in ([1] * 16, [2] * 16, [3] * 16, [4] * 16, [5] * 4):
        (flight,) = flights(m.extend(session.number, ids, 0.0, 9.0))
        feeds = row_inputs(flight, m.form, {"ids": "int64", "at": "int64"})
        assert feeds["at"][: len(ids), 0].tolist() == list(range(session.length - len(ids), session.length))
        spans = flight.chunks[0].spans
        for part in range(2):
            places = part_places(flight, m.form, part, window=10)
            for row, at in enumerate(feeds["at"][: len(ids), 0]):
                own = [t for s in spans if s.part == part for t in range(s.start, s.stop)]
                seen = own[places["lo"][row] : places["hi"][row]]
                assert seen == [t for t in own if at - 10 < t <= at]
            first, count, token = places["at.0"]
            assert (first, token) == (0, owned_before(spans, part, flight.chunks[0].start))
            assert count == max(owned_before(spans, part, session.length) - token, 1)
        m.landed(flight.number, logits(flight), 0.0)
    assert [span.part for span in session.spans] == [0, 1], "a block of 64 each"
    m.check()


def test_what_a_lost_flight_still_writes_is_looked_for_by_nobody():
    """Its node was cut off in the middle of it, and goes on when it is back."""
    m, _ = machine()
    session, other = m.open("me", 0.0), m.open("you", 0.0)
    (first,) = flights(m.extend(session.number, [1, 2], 0.0, 9.0))
    m.landed(first.number, logits(first), 0.0)
    (lost,) = flights(m.extend(session.number, [3], 0.0, 9.0))
    actions = m.lost(lost.number, Unavailable("b went"), 1.0, again=True, clean=False)
    assert actions[:2] == [ForgetLane(lost.lane, ("a", "b")), ForgetSession(lost.slots[0], ("a", "b"))]
    (again,) = flights(actions)
    assert again.lane != lost.lane
    assert again.slots != lost.slots
    assert again.chunks[0].ids == (1, 2, 3), "all of it is stored anew"
    m.freed(lost.slots[0])
    assert m.open("me", 1.0).slot not in (*lost.slots, *again.slots, other.slot)
    m.check()


def test_what_was_answered_before_a_loss_is_not_answered_again():
    m, _ = machine()
    session, most = m.open("me", 0.0), m.form.rows[-1]
    ids = [number % 10 for number in range(2 * most)]
    (first,) = flights(m.extend(session.number, ids, 0.0, 9.0))
    (second,) = flights(m.landed(first.number, logits(first), 0.0))
    actions = m.lost(second.number, Unavailable("b went"), 1.0, again=True, clean=False)
    answers = []
    while flying := flights(actions):
        actions = m.landed(flying[0].number, logits(flying[0]), 1.0)
        answers += [action for action in actions if isinstance(action, CallAnswered)]
    m.check()
    assert [tokens(answer) for answer in answers] == [ids]


def test_a_flight_whose_nodes_all_said_that_it_ended_leaves_lane_and_slot_as_they_were():
    m, _ = machine()
    session = m.open("me", 0.0)
    (first,) = flights(m.extend(session.number, [1, 2], 0.0, 9.0))
    (again,) = flights(m.lost(first.number, Unavailable("b drains"), 1.0, again=True, clean=True))
    assert (again.lane, again.slots) == (first.lane, first.slots)


def test_sessions_of_a_node_that_drains_go_on_elsewhere():
    m, nodes = machine(Nodes(p0=["a"], p1=["b", "c"]))
    session = m.open("me", 0.0)
    (flight,) = flights(m.extend(session.number, [1, 2], 0.0, 9.0))
    m.landed(flight.number, logits(flight), 0.0)
    nodes.states["b"] = NodeState.DRAINING
    (flight,) = flights(m.extend(session.number, [3], 0.0, 9.0))
    assert flight.place == ("a", "c")
    assert flight.chunks[0].ids == (1, 2, 3)
    m.landed(flight.number, logits(flight), 0.0)
    nodes.states["c"] = NodeState.DRAINING
    assert m.extend(session.number, [4], 0.0, 9.0) == [SeekHolder(1)]


def test_one_owner_has_as_much_of_a_node_as_is_left_free():
    m, _ = machine()
    each = m.form.token_bytes(0) * TILE
    m, _ = machine(room=4 * each)
    sessions = [m.open("me", 0.0) for _ in range(3)]
    for session in sessions[:2]:
        (flight,) = flights(m.extend(session.number, [1], 0.0, 9.0))
        m.landed(flight.number, logits(flight), 0.0)
    (refused,) = m.extend(sessions[2].number, [1], 0.0, 9.0)
    assert isinstance(refused.error, ResourceExhausted)
    assert "bound cache-bytes: your sessions" in refused.error.message
    other = m.open("you", 0.0)
    assert flights(m.extend(other.number, [1], 0.0, 9.0)), "another has what it left"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_happens_answers_are_those_of_the_tokens_asked(data):
    """Random calls, losses, deadlines: each answer is of the call's tokens, and a row sees its own past."""
    draw = data.draw
    by_tokens = draw(st.booleans())
    m, nodes = machine(Nodes(p0=["a", "c"], p1=["b", "c"]), draw(st.integers(1, 2)), by_tokens=by_tokens)
    now, asked = 0.0, {}
    stored: dict[tuple[int, int, str], list[int]] = {}
    under_way, still = [], []
    """`still`: lost ones, whose nodes may go on with them."""

    def perform(actions):
        for action in actions:
            match action:
                case Fly(flight):
                    under_way.append(flight)
                case CallAnswered(session):
                    assert tokens(action) == asked.pop(session)
                case CallRefused(session):
                    asked.pop(session)
                case ForgetSession(slot):
                    for key in [key for key in stored if key[0] == slot]:
                        del stored[key]
                    m.freed(slot)
        m.check()

    def write(flight, lives):
        """Nodes store its rows, and, where it `lives`, look at what there is."""
        for part, node in enumerate(flight.place):
            places = part_places(flight, m.form, part, 0)
            row = 0
            for number, chunk in enumerate(flight.chunks):
                own = stored.setdefault((chunk.slot, part, nodes.life(node)), [])
                first, count, at = places[f"at.{number}"]
                mine = [*chunk.ids, 0][first - row : first - row + count]
                assert at <= len(own) or not lives, "a gap"
                own[at : at + count] = mine
                for offset in range(len(chunk.ids) if lives else 0):
                    seen = own[: places["hi"][row + offset]]
                    session = m.sessions.get(chunk.session)
                    if session is None or session.number not in asked:
                        continue
                    past = session.tokens[: chunk.start + offset + 1]
                    spans = chunk.spans
                    if by_tokens:
                        past = [
                            t
                            for i, t in enumerate(past)
                            if any(s.part == part and s.start <= i < s.stop for s in spans)
                        ]
                    assert seen == past
                row += len(chunk.ids)

    for _ in range(draw(st.integers(1, 40))):
        now += 0.1
        event = draw(st.sampled_from(EVENTS))
        idle = [s for s in m.sessions.values() if s.number not in asked and not s.closing]
        flying = {c.session for f in under_way for c in f.chunks}
        idle = [s for s in idle if s.number not in flying]
        if event == "open" and len(m.sessions) < 4:
            m.open(draw(st.sampled_from(["me", "you"])), now)
        elif event == "extend" and idle:
            session = draw(st.sampled_from(idle))
            ids = draw(st.lists(st.integers(0, 9), min_size=1, max_size=20))
            if session.length + len(ids) <= 100:
                asked[session.number] = list(ids)
                perform(m.extend(session.number, ids, now, now + 100))
        elif event == "cut" and idle:
            session = draw(st.sampled_from(idle))
            m.truncate(session.number, draw(st.integers(0, session.length)), now)
        elif event == "close" and m.sessions:
            perform(m.close(draw(st.sampled_from(sorted(m.sessions))), now))
        elif event == "late" and still:
            write(still.pop(draw(st.integers(0, len(still) - 1))), False)
        elif event in ("land", "lose") and under_way:
            flight = under_way.pop(draw(st.integers(0, len(under_way) - 1)))
            if event == "lose":
                clean = draw(st.booleans())
                perform(m.lost(flight.number, Unavailable("gone"), now, again=True, clean=clean))
                if not clean:
                    still.append(flight)
                continue
            write(flight, True)
            perform(m.landed(flight.number, logits(flight), now))
        elif event == "restart" and not under_way:
            nodes.restart(draw(st.sampled_from("abc")))
