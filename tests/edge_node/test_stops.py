"""What a task that is stopped stores: what was begun before, and from then on nothing.

Whoever has a task ended has the next one store something under the same names.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import small_graphs

from edge_attention.core.errors import Cancelled
from edge_attention.core.messages.program import Append, Call, PreparedProgram, Program, Run, Slot, Stored
from edge_attention.core.tensors import DataType
from edge_node import direct, executor
from edge_node.direct import DirectCall
from edge_node.executor import Execution, LocalNode
from edge_node.prepared import Prepared
from edge_node.release import Releases
from edge_node.runtime import Runtime, Stop
from edge_node.store.store import Store

COPIED, DATA = small_graphs.copied(1, rank=3)
X = np.arange(6, dtype=np.float32).reshape(3, 1, 2)
AT = np.array([0, 3, 0], np.int64)
STORES = (Run(COPIED, {"x0": Stored("task/x")}, {"y0": "job/j/y"}),)
APPENDS = (
    Append("job/j/y", Stored("task/x"), tile=4, place="task/at"),
    Run(COPIED, {"x0": Stored("task/x")}, {"y0": "task/y"}),
)
SLOTS = (Slot("task/x", DataType.FLOAT32, X.shape), Slot("task/at", DataType.INT64, AT.shape))
GONE = Cancelled("nobody waits")


class Watched(Stop):
    """Has `then` happen, once, right after a check that comes behind `behind`."""

    def __init__(self):
        super().__init__()
        self.armed = False
        self.then = lambda: self.set(GONE)

    def behind(self, owner, name, patch):
        plain = getattr(owner, name)

        def called(*args, **kwargs):
            found = plain(*args, **kwargs)
            self.armed = True
            return found

        patch.setattr(owner, name, called)

    def check(self):
        super().check()
        if self.armed and not self.writing.locked():
            self.armed = False
            self.then()


@pytest.fixture(params=["step by step", "by the executor"])
def box(request):
    """A node, and how it carries out a call of instructions there."""
    store, graph = Store(1 << 20), Runtime().load(COPIED, DATA)
    node, stop, graphs = LocalNode(store, {}, Releases()), Watched(), {COPIED: graph}

    def last(instructions):
        prepared = Prepared(b"digest", PreparedProgram(instructions, SLOTS), 1)
        call = Call("t", "s", range(1), 0, None, b"digest", X.tobytes() + AT.tobytes(), "someone")

        def executed():
            return Execution(prepared.called(call), node, graphs, stop=stop)

        if request.param == "by the executor":
            return list(executed().contributions())[-1]
        assert prepared.direct is not None
        tensors = prepared.tensors(call)
        task = DirectCall(call, prepared.direct, tensors, graphs, store, stop, executed)
        return list(task.contributions())[-1]

    return SimpleNamespace(store=store, stop=stop, graph=graph, last=last)


def nothing(store):
    return not store.sequences() and store._held == {}


def test_what_a_graph_has_made_is_not_stored_after_the_stop(box, monkeypatch):
    box.stop.behind(box.graph, "run", monkeypatch)  # it has run, and was looked at: then it is stopped
    assert box.last(STORES).error.name == "Cancelled"
    assert nothing(box.store)


def test_nothing_is_appended_after_the_stop(box, monkeypatch):
    for module in (direct, executor):
        plain = module.placed

        def placed(*args, plain=plain):
            box.stop.set(GONE)
            return plain(*args)

        monkeypatch.setattr(module, "placed", placed)
    assert box.last(APPENDS).error.name == "Cancelled"
    assert nothing(box.store)


@pytest.mark.parametrize(("instructions", "method"), [(STORES, "put"), (APPENDS, "append")])
def test_who_stops_a_task_waits_for_what_it_stores_just_then(box, monkeypatch, instructions, method):
    plain, order = getattr(box.store, method), []

    def stops():
        box.stop.set(GONE)
        order.append("stopped")

    def slow(*args):
        other = threading.Thread(target=stops)
        other.start()
        other.join(0.1)
        assert box.stop.error is None
        plain(*args)
        order.append("stored")
        ends.append(other)

    ends = []
    monkeypatch.setattr(box.store, method, slow)
    box.last(instructions)
    for other in ends:
        other.join()
    assert order == ["stored", "stopped"]
    assert not nothing(box.store)


def test_what_comes_in_bulk_is_not_stored_after_the_stop():
    store, stop = Store(1 << 20), Stop()
    task = Execution(Program("t", "s", range(1), ()), LocalNode(store, {}, Releases()), {}, stop=stop)
    stop.set(GONE)
    with pytest.raises(Cancelled):
        task.place("job/j/w", X)
    assert nothing(store)
