"""Rounds as transcripts: who is asked, who answers, who is left out and why."""

from __future__ import annotations

import math
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.federated import SelectionSpec
from edge_attention.core.rounds.synchronous import (
    Again,
    Ask,
    Close,
    Diverge,
    LeaveOut,
    Quarantine,
    Round,
    RoundRules,
    RoundState,
)
from edge_attention.core.rounds.timings import ENOUGH, Timings
from edge_attention.core.transitions import told


def begun(nodes="abc", now=0.0, **rules):
    a_round = Round(41, 40, RoundRules(**{"patience_seconds": 120.0, **rules}), tuple(nodes), now)
    assert a_round.start() == [Ask(node) for node in nodes]
    return a_round


def test_a_round_asks_everybody_waits_for_everybody_and_closes_in_order():
    r = begun()
    assert r.finished("c", 30, 1.0) == []
    assert r.finished("a", 10, 2.0) == []
    assert r.tick(100.0) == []
    assert r.finished("b", 20, 101.0) == [Close(("a", "b", "c"))]
    assert (r.over, r.samples, r.seconds) == (True, {"c": 30, "a": 10, "b": 20}, {"c": 1, "a": 2, "b": 101})
    assert (r.wake, r.waits(102.0), r.left_out) == (None, "", {})


def test_at_the_deadline_a_round_with_a_quorum_goes_on_and_an_upload_gets_no_extra():
    r = begun(quorum=0.6, deadline_seconds=10.0)
    r.finished("a", 1, 1.0)
    assert r.wake == 120.0, "no quorum: nothing happens at the deadline"
    r.finished("c", 1, 2.0)
    assert r.wake == 10.0
    r.progress("b", 39, 40, 9.0)
    assert r.tick(9.99) == []
    why = "not done after 10.0 s: 39 of 40 chunks, idle 1.0 s"
    assert r.tick(10.0) == [LeaveOut("b", why), Close(("a", "c"))]
    assert r.finished("b", 1, 10.1) == []
    assert (r.late, r.left_out, r.samples) == (1, {"b": why}, {"a": 1, "c": 1})


def test_an_answer_after_the_deadline_is_late_although_nobody_ticked():
    r = begun(quorum=0.6, deadline_seconds=10.0)
    r.finished("a", 1, 1.0)
    r.finished("c", 1, 2.0)
    *_, close = r.finished("b", 1, 10.5)
    assert close == Close(("a", "c"))
    assert r.late == 1


def test_without_a_quorum_at_the_deadline_the_next_answer_that_makes_one_closes():
    r = begun(quorum=0.6, deadline_seconds=10.0)
    r.finished("a", 1, 1.0)
    assert r.tick(10.0) == []
    leave, close = r.finished("b", 1, 30.0)
    assert (leave.node, close) == ("c", Close(("a", "b")))


def test_no_deadline_is_longer_than_patience():
    r = begun("ab", quorum=0.5, deadline_seconds=200.0)
    r.finished("a", 1, 1.0)
    assert r.wake == 120.0
    assert r.tick(120.0)[-1] == Close(("a",))


def test_with_everybody_in_nobody_waits_for_the_deadline():
    r = begun("ab", quorum=0.5, deadline_seconds=10.0)
    r.finished("a", 1, 1.0)
    assert r.failed("b", "out of memory", 2.0) == [LeaveOut("b", "out of memory"), Close(("a",))]
    assert r.left_out == {"b": "out of memory"}


def test_a_lost_node_is_waited_for_and_may_come_back():
    r = begun("ab")
    r.finished("a", 1, 1.0)
    assert r.lost("b", 2.0) == []
    assert r.waits(12.0) == "round 41 waits for b (lost), gives up in 108 s"
    assert r.back("b", 60.0) == []
    assert r.waits(61.0) == "round 41 waits for b: asked 1.0 s ago, gives up in 59 s"
    assert r.finished("b", 1, 62.0) == [Close(("a", "b"))]


def test_what_lacks_for_a_quorum_is_counted():
    r = begun("abcd", quorum=0.75)
    assert r.missing == 0, "all work on it"
    r.lost("a", 1.0)
    assert r.missing == 0, "three of four are enough"
    r.lost("b", 2.0)
    assert r.missing == 1
    r.finished("c", 5, 3.0)
    assert r.missing == 1, "done or at work is the same"
    r.back("a", 4.0)
    assert r.missing == 0
    r.finished("d", 5, 5.0)
    r.lost("a", 6.0)
    assert r.missing == 1
    r.finished("b", 5, 7.0)
    assert r.missing == 0


