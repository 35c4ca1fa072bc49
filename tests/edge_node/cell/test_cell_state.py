"""What is decided of cells: who runs, who is guilty, who is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_attention.core.errors import GraphDied, Unavailable
from edge_node.cell import state as cells
from edge_node.cell.state import (
    Blame,
    CellPhase,
    CellState,
    EndCell,
    Fail,
    Grant,
    Notice,
    StartCell,
    StopJob,
    Usage,
)

FPE, KILL = "signal 8 (SIGFPE)", "signal 9 (SIGKILL)"
NOTHING = Usage()


@pytest.fixture
def cell():
    made = CellState(3, lambda digest: None)
    yield made
    made.check()


def granted(actions):
    return {action.job: action.lane for action in actions if isinstance(action, Grant)}


def failed(actions):
    return {action.job: action.error for action in actions if isinstance(action, Fail)}


def running(cell, *digests):
    """Jobs 1, 2, ... run these graphs."""
    actions = [a for n, digest in enumerate(digests, 1) for a in cell.ask(n, digest, 0.0)]
    assert actions == [StartCell()]
    assert granted(cell.ready(0.0)) == {n: n - 1 for n in range(1, len(digests) + 1)}


def test_it_starts_when_first_needed_and_ends_when_idle(cell):
    assert cell.wake is None
    assert cell.ask(1, "a", 5.0) == [StartCell()]
    assert cell.ready(6.0) == [Grant(1, 0)]
    assert cell.done(1, 7.0) == []
    assert cell.wake == 7.0 + cells.IDLE_SECONDS
    assert cell.tick(cell.wake - 1, NOTHING) == []
    assert cell.tick(cell.wake, NOTHING) == [EndCell(kill=False)]
    assert cell.ask(2, "a", cell.wake - 1) == []  # it comes too late: the next one has it
    assert cell.died("exit code 0", 400.0) == [StartCell()]
    assert cell.ready(401.0) == [Grant(2, 0)]


def test_one_that_does_not_end_when_it_is_to_is_killed(cell):
    running(cell, "a")
    cell.done(1, 0.0)
    cell.tick(cells.IDLE_SECONDS, NOTHING)
    assert cell.tick(cell.wake, NOTHING) == [EndCell(kill=True)]
    assert cell.died(KILL, 900.0) == []


def test_more_jobs_than_lanes_wait_in_order(cell):
    running(cell, "a", "b", "c")
    assert cell.ask(4, "d", 1.0) == cell.ask(5, "e", 1.0) == []
    assert cell.done(2, 2.0) == [Grant(4, 1)]
    assert cell.done(1, 3.0) == [Grant(5, 0)]


def test_a_process_may_be_ended_from_outside_so_a_graph_is_tried_once_more_before_it_is_guilty(cell):
    running(cell, "a" * 64)
    actions = cell.died(FPE, 1.0)
    assert not failed(actions)
    assert actions[-1] == StartCell()
    assert granted(cell.ready(2.0)) == {1: 0}
    actions = cell.died(FPE, 3.0)
    assert isinstance(failed(actions)[1], GraphDied)
    assert "graph aaaaaaaaaaaa ended its process: signal 8 (SIGFPE)" in failed(actions)[1].message
    assert Blame("a" * 64) in actions
    assert StartCell() not in actions  # until somebody needs it


def test_of_several_each_is_tried_alone_and_the_innocent_never_learn_of_it(cell):
    running(cell, "a", "b", "c")
    actions = cell.died(FPE, 1.0)
    assert not failed(actions)
    assert actions[-1] == StartCell()
    assert cell.ask(4, "d", 1.5) == []
    assert granted(cell.ready(2.0)) == {1: 0}
    # In a process that no other graph has been in: what one left behind is not the next one's fault.
    assert cell.done(1, 3.0) == [EndCell(kill=False)]
    assert cell.died("exit code 0", 3.2)[-1] == StartCell()
    assert granted(cell.ready(3.5)) == {2: 0}
    actions = cell.died(FPE, 4.0)
    assert failed(actions).keys() == {2}
    assert Blame("b") in actions
    assert granted(cell.ready(5.0)) == {3: 0}
    assert granted(cell.done(3, 6.0)) == {4: 0}


def test_what_is_told_to_stop_and_does_not_is_ended_and_the_others_run_again(cell):
    running(cell, "a", "b")
    assert cell.stop(1, 10.0) == [StopJob(1, 0)]
    assert cell.stop(1, 11.0) == []
    assert cell.wake <= 10.0 + cells.GRACE_SECONDS
    assert cell.tick(10.0 + cells.GRACE_SECONDS - 0.1, NOTHING) == []
    assert EndCell(kill=True) in cell.tick(10.0 + cells.GRACE_SECONDS, NOTHING)
    actions = cell.died(KILL, 12.1)
    assert failed(actions).keys() == {1}
    assert Blame("a") in actions
    assert granted(cell.ready(13.0)) == {2: 0}


def test_to_load_slowly_when_told_to_stop_is_no_crime(cell):
    running(cell, "a")
    cell.loading(1, True)
    cell.stop(1, 0.0)
    cell.tick(5.0, NOTHING)
    actions = cell.died(KILL, 5.1)
    assert failed(actions).keys() == {1}
    assert Blame("a") not in actions


def test_a_load_has_a_limit_of_its_own_in_its_thread_s_seconds(cell):
    running(cell, "a", "b")
    cell.loading(2, True)
    long = cells.LOAD_PROCESSOR_SECONDS
    assert cell.tick(1.0, Usage(9 * long, (8 * long, long - 1, 0.0))) == []
    assert EndCell(kill=True) in cell.tick(2.0, Usage(9 * long, (8 * long, long + 1, 0.0)))
    actions = cell.died(KILL, 3.0)
    assert "takes over 120 processor seconds to load" in failed(actions)[2].message
    assert Blame("b") in actions


def test_a_run_has_a_limit_in_its_share_of_the_cell_s_seconds(cell):
    running(cell, "a", "b")
    assert cell.tick(1.0, Usage(2 * cells.RUN_PROCESSOR_SECONDS)) == []
    cell.done(2, 1.5)
    assert EndCell(kill=True) in cell.tick(2.0, Usage(2 * cells.RUN_PROCESSOR_SECONDS + 1))
    assert failed(cell.died(KILL, 3.0)).keys() == {1}


def test_a_cell_that_talks_nonsense_is_ended_and_who_heard_it_is_tried_alone(cell):
    running(cell, "a", "b")
    assert EndCell(kill=True) in cell.nonsense(2, "a shape that is none", 3.0)
    assert cell.nonsense(1, "and more", 3.0) == []
    assert not failed(cell.died(KILL, 1.0))  # the other graph may have done it
    assert granted(cell.ready(2.0)) == {1: 0}
    assert cell.done(1, 3.0) == [EndCell(kill=False)]
    cell.died("exit code 0", 3.2)
    assert granted(cell.ready(3.5)) == {2: 0}
    assert EndCell(kill=True) in cell.nonsense(2, "a shape that is none", 3.0)
    actions = cell.died(KILL, 4.0)
    assert "answer what cannot be: a shape that is none" in failed(actions)[2].message
    assert Blame("b") in actions


def test_a_lane_whose_answer_nobody_hears_is_nobody_s_again(cell):
    running(cell, "a", "b")
    assert cell.given_up(1, 1.0) == [EndCell(kill=True)]
    assert cell.given_up(2, 1.0) == []
    assert cell.done(1, 1.0) == []
    assert not granted(cell.ask(3, "a", 1.1))
    assert not failed(cell.died(KILL, 1.2))
    assert granted(cell.ready(2.0)) == {2: 0}  # it was amid a run
    cell.done(2, 2.1)
    cell.died("exit code 0", 2.2)
    assert granted(cell.ready(2.3)) == {3: 0}


def test_one_that_cannot_start_fails_all_who_wait_and_the_next_may_try_again(cell):
    cell.ask(1, "a", 0.0)
    cell.ask(2, "b", 0.0)
    assert EndCell(kill=True) in cell.tick(cells.START_SECONDS, NOTHING)
    for _ in range(cells.START_TRIES - 1):
        assert cell.died(KILL, 61.0)[-1] == StartCell()
    errors = failed(cell.died(KILL, 61.0))
    assert errors.keys() == {1, 2}
    assert all(isinstance(error, Unavailable) for error in errors.values())
    assert cell.ask(3, "a", 62.0) == [StartCell()]
    assert not failed(cell.died(KILL, 63.0))


def test_a_refused_graph_gets_no_process():
    refused = GraphDied("it has ended two")
    cell = CellState(1, lambda digest: refused if digest == "a" else None)
    assert cell.ask(1, "a", 0.0) == [Fail(1, refused)]
    assert cell.phase is CellPhase.ABSENT


def test_who_waits_and_is_stopped_leaves_at_once(cell):
    running(cell, "a", "b", "c")
    cell.ask(4, "d", 0.0)
    assert failed(cell.stop(4, 1.0)).keys() == {4}
    assert cell.jobs == 3


def test_nothing_is_left_when_the_node_leaves(cell):
    running(cell, "a", "b")
    actions = cell.leave(1.0)
    assert failed(actions).keys() == {1, 2}
    assert actions[-1] == EndCell(kill=True)
    assert cell.died(KILL, 1.1) == []


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "done", "stop", "die", "kill", "tick", "ready", "nonsense", "given up", "load"]
        ),
        st.integers(0, 5),
        st.floats(0.1, 400.0),
    ),
    max_size=60,
)


@given(EVENTS)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_every_job_ends_once_and_the_invariants_hold(events):
    cell, now, asked, open_, lanes = CellState(2, lambda digest: None), 0.0, 0, dict[int, str](), {}
    alive = False

    def perform(actions):
        nonlocal alive
        for action in actions:
            match action:
                case StartCell():
                    assert not alive
                    alive = True
                case Grant(job, lane):
                    assert job in open_
                    lanes[job] = lane
                case Fail(job, _):
                    assert open_.pop(job)
                    lanes.pop(job, None)
                case EndCell():
                    assert alive
                case Blame() | Notice() | StopJob():
                    pass
        cell.check()

    def die(how):
        nonlocal alive
        if alive:
            alive = False
            lanes.clear()
            perform(cell.died(how, now))

    for what, number, seconds in events:
        now += seconds
        jobs = sorted(lanes)
        job = jobs[number % len(jobs)] if jobs else None
        match what:
            case "ask":
                asked += 1
                open_[asked] = f"g{number}"
                perform(cell.ask(asked, f"g{number}", now))
            case "done" if job is not None:
                del open_[job], lanes[job]
                perform(cell.done(job, now))
            case "stop" if open_:
                perform(cell.stop(sorted(open_)[number % len(open_)], now))
            case "die":
                die(FPE)
            case "kill":
                die(KILL)
            case "tick":
                perform(cell.tick(now, Usage(now, (now, now))))
            case "ready" if alive:
                perform(cell.ready(now))
            case "nonsense" if job is not None:
                perform(cell.nonsense(job, "x", now))
            case "given up" if job is not None:
                perform(cell.given_up(job, now))
                del open_[job], lanes[job]
                perform(cell.done(job, now))
            case "load" if job is not None:
                perform(cell.loading(job, number % 2 == 0))
    # Whoever is left gets an end if cells go on dying.
    for _ in range(4 * len(open_) + 4):
        now += 1.0
        if alive:
            perform(cell.ready(now))
            die(FPE)
    assert not open_
