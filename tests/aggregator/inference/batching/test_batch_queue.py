"""The queue of a model: who goes next and with whom, who waits for company, who is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.inference.batching.batch_queue import BatchQueue, Queued, Refuse, StartBatch, WantSize
from edge_attention.core.errors import Cancelled, DeadlineExceeded, Overloaded


def queue(slots=1, max_batch=8, delay=0.01, **options):
    return BatchQueue("m", slots, max_batch, delay, **options)


def asked(number, now=0.0, *, kind="k", rows=1, nbytes=10, caller="ana", priority=8, seconds=10.0):
    return Queued(number, kind, rows, nbytes, caller, priority, now, now + seconds)


def started(actions):
    return [action.numbers for action in actions if isinstance(action, StartBatch)]


def refused(actions):
    return {action.number: action.error for action in actions if isinstance(action, Refuse)}


def test_who_is_alone_never_waits():
    q = queue(slots=2, delay=5.0)
    assert started(q.came(asked(0), 0.0)) == [(0,)]
    assert math.isinf(q.wake)
    q.done(1, 1.0)
    assert started(q.came(asked(1, 2.0), 2.0)) == [(1,)]


def test_while_others_are_under_way_a_batch_waits_for_company_and_no_longer_than_it_may():
    q = queue(slots=2, delay=0.01)
    q.came(asked(0), 0.0)
    assert started(q.came(asked(1, 0.001), 0.001)) == []
    assert q.wake == pytest.approx(0.011)
    assert started(q.came(asked(2, 0.005), 0.005)) == []
    assert started(q.tick(0.011)) == [(1, 2)]
    q.check()


def test_when_the_last_one_ends_nobody_waits_for_company():
    q = queue(slots=2, delay=5.0)
    q.came(asked(0), 0.0)
    q.came(asked(1, 0.1), 0.1)
    assert started(q.done(1, 0.2)) == [(1,)]


def test_a_full_batch_goes_at_once():
    q = queue(slots=2, max_batch=3, delay=5.0)
    q.came(asked(0), 0.0)
    q.came(asked(1), 0.0)
    assert started(q.came(asked(2, rows=2), 0.0)) == [(1, 2)]
    q.came(asked(3, rows=2), 0.0)
    q.done(1, 0.1)
    q.check()


def test_one_that_does_not_fit_makes_it_full():
    q = queue(slots=2, max_batch=4, delay=5.0)
    q.came(asked(0), 0.0)
    assert started(q.came(asked(1, rows=3), 0.0)) == []
    assert started(q.came(asked(2, rows=2), 0.0)) == [(1,)]
    assert q.queued == 1


def test_unlike_requests_and_those_whose_rows_meet_run_by_themselves():
    q = queue(slots=1)
    q.came(asked(0), 0.0)
    for number, options in enumerate(({}, {"kind": "j"}, {"rows": 0}, {"rows": 0}, {}, {"kind": "j"}), 1):
        q.came(asked(number, **options), 0.0)
    order = []
    for batch in range(1, 6):
        order += started(q.done(batch, 1.0))
        q.check()
    assert order == [(1, 5), (2, 6), (3,), (4,)]


def test_the_first_priority_goes_first_and_others_fill_up_what_goes():
    q = queue(slots=1, max_batch=2)
    q.came(asked(0), 0.0)
    q.came(asked(1, priority=9), 0.0)
    q.came(asked(2, priority=1, kind="j"), 0.0)
    q.came(asked(3, priority=5), 0.0)
    assert started(q.done(1, 1.0)) == [(2,)]
    assert started(q.done(2, 1.0)) == [(3, 1)]


def test_who_waits_becomes_better_so_that_nobody_waits_for_ever():
    """Requests of the first priority come without end, as many as are answered."""
    q = queue(slots=1, max_batch=1)
    q.came(asked(0), 0.0)
    q.came(asked(1, priority=16, seconds=60.0), 0.0)
    now, number, found = 0.0, 2, []
    while found != [(1,)] and now < 60:
        q.came(asked(number, now, priority=1), now)
        now, number = now + 0.5, number + 1
        found = started(q.done(number - 2, now))
    assert (found, now) == ([(1,)], 15.0), "before that its priority counts"


def test_one_who_comes_is_told_of_those_who_have_become_better():
    q = queue(slots=1, max_batch=1)
    q.came(asked(0), 0.0)
    q.came(asked(1, priority=9, seconds=60.0), 0.0)
    q.done(1, 1.0)  # it took a second
    q.came(asked(2, 1.0, priority=9, seconds=60.0), 1.0)
    assert not refused(q.came(asked(3, 2.0, priority=7, seconds=2.0), 2.0)), (
        "one runs, and none goes before it"
    )
    (error,) = refused(q.came(asked(4, 4.0, priority=7, seconds=2.5), 4.0)).values()
    assert "2 requests wait before this one" in error.message


def test_of_a_cut_model_only_sizes_that_are_prepared_and_it_says_which_would_be_of_use():
    ready = {4}
    q = queue(slots=1, sizes=lambda kind, rows: {3: 4, 4: 4}.get(rows) if 4 in ready else None)
    q.came(asked(0), 0.0)
    q.came(asked(1), 0.0)
    q.came(asked(2), 0.0)
    actions = q.done(1, 1.0)
    assert [a for a in actions if isinstance(a, WantSize)] == [WantSize("k", 2)]
    assert started(actions) == [(1,)]
    for number in (3, 4):
        q.came(asked(number), 1.0)
    (start,) = [a for a in q.done(2, 2.0) if isinstance(a, StartBatch)]
    assert (start.numbers, start.rows) == ((2, 3, 4), 4), "three requests, padded by one row"


def test_who_leaves_is_in_no_batch():
    q = queue(slots=1)
    q.came(asked(0), 0.0)
    q.came(asked(1), 0.0)
    q.came(asked(2), 0.0)
    q.left(1, 0.5)
    assert started(q.done(1, 1.0)) == [(2,)]
    assert not q.left(2, 1.5), "the batch goes on"
    assert not q.done(2, 2.0)
    q.check()
    assert q.queued == q.under_way == 0


def test_a_batch_that_fails_is_run_one_by_one_first_of_all():
    q = queue(slots=1)
    q.came(asked(0), 0.0)
    for number in (1, 2, 3):
        q.came(asked(number), 0.0)
    assert started(q.done(1, 1.0)) == [(1, 2, 3)]
    q.came(asked(4), 1.0)
    q.left(2, 1.5)
    order = started(q.done(2, 2.0, answered=False, again=True))
    order += started(q.done(3, 3.0, answered=False, again=False))
    order += started(q.done(4, 4.0))
    assert order == [(1,), (3,), (4,)]


def test_too_many_wait_and_one_caller_leaves_room_for_others():
    q = queue(slots=1, most=4)
    q.came(asked(0), 0.0)
    found = [refused(q.came(asked(n, rows=0), 0.0)) for n in (1, 2, 3)]
    assert found[:2] == [{}, {}]
    assert isinstance(found[2][3], Overloaded), "half of it is one caller's"
    assert "queued-requests" in found[2][3].message
    assert not refused(q.came(asked(4, caller="ben"), 0.0))
    q.check()


def test_bytes_of_those_that_wait_are_bounded_but_one_always_may():
    q = queue(slots=1, most_bytes=100)
    q.came(asked(0, nbytes=500), 0.0)
    assert not refused(q.came(asked(1, nbytes=500), 0.0))
    (error,) = refused(q.came(asked(2), 0.0)).values()
    assert "queued-bytes" in error.message


def test_bytes_of_one_caller_leave_room_for_others():
    q = queue(slots=1, most_bytes=100)
    q.came(asked(0, rows=0), 0.0)
    assert not refused(q.came(asked(1, nbytes=45), 0.0))
    (error,) = refused(q.came(asked(2, nbytes=45), 0.0)).values()
    assert "45 of them yours" in error.message
    assert not refused(q.came(asked(3, nbytes=45, caller="ben"), 0.0))
    q.check()


def test_one_request_of_any_size_leaves_room_for_others():
    q = queue(slots=1, most_bytes=100)
    q.came(asked(0, rows=0), 0.0)
    assert not refused(q.came(asked(1, nbytes=5000), 0.0))
    assert not refused(q.came(asked(2, nbytes=40, caller="ben"), 0.0))
    assert refused(q.came(asked(3, nbytes=40, caller="cleo"), 0.0))
    q.left(1, 0.1)
    assert not refused(q.came(asked(4, nbytes=40, caller="cleo"), 0.1))
    q.check()


def test_callers_take_turns_however_many_of_one_wait_and_for_how_long():
    q = queue(slots=1, max_batch=1)
    for number in range(100):
        q.came(asked(number, seconds=1000.0), 0.0)
    now = 30.0  # those have waited for so long
    assert started(q.done(1, now)) == [(1,)]
    for number in (100, 101):
        q.came(asked(number, now, caller="ben", seconds=1000.0), now)
    order = [n for batch in range(2, 8) for n in started(q.done(batch, now + 2 * batch))]
    assert order == [(2,), (100,), (3,), (101,), (4,), (5,)]
    q.check()


def test_who_comes_is_not_told_that_it_waits_for_all_of_anothers():
    q = queue(slots=1, max_batch=1)
    q.came(asked(0), 0.0)
    q.done(1, 1.0)  # a second each
    for number in range(1, 100):
        q.came(asked(number, 1.0, seconds=1000.0), 1.0)
    assert not refused(q.came(asked(100, 1.5, caller="ben", seconds=3.5), 1.5))
    (error,) = refused(q.came(asked(101, 1.5, caller="ben", seconds=3.5), 1.5)).values()
    assert "3 requests wait before this one" in error.message
    assert refused(q.came(asked(102, 1.5, seconds=60.0), 1.5)), "its own wait before it"


def test_who_cannot_be_answered_in_time_is_refused_at_once_and_told_what_it_would_wait_for():
    q = queue(slots=1, max_batch=1)
    q.came(asked(0), 0.0)
    q.done(1, 1.0)  # a second each
    q.came(asked(1, 1.0), 1.0)
    q.came(asked(2, 1.0), 1.0)
    (error,) = refused(q.came(asked(3, 1.0, seconds=2.0), 1.0)).values()
    assert isinstance(error, DeadlineExceeded)
    assert "1 requests wait before this one and 1 run, each for 1e+03 ms" in error.message
    assert not refused(q.came(asked(4, 1.0, seconds=2.0, priority=1), 1.0)), "it goes before them"


def test_a_deadline_that_passes_in_the_queue_is_said():
    q = queue(slots=1)
    q.came(asked(0), 0.0)
    q.came(asked(1, seconds=2.0), 0.0)
    assert q.wake == 2.0
    (error,) = refused(q.tick(2.0)).values()
    assert "waited 2e+03 ms for its turn, behind 1 that run" in error.message
    q.check()


def test_closing_refuses_who_waits():
    q = queue(slots=1)
    q.came(asked(0), 0.0)
    q.came(asked(1), 0.0)
    assert list(refused(q.close(Cancelled("gone"), 1.0))) == [1]
    q.done(1, 2.0)
    q.check()


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["came", "came", "came", "left", "done", "done", "again", "tick"]),
        st.integers(0, 30),
        st.sampled_from(["k", "j"]),
        st.integers(0, 5),
        st.integers(1, 3),
        st.floats(0.001, 0.3),
    ),
    max_size=60,
)


@given(EVENTS, st.integers(1, 3), st.integers(1, 6), st.sampled_from([0.0, 0.05]))
def test_whatever_happens_each_request_starts_once_or_is_refused_and_nobody_is_forgotten(
    events, slots, max_batch, delay
):
    q = queue(slots, max_batch, delay, most=12)
    now, number, open_, ended = 0.0, 0, set(), set()
    batches = {}

    def perform(actions):
        for action in actions:
            if isinstance(action, StartBatch):
                assert open_ >= set(action.numbers)
                batches[action.batch] = action.numbers
            elif isinstance(action, Refuse):
                assert action.number in open_
                open_.discard(action.number)
                ended.add(action.number)

    for event, which, kind, rows, priority, step in events:
        now += step
        if event == "came":
            open_.add(number)
            caller = "ana" if which % 3 else "ben"
            options = {"kind": kind, "rows": rows, "priority": priority, "caller": caller}
            perform(q.came(asked(number, now, seconds=1.0, **options), now))
            number += 1
        elif event == "left" and open_:
            gone = sorted(open_)[which % len(open_)]
            open_.discard(gone)
            perform(q.left(gone, now))
        elif event in ("done", "again") and batches:
            batch = sorted(batches)[which % len(batches)]
            numbers = batches.pop(batch)
            again = event == "again" and len(numbers) > 1
            if not again:
                open_ -= set(numbers)
            perform(q.done(batch, now, answered=not again, again=again))
        else:
            perform(q.tick(now))
        q.check()
        assert q.under_way <= slots
        waits = open_ - {n for numbers in batches.values() for n in numbers}
        assert q.queued == len(waits)
        assert not waits or q.wake > now or q.under_way == slots, "somebody waits, and nobody looks"
        assert not (waits and not q.under_way), "nothing runs, and somebody waits"
    # Left to itself it comes to an end.
    for _ in range(200):
        if not (q.queued or q.under_way):
            break
        for batch in sorted(batches):
            perform(q.done(batch, now, answered=False))
            batches.pop(batch)
        now = min(q.wake, now + 1.0)
        perform(q.tick(now))
    assert not q.queued
    assert not q.under_way


def gathering(**options):
    """Two nodes' queue where nobody asked for batches: 16 at a time, four of which keep them at work."""
    return queue(slots=16, max_batch=16, delay=0.0, gathers=4, **options)


