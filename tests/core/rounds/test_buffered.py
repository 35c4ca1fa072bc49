"""Buffered rounds as transcripts: nodes always at work, a step every K updates, the old dropped."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.rounds.buffered import (
    AskTurn,
    Buffered,
    BufferedUpdate,
    BufferRules,
    BufferState,
    DropUpdate,
    TakeStep,
)
from edge_attention.core.rounds.synchronous import Again, Quarantine


def begun(nodes="abc", version=0, **rules):
    b = Buffered(BufferRules(**{"buffer": 2, "patience_seconds": 120.0, **rules}), tuple(nodes), version, 0.0)
    return b, b.start(0.0)


def test_all_are_asked_and_every_two_updates_make_a_step():
    b, asked = begun()
    assert asked == [AskTurn("a", 0, 1), AskTurn("b", 0, 1), AskTurn("c", 0, 1)]
    assert b.finished("b", 1.0) == [AskTurn("b", 0, 2)], "not held up by the others"
    assert b.finished("a", 2.0) == [TakeStep((BufferedUpdate("a", 0, 1, 0), BufferedUpdate("b", 0, 1, 0)))]
    assert b.committed(1, 2.5) == [AskTurn("a", 1, 2)], "it starts from the new version"
    assert b.finished("a", 3.0) == [AskTurn("a", 1, 3)]
    assert b.finished("c", 4.0) == [TakeStep((BufferedUpdate("a", 1, 2, 0), BufferedUpdate("c", 0, 1, 1)))]


def test_a_slow_node_never_holds_the_others():
    b, _ = begun(buffer=1)
    for version in range(1, 21):
        (step,) = b.finished("a", float(version))
        assert step == TakeStep((BufferedUpdate("a", version - 1, version, 0),))
        assert b.committed(version, version + 0.5) == [AskTurn("a", version, version + 1)]
    (step,) = b.finished("c", 21.0)
    assert step.contributions == (BufferedUpdate("c", 0, 1, 20),)


def test_one_node_at_work_is_enough():
    b, _ = begun("ab")
    assert b.missing == 0
    b.lost("a", 1.0)
    assert b.missing == 0
    b.lost("b", 1.0)
    assert b.missing == 1
    b.back("a", 2.0)
    assert b.missing == 0


def test_what_is_too_old_is_dropped_and_its_node_is_asked_anew():
    b, _ = begun(buffer=1, max_staleness=1)
    for version in (1, 2):
        b.finished("a", float(version))
        b.committed(version, version + 0.5)
    assert b.finished("c", 3.0) == [DropUpdate("c", 1, 2), AskTurn("c", 2, 2)]
    assert b.dropped == 1
    assert b.finished("c", 4.0) == [TakeStep((BufferedUpdate("c", 2, 2, 0),))]


def test_what_grows_too_old_while_a_step_is_taken_is_dropped_at_its_commit():
    b, _ = begun(buffer=1, max_staleness=0)
    b.finished("a", 1.0)
    assert b.finished("b", 1.1) == []
    assert b.finished("c", 1.2) == []
    assert b.waits(1.3) == "round 1 waits for version 1 to be committed"
    assert b.committed(1, 2.0) == [
        DropUpdate("b", 1, 1), DropUpdate("c", 1, 1),
        AskTurn("a", 1, 2), AskTurn("b", 1, 2), AskTurn("c", 1, 2),
    ]  # fmt: skip


def test_updates_that_came_meanwhile_make_the_next_step():
    b, _ = begun("abcd")
    b.finished("a", 1.0)
    b.finished("b", 1.0)
    b.finished("d", 1.1)
    b.finished("c", 1.2)
    assert b.committed(1, 2.0) == [TakeStep((BufferedUpdate("c", 0, 1, 1), BufferedUpdate("d", 0, 1, 1)))]
    assert [a.node for a in b.committed(2, 3.0)] == ["b", "d", "c"]


def test_a_buffer_fuller_than_a_step_takes_makes_several():
    b, _ = begun(buffer=1)
    b.finished("b", 1.0)
    b.finished("c", 1.1)
    b.finished("a", 1.2)
    assert b.committed(1, 2.0) == [TakeStep((BufferedUpdate("c", 0, 1, 1),))], "who came first goes first"
    assert b.committed(2, 3.0) == [TakeStep((BufferedUpdate("a", 0, 1, 2),))]
    assert [a.node for a in b.committed(3, 4.0)] == ["b", "c", "a"]


def test_no_more_nodes_are_at_work_than_the_job_allows_and_each_gets_its_turn():
    b, asked = begun("abcd", buffer=9, concurrency=2)
    assert [a.node for a in asked] == ["a", "b"]
    assert b.finished("a", 1.0) == [AskTurn("c", 0, 1)]
    assert b.finished("c", 2.0) == [AskTurn("d", 0, 1)]
    assert b.finished("b", 3.0) == [AskTurn("a", 0, 2)]


def test_another_works_in_a_lost_nodes_place():
    b, _ = begun(buffer=9, concurrency=2)
    assert b.lost("a", 1.0) == [AskTurn("c", 0, 1)]
    assert b.waits(2.0) == (
        "round 1 waits for 9 more of 9 updates from a (lost), b (asked 2.0 s ago), c (asked 1.0 s ago), "
        "gives up in 118 s"
    )
    assert b.back("a", 3.0) == []
    assert b.finished("b", 4.0) == [], "three were at work, two may be"
    assert b.finished("a", 5.0) == [AskTurn("b", 0, 2)]


def test_a_node_that_fails_rests_until_the_next_version():
    b, _ = begun(buffer=1)
    assert b.failed("a", "out of memory", 1.0) == []
    assert b.doing(1.0)["a"] == "failed: out of memory"
    b.finished("b", 2.0)
    assert b.committed(1, 3.0) == [AskTurn("b", 1, 2), AskTurn("a", 1, 2)]


def test_a_quarantined_node_is_out_with_what_it_returned_before():
    b, _ = begun("ab", buffer=3)
    b.finished("a", 1.0)
    assert b.refused("a", "NaN in update/0", 2.0) == [Quarantine("a", "NaN in update/0")]
    b.finished("b", 3.0)
    b.finished("b", 4.0)
    (step,) = b.finished("b", 5.0)
    assert step.contributions == tuple(BufferedUpdate("b", 0, turn, 0) for turn in (1, 2, 3))
    assert b.committed(1, 6.0) == [AskTurn("b", 1, 4)]
    assert b.doing(6.0) == {"a": "quarantined: NaN in update/0", "b": "asked 0.0 s ago"}


def test_with_nobody_left_it_gives_up_at_once_and_says_why():
    b, _ = begun("ab")
    b.failed("a", "out of memory", 1.0)
    quarantine, again = b.refused("b", "NaN", 2.0)
    assert quarantine == Quarantine("b", "NaN")
    assert again == Again("round 1 cannot end: no node can be asked: a: out of memory; b: quarantined: NaN")
    assert (b.over, b.wake, b.waits(2.0), b.tick(500.0)) == (True, None, "", [])


def test_patience_counts_from_the_last_answer_or_commit():
    b, _ = begun("a", version=7)
    assert b.wake == 120.0
    b.finished("a", 1.0)
    b.finished("a", 2.0)
    assert b.wake is None, "a commit takes what it takes"
    b.committed(8, 50.0)
    assert b.wake == 170.0
    assert b.finished("a", 100.0) == [AskTurn("a", 8, 11)]
    assert b.wake == 220.0
    b.started("a", 150.0)
    b.progress("a", 3, 4, 160.0)
    assert b.waits(170.0) == (
        "round 9 waits for 1 more of 2 updates from a: 3 of 4 chunks, idle 10.0 s, gives up in 50 s"
    )
    assert b.tick(219.9) == []
    assert b.tick(220.0) == [
        Again("round 9 cannot end: no answer within 120 s from a: 3 of 4 chunks, idle 60.0 s")
    ]


@pytest.mark.parametrize(
    "rules",
    [{"buffer": 0}, {"concurrency": 0}, {"max_staleness": -1}, {"patience_seconds": math.inf},
     {"patience_seconds": 0.0}],
)  # fmt: skip
def test_rules_that_are_none(rules):
    with pytest.raises(InvalidArgument):
        begun(**rules)


@pytest.mark.parametrize("nodes", ["", "aa"])
def test_a_run_of_nobody_or_of_one_twice(nodes):
    with pytest.raises(InvalidArgument, match="no node trains, or one twice"):
        begun(nodes)


@pytest.mark.parametrize("broken", [
    lambda b: b.failures.update(a="out of memory"),
    lambda b: b._buffer.append(b._buffer[0]),
    lambda b: b.quarantined.update(b="odd"),
    lambda b: setattr(b, "state", BufferState.OVER),
])  # fmt: skip
def test_check_finds_a_state_that_cannot_be(broken):
    b, _ = begun()
    b.finished("b", 1.0)
    b.check()
    broken(b)
    with pytest.raises(AssertionError):
        b.check()


NAMES = ["started", "progress", "finished", "failed", "refused", "lost", "back", "committed", "tick"]
EVENTS = st.tuples(
    st.sampled_from([*NAMES, "finished", "finished", "committed"]),
    st.sampled_from("abcdz"),
    st.floats(0.0, 3.0),
)


@settings(max_examples=300)
@given(
    st.integers(1, 4), st.none() | st.integers(1, 3), st.none() | st.integers(0, 2),
    st.lists(EVENTS, max_size=60),
)  # fmt: skip
def test_whatever_happens_each_update_is_folded_once_or_dropped(buffer, concurrency, max_staleness, events):
    nodes = "abcd"
    b, actions = begun(nodes, 3, buffer=buffer, concurrency=concurrency, max_staleness=max_staleness,
                       patience_seconds=30.0)  # fmt: skip
    now, version, answered = 0.0, 3, set()
    away: set[str] = set()
    open_ = {a.node: a for a in actions}
    steps_open = 0
    arguments = {"progress": (1, 2), "failed": ("why",), "refused": ("why",)}
    for name, node, seconds in events:
        now += seconds
        if name == "committed":
            if not steps_open:
                continue
            version, steps_open = version + 1, 0
            new = b.committed(version, now)
        elif name == "tick":
            new = b.tick(now)
        else:
            was_over = b.over
            new = getattr(b, name)(node, *arguments.get(name, ()), now)
            assert not (was_over and new), "no action after the end"
            if not was_over and node in open_ and name in ("finished", "failed", "refused"):
                task = open_.pop(node)
                away.discard(node)
                answered |= {(task.node, task.turn)} if name == "finished" else set()
            if name in ("lost", "started", "progress", "back") and node in open_:
                away = away | {node} if name == "lost" else away - {node}
        for action in new:
            match action:
                case AskTurn():
                    assert action.node not in open_, "one task a node"
                    assert action.node not in b.quarantined
                    assert action.version == b.version == version
                    assert not steps_open, "nobody starts from a version about to be replaced"
                    open_[action.node] = action
                    assert concurrency is None or len(set(open_) - away) <= concurrency
                case TakeStep():
                    assert not steps_open, "one step at a time"
                    assert len(action.contributions) == buffer
                    steps_open = 1
        actions += new
        check(b, actions, answered, buffer, max_staleness, now)
    assert b.over or set(open_) == set(b.waited)


def check(b, actions, answered, buffer, max_staleness, now):
    """What holds after every event."""
    asked = [(a.node, a.turn) for a in actions if isinstance(a, AskTurn)]
    assert len(asked) == len(set(asked))
    folded = [c for a in actions if isinstance(a, TakeStep) for c in a.contributions]
    dropped = [a for a in actions if isinstance(a, DropUpdate)]
    used = [(c.node, c.turn) for c in [*folded, *dropped]]
    assert len(used) == len(set(used)), "folded once, or dropped once"
    assert set(used) <= answered
    given = {(a.node, a.turn): a.version for a in actions if isinstance(a, AskTurn)}
    assert all(given[c.node, c.turn] == c.version for c in folded)
    if max_staleness is not None:
        assert all(0 <= c.staleness <= max_staleness for c in folded)
        assert all(d.staleness > max_staleness for d in dropped)
    assert b.dropped == len(dropped)
    assert sum(isinstance(a, Again) for a in actions) == b.over
    assert bool(b.waits(now)) is not b.over
    if not b.over and not b.stepping:
        assert now < b.wake
        kept = {(node, turn) for node, turn in answered if node not in b.quarantined} - set(used)
        assert f"waits for {buffer - len(kept)} more of {buffer} updates" in b.waits(now)
        assert len(kept) < buffer
