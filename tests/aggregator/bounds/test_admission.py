"""Whose turn it is: bounds hold, nobody is forgotten, callers take turns, what would be late is refused."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.bounds.admission import Admission, TicketState
from aggregator.bounds.gate import TOLD_SECONDS, Gate
from edge_attention.core.errors import Overloaded
from edge_attention.core.transitions import told


def admission(**options):
    return Admission("attend-turns", **{"most_bytes": 1000, "least": 2, "most": 16, **options})


events = st.lists(
    st.one_of(
        st.tuples(
            st.just("offer"), st.sampled_from("abcd"), st.integers(0, 1200), st.floats(0, 20), st.floats(0, 1)
        ),
        st.tuples(st.just("done"), st.integers(0, 50), st.booleans(), st.floats(0, 3), st.none()),
        st.tuples(st.just("leave"), st.integers(0, 50), st.none(), st.floats(0, 3), st.none()),
    ),
    max_size=120,
)


@given(events)
def test_whatever_happens_the_account_is_right_and_nobody_waits_for_nobody(events):
    machine, now, open_ = admission(), 0.0, []
    for kind, who, what, more, step in events:
        if kind == "offer":
            now += step
            with contextlib.suppress(Overloaded):
                open_.append(machine.offer(who, what, now + more, now))
        elif open_:
            now += more
            ticket = open_.pop(who % len(open_))
            if kind == "done" and ticket.state is TicketState.RUNNING:
                changed = machine.done(ticket, now, what)
            else:
                changed = machine.leave(ticket, now)
            assert all(t.state in (TicketState.RUNNING, TicketState.LATE) for t in changed)
            open_ = [t for t in open_ if t.state is not TicketState.LATE]
        machine.check()
        assert machine.running == sum(t.state is TicketState.RUNNING for t in open_)
        assert machine.waiting == sum(t.state is TicketState.WAITING for t in open_)
    while open_:
        machine.leave(open_.pop(), now)
        open_ = [t for t in open_ if t.state is not TicketState.LATE]
        machine.check()
    assert (machine.running, machine.waiting, machine.size) == (0, 0, 0)


def serve(machine, tickets, now, seconds):
    """The one that has run longest is done after `seconds`; the time then."""
    running = min((t for t in tickets if t.state is TicketState.RUNNING), key=lambda t: t.began)
    machine.done(running, now + seconds)
    return now + seconds


def test_a_caller_that_comes_beside_one_with_hundreds_waits_for_none_of_them():
    machine = admission(most=4, least=4)
    bad = [machine.offer("bad", 1, 1000.0, 0.0) for _ in range(300)]
    assert machine.running == 2  # what one caller may have: as much as it leaves free
    good = machine.offer("good", 1, 1.0, 0.0)
    assert good.state is TicketState.RUNNING
    also = [machine.offer(f"good {i}", 1, 100.0, 0.0) for i in range(4)]
    now = 0.0
    while any(t.state is TicketState.WAITING for t in also):
        now = serve(machine, [*also, good, *bad], now, 0.1)
    served = sum(t.state is not TicketState.WAITING for t in bad)
    assert served < 12, "callers take turns"


def test_callers_are_served_alike():
    machine = admission(most=4, least=4)
    tickets = {name: [machine.offer(name, 1, 1000.0, 0.0) for _ in range(50)] for name in "abc"}
    everybody, now = list(itertools.chain(*tickets.values())), 0.0
    for _ in range(60):
        now = serve(machine, everybody, now, 0.1)
    ended = Counter(name for name, own in tickets.items() for t in own if t.state is TicketState.ENDED)
    assert max(ended.values()) - min(ended.values()) <= 3, ended


def test_what_cannot_be_answered_in_time_is_refused_at_once_and_told_when():
    machine = admission(most=4, least=4)
    now, waiting = 0.0, []
    for _ in range(20):  # it learns that a call takes a second
        machine.done(machine.offer("x", 1, now + 10, now), now + 1.0)
        now += 1.0
    for i in range(40):
        try:
            waiting.append(machine.offer(f"c{i}", 1, now + 3.0, now))
        except Overloaded as error:
            refused = error
    assert machine.running == 4
    assert 4 <= machine.waiting <= 8  # two more rounds fit three seconds
    assert 0.1 < refused.retry_after < 30
    assert "bound attend-turns: 4 run and" in refused.message
    assert f"try again in {refused.retry_after:.2f} s" in refused.message


def test_its_last_transitions_say_what_became_of_calls():
    machine = admission(most=2, least=2)
    first, _ = (machine.offer(name, 1, 100.0, 1.0) for name in "ab")
    machine.offer("c", 1, 3.0, 2.0)
    machine.offer("d", 1, 100.0, 2.0)
    machine.done(first, 3.0)
    with pytest.raises(Overloaded):
        machine.offer("e", 1, 3.5, 3.0)
    assert told(machine.transitions) == (
        "0.000 s: a: offered -> running; 0.000 s: b: offered -> running; "
        "1.000 s: c: offered -> waiting; 1.000 s: d: offered -> waiting; 2.000 s: a: running -> ended; "
        "2.000 s: c: waiting -> late; 2.000 s: d: waiting -> running; 2.000 s: e: offered -> refused"
    )


@pytest.mark.parametrize("broken", [
    lambda machine, runs, waits: setattr(machine, "running", 1),
    lambda machine, runs, waits: setattr(machine, "size", 0),
    lambda machine, runs, waits: setattr(machine, "limit", 17.0),
    lambda machine, runs, waits: setattr(waits, "state", TicketState.RUNNING),
    lambda machine, runs, waits: machine._queues["c"].clear(),
])  # fmt: skip
def test_check_finds_a_state_that_cannot_be(broken):
    machine = admission(most=2, least=2)
    runs, _, waits = (machine.offer(name, 1, 100.0, 0.0) for name in "abc")
    machine.check()
    broken(machine, runs, waits)
    with pytest.raises(AssertionError):
        machine.check()


def test_how_a_gate_came_to_refuse_is_logged_and_not_for_every_refusal(caplog):
    caplog.set_level("INFO")
    refused, now = [], [0.0]
    gate = Gate(admission(alike=True), refused.append, lambda: now[0])
    machine = gate.admission
    machine.done(machine.offer("x", 1, 1000.0, 0.0), 50.0)

    async def ask():
        held = [machine.offer(name, 1, 1000.0, 50.0) for name in "abcd"]
        for now[0] in (50.0, 51.0, 50.0 + TOLD_SECONDS):
            with pytest.raises(Overloaded):
                async with gate.turn("e", 1, 0.1):
                    pass
        for ticket in held:
            machine.leave(ticket, now[0])

    asyncio.run(ask())
    assert refused == ["attend-turns"] * 3
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "bound attend-turns refuses a call"
    ] * 2


def test_where_calls_are_not_alike_a_short_queue_is_waited_in():
    machine = admission(most=2, least=2, share=2, alike=False)
    machine.done(machine.offer("x", 1, 1000.0, 0.0), 500.0)
    running = [machine.offer("a", 1, 501.0, 500.0) for _ in range(2)]
    assert all(t.state is TicketState.RUNNING for t in running)  # a share of its own: both are one caller's
    waiting = [machine.offer("a", 1, 501.0, 500.0) for _ in range(2)]
    with pytest.raises(Overloaded):
        machine.offer("a", 1, 501.0, 500.0)
    assert machine.done(running[0], 500.9) == [waiting[0]]
    assert waiting[0].state is TicketState.RUNNING  # with the tenth of a second that it has left
    assert machine.done(running[1], 502.0) == [waiting[1]]
    assert waiting[1].state is TicketState.LATE


def test_one_that_could_run_now_is_never_refused():
    """Or nobody would ever find out that calls have become quick again."""
    machine = admission()
    machine.done(machine.offer("x", 1, 1000.0, 0.0), 500.0)
    assert machine.seconds == 500.0
    assert machine.offer("x", 1, 500.1, 500.0).state is TicketState.RUNNING


def test_one_whose_time_is_over_when_its_turn_comes_is_late():
    machine = admission(most=2, least=2)
    first, second = (machine.offer(name, 1, 100.0, 0.0) for name in "ab")
    third = machine.offer("c", 1, 1.0, 0.0)
    fourth = machine.offer("d", 1, 100.0, 0.0)
    assert (first.state, second.state, third.state) == (
        TicketState.RUNNING,
        TicketState.RUNNING,
        TicketState.WAITING,
    )
    assert machine.done(first, 5.0) == [third, fourth]
    assert (third.state, fourth.state) == (TicketState.LATE, TicketState.RUNNING)


def test_more_run_while_nothing_queues_and_fewer_when_it_does():
    machine = admission(least=2, most=64)
    now = 0.0

    def rounds(count, congested):
        nonlocal now
        for _ in range(count):
            tickets = [machine.offer(f"c{i}", 1, now + 100, now) for i in range(80)]
            now += 1.0
            for ticket in tickets:
                machine.done(ticket, now, congested) if ticket.state is TicketState.RUNNING else None
            for ticket in tickets:
                machine.leave(ticket, now)
            machine.check()

    rounds(30, False)
    assert 16 < machine.limit <= 64
    rounds(40, True)
    assert machine.limit == 2
    rounds(5, False)
    assert machine.limit > 2


def test_large_ones_run_one_after_the_other_and_are_not_overtaken_for_ever():
    machine = admission(most=8, least=8)
    large = [machine.offer(f"large {i}", 600, 100.0, 0.0) for i in range(3)]
    assert [t.state for t in large] == [TicketState.RUNNING, TicketState.WAITING, TicketState.WAITING]
    machine.done(machine.offer("small", 100, 100.0, 0.0), 1.0)
    small = machine.offer("small", 100, 100.0, 1.0)
    assert small.state is TicketState.WAITING  # it would take the bytes that the large ones wait for
    assert machine.done(large[0], 2.0)[0] is large[1]
    huge = machine.offer("huge", 5000, 100.0, 2.0)
    for ticket in (large[1], small, large[2]):
        machine.leave(ticket, 3.0)
    assert huge.state is TicketState.RUNNING  # alone


def test_the_gate_waits_gives_way_and_forgets_who_left():
    async def run():
        names = []
        gate = Gate(admission(most=2, least=2), names.append)
        release, order = asyncio.Event(), []

        async def call(name, seconds=20.0):
            async with gate.turn(name, 1, seconds) as turn:
                order.append((name, turn.waited > 0.001))
                await release.wait()

        first = [asyncio.create_task(call(name)) for name in "ab"]
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(call("gone"))
        waits = asyncio.create_task(call("waits"))
        await asyncio.sleep(0.02)
        assert (gate.admission.running, gate.admission.waiting) == (2, 2)
        with pytest.raises(Overloaded, match="bound attend-turns"):
            await call("late", 0.05)
        gone.cancel()
        assert names == ["attend-turns"]
        release.set()
        await asyncio.gather(*first, waits)
        assert order == [("a", False), ("b", False), ("waits", True)]
        gate.admission.check()
        assert (gate.admission.running, gate.admission.waiting) == (0, 0)

    asyncio.run(run())