def test_unasked_few_go_at_once_and_then_who_comes_waits_as_long_as_the_quickest_took():
    q = gathering()
    for number in range(4):
        assert started(q.came(asked(number), 0.0)) == [(number,)]
    assert started(q.came(asked(4), 0.0)) == [(4,)], "nobody knows how long that may be"
    assert started(q.done(1, 0.02)) == []
    q.came(asked(5, 0.02), 0.02)
    assert started(q.came(asked(6, 0.021), 0.021)) == [], "four run"
    assert q.wake == pytest.approx(0.04), "the quickest took 20 ms, and number 5 has waited for company since"
    assert started(q.came(asked(7, 0.022), 0.022)) == []
    assert started(q.tick(0.04)) == [(5, 6)], "of seven one of four has two"
    q.check()


def test_unasked_what_waits_is_shared_out_among_those_that_run():
    q = gathering()
    for number in range(4):
        q.came(asked(number), 0.0)
    q.done(1, 0.1)
    for number in range(4, 13):
        q.came(asked(number, 0.1), 0.1)
    assert q.under_way == 4
    assert q.queued == 8
    assert started(q.done(2, 0.11)) == [(5, 6, 7)], "eleven alike by four"
    assert started(q.done(3, 0.12)) == [(8, 9, 10)]
    q.check()


