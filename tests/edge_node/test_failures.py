from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import OutOfMemory, PrivateLimit
from edge_node.failures import ALL_CALLERS, Failures

DAY = 86_400.0


def fail(failures, caller, times=1):
    for _ in range(times):
        failures.begin(caller)
        failures.end(caller, failed=True)


def refused(failures, caller):
    with pytest.raises(PrivateLimit) as raised:
        failures.begin(caller)
    return raised.value.message


def test_each_caller_has_its_number_a_day():
    now = [10 * DAY]
    failures = Failures(3, clock=lambda: now[0])
    fail(failures, "user/ana", 3)
    said = refused(failures, "user/ana")
    assert "'user/ana' until 00:00 UTC: 3 of its tasks" in said
    assert "--private-failures 3; released graphs run" in said
    fail(failures, "", 3)
    assert "callers without a name" in refused(failures, "")
    now[0] -= 3 * DAY  # a clock set back gives nothing back
    refused(failures, "user/ana")
    now[0] = 11 * DAY
    fail(failures, "user/ana", 3)


def test_invented_callers_have_one_number_together():
    failures = Failures(2)
    for n in range(2 * ALL_CALLERS):
        fail(failures, f"user/{n}")
    assert "of all callers" in refused(failures, "user/new")


def test_callers_who_failed_nothing_have_not_failed_after_a_crash(tmp_path):
    path = tmp_path / "private-failures"
    failures = Failures(2, path)
    for n in range(100):
        failures.begin(f"user/{n}" + "x" * 100_000)
        failures.end(f"user/{n}" + "x" * 100_000, failed=False)
    assert path.stat().st_size < 20_000
    after = Failures(2, path)
    assert sum(after.count(f"user/{n}" + "x" * 100_000) for n in range(100)) <= 17
    after.begin("user/ana")


def test_none_is_none():
    assert "--private-failures is 0" in refused(Failures(0), "user/ana")


def test_who_runs_one_after_the_other_writes_once(tmp_path):
    path = tmp_path / "private-failures"
    failures = Failures(3, path)
    for n in range(3):
        failures.begin("user/ana")
        failures.end("user/ana", failed=False)
        if not n:
            path.unlink()
    assert not path.exists()
    failures.begin("user/ana")
    failures.begin("user/ana")
    assert json.loads(path.read_text())["running"] == {"user/ana": 2}


def test_those_under_way_may_all_fail():
    failures = Failures(2)
    failures.begin("a")
    failures.begin("a")
    refused(failures, "a")
    failures.end("a", failed=False)
    failures.begin("a")
    failures.end("a", failed=True)
    failures.end("a", failed=True)
    refused(failures, "a")


def test_the_count_survives_a_restart(tmp_path):
    path = tmp_path / "private-failures"
    first = Failures(3, path)
    fail(first, "user/ana", 2)
    first.begin("user/ben")
    first.end("user/ben", failed=False)
    first.close()
    second = Failures(3, path)
    assert (second.count("user/ana"), second.count("user/ben")) == (2, 0)
    fail(second, "user/ana")
    refused(Failures(3, path), "user/ana")
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_under_way_when_the_process_ended_has_failed(tmp_path):
    path = tmp_path / "private-failures"
    code = (
        "import os, pathlib, sys; from edge_node.failures import Failures; "
        "f = Failures(3, pathlib.Path(sys.argv[1])); f.begin('user/ana'); f.begin('user/ana'); "
        "f.end('user/ana', failed=False); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert Failures(3, path).count("user/ana") == 2  # as many as there were at once


def test_a_new_day_notes_down_anew(tmp_path):
    path, now = tmp_path / "private-failures", [5 * DAY]
    failures = Failures(3, path, clock=lambda: now[0])
    failures.begin("a")
    failures.end("a", failed=False)
    now[0] += DAY
    failures.begin("a")
    assert Failures(3, path, clock=lambda: now[0]).count("a") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"day": 1}', '{"day": 1, "failed": 3, "running": {}}'])
def test_a_damaged_file_gives_nothing_back(tmp_path, text, caplog):
    path = tmp_path / "private-failures"
    path.write_text(text)
    now = [100 * DAY]
    failures = Failures(3, path, clock=lambda: now[0])
    refused(failures, "user/ana")
    assert str(path) in caplog.text
    now[0] += DAY
    fail(failures, "user/ana")
    assert json.loads(path.read_text())["failed"] == {"user/ana": 1}


def test_yesterday_s_file_does_not_count(tmp_path):
    path = tmp_path / "private-failures"
    fail(Failures(3, path, clock=lambda: 5 * DAY), "a", 3)
    fail(Failures(3, path, clock=lambda: 6 * DAY), "a", 3)
    refused(Failures(3, path, clock=lambda: 5 * DAY), "a")


def test_what_cannot_be_noted_down_does_not_run(tmp_path):
    failures = Failures(3, tmp_path / "none" / "private-failures")
    with pytest.raises(OutOfMemory, match="cannot be noted down"):
        failures.begin("a")
    with pytest.raises(OutOfMemory):
        failures.begin("a")
    assert failures.count("a") == 0


@given(st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.booleans())), st.integers(0, 4))
def test_there_are_never_more_than_the_limits(events, limit):
    failures, failed = Failures(limit, clock=lambda: 0.0), []
    for caller, fails in events:
        try:
            failures.begin(caller)
        except PrivateLimit:
            continue
        failures.end(caller, fails)
        failed += [caller] * fails
    assert all(failed.count(caller) <= limit for caller in failed)
    assert len(failed) <= ALL_CALLERS * limit
