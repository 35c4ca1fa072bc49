"""When a deployment is planned anew: transcripts of what is seen of a fleet, by a clock."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aggregator.inference.replanning import (
    CALM_SECONDS,
    FIRST_REST,
    MOST_REST,
    ReplanEnd,
    Replanning,
    ReplanReason,
    ReplanState,
    SeenFleet,
)

ABC = frozenset("abc")
AB = frozenset("ab")
WITHOUT_C = SeenFleet(AB, frozenset("c"))


def looks(machine, seen, start, stop):
    """What it asks for from `start` to `stop`, looked at every half second, by time."""
    times = [half / 2 for half in range(int(2 * start), int(2 * stop))]
    return [(at, asked) for at in times if (asked := machine.look(seen, at)) is not None]


def test_a_node_that_is_gone_for_good_has_the_shares_planned_anew():
    machine = Replanning(ABC)
    assert looks(machine, SeenFleet(ABC), 0, 100) == []
    ((at, asked),) = looks(machine, WITHOUT_C, 100, 200)
    assert at == 130.0
    assert (asked.reason, asked.nodes, asked.here) == (ReplanReason.GONE, ("c",), AB)
    assert str(asked) == "node c is gone"
    assert machine.state is ReplanState.PLANNING
    machine.ended(ReplanEnd.SWAPPED, 205.0)
    assert looks(machine, SeenFleet(AB), 205, 400) == []
    assert machine.state is ReplanState.STEADY


def test_a_node_that_is_back_in_time_changes_nothing():
    machine = Replanning(ABC)
    assert looks(machine, WITHOUT_C, 0, 29) == []
    assert machine.state is ReplanState.SETTLING
    assert looks(machine, SeenFleet(ABC), 29, 31) == []
    assert machine.state is ReplanState.STEADY
    # The clock begins anew: it is not the sum of its absences that counts.
    assert looks(machine, WITHOUT_C, 31, 60) == []


def test_a_node_that_comes_is_asked_about_once_it_has_stayed():
    machine = Replanning(AB)
    assert looks(machine, SeenFleet(ABC), 0, 59) == []
    assert looks(machine, SeenFleet(AB), 59, 60) == []
    ((at, asked),) = looks(machine, SeenFleet(ABC), 60, 300)
    assert (at, asked.reason, asked.nodes) == (120.0, ReplanReason.CAME, ("c",))
    assert str(asked) == "node c has come"
    # It gains too little. It is not asked about over and over, nor when it goes, which nobody needs it for.
    machine.ended(ReplanEnd.KEPT, 121.0)
    assert looks(machine, SeenFleet(ABC), 121, 2000) == []
    assert looks(machine, SeenFleet(AB), 2000, 3000) == []
    assert looks(machine, SeenFleet(ABC), 3000, 4000) == []


def test_a_node_that_was_planned_without_is_new_when_it_is_back():
    for end in (ReplanEnd.SWAPPED, ReplanEnd.KEPT):
        machine = Replanning(ABC)
        assert looks(machine, WITHOUT_C, 0, 40)
        machine.ended(end, 40.0)
        ((at, asked),) = looks(machine, SeenFleet(ABC), 100, 200)
        assert (at, asked.reason, asked.nodes) == (160.0, ReplanReason.CAME, ("c",))


def test_what_failed_is_tried_again_ever_more_seldom():
    machine = Replanning(ABC)
    times, now = [], 0.0
    while len(times) < 12:
        times.append(looks(machine, WITHOUT_C, now, now + MOST_REST + 100)[0][0])
        now = times[-1] + 1.0
        machine.ended(ReplanEnd.FAILED, now)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[0] == FIRST_REST + 1
    assert machine.rests == MOST_REST


def test_a_node_that_comes_and_goes_for_a_day_is_planned_for_some_dozens_of_times_at_most():
    machine, swaps = Replanning(ABC), 0
    for second in range(86_400):
        here = ABC if second // 120 % 2 else AB  # two minutes away, two minutes here
        holds = swaps % 2 == 0  # whether the plan that serves has a part on c
        gone = frozenset("c") if holds and here == AB else frozenset()
        if machine.look(SeenFleet(here, gone), float(second)) is not None:
            machine.ended(ReplanEnd.SWAPPED, second + 5.0)
            swaps += 1
    assert 2 <= swaps <= 48


def test_after_a_calm_the_first_rest_is_short_again():
    machine, now = Replanning(ABC), 0.0
    for _ in range(3):
        now = looks(machine, WITHOUT_C, now, now + 1000)[0][0]
        machine.ended(ReplanEnd.FAILED, now)
    assert machine.rests == 4 * FIRST_REST
    later = now + CALM_SECONDS + 5 * FIRST_REST
    assert looks(machine, SeenFleet(ABC), now, later) == []
    now = looks(machine, WITHOUT_C, later, later + 100)[0][0]
    machine.ended(ReplanEnd.FAILED, now)
    assert machine.rests == FIRST_REST


def test_with_nobody_here_there_is_nothing_to_plan():
    machine = Replanning(ABC)
    assert looks(machine, SeenFleet(frozenset(), ABC), 0, 500) == []
    assert [at for at, _ in looks(machine, SeenFleet(frozenset("d"), ABC), 500, 600)] == [500.0]


def test_an_operators_seconds_are_in_place_of_the_usual():
    machine = Replanning(ABC, 1.0)
    assert [at for at, _ in looks(machine, WITHOUT_C, 0, 9)] == [1.0]
    machine.ended(ReplanEnd.SWAPPED, 2.0)
    assert [at for at, _ in looks(machine, SeenFleet(ABC), 2, 9)] == [4.0]


@given(
    st.lists(
        st.tuples(
            st.frozensets(st.sampled_from("abcd")),
            st.frozensets(st.sampled_from("abc")),
            st.floats(0.1, 100.0),
            st.sampled_from(ReplanEnd),
        ),
        max_size=60,
    )
)
def test_any_course_of_events(events):
    machine, now, due = Replanning(ABC), 0.0, 0.0
    for here, orphans, more, end in events:
        now += more
        asked = machine.look(SeenFleet(here, orphans - here), now)
        if asked is None:
            continue
        assert asked.here == here
        assert asked.nodes
        assert now >= due, "before it had rested"
        assert machine.look(SeenFleet(here), now) is None, "asked twice at a time"
        machine.ended(end, now)
        due = now + machine.rests
    assert machine.rests <= MOST_REST
