"""The state machines of this project, each watched: after every event, in every test, its `check` holds.

`tests/conftest.py` calls `watch_all` before any test runs, so that machines inside of servers and daemons
that a test runs in its own process are watched as well as those that a test makes itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from aggregator.bounds.admission import Admission
from aggregator.bounds.budget import Budget, Lease
from aggregator.bounds.callers_in_turn import CallersInTurn
from aggregator.engine.exchange import Exchange
from aggregator.fleet.membership import Membership
from aggregator.inference.batching.batch_queue import BatchQueue
from aggregator.inference.decoding.scheduling import SessionScheduler
from aggregator.inference.life import Life
from aggregator.inference.prepared_shapes import PreparedShapes
from aggregator.inference.replanning import Replanning
from aggregator.inference.requests import ModelRequest
from aggregator.training.split.step import SplitStep
from edge_attention.core.fold import Fold
from edge_attention.core.rounds.buffered import Buffered
from edge_attention.core.rounds.credit import Outbox
from edge_attention.core.rounds.synchronous import Round
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.trust.renewal import Renewal
from edge_node.cell.state import CellState
from edge_node.session import Session

MACHINES: tuple[type, ...] = (
    Admission,
    BatchQueue,
    Budget,
    Buffered,
    CallersInTurn,
    CellState,
    Exchange,
    Fold,
    Lease,
    Life,
    Meetings,
    Membership,
    ModelRequest,
    Outbox,
    PreparedShapes,
    Renewal,
    Replanning,
    Round,
    Session,
    SessionScheduler,
    SplitStep,
)


def watch(machine: type) -> None:
    """Have `machine.check` called after each of its public methods, also where that raised. Twice is once.

    A method that another of the same machine calls is in the middle of an event: only at its end must all
    hold.
    """
    if "_watched" in vars(machine):
        return
    machine._watched = True
    for name, method in list(vars(machine).items()):
        if inspect.isfunction(method) and not name.startswith("_") and name != "check":
            setattr(machine, name, _watched(method))


def watch_all() -> None:
    """Watch all of MACHINES."""
    for machine in MACHINES:
        watch(machine)


def _watched(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def event(self: Any, *args: Any, **options: Any) -> Any:
        within = getattr(self, "_within", 0)
        self._within = within + 1
        try:
            return method(self, *args, **options)
        finally:
            self._within = within
            if not within:
                self.check()

    return event