def test_when_patience_ends_a_round_goes_on_with_a_quorum_and_is_run_again_without():
    with_quorum, without = begun(quorum=0.5), begun()
    for r in (with_quorum, without):
        r.finished("a", 1, 1.0)
        r.finished("b", 1, 2.0)
        r.lost("c", 3.0)
        assert r.wake == 120.0
    assert with_quorum.tick(120.0) == [LeaveOut("c", "not done after 120.0 s: lost"), Close(("a", "b"))]
    (again,) = without.tick(120.0)
    assert again == Again(
        "round 41 cannot end: 2 of the 3 nodes it needs answered within 120 s; it waited for c (lost)"
    )
    assert without.over


def test_a_quorum_that_cannot_be_reached_any_more_ends_the_round_at_once():
    r = begun(quorum=0.6)
    assert r.failed("a", "out of memory", 1.0) == [LeaveOut("a", "out of memory")]
    leave, again = r.failed("b", "no such column", 2.0)
    assert leave == LeaveOut("b", "no such column")
    assert again.reason.endswith("it needs 2 nodes of 3: a: out of memory; b: no such column")


def test_who_returns_what_must_not_be_folded_is_quarantined_even_after_it_finished():
    r = begun(quorum=0.3)
    assert r.refused("b", "NaN in update/0", 1.0) == [Quarantine("b", "NaN in update/0")]
    r.finished("a", 1, 2.0)
    assert r.refused("a", "checksum", 3.0) == [Quarantine("a", "checksum")]
    assert r.refused("a", "checksum", 3.0) == [], "once"
    assert r.finished("c", 1, 4.0) == [Close(("c",))]
    assert r.quarantined == {"b": "NaN in update/0", "a": "checksum"}
    assert r.left_out == r.quarantined


def test_who_alone_returns_what_is_not_finite_is_quarantined_once_others_have_answered():
    r = begun()
    assert r.diverged("b", "NaN", 1.0) == [LeaveOut("b", "NaN")], "whether it is alone is to be seen"
    r.check()
    assert not r.over
    assert r.finished("a", 1, 2.0) == []
    assert r.finished("c", 1, 3.0) == [
        Quarantine("b", "NaN"), Again("round 41 cannot end: it needs 3 nodes of 3: b: NaN")
    ]  # fmt: skip
    r.check()
    r = begun(quorum=0.6)
    r.diverged("b", "NaN", 1.0)
    r.finished("a", 1, 2.0)
    assert r.finished("c", 1, 3.0) == [Quarantine("b", "NaN"), Close(("a", "c"))]
    assert r.quarantined == {"b": "NaN"}


def test_where_nothing_is_finite_nobody_is_at_fault():
    r = begun()
    for node in "ab":
        assert r.diverged(node, f"NaN of {node}", 1.0) == [LeaveOut(node, f"NaN of {node}")]
    assert r.diverged("c", "NaN of c", 2.0) == [
        LeaveOut("c", "NaN of c"), Diverge({node: f"NaN of {node}" for node in "abc"})
    ]  # fmt: skip
    assert (r.state, r.quarantined) == (RoundState.DIVERGED, {})
    r.check()


def test_a_node_that_fails_besides_leaves_open_who_is_at_fault():
    r = begun("ab")
    r.diverged("a", "NaN", 1.0)
    assert r.failed("b", "away", 2.0) == [
        LeaveOut("b", "away"), Again("round 41 cannot end: it needs 2 nodes of 2: a: NaN; b: away")
    ]  # fmt: skip
    r = begun("ab")
    r.diverged("a", "NaN", 1.0)
    assert isinstance(r.tick(120.0)[-1], Again), "patience ends"


def test_the_minimum_counts_like_a_quorum():
    r = begun("abcd", quorum=0.25, minimum=3, deadline_seconds=5.0)
    assert r.needed == 3
    assert begun("ab", quorum=0.5, minimum=3).needed == 2


