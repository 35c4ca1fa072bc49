"""`edge-attention runs`: what was deleted is said, also where one of several cannot be."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from edge_attention.cli import runs
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.training import RunState, TrainingRun


@pytest.fixture
def delete(monkeypatch):
    """Deletes runs of an aggregator whose run b goes on; (exit code, stdout, error)."""

    class Run:
        def __init__(self, name):
            self._name = name

        def delete(self):
            if self._name == "b":
                raise FailedPrecondition("run b goes on")
            return TrainingRun(self._name, "r", RunState.FINISHED, "", 1, 1, 1, 0.0)

    @contextlib.contextmanager
    def connect(address):
        yield SimpleNamespace(run=Run)

    monkeypatch.setattr(runs, "connect", connect)

    def invoke(*arguments):
        done = CliRunner().invoke(runs.delete, arguments, obj="")
        return done.exit_code, done.stdout, done.exception

    return invoke


def test_those_deleted_before_one_that_cannot_be_are_said(delete):
    assert delete("a", "c") == (
        0, "deleted run a, which was finished\ndeleted run c, which was finished\n", None
    )  # fmt: skip
    code, out, error = delete("a", "b", "c")
    assert (code, out) == (1, "deleted run a, which was finished\n")
    assert isinstance(error, FailedPrecondition)
    code, out, _ = delete("a", "b", "c", "--json")
    assert (code, [run["id"] for run in json.loads(out)]) == (1, ["a"])
