"""docs/reliability.md says what tests/faults checks, and CI's choice of cells leaves nothing out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults import checks
from tests.faults.injectors import FAULTS as INJECTORS
from tests.faults.journal import Call
from tests.faults.promises import CELLS, FAULTS, OPERATIONS, QUICK, VICTIMS, Level, chosen

ROOT = Path(__file__).resolve().parent.parent


def test_the_tables_are_fresh():
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_cell_is_filled():
    assert set(INJECTORS) == set(FAULTS)
    assert len(CELLS) == len(FAULTS) * len(OPERATIONS) * len(VICTIMS)
    for cell in CELLS:
        assert bool(cell.promise.text) != bool(cell.promise.nonsense), cell


def test_what_ci_runs_covers_every_fault_operation_and_victim():
    assert {cell.fault for cell in QUICK} == set(FAULTS)
    assert {cell.operation for cell in QUICK} == set(OPERATIONS)
    assert {cell.victim for cell in QUICK} == set(VICTIMS)
    assert len(set(QUICK)) == len(QUICK)
    assert not [cell for cell in QUICK if cell.promise.nonsense]


def test_patterns_choose_cells():
    assert {cell.fault for cell in chosen(("kill",), quick=False)} == {"kill"}
    assert len(chosen(("*/attend/node",), quick=False)) == len(FAULTS)
    assert [str(cell) for cell in chosen(("half-open/attend/client",), quick=False)] == [
        "half-open/attend/client"
    ]
    assert chosen(("disk-full/attend/client",), quick=False) == []


def call(what="attend", began=0.0, ended=1.0, deadline=2.0, lag=0.0, outcome="ok", wrong="", detail=None):
    return Call(what, began, ended, deadline, lag, outcome, wrong, detail)


def test_a_call_that_ends_late_is_seen_and_the_client_s_own_absence_does_not_count():
    assert not checks.deadlines([call(ended=3.0)])
    assert checks.deadlines([call(ended=3.5)])
    assert not checks.deadlines([call(ended=63.5, lag=60.6)])
    assert not checks.deadlines([call(ended=1e9, deadline=0.0)])


def test_a_wrong_number_is_seen():
    assert checks.numbers([call(wrong="says exact and is 1 off")])
    assert not checks.numbers([call()])


@pytest.mark.parametrize(
    ("level", "outcome", "fine"),
    [
        (Level.UNHARMED, "ok", True),
        (Level.UNHARMED, "partial", False),
        (Level.LABELLED, "partial", True),
        (Level.LABELLED, "Unavailable", False),
        (Level.FAILS, "Unavailable", True),
        (Level.FAILS, "InvalidArgument", False),
        (Level.FAILS, "Internal", False),
    ],
)
def test_calls_are_held_to_what_is_promised(level, outcome, fine):
    assert bool(checks.promised([call(outcome=outcome)], level, (0.5, 0.9))) != fine
    # Outside the fault everything is well.
    assert bool(checks.promised([call(outcome=outcome)], level, (5.0, 9.0))) != (outcome == "ok")


def appends(*chunks):
    return [call("append", outcome="tried", detail={"chunk": chunk}) for chunk in chunks]


def tokens(*chunks):
    return [(chunk, place) for chunk in chunks for place in range(2)]


def test_what_was_acknowledged_is_found():
    told = call("append", detail={"chunk": 2, "start": 2})
    assert not checks.stored(tokens(1, 2), [*appends(1, 2), told], 2)
    assert not checks.stored(
        tokens(7, 2), [*appends(1, 7, 2), told], 2
    )  # an attempt nobody heard of is there
    assert checks.stored(tokens(1), [*appends(1, 2), told], 2)
    assert checks.stored(tokens(2, 1), [*appends(1, 2), told], 2)
    assert checks.stored(tokens(1, 2)[:3], [*appends(1, 2)], 2)
    assert checks.stored(tokens(1, 1), [*appends(1)], 2)
    assert checks.stored(tokens(9), [*appends(1)], 2)
    assert checks.stored([(1, 0), (2, 1)], [*appends(1, 2)], 2)


def test_recovery_is_of_calls_begun_after_the_fault():
    calls = [call(began=4.0, ended=6.0), call(began=7.0, ended=8.0)]
    found = checks.recovered(calls, ("attend",), 5.0)
    assert found == {"attend": 3.0}
    assert not checks.recovery(found, ("attend",), 0.0)
    assert checks.recovery(found, ("attend", "append"), 0.0)
    assert checks.recovery({"attend": 31.0}, ("attend",), 0.0)


def test_leaks_are_seen():
    before = {"a": {"memory": 100 << 20, "descriptors": 20}}
    assert not checks.usage(before, {"a": {"memory": 120 << 20, "descriptors": 22}})
    assert checks.usage(before, {"a": {"memory": 300 << 20, "descriptors": 22}})
    assert checks.usage(before, {"a": {"memory": 100 << 20, "descriptors": 99}})


def test_rounds_that_were_not_told_are_seen():
    told = [call("round", detail={"number": number}) for number in (1, 3)]
    assert checks.rounds(told, 3)
    assert not checks.rounds(told[:1], 1)


def test_an_answer_is_judged():
    from tests.faults import truth

    class Answer:
        exact, missing, bound = True, (), None

    keys, values, asked = truth.memory()
    answer = Answer()
    answer.out, answer.lse = (a.astype(np.float32) for a in truth.fleets.truth(asked, keys, values))
    assert truth.judge(answer, asked, keys, values)[:2] == ("ok", "")
    answer.out[0, 0, 0] += 1e-3
    assert "says exact" in truth.judge(answer, asked, keys, values)[1]
    answer.exact = False
    assert truth.judge(answer, asked, keys, values)[1]
