"""Rows of nodes that are restarted while a step is under way: none is taken for another one's."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from aggregator.training.split import passes
from aggregator.training.split.plan import CUT
from aggregator.training.split.releases import WholeRelease
from aggregator.training.split.samples import INPUT_ROWS, LABEL_ROWS, AlignedSamples
from aggregator.training.split.trainer import SplitTrainer
from edge_attention.core.errors import FailedPrecondition, InvalidArgument

NODES = ("a", "b", "c")


class Run(passes.SplitPasses):
    """A run whose nodes a and c read samples. `restarts`: who is restarted in its next passes, and what its
    file is then."""

    def __init__(self, monkeypatch, *restarts):
        self.restarts, self.passed, self.file = list(restarts), [], np.arange(4)
        self.fingerprint = "as it began"
        lives = {name: SimpleNamespace(instance=f"{name}0") for name in NODES}
        self.members = {name: SimpleNamespace(register=life) for name, life in lives.items()}
        monkeypatch.setattr(passes, "OnNodes", lambda *_: self)
        monkeypatch.setattr(passes, "part_releases", lambda *_: {})
        monkeypatch.setattr(passes, "reads_of", lambda *_: {})
        self._id, self._patience, self._known, self._lives, self._schedules = "run", 1.0, None, (), {}
        self._sums = None
        self._key, self._whole, self._group = b"", WholeRelease(1), 0
        self._job = SimpleNamespace(data=SimpleNamespace(on_nodes=True))
        parts = [SimpleNamespace(part=at, read=read) for at, read in enumerate((("x",), (), ("y",)))]
        holders = {at: (name,) for at, name in enumerate(NODES)}
        self._plan = SimpleNamespace(nodes=NODES, parts=parts, holders=holders, names=("w",), labels=("y",))
        self._services = SimpleNamespace(membership=self.members)
        zeroth = {"fingerprint": self.fingerprint, "views": {}}
        self._begun = lambda: zeroth

    def data(self):
        return ()

    async def views(self):
        return {}

    async def samples(self, releases):
        rows = {INPUT_ROWS: self.file, LABEL_ROWS: np.arange(4)}
        return AlignedSamples(rows), SimpleNamespace(fingerprint=self.fingerprint)

    async def _gradients(self, version, positions, samples, shape, *, gradients):
        self.passed.append(samples.feeds(positions)[INPUT_ROWS].tolist())
        if self.restarts:
            node, file, self.fingerprint = self.restarts.pop(0)
            register = self.members[node].register
            register.instance += "'"
            self.file = np.array(file)
            if len(file) < 4:
                raise InvalidArgument("there is no row 3")
        return f"pass {len(self.passed)}"

    def step(self):
        return asyncio.run(self.run(None, np.arange(4), CUT, gradients=True))


class Over(Exception):
    """Far enough."""


AS_BEGUN = "as it began"


def test_rows_that_were_reordered_in_the_middle_are_matched_again_and_all_pieces_run_again(monkeypatch):
    run = Run(monkeypatch, ("a", [3, 2, 1, 0], AS_BEGUN))
    assert run.step() == "pass 2"
    assert run.passed == [[0, 1, 2, 3], [3, 2, 1, 0]]
    run.step()
    assert run.passed[2] == [3, 2, 1, 0], "the next step has the rows as they are now"


def test_other_samples_after_a_restart_in_the_middle_end_the_run(monkeypatch):
    run = Run(monkeypatch, ("c", [0, 1, 2, 3], "others"))
    with pytest.raises(FailedPrecondition, match="no longer those the run began with"):
        run.step()


def test_rows_that_are_not_there_after_a_restart_are_said_to_be_other_samples(monkeypatch):
    run = Run(monkeypatch, ("a", [0, 1, 2], "others"))
    with pytest.raises(FailedPrecondition, match="no longer those the run began with"):
        run.step()
    run = Run(monkeypatch, ("b", [0, 1, 2], AS_BEGUN))
    with pytest.raises(InvalidArgument, match="there is no row 3"):
        run.step()


def test_the_restart_of_a_node_that_reads_nothing_costs_no_pass(monkeypatch):
    run = Run(monkeypatch, ("b", [0, 1, 2, 3], AS_BEGUN))
    assert run.step() == "pass 1"


def test_a_node_that_is_restarted_in_each_pass_is_named(monkeypatch):
    run = Run(monkeypatch, *[("c", [0, 1, 2, 3], AS_BEGUN)] * passes.PASSES)
    with pytest.raises(FailedPrecondition, match="node c, which reads samples, was restarted in each of"):
        run.step()
    assert len(run.passed) == passes.PASSES


def test_which_samples_a_step_takes_is_found_beside_the_loop():
    run, found = SplitTrainer.__new__(SplitTrainer), []
    run._services = SimpleNamespace(link=SimpleNamespace(bytes_sent={}, bytes_received={}))
    run._groups = None

    def of_step(number):
        found.append((number, threading.current_thread() is threading.main_thread()))
        raise Over

    with pytest.raises(Over):
        asyncio.run(run._round(SimpleNamespace(number=4), [SimpleNamespace(of_step=of_step)]))
    assert found == [(5, False)]