@pytest.mark.parametrize(
    ("rules", "finished", "now", "sentence"),
    [
        ({"quorum": 0.5, "deadline_seconds": 20.0}, "ab", 14.0, "leaves it out in 6 s"),
        ({"quorum": 0.5, "deadline_seconds": 200.0}, "ab", 14.0, "leaves it out in 106 s"),
        ({"quorum": 0.5}, "ab", 14.0, "leaves it out in 106 s"),
        ({"quorum": 1.0, "deadline_seconds": 20.0}, "ab", 14.0, "gives up in 106 s"),
        ({}, "ab", 14.0, "gives up in 106 s"),
    ],
)
def test_a_wait_for_one_node_says_how_far_it_is_and_what_comes_of_it(rules, finished, now, sentence):
    r = begun(**rules)
    for node in finished:
        r.finished(node, 1, 1.0)
    r.started("c", 2.0)
    assert r.waits(5.0).startswith("round 41 waits for c: computes for 3.0 s, ")
    r.progress("c", 12, 40, 9.8)
    r.progress("c", 12, 40, 13.0)
    assert r.waits(now) == f"round 41 waits for c: 12 of 40 chunks, idle 4.2 s, {sentence}"


def test_a_wait_for_many_names_three_and_counts_the_rest():
    r = begun("abcdefg", quorum=0.5, deadline_seconds=30.0)
    r.finished("c", 1, 1.0)
    r.lost("a", 2.0)
    r.progress("b", 1, 9, 8.0)
    named = "round 41 waits for a (lost), b (1 of 9 chunks, idle 2.0 s), d (asked 10.0 s ago) and 3 more"
    assert r.waits(10.0) == f"{named}, needs 3 of them, leaves the others out in 20 s"
    assert r.waits(10.0) == r.waits(10.0), "asking changes nothing"
    assert r.waited == tuple("abdefg")
    assert r.waits(31.0).endswith("and 3 more, needs 3 of them, gives up in 89 s")
    for node in "def":
        r.finished(node, 1, 11.0)
    assert r.waits(12.0) == (
        "round 41 waits for a (lost), b (1 of 9 chunks, idle 4.0 s), g (asked 12.0 s ago), "
        "leaves them out in 18 s"
    )


def test_what_each_node_does_is_told():
    r = begun("abcd", quorum=0.5)
    r.started("a", 1.0)
    r.finished("b", 1, 2.0)
    r.failed("c", "out of memory", 3.0)
    assert r.doing(4.0) == {
        "a": "computes for 3.0 s", "b": "done", "c": "left out: out of memory", "d": "asked 4.0 s ago",
    }  # fmt: skip


def test_strangers_change_nothing():
    r = begun("ab")
    for event in (r.started, r.lost, r.back):
        assert event("z", 1.0) == []
    assert r.progress("z", 1, 2, 1.0) + r.finished("z", 1, 1.0) + r.failed("z", "", 1.0) == []
    assert r.refused("z", "", 1.0) == []
    assert (r.late, r.left_out, r.quarantined, r.waited) == (0, {}, {}, ("a", "b"))


def test_rules_follow_the_job_and_what_nodes_took():
    timings = Timings()
    spec = SelectionSpec(minimum=2, quorum=0.5, deadline_seconds=60.0, adaptive=3.0)
    assert RoundRules.of(spec, timings, 90.0) == RoundRules(0.5, 2, 60.0, 90.0)
    for _ in range(ENOUGH):
        timings.add("a", 10.0)
    assert RoundRules.of(spec, timings, 90.0).deadline_seconds == 15.0
    short = SelectionSpec(deadline_seconds=5.0, adaptive=3.0)
    assert RoundRules.of(short, timings, 90.0).deadline_seconds == 5.0
    assert RoundRules.of(SelectionSpec(), timings, 90.0).deadline_seconds is None


@pytest.mark.parametrize(
    "rules",
    [{"quorum": 0.0}, {"quorum": 1.1}, {"quorum": math.nan}, {"deadline_seconds": 0.0},
     {"deadline_seconds": math.inf}, {"patience_seconds": math.nan}, {"patience_seconds": -1.0}],
)  # fmt: skip
def test_rules_that_are_none(rules):
    with pytest.raises(InvalidArgument, match=r"above 0"):
        RoundRules(**rules)


@pytest.mark.parametrize("nodes", ["", "aa"])
def test_a_round_of_nobody_or_of_one_twice(nodes):
    with pytest.raises(InvalidArgument, match="round 1 selects no node, or one twice"):
        Round(1, 0, RoundRules(), tuple(nodes), 0.0)


