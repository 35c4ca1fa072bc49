"""The machine of a step: pieces fold in order, each once, whatever fails; it waits, and says when it is
over."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.training.split.step import (
    BeginAgain,
    CollectSums,
    FoldPiece,
    GiveUp,
    RenewParts,
    RunPiece,
    SplitStep,
    StepOver,
    StepPhase,
)
from edge_attention.core.errors import DeadlineExceeded, InvalidTensor, NotFound, Unavailable


def begun(pieces=4, at_once=2, patience=60.0):
    step = SplitStep(pieces, at_once, patience, 0.0)
    assert step.start() == [RenewParts()]
    assert step.renewed(1.0) == [RunPiece(piece) for piece in range(min(at_once, pieces))]
    return step


def test_pieces_fold_in_their_order_whatever_the_order_in_which_they_come():
    step = begun()
    assert step.came(1, 2.0) == [], "piece 0 has its turn first"
    assert step.came(0, 3.0) == [FoldPiece(0), FoldPiece(1), RunPiece(2), RunPiece(3)]
    assert step.came(2, 4.0) == [FoldPiece(2)]
    assert step.came(3, 5.0) == [FoldPiece(3), StepOver()]
    assert step.phase is StepPhase.OVER
    assert step.came(3, 6.0) == step.tick(7.0) == []


def test_a_piece_that_waits_for_its_turn_takes_a_place():
    step = begun(pieces=5, at_once=2)
    assert step.came(1, 2.0) == []
    step.check()
    assert step.came(0, 2.0) == [FoldPiece(0), FoldPiece(1), RunPiece(2), RunPiece(3)]


def test_what_has_failed_is_run_again_once_nothing_is_under_way_and_the_parts_are_renewed():
    step = begun()
    assert step.failed(0, Unavailable("node b has gone"), 2.0) == []
    assert (step.phase, step.trouble) == (StepPhase.DRAINS, "node b has gone")
    assert step.came(1, 3.0) == []
    assert step.phase is StepPhase.WAITS
    assert step.tick(3.1) == []
    assert step.tick(step.wake) == [RenewParts()]
    assert step.trouble == ""
    assert step.renewed(4.0) == [RunPiece(0)], "piece 1 is there"
    assert step.came(0, 5.0) == [FoldPiece(0), FoldPiece(1), RunPiece(2), RunPiece(3)]


def test_what_time_does_not_mend_ends_it_at_once():
    step = begun()
    error = InvalidTensor("labels are past the classes")
    assert step.failed(1, error, 2.0) == [GiveUp(error)]
    assert step.came(0, 3.0) == []
    assert step.phase is StepPhase.OVER


def test_it_gives_up_when_no_piece_has_ended_for_its_patience_and_says_what_it_waited_for():
    step = begun(pieces=2, at_once=1, patience=10.0)
    assert step.came(0, 5.0) == [FoldPiece(0), RunPiece(1)]
    now = 5.0
    while True:
        now += 1.0
        if step.phase is StepPhase.RUNS:
            actions = step.failed(1, NotFound("nobody holds part 1"), now)
        elif step.phase is StepPhase.RENEWS:
            actions = step.renewal_failed(Unavailable("part 1 waits for node 'b'"), now)
        else:
            actions = step.tick(now)
        step.check()
        if actions and isinstance(actions[0], GiveUp):
            break
    assert 15.0 <= now <= 17.0
    assert isinstance(actions[0].error, DeadlineExceeded)
    assert "part 1 waits for node 'b'" in actions[0].error.message


def test_where_nodes_have_the_sums_a_failure_begins_the_step_again():
    step = SplitStep(3, 2, 10.0, 0.0, sums=True)
    step.start()
    step.renewed(1.0)
    assert step.came(0, 2.0) == [FoldPiece(0), RunPiece(2)]
    assert step.failed(1, Unavailable("node b has gone"), 3.0) == []
    assert step.came(2, 4.0) == [BeginAgain()]
    step.check()
    assert step.tick(step.wake) == [RenewParts()]
    assert step.renewed(5.0) == [RunPiece(0), RunPiece(1)]
    assert step.came(0, 6.0) == [FoldPiece(0), RunPiece(2)]
    assert step.came(1, 6.0) == [FoldPiece(1)]
    assert step.came(2, 7.0) == [FoldPiece(2), CollectSums()]
    assert step.phase is StepPhase.COLLECTS
    assert step.collection_failed(NotFound("node a was restarted"), 8.0) == [BeginAgain()]
    step.tick(step.wake)
    step.renewed(9.0)
    for piece in range(3):
        step.came(piece, 9.5)
    assert step.collected(9.7) == [StepOver()]
    assert step.collected(9.8) == []


def test_pieces_that_come_again_and_again_are_no_progress():
    step = SplitStep(2, 1, 10.0, 0.0, sums=True)
    step.start()
    now = 0.0
    while now < 60:
        now += 1.0
        step.tick(now)
        step.renewed(now)
        step.came(0, now)
        actions = step.failed(1, Unavailable("node b goes each time"), now)
        step.check()
        if actions and isinstance(actions[0], GiveUp):
            break
    assert 10.0 <= now <= 17.0


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.booleans(), st.data())
def test_every_piece_is_folded_once_and_in_order(pieces, at_once, sums, data):
    step = SplitStep(pieces, at_once, 1e9, 0.0, sums=sums)
    folded, running, now, waiting = [], set(), 0.0, list(step.start())
    for _ in range(500):
        for action in waiting:
            match action:
                case RunPiece(piece):
                    assert piece not in running
                    running.add(piece)
                case FoldPiece(piece):
                    folded.append(piece)
                case BeginAgain():
                    folded.clear()
        step.check()
        if step.phase is StepPhase.OVER:
            break
        now += 1.0
        fails = data.draw(st.integers(0, 3)) == 0
        if step.phase is StepPhase.RENEWS:
            waiting = step.renewal_failed(Unavailable("away"), now) if fails else step.renewed(now)
        elif step.phase is StepPhase.WAITS:
            waiting = step.tick(now + 10)
        elif step.phase is StepPhase.COLLECTS:
            waiting = step.collection_failed(NotFound("gone"), now) if fails else step.collected(now)
        else:
            piece = data.draw(st.sampled_from(sorted(running)))
            running.discard(piece)
            waiting = step.failed(piece, Unavailable("away"), now) if fails else step.came(piece, now)
    else:
        return  # it failed all the time
    assert folded == list(range(pieces))
