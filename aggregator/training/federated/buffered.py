"""FedBuff's updates: nodes are always at work; performs what core/rounds/buffered decides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from aggregator.training.federated.asker import Refused
from aggregator.training.federated.collect import PATIENT_SECONDS, Collected, Collector, Divergence
from aggregator.training.federated.looks import Looks
from aggregator.training.federated.updates import Update
from aggregator.training.federated.work import Basis
from aggregator.training.remedies import InQuarantine
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidTensor,
    NotFinite,
)
from edge_attention.core.rounds.buffered import (
    Again,
    AskTurn,
    Buffered,
    BufferRules,
    DropUpdate,
    Quarantine,
    TakeStep,
)
from edge_attention.core.strategies import from_config
from edge_attention.core.strategies.fedbuff import FedBuff
from edge_attention.core.transitions import told

log = logging.getLogger(__name__)


class Buffer(Collector):
    """Updates of several versions meet in one step; nobody waits for a slow node."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        strategy = from_config(self._job.strategy.name, **self._job.strategy.options)
        assert isinstance(strategy, FedBuff)
        self._rules = BufferRules(
            strategy.buffer, max_staleness=strategy.max_staleness, patience_seconds=self._patience
        )
        self._state: Buffered | None = None
        self._looks = Looks()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, float] = {}
        self._updates: dict[tuple[str, int], Update] = {}
        self._hopeless = ""
        self._nonfinite: dict[str, str] = {}
        """Nodes in quarantine because what they returned was not finite."""

    async def collect(self, basis: Basis) -> Collected:
        began = now = time.monotonic()
        actions: list[Any]
        if self._state is None:
            nodes = [node for node in self._nodes if node not in self.quarantined]
            self._state = Buffered(self._rules, nodes, basis.version, began)
            actions = self._state.start(began)
        else:
            actions = self._state.committed(basis.version, began)
        state, dropped = self._state, self._state.dropped
        while True:
            for action in actions:
                match action:
                    case AskTurn(node, _, turn):
                        work = self._task(node, turn, basis, state)
                        self._tasks[node] = asyncio.create_task(work, name=f"{node} turn {turn}")
                        self._asked[node] = now
                        state.started(node, now)  # at the time of these actions: no others come of it
                    case DropUpdate(node, turn, staleness):
                        log.info("run %s: an update of %s is %d versions old", self.run, node, staleness)
                        self._updates.pop((node, turn)).close()
                    case Quarantine(node, reason):
                        self.quarantine(node, reason)
                        for key in [key for key in self._updates if key[0] == node]:
                            self._updates.pop(key).close()
                    case Again(reason):
                        log.info("run %s: it came to this so: %s", self.run, told(state.transitions))
                        if self._nonfinite.keys() == set(self._nodes):
                            raise Divergence(self._nonfinite, self._nonfinite.keys() <= self._without_loss)
                        if self.quarantined:
                            raise InQuarantine(reason)
                        raise FailedPrecondition(reason) if self._hopeless else DeadlineExceeded(reason)
                    case TakeStep(contributions):
                        # They are asked again once this step is committed, and were none of it.
                        taken = {one.node for one in contributions}
                        failures = {n: why for n, why in state.failures.items() if n not in taken}
                        self.say("", "")
                        return Collected(
                            self._taken(contributions),
                            {**failures, **self.quarantined},
                            tuple(self.quarantined),
                            state.dropped - dropped,
                        )
            event = await self.next_event(state.wake)
            now = time.monotonic()
            actions = list(event(now)) if event is not None else []
            if event is None or self._looks.due(now):
                actions += self._looked(state, began, now)
                self._looks.looked(now, time.monotonic())
            actions += state.tick(now)

    def _looked(self, state: Buffered, began: float, now: float) -> list[Any]:
        """What all nodes do, to the state and, from `began` on, to those who watch."""
        actions: list[Any] = []
        for node in state.waited:
            # One that is about to be asked has sent nothing.
            if (chunks := self.progress(node, self._asked.get(node, now))) is not None:
                actions += state.progress(node, *chunks, now)
            actions += (state.back if self.there(node) else state.lost)(node, now)
        if now - began > PATIENT_SECONDS:
            self.say(state.waits(now), ",".join(state.waited), state.missing)
            self.show(state.doing(now))
        return actions

    def took(self, node: str, seconds: float) -> None:
        """Nobody is waited for, so it does not matter."""

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for update in self._updates.values():
            update.close()

    def _taken(self, contributions: Sequence[Any]) -> list[Update]:
        found = []
        for contribution in contributions:
            update = self._updates.pop((contribution.node, contribution.turn))
            update.staleness = contribution.staleness
            found.append(update)
        return found

    async def _task(self, node: str, turn: int, basis: Basis, state: Buffered) -> None:
        """Puts into the queue what comes of asking `node`; never raises."""
        put = self._events.put_nowait

        def connection(there: bool) -> None:
            put(lambda now: state.back(node, now) if there else state.lost(node, now))

        try:
            update = await self._work.update(node, basis, connection, turn)
        except InvalidTensor as error:
            self.count(node, error)
            reason = error.message
            if isinstance(error, NotFinite):
                self._nonfinite[node] = reason
            put(lambda now: state.refused(node, reason, now))
        except EdgeAttentionError as error:
            reason = error.message
            if isinstance(error, Refused) and error.hopeless:
                self._hopeless = self._hopeless or reason
            log.warning("run %s: node %s failed: %s", self.run, node, reason)
            put(lambda now: state.failed(node, reason, now))
        except Exception as error:
            log.exception("turn %d of node %s failed in the aggregator", turn, node)
            reason = f"{type(error).__name__} in the aggregator; its log says more"
            put(lambda now: state.failed(node, reason, now))
        else:
            # Its next turn, which may begin before this one is folded, goes on from its residuals.
            self._work.took_part(node, turn)
            self._updates[node, turn] = update
            put(lambda now: state.finished(node, now))