def test_its_last_transitions_say_what_became_of_each_node():
    r = begun("abc", quorum=0.6, deadline_seconds=10.0)
    r.started("a", 1.0)
    r.finished("a", 5, 2.0)
    r.progress("b", 1, 2, 3.0)
    r.progress("b", 2, 2, 4.0)
    r.finished("b", 5, 4.0)
    r.tick(11.0)
    assert told(r.transitions) == (
        "0.000 s: a: asked -> computes; 1.000 s: a: computes -> finished; 2.000 s: b: asked -> uploads; "
        "3.000 s: b: uploads -> finished; 10.000 s: c: asked -> left out; "
        "10.000 s: round 41: open -> closed"
    )


@pytest.mark.parametrize("broken", [
    lambda r: r.samples.update(b=5),
    lambda r: r.quarantined.update(z="odd"),
    lambda r: setattr(r, "state", RoundState.CLOSED),
    lambda r: r._open.clear(),
])  # fmt: skip
def test_check_finds_a_state_that_cannot_be(broken):
    r = begun()
    r.finished("a", 5, 1.0)
    r.check()
    broken(r)
    with pytest.raises(AssertionError):
        r.check()


EVENTS = st.tuples(
    st.sampled_from(
        ["started", "progress", "finished", "failed", "refused", "diverged", "lost", "back", "tick"]
    ),
    st.sampled_from("abcdez"),
    st.floats(0.0, 8.0),
)


@settings(max_examples=300)
@given(
    st.integers(1, 5),
    st.floats(0.05, 1.0),
    st.none() | st.floats(0.5, 60.0),
    st.floats(1.0, 40.0),
    st.lists(EVENTS, max_size=40),
)
def test_whatever_happens_a_round_ends_once_and_for_a_reason(count, quorum, deadline, patience, events):
    rules = RoundRules(quorum, 1, deadline, patience)
    nodes = "abcde"[:count]
    r, now = Round(1, 0, rules, tuple(nodes), 0.0), 0.0
    actions = r.start()
    done = set()
    arguments = {"progress": (1, 2), "finished": (5,), "failed": ("why",), "refused": ("why",)}
    arguments["diverged"] = ("why",)
    for name, node, seconds in [*events, ("tick", "", patience)]:
        now += seconds
        before = r.over
        event = r.tick if name == "tick" else partial(getattr(r, name), node, *arguments.get(name, ()))
        new = event(now)
        assert not (before and new), "no action after the end"
        actions += new
        done |= {node} & set(nodes) if name == "finished" else set()
        check(r, rules, actions, done, now)
    assert r.over, "patience ends every round"
    out = {a.node for a in actions if isinstance(a, LeaveOut | Quarantine)}
    if isinstance(actions[-1], Close):
        assert set(actions[-1].participants) | out == set(nodes)


def check(r, rules, actions, done, now):
    """What holds after every event."""
    asked = [a.node for a in actions if isinstance(a, Ask)]
    assert asked == list(r.selected), "each is asked once"
    gone = [a.node for a in actions if isinstance(a, LeaveOut | Quarantine)]
    for kind in (LeaveOut, Quarantine):
        named = [a.node for a in actions if isinstance(a, kind)]
        assert len(named) == len(set(named)), "each is left out once, and quarantined once"
    assert set(gone) == set(r.left_out)
    assert set(r.quarantined) == {a.node for a in actions if isinstance(a, Quarantine)}
    ends = [a for a in actions if isinstance(a, Close | Again | Diverge)]
    if r.samples:
        assert not r.over or r.nonfinite.keys() <= r.quarantined.keys(), "they alone are at fault"
    assert len(ends) == r.over
    if not r.over:
        assert now < rules.patience_seconds, "no wait is longer than patience"
        assert r.waits(now).startswith("round 1 waits for ")
        assert r.wake is not None
        assert now < r.wake <= rules.patience_seconds
        assert set(r.waited) | set(r.samples) | set(gone) == set(r.selected)
        assert set(r.doing(now)) == set(r.selected)
        return
    assert actions[-1] is ends[0], "the end comes last"
    assert (r.wake, r.waits(now), r.waited) == (None, "", ())
    if isinstance(ends[0], Close):
        people = ends[0].participants
        assert set(people) <= done
        assert not set(people) & set(gone)
        assert people == tuple(node for node in r.selected if node in people)
        assert r.needed <= len(people) == len(r.samples)
        if any(reason.startswith("not done") for reason in r.left_out.values()):
            assert now >= min(rules.patience_seconds, rules.deadline_seconds or math.inf), "not before time"
    elif isinstance(ends[0], Diverge):
        assert ends[0].reasons == r.nonfinite == r.left_out
        assert not r.samples
        assert not r.quarantined
    else:
        assert len(ends[0].reason) > len("round 1 cannot end: ")