def test_unasked_a_full_batch_waits_for_nobody():
    q = gathering()
    for number in range(4):
        q.came(asked(number), 0.0)
    q.done(1, 1.0)
    q.came(asked(4, 1.0), 1.0)
    assert started(q.came(asked(5, 1.0, rows=16), 1.0)) == [(5,)]
    assert started(q.came(asked(6, 1.0, kind="j"), 1.0)) == [(6,)], "of its kind nothing is known"
    q.check()


def test_unasked_those_that_wait_for_company_are_looked_at_once_and_not_each_for_itself(monkeypatch):
    """Of n that wait an event would take n times n: a burst would hold up the event loop."""
    q = queue(slots=64, max_batch=16, delay=0.0, gathers=16)
    q.came(asked(0), 0.0)
    q.done(1, 1.0)
    for number in range(1, 17):
        assert started(q.came(asked(number, 10.0), 10.0)) == [(number,)]
    for number in range(17, 100):
        assert not started(q.came(asked(number, 10.1), 10.1))
    looked, joined = [], q._joined

    def noted(first, *more):
        looked.append(first.number)
        return joined(first, *more)

    monkeypatch.setattr(q, "_joined", noted)
    assert not started(q.came(asked(100, 10.2), 10.2))
    assert looked == [17]
    # Whoever came before one of a higher priority has waited long enough all the same, and takes it along.
    assert not started(q.came(asked(101, 10.3, priority=1), 10.3))
    assert started(q.tick(11.15))[0] == (23, 101, *range(17, 22))
    q.check()
