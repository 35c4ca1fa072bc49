"""The queue of one deployed model, decided: who goes next, with whom, and who is refused. No I/O.

    came ──> queued ──> Start(batch) ──> done
               │  ╰──> Refuse: too many wait, its deadline cannot be met
               ╰─────> left: nobody waits for it any more

Requests that are alike but for their rows may share a batch. What is queued goes as soon as a slot is free;
only while others run does a batch that is not full wait for more to come, `delay` at most: who is alone never
waits for company. With `gathers` that is measured: while so many batches run, one that is not full waits as
long as the quickest like it took, and all that is alike is shared out among so many.

First those of the first priority; among them callers take turns, a request each, and one caller's go in order
of arrival; others, of any priority, fill up a batch that goes anyway. Who waits becomes one better with each
second (`waiting_level`), so nobody waits for ever; of a caller's requests of one priority, while others' wait
as well, only the first one does: a thousand that came before are no reason to let others wait.

A batch that failed says nothing of one request: each of its requests is then run by itself.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError, Overloaded
from edge_attention.core.transitions import Transition, recent

__all__ = [
    "PRIORITIES",
    "PRIORITY",
    "QUEUED",
    "QUEUED_BYTES",
    "BatchAction",
    "BatchQueue",
    "BatchSizes",
    "Queued",
    "Refuse",
    "StartBatch",
    "WantSize",
    "waiting_level",
]

PRIORITIES, PRIORITY = 16, 8
"""Levels, of which 1 goes first; and that of who says none."""
AGE_SECONDS = 1.0
"""So long one waits to go as if its priority were one better."""
QUEUED = 1024
"""Requests of one model that wait: with `inferences` as many, this is never reached before that is."""
QUEUED_BYTES = 512 * 1024 * 1024
"""Bytes of their inputs: of one caller at most what is left for others, though one request may be of any size
and then counts as a half."""
_REMEMBERED = 8
"""Batches of one kind of which is known what they took; the quickest is what the next takes at least."""
_KINDS = 256
"""Kinds of which that is known; then those of longest ago are forgotten."""

BatchSizes = Callable[[Hashable, int], int | None]
"""Of a kind and rows: rows that a batch of those has, padded; None: no such batch is prepared."""


def waiting_level(priority: int, waited: float) -> int:
    """The priority as which one goes that has waited for so many seconds; below 1 it passes all that come.

    >>> waiting_level(16, 0.5), waiting_level(16, 15.0), waiting_level(16, 16.0)
    (16, 1, 0)
    """
    return priority - int(max(waited, 0.0) // AGE_SECONDS)


class QueuedState(Enum):
    """Where a request is."""

    QUEUED = "queued"
    UNDER_WAY = "under way"
    GONE = "gone"


@dataclass(eq=False)
class Queued:
    """One request.

    Attributes:
        number: names it.
        kind: what requests must have in common to be alike.
        rows: of the batch axis; 0: its rows may meet, so that it is in no batch with others.
        nbytes: of its inputs.
        caller: who has so many wait at most as are left for others.
        priority: 1 to PRIORITIES.
        arrived, deadline: by the machine's clock.
        alone: it is in no batch with others, as one with it has failed.
    """

    number: int
    kind: Hashable
    rows: int
    nbytes: int
    caller: str
    priority: int
    arrived: float
    deadline: float
    alone: bool = False
    state: QueuedState = QueuedState.QUEUED

    @property
    def joins(self) -> bool:
        return self.rows > 0 and not self.alone


@dataclass(frozen=True)
class StartBatch:
    """Run these together, in that order; then `done`. `rows`: of all, with those that pad it."""

    batch: int
    numbers: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class Refuse:
    """The request ends with this error."""

    number: int
    error: EdgeAttentionError


@dataclass(frozen=True)
class WantSize:
    """There were requests for a batch of so many rows of that kind, which is not prepared."""

    kind: Hashable
    rows: int


BatchAction = StartBatch | Refuse | WantSize


@dataclass(eq=False)
class _Batch:
    kind: Hashable
    requests: tuple[Queued, ...]
    began: float


@dataclass
class _Took:
    """What batches of one kind took, the last ones."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    @property
    def least(self) -> float:
        return min(self.seconds, default=0.0)


