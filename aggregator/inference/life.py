"""The life of a deployment as a pure state machine: from its plan to its last request.

    planning ──> delivering ──> serving <──> waiting
        │            │             └─────┬──────┘
        └────────────┴───> leaving <─────┘
                              └──> gone         once no request is under way

Requests are counted by it, so that one version ends only when nobody is answered by it any more. Times are
seconds of any steady clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.inference import DeploymentState
from edge_attention.core.transitions import Transition, recent

__all__ = ["Life"]

_S = DeploymentState
_NEXT: dict[DeploymentState, tuple[DeploymentState, ...]] = {
    _S.PLANNING: (_S.DELIVERING, _S.LEAVING),
    _S.DELIVERING: (_S.SERVING, _S.WAITING, _S.LEAVING),
    _S.SERVING: (_S.WAITING, _S.LEAVING),
    _S.WAITING: (_S.SERVING, _S.LEAVING),
    _S.LEAVING: (_S.GONE,),
    _S.GONE: (),
}


class Life:
    """One deployment's state, and its requests.

    Attributes:
        name: for errors and the log.
        state: see DeploymentState.
        detail: what it waits for, or how far it is.
        requests, failed: answered, and ended by an error.
        in_flight: requests that it answers now.
        transitions: the last changes, for the log.
    """

    def __init__(self, name: str, state: DeploymentState = _S.PLANNING) -> None:
        self.name = name
        self.state = state
        self.detail = ""
        self.requests = 0
        self.failed = 0
        self.in_flight = 0
        self.transitions: deque[Transition] = recent()

    @property
    def live(self) -> bool:
        """Whether it takes requests."""
        return self.state in (_S.SERVING, _S.WAITING)

    def planned(self, now: float) -> None:
        """It is cut; its weights are to be delivered."""
        self._turn(_S.DELIVERING, now, "planned")

    def holders(self, lacking: Sequence[str], now: float) -> bool:
        """Which parts nobody can do now, and why, a sentence each; none: all is there. Whether that is new.

        A deployment that delivers serves from the first time that nothing lacks.
        """
        if self.state is _S.DELIVERING and lacking:
            return False
        if self.state not in (_S.DELIVERING, _S.SERVING, _S.WAITING):
            return False
        state = _S.WAITING if lacking else _S.SERVING
        detail = "; ".join(lacking)
        new = state is not self.state or detail != self.detail
        self.detail = detail
        if state is not self.state:
            self._turn(state, now, detail or "all parts are there")
        return new

    def recalled(self, now: float, detail: str) -> None:
        """It is one of an earlier life of this aggregator, and serves when its nodes are here."""
        self._turn(_S.DELIVERING, now, "recalled")
        self.detail = detail
        self._turn(_S.WAITING, now, "recalled")

    def begin(self) -> None:
        """A request begins. Call `end` when it has ended.

        Raises:
            FailedPrecondition: it takes none.
        """
        if not self.live:
            raise FailedPrecondition(f"model {self.name} is {self.state.value} and takes no requests")
        self.in_flight += 1

    def end(self, answered: bool) -> bool:
        """A request has ended; whether it was the last that a leaving deployment waited for."""
        self.in_flight -= 1
        self.requests += answered
        self.failed += not answered
        return self.state is _S.LEAVING and self.in_flight == 0

    def leave(self, now: float, why: str) -> bool:
        """It takes no more requests; whether none is under way. Nothing if it leaves already: False."""
        if self.state in (_S.LEAVING, _S.GONE):
            return False
        self._turn(_S.LEAVING, now, why)
        self.detail = why
        return self.in_flight == 0

    def count(self, answered: bool) -> None:
        """A request of this version was answered, or not, by an earlier plan of it."""
        self.requests += answered
        self.failed += not answered

    def gone(self, now: float) -> None:
        """Nothing is left of it."""
        self._turn(_S.GONE, now, "nothing is left")
        self.detail = ""

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        assert self.in_flight >= 0, "more requests have ended than begun"
        assert self.state is not _S.GONE or self.in_flight == 0, "gone, and answers"
        assert self.state is not _S.SERVING or not self.detail, "serves, and waits for something"
        assert not self.transitions or self.transitions[-1][-1] is self.state, "a change that nobody noted"

    def _turn(self, state: DeploymentState, now: float, why: str) -> None:
        assert state in _NEXT[self.state], f"{self.name}: from {self.state.value} to {state.value}"
        self.transitions.append((now, (self.name, why), self.state, state))
        self.state = state
