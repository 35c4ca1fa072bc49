"""Gathers a synchronous round's updates: performs what core/rounds/synchronous decides, a task a node."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from aggregator.training.active import ActiveRun
from aggregator.training.federated.asker import Refused
from aggregator.training.federated.looks import Looks
from aggregator.training.federated.plan import asked_of
from aggregator.training.federated.samples import NodeSamples
from aggregator.training.federated.updates import NotFiniteLoss, Update
from aggregator.training.federated.work import Basis, Work
from aggregator.training.remedies import InQuarantine
from aggregator.training.services import Services
from edge_attention.core.combine import Combine, from_config
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    InvalidTensor,
    NotFinite,
    Unavailable,
)
from edge_attention.core.messages.training import FederatedJob
from edge_attention.core.rounds.selection import select
from edge_attention.core.rounds.synchronous import (
    QUARANTINED,
    Action,
    Again,
    Ask,
    Close,
    Diverge,
    LeaveOut,
    Quarantine,
    Round,
    RoundRules,
)
from edge_attention.core.rounds.timings import Timings
from edge_attention.core.transitions import told

log = logging.getLogger(__name__)

STRIKES = 3
"""Rounds whose program a node may find wrong that others carry out, until it is in quarantine."""
PATIENT_SECONDS = 2.0
"""A round, or an evaluation, younger than this is no wait worth a word."""


@dataclass(frozen=True, eq=False)
class Collected:
    """What is folded in a round, and what is not.

    Attributes:
        updates: in the nodes' order.
        left_out: node -> why the round goes on without it.
        quarantined: those of `left_out` that are asked no more.
        dropped: updates that were too old.
    """

    updates: Sequence[Update]
    left_out: Mapping[str, str] = field(default_factory=dict)
    quarantined: tuple[str, ...] = ()
    dropped: int = 0


class Divergence(EdgeAttentionError):
    """What each node returned of a round is not finite. `loss`: so were the losses."""

    def __init__(self, reasons: Mapping[str, str], loss: bool) -> None:
        super().__init__("; ".join(f"{node}: {reason}" for node, reason in reasons.items()))
        self.loss = loss


class Collector(ABC):
    """Has the nodes of one run work. `quarantined`: those that may not any more, and why."""

    def __init__(
        self,
        active: ActiveRun,
        job: FederatedJob,
        services: Services,
        work: Work,
        samples: Mapping[str, NodeSamples],
        patience: float,
    ) -> None:
        self._active = active
        self._job = job
        self._services = services
        self._work = work
        self._nodes = tuple(sorted(samples))
        self._patience = patience
        self._events: asyncio.Queue[Callable[[float], Sequence[Any]]] = asyncio.Queue()
        self.quarantined: dict[str, str] = {}
        self._without_loss: set[str] = set()
        """Nodes whose loss was not finite."""

    @property
    def run(self) -> str:
        return self._active.info.id

    @abstractmethod
    async def collect(self, basis: Basis) -> Collected:
        """Updates for the next server step, from `basis` on.

        Raises:
            DeadlineExceeded: not enough of them come.
            Divergence: none of them is finite.
        """

    @abstractmethod
    async def close(self) -> None:
        """Nobody is asked any more."""

    @abstractmethod
    def took(self, node: str, seconds: float) -> None:
        """What `node` took in a round of an earlier life of this aggregator."""

    def say(self, sentence: str, about: str, missing: int = 0) -> None:
        """See ActiveRun.say."""
        self._active.say(sentence, self._services.metrics, about, missing)

    def show(self, states: Mapping[str, str]) -> None:
        """What each node does, for those who watch."""
        if states != self._active.info.nodes:
            self._active.update(nodes=dict(states))

    def progress(self, node: str, since: float) -> tuple[int, int] | None:
        """Chunks of the update of `node`, asked at `since`, that have come, of how many."""
        member = self._services.membership.get(node)
        chunks = None if member is None else self._services.bulk.progress(member.session, since)
        return None if chunks is None else chunks[:2]

    def there(self, node: str) -> bool:
        """Whether the node is connected; one that is asked may not be, and come."""
        return self._services.membership.live(node)

    def count(self, node: str, error: InvalidTensor) -> None:
        """What the node returned of a round is refused."""
        if isinstance(error, NotFinite):
            self._services.metrics.nonfinite_updates.inc()
        if isinstance(error, NotFiniteLoss):
            self._without_loss.add(node)

    def quarantine(self, node: str, reason: str) -> str:
        """The node works for this run no more; what records say of it."""
        log.error("run %s: node %s is quarantined: %s", self.run, node, reason)
        self._services.metrics.updates.labels("refused").inc()
        self.quarantined[node] = f"{QUARANTINED}{reason}"
        return self.quarantined[node]

    async def next_event(self, wake: float | None) -> Callable[[float], Sequence[Any]] | None:
        """The next event, or nothing when it is time to look at the clock."""
        seconds = 1.0 if wake is None else min(1.0, max(0.0, wake - time.monotonic()))
        try:
            # Not wait_for: until Python 3.12 it forgets a cancellation that comes together with an event.
            async with asyncio.timeout(seconds):
                return await self._events.get()
        except TimeoutError:
            return None


def least(combine: Combine, count: int) -> int:
    """The fewest of `count` updates that can be folded, and any number between, too.

    Raises:
        InvalidArgument: not even all of them can.
    """
    combine.require(count)
    fewest = count
    with suppress(InvalidArgument):
        while fewest > 1:
            combine.require(fewest - 1)
            fewest -= 1
    return fewest


class Synchronous(Collector):
    """All updates of a step start from the same version."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._timings = Timings()
        self._tries = 0
        self._hopeless = False
        self._accused: dict[str, str] = {}
        self._suspects: dict[str, str] = {}
        """Of a round that asked only some: those whose answers were not finite, where no other's was."""
        self._strikes: Counter[str] = Counter()
        self._combine = from_config(self._job.combine.name, **self._job.combine.options)

    def took(self, node: str, seconds: float) -> None:
        self._timings.add(node, seconds)

    async def collect(self, basis: Basis) -> Collected:
        since, self._tries, self._accused, self._suspects = time.monotonic(), 0, {}, {}
        while True:
            selected = await self._select(basis, since)
            collected = await self._once(basis, selected, since)
            if collected is not None:
                return self._convicted(collected)

    def _convicted(self, collected: Collected) -> Collected:
        """`collected`; who has called wrong, STRIKES times, what the others have done is asked no more, nor
        whose answer was not finite, where that of others is."""
        for node, reason in self._suspects.items():
            self.quarantine(node, reason)
        self._strikes.update(self._accused.keys())
        for node, reason in self._accused.items():
            if self._strikes[node] >= STRIKES:
                self.quarantine(node, f"it refuses what others do: {reason}")
        left_out = {**collected.left_out, **self._accused, **self.quarantined}
        return replace(collected, left_out=left_out, quarantined=tuple(self.quarantined))

    async def close(self) -> None:
        """Every round ends its own tasks."""

    async def _select(self, basis: Basis, since: float) -> tuple[str, ...]:
        job, membership = self._job, self._services.membership
        # Without a deadline a round is the same whoever happens to be away: it waits for them.
        patient = job.selection.deadline_seconds is None and job.selection.adaptive is None
        out = {**self.quarantined, **self._accused, **self._suspects}
        eligible = [n for n in self._nodes if n not in out]
        why = "; ".join(f"{node}: {reason}" for node, reason in out.items())
        ended = InQuarantine if self.quarantined else FailedPrecondition
        if len(eligible) < job.selection.minimum:
            raise ended(
                f"round {basis.number} takes at least {job.selection.minimum} nodes, {len(eligible)} of "
                f"{len(self._nodes)} may take part: {why}"
            )
        try:
            self._combine.require(asked_of(job, len(eligible)))
        except InvalidArgument as error:
            if out:
                raise ended(f"round {basis.number}: {error.message}; {why}") from None
            raise
        while True:
            there = [n for n in eligible if patient or membership.live(n)]
            try:
                selected = select(there, job.selection, job.seed, basis.number)
                self._combine.require(len(selected))
                return selected
            except (Unavailable, InvalidArgument) as error:
                left = since + self._patience - time.monotonic()
                if left < 0:
                    raise DeadlineExceeded(f"{error.message} (waited {self._patience:.0f} s)") from None
                needed = max(job.selection.minimum, least(self._combine, len(eligible)))
                self.say(f"{error.message}; gives up in {left:.0f} s", "nodes", max(needed - len(there), 1))
                await asyncio.sleep(min(0.5, left + 0.01))

    async def _once(self, basis: Basis, selected: Sequence[str], since: float) -> Collected | None:
        """One try at the round; None: it has to be run again."""
        began = time.monotonic()
        # what an earlier try has left means nothing
        self._events = asyncio.Queue()
        self._hopeless = False
        patience = max(0.1, since + self._patience - began)
        rules = RoundRules.of(self._job.selection, self._timings, patience)
        rules = replace(rules, minimum=max(rules.minimum, least(self._combine, len(selected))))
        round = Round(basis.number, basis.version, rules, selected, began)
        tasks: dict[str, asyncio.Task[None]] = {}
        updates: dict[str, Update] = {}
        left_out = dict(self.quarantined)
        known = len(self._accused)
        actions: list[Action] = round.start()
        closed: tuple[str, ...] | None = None
        looks = Looks()
        try:
            while closed is None:
                for action in actions:
                    match action:
                        case Ask(node):
                            work = self._task(node, basis, round, updates)
                            tasks[node] = asyncio.create_task(work, name=f"round {basis.number} {node}")
                            round.started(node, began)
                        case LeaveOut(node, reason):
                            log.warning(
                                "run %s: round %d leaves out %s: %s", self.run, basis.number, node, reason
                            )
                            left_out[node] = reason
                            tasks[node].cancel()
                        case Quarantine(node, reason):
                            left_out[node] = self.quarantine(node, reason)
                        case Diverge(reasons):
                            self._ask_others(basis, reasons)
                            return None
                        case Close(participants):
                            closed = participants
                        case Again(reason):
                            log.info("run %s: it came to this so: %s", self.run, told(round.transitions))
                            await self._again(reason, since, len(self._accused) > known)
                            return None
                if closed is not None:
                    break
                event = await self.next_event(round.wake)
                now = time.monotonic()
                actions = list(event(now)) if event is not None else []
                if event is None or looks.due(now):
                    actions += self._looked(round, tasks, began, now)
                    looks.looked(now, time.monotonic())
                actions += round.tick(now)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            for node, update in updates.items():
                if closed is None or node not in closed:
                    update.close()
            self.say("", "")
        for node in closed:
            self._timings.add(node, round.seconds[node])
            self._work.took_part(node, basis.number)
        return Collected([updates[node] for node in closed], left_out)

    def _looked(self, round: Round, asked: Iterable[str], began: float, now: float) -> list[Action]:
        """What all nodes do, to the round and to those who watch."""
        actions: list[Action] = []
        for node in asked:
            if (chunks := self.progress(node, began)) is not None:
                actions += round.progress(node, *chunks, now)
        for node in round.waited:
            actions += (round.back if self.there(node) else round.lost)(node, now)
        if now - began > PATIENT_SECONDS:
            self.say(round.waits(now), ",".join(round.waited), round.missing)
            self.show(round.doing(now))
        return actions

    def _ask_others(self, basis: Basis, reasons: Mapping[str, str]) -> None:
        """Nothing that these returned is finite. Where others were not asked they are, once: it may be the
        data of these.

        Raises:
            Divergence: there are no others, or none of theirs is finite either.
        """
        first = not self._suspects
        self._suspects |= reasons
        out = self.quarantined.keys() | self._accused.keys() | self._suspects.keys()
        others = [n for n in self._nodes if n not in out and self.there(n)]
        if first and len(others) >= max(1, self._job.selection.minimum):
            with suppress(InvalidArgument):
                self._combine.require(asked_of(self._job, len(others)))
                log.warning(
                    "run %s: round %d is asked of others: what %s returned is not finite",
                    self.run, basis.number, ", ".join(reasons),
                )  # fmt: skip
                return
        raise Divergence(self._suspects, self._suspects.keys() <= self._without_loss)

    async def _again(self, reason: str, since: float, fresh: bool) -> None:
        """Before the round is run again. `fresh`: without a node that finds its program wrong."""
        if fresh:
            # One node's word does not end a run: it is run without that node, at once, and if others find it
            # wrong as well until too few are left, then it is.
            log.warning("run %s: %s; it is run without %s", self.run, reason, ", ".join(self._accused))
            return
        if self._hopeless:
            raise FailedPrecondition(reason)
        if time.monotonic() - since >= self._patience:
            raise DeadlineExceeded(f"{reason} (tried for {self._patience:.0f} s)")
        log.warning("run %s: %s; it is run again", self.run, reason)
        self._tries += 1
        await asyncio.sleep(min(0.1 * 2**self._tries, 5.0))

    async def _task(self, node: str, basis: Basis, round: Round, updates: dict[str, Update]) -> None:
        """Puts into the queue what comes of asking `node`; never raises."""
        put = self._events.put_nowait

        def state(there: bool) -> None:
            put(lambda now: round.back(node, now) if there else round.lost(node, now))

        try:
            update = await self._work.update(node, basis, state)
        except InvalidTensor as error:
            self.count(node, error)
            reason = error.message
            found = round.diverged if isinstance(error, NotFinite) else round.refused
            put(lambda now: found(node, reason, now))
        except EdgeAttentionError as error:
            reason = error.message
            if isinstance(error, Refused) and error.wrong:
                self._accused[node] = reason
            else:
                self._hopeless |= isinstance(error, Refused) and error.hopeless
            put(lambda now: round.failed(node, reason, now))
        except Exception as error:
            log.exception("round %d of node %s failed in the aggregator", basis.number, node)
            reason = f"{type(error).__name__} in the aggregator; its log says more"
            put(lambda now: round.failed(node, reason, now))
        else:
            updates[node] = update
            put(lambda now: round.finished(node, update.samples, now))