class BatchQueue:
    """The queue.

    Args:
        model: its name, for errors.
        slots: batches that are under way at a time. May change: call `tick` then.
        max_batch: rows of a batch; 1: each request goes by itself.
        delay: seconds that a batch which is not full waits for more, while others are under way.
        sizes: which batches there may be; None: all up to `max_batch`.
        gathers: batches that keep whoever runs them at work; 0: nobody waits or shares for that.

    Events return actions, to be performed in order. Call `tick` at `wake`.

    Attributes:
        transitions: the last changes, for the log.
    """

    def __init__(
        self,
        model: str,
        slots: int,
        max_batch: int = 1,
        delay: float = 0.0,
        sizes: BatchSizes | None = None,
        gathers: int = 0,
        most: int = QUEUED,
        most_bytes: int = QUEUED_BYTES,
    ) -> None:
        self.model = model
        self.slots = slots
        self.max_batch = max_batch
        self.delay = delay
        self.gathers = gathers
        self.transitions: deque[Transition] = recent()
        self._sizes = sizes or (lambda kind, rows: rows)
        self._most = most
        self._most_bytes = most_bytes
        self._queues: dict[int, OrderedDict[int, Queued]] = {}
        """By priority, in order of arrival."""
        self._requests: dict[int, Queued] = {}
        self._callers: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        """By caller, of those that wait."""
        self._started: dict[tuple[str, int], float] = {}
        """By caller that waits and priority: when one of those last started."""
        self._batches: dict[int, _Batch] = {}
        self._numbers = 0
        self._took: OrderedDict[Hashable, _Took] = OrderedDict()
        self._wake = math.inf

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return sum(self._callers.values())

    @property
    def under_way(self) -> int:
        """Batches that run."""
        return len(self._batches)

    @property
    def wake(self) -> float:
        """When to call `tick`, if nothing else happens before; infinity: not at all."""
        return self._wake

    # Events

    def came(self, request: Queued, now: float) -> list[BatchAction]:
        """A request has come: it starts, waits, or is refused."""
        error = self._no_room(request) or self._too_late(request, now)
        if error is not None:
            request.state = QueuedState.GONE
            return [Refuse(request.number, error)]
        self._requests[request.number] = request
        self._enqueue(request)
        return self._go(now)

    def left(self, number: int, now: float) -> list[BatchAction]:
        """Nobody waits for the request any more: it leaves the queue; a batch that runs goes on."""
        request = self._requests.get(number)
        if request is None:
            return []
        self._forget(request, "left", now)
        return self._go(now)

    def done(
        self, batch: int, now: float, *, answered: bool = True, again: bool = False
    ) -> list[BatchAction]:
        """A batch has ended. `again`: each of its requests is to be run by itself."""
        ended = self._batches.pop(batch)
        if answered:
            took = self._took.setdefault(ended.kind, _Took())
            self._took.move_to_end(ended.kind)
            took.seconds.append(now - ended.began)
            while len(self._took) > _KINDS:
                self._took.popitem(last=False)
        there = [one for one in ended.requests if one.state is QueuedState.UNDER_WAY]
        for one in reversed(there):
            if again:
                self._turn(one, QueuedState.QUEUED, "again", now)
                one.alone = True
                self._enqueue(one, first=True)
            else:
                self._forget(one, "done", now)
        return self._go(now)

    def tick(self, now: float) -> list[BatchAction]:
        """Time has passed, `slots` has changed, or a size is prepared."""
        return self._go(now)

    def close(self, error: EdgeAttentionError, now: float) -> list[BatchAction]:
        """Whoever waits is refused with `error`."""
        waiting = [one for one in self._requests.values() if one.state is QueuedState.QUEUED]
        for one in waiting:
            self._forget(one, "closed", now)
        self._wake = math.inf
        return [Refuse(one.number, error) for one in waiting]

    # Inside

    def _enqueue(self, request: Queued, first: bool = False) -> None:
        queue = self._queues.setdefault(request.priority, OrderedDict())
        queue[request.number] = request
        if first:
            queue.move_to_end(request.number, last=False)
        self._callers[request.caller] += 1
        self._bytes[request.caller] += request.nbytes

    def _dequeue(self, request: Queued) -> None:
        del self._queues[request.priority][request.number]
        caller = request.caller
        self._callers[caller] -= 1
        self._bytes[caller] -= request.nbytes
        if not self._callers[caller]:
            del self._callers[caller], self._bytes[caller]
            self._started = {key: at for key, at in self._started.items() if key[0] != caller}

    def _forget(self, request: Queued, why: str, now: float) -> None:
        if request.state is QueuedState.QUEUED:
            self._dequeue(request)
        self._turn(request, QueuedState.GONE, why, now)
        del self._requests[request.number]

    def _turn(self, request: Queued, state: QueuedState, why: str, now: float) -> None:
        self.transitions.append((now, (f"request {request.number}", why), request.state, state))
        request.state = state

    def _no_room(self, request: Queued) -> EdgeAttentionError | None:
        own, queued = self._callers[request.caller], self.queued
        if not own:
            del self._callers[request.caller]
        if own >= self._most - queued:
            return Overloaded(
                f"bound queued-requests: {queued} requests of model {self.model!r} wait, {own} of them "
                f"yours, of {self._most} at most: try again, or have fewer under way at a time"
            )
        half = self._most_bytes // 2
        used = sum(min(size, half) for size in self._bytes.values())
        mine, size = min(self._bytes.get(request.caller, 0), half), min(request.nbytes, half)
        free = self._most_bytes - used - size
        if queued and (free < 0 or (own and mine + size > free)):
            return Overloaded(
                f"bound queued-bytes: the inputs of requests of model {self.model!r} that wait have "
                f"{used:,} of {self._most_bytes:,} bytes, {mine:,} of them yours, and this one's "
                f"{request.nbytes:,}: try again, or have fewer under way at a time"
            )
        return None

    def _too_late(self, request: Queued, now: float) -> EdgeAttentionError | None:
        """Its error, if it could not be answered in time even if all goes as quickly as it ever did."""
        known = self._took.get(request.kind)
        least = known.least if known is not None else 0.0
        most = (self.queued + len(self._batches) + 1) / max(self.slots, 1)
        if now + least * (most + 1) <= request.deadline:
            return None  # whoever goes before it
        order = self._order(now, {request.caller, *self._callers})
        level = request.priority
        own = sum(one.caller == request.caller and at == level for one, (at, _) in order)
        last = level, own if len(self._callers.keys() | {request.caller}) > 1 else 0
        ahead = [one for one, place in order if place <= last]
        # Those alike share batches; of others as many batches as requests are the most, so they count as one.
        alike = sum(
            one.rows if one.joins and request.joins else 1 for one in ahead if one.kind == request.kind
        )
        together = self.max_batch if request.joins else 1
        batches = (alike // max(together, 1)) + len(self._batches)
        turns = max(batches - self.slots + 1, 0) / self.slots if self.slots else 0.0
        needed = least * (turns + 1)
        if now + needed <= request.deadline:
            return None
        left = max(request.deadline - now, 0.0)
        return DeadlineExceeded(
            f"model {self.model!r}: {len(ahead)} requests wait before this one and {len(self._batches)} run, "
            f"each for {1000 * least:.3g} ms at least: it cannot be answered in the {1000 * left:.3g} ms left"
        )

    def _waiting(self, now: float | None = None) -> list[Queued]:
        """Those that wait; with `now` in the order in which they go."""
        if now is not None and (len(self._queues) > 1 or len(self._callers) > 1):
            return [one for one, _ in self._order(now, self._callers)]
        return [one for level in sorted(self._queues) for one in self._queues[level].values()]

    def _order(self, now: float, callers: Collection[str]) -> list[tuple[Queued, tuple[int, int]]]:
        """Those that wait, in the order in which they go, each with its place: its level, and how many of its
        caller's, if there are several `callers`, go before it as such."""
        several = len(callers) > 1
        found: list[tuple[Queued, int]] = []
        first: set[tuple[str, int]] = set()
        for one in self._waiting():
            since, of = one.arrived, (one.caller, one.priority)
            if several:
                since = now if of in first else max(since, self._started.get(of, since))
                first.add(of)
            found.append((one, waiting_level(one.priority, now - since)))
        found.sort(key=lambda item: (item[1], item[0].arrived))
        before: Counter[tuple[str, int]] = Counter()
        placed: list[tuple[Queued, tuple[int, int]]] = []
        for one, level in found:
            placed.append((one, (level, before[one.caller, level])))
            before[one.caller, level] += several
        placed.sort(key=lambda item: item[1])  # stable: of one place in order of arrival
        return placed

    def _go(self, now: float) -> list[BatchAction]:
        actions: list[BatchAction] = []
        for one in [one for one in self._waiting() if one.deadline <= now]:
            waited = 1000 * (now - one.arrived)
            self._forget(one, "late", now)
            text = (
                f"model {self.model!r}: the request waited {waited:.3g} ms for its turn, behind "
                f"{len(self._batches)} that run"
            )
            actions.append(Refuse(one.number, DeadlineExceeded(text)))
        self._wake = math.inf
        waiting = self._waiting(now) if len(self._batches) < self.slots else []
        alike: dict[Hashable, list[Queued]] = {}
        for one in waiting:
            if one.joins:
                alike.setdefault(one.kind, []).append(one)
        held: set[int] = set()
        """Those that wait for company."""
        since: dict[Hashable, float] = {}
        """When the first of a kind came that does: for those that came later it is too early, too."""
        for first in waiting:
            if len(self._batches) >= self.slots:
                break
            if first.state is not QueuedState.QUEUED or first.number in held:
                continue
            if first.joins and first.arrived >= since.get(first.kind, math.inf):
                continue
            found, rows, full, wanted = self._joined(first, alike.get(first.kind, ()))
            if wanted is not None:
                actions.append(wanted)
            ready = first.arrived + self._patience(first)
            if self._batches and not full and now < ready:
                held.update(one.number for one in found)
                since[first.kind] = first.arrived
                self._wake = min(self._wake, ready)
                continue
            actions.append(self._start(found, rows, now))
        for one in self._waiting():
            self._wake = min(self._wake, one.deadline)
        return actions

    def _start(self, requests: list[Queued], rows: int, now: float) -> StartBatch:
        for one in requests:
            self._started[one.caller, one.priority] = now
            self._dequeue(one)
            self._turn(one, QueuedState.UNDER_WAY, "started", now)
        self._numbers += 1
        self._batches[self._numbers] = _Batch(requests[0].kind, tuple(requests), now)
        return StartBatch(self._numbers, tuple(one.number for one in requests), max(rows, 1))

    def _joined(
        self, first: Queued, alike: Sequence[Queued]
    ) -> tuple[list[Queued], int, bool, WantSize | None]:
        """Who of those `alike` goes with `first`, as many as there is a size for; rows; whether no more of
        those that wait, or come, can join; and a size that would be of use."""
        if not first.joins or first.rows >= self.max_batch:
            return [first], first.rows, True, None
        limit = self._share(first, alike)
        found, rows = [first], first.rows
        best, best_rows = [first], first.rows
        wanted: WantSize | None = None
        full = False
        for one in alike:
            if one is first or one.state is not QueuedState.QUEUED:
                continue
            if rows + one.rows > self.max_batch:
                full = True
                continue
            if rows + one.rows > limit:
                continue
            found.append(one)
            rows += one.rows
            size = self._sizes(first.kind, rows)
            if size is not None:
                best, best_rows = list(found), size
            else:
                wanted = WantSize(first.kind, rows)
        return best, best_rows, full or rows >= self.max_batch, wanted

    def _patience(self, first: Queued) -> float:
        """Seconds that a batch which is not full waits for more, while others are under way."""
        if not self.gathers:
            return self.delay
        known = self._took.get(first.kind)
        return known.least if known is not None and len(self._batches) >= self.gathers else 0.0

    def _share(self, first: Queued, alike: Sequence[Queued]) -> int:
        """Rows that a batch with `first` has at most."""
        if not self.gathers:
            return self.max_batch
        rows = sum(one.rows for one in alike if one.state is QueuedState.QUEUED)
        rows += sum(
            one.rows for batch in self._batches.values() if batch.kind == first.kind for one in batch.requests
        )
        return min(max(-(-rows // self.gathers), 1), self.max_batch)

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        waiting = self._waiting()
        assert all(one.state is QueuedState.QUEUED for one in waiting)
        assert self.queued == len(waiting)
        assert sum(self._bytes.values()) == sum(one.nbytes for one in waiting)
        assert all(count > 0 for count in self._callers.values()), "a caller of nothing"
        assert {caller for caller, _ in self._started} <= self._callers.keys() >= self._bytes.keys()
        running = [one for batch in self._batches.values() for one in batch.requests]
        there = [one for one in running if one.state is not QueuedState.GONE]
        assert all(one.state is QueuedState.UNDER_WAY for one in there)
        assert set(self._requests) == {one.number for one in (*waiting, *there)}
        for batch in self._batches.values():
            if len(batch.requests) > 1:
                assert len({one.kind for one in batch.requests}) == 1, "unlike requests in a batch"
                assert sum(one.rows for one in batch.requests) <= self.max_batch, "a batch too large"
                assert all(one.rows > 0 for one in batch.requests), "rows that meet, in a batch"
