"""Performs what the queue of one deployed model decides: joins inputs, runs batches, shares out answers."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from aggregator.inference.batching.batch_queue import (
    PRIORITY,
    BatchAction,
    BatchQueue,
    Queued,
    Refuse,
    StartBatch,
    WantSize,
)
from aggregator.inference.batching.rows import joined, kind_of, rows_of, shared
from aggregator.inference.model_answer import ModelAnswer
from edge_attention.core.errors import (
    Cancelled,
    DeadlineExceeded,
    EdgeAttentionError,
    Internal,
    NotFound,
    Overloaded,
    Unavailable,
)
from edge_attention.core.tensors import Array

__all__ = ["Batcher", "RunBatch"]

log = logging.getLogger(__name__)

BESIDE = 1 << 20
"""Bytes of inputs from which they are joined in a thread."""
_NO_FAULT = (Cancelled, DeadlineExceeded, NotFound, Overloaded, Unavailable)
"""What a batch ends with for which no request in it is the reason: to run each alone would mend nothing."""

RunBatch = Callable[[Mapping[str, Array], float, bool, str], Awaitable[ModelAnswer]]
"""Runs inputs through the model, in so many seconds; whether a partial answer will do; at whose cost."""


@dataclass(eq=False)
class _QueuedRequest:
    queued: Queued
    feeds: Mapping[str, Array]
    partial: bool
    answer: asyncio.Future[ModelAnswer]
    context: contextvars.Context
    batch: asyncio.Task[_BatchEnd] | None = None
    waited: float = 0.0


@dataclass(frozen=True)
class _BatchEnd:
    """What came of a batch: an answer for each of its requests, or an error.

    `again`: each of them is to be run by itself.
    """

    answers: Sequence[ModelAnswer] = ()
    error: EdgeAttentionError | None = None
    again: bool = False


class Batcher:
    """The requests of one deployment.

    Args:
        queue: decides. Its times are those of `time.monotonic`.
        run: answers a batch.
        want: told of rows that a batch would have which is not prepared, and of one request of its kind.
        observe: told of each batch that starts: its requests, its rows, and how long each request waited.
    """

    def __init__(
        self,
        queue: BatchQueue,
        run: RunBatch,
        want: Callable[[int, Mapping[str, Array]], None] = lambda rows, feeds: None,
        observe: Callable[[int, int, Sequence[float]], None] = lambda requests, rows, waited: None,
    ) -> None:
        self.queue = queue
        self._run = run
        self._want = want
        self._observe = observe
        self._numbers = itertools.count()
        self._all: dict[int, _QueuedRequest] = {}
        self._batches: dict[int, asyncio.Task[_BatchEnd]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def infer(
        self,
        feeds: Mapping[str, Array],
        seconds: float,
        caller: str,
        *,
        partial: bool = False,
        priority: int = 0,
        joins: bool = False,
    ) -> ModelAnswer:
        """The answer to `feeds`; `seconds` of it say how long it was in the queue.

        `joins`: its rows do not meet those of others.

        Raises:
            Overloaded: too many requests wait.
            DeadlineExceeded: it cannot be answered in time, or was not.
            EdgeAttentionError: what the model's run ended with.
        """
        if self._closed:
            raise Unavailable(f"model {self.queue.model!r} takes no requests any more")
        now = time.monotonic()
        size = sum(array.nbytes for array in feeds.values())
        queued = Queued(
            next(self._numbers), kind_of(feeds, partial), rows_of(feeds) if joins else 0, size, caller,
            priority or PRIORITY, now, now + seconds,
        )  # fmt: skip
        answer_to = asyncio.get_running_loop().create_future()
        one = _QueuedRequest(queued, feeds, partial, answer_to, contextvars.copy_context())
        self._all[queued.number] = one
        try:
            self._perform(self.queue.came(queued, now))
            async with asyncio.timeout(seconds):
                answer = await one.answer
        except TimeoutError:
            raise DeadlineExceeded(
                f"model {self.queue.model!r} had not answered after {seconds:.3g} s, of which the request "
                f"waited {one.waited if one.batch else time.monotonic() - now:.3g} s for its turn"
            ) from None
        finally:
            del self._all[queued.number]
            one.answer.cancel()
            self._perform(self.queue.left(queued.number, time.monotonic()))
            self._unwanted(one)
        return replace(answer, seconds={**answer.seconds, "queue": one.waited})

    def look(self) -> None:
        """Something has changed: how many batches may be under way, or which sizes there are."""
        self._perform(self.queue.tick(time.monotonic()))

    async def close(self, error: EdgeAttentionError) -> None:
        """Whoever waits is refused with `error`; batches under way are cancelled."""
        self._closed = True
        self._perform(self.queue.close(error, time.monotonic()))
        tasks = list(self._batches.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._timer is not None:
            self._timer.cancel()

    # Inside

    def _unwanted(self, one: _QueuedRequest) -> None:
        """It has gone: a batch that nobody waits for any more ends."""
        task = one.batch
        if task is not None and not any(other.batch is task for other in self._all.values()):
            task.cancel()

    def _perform(self, actions: Sequence[BatchAction]) -> None:
        for action in actions:
            match action:
                case Refuse(number, error):
                    self._end(number, error)
                case WantSize(kind, rows):
                    one = next((w for w in self._all.values() if w.queued.kind == kind), None)
                    if one is not None:
                        self._want(rows, one.feeds)
                case StartBatch():
                    self._start(action)
        self._set_timer()

    def _start(self, start: StartBatch) -> None:
        now = time.monotonic()
        requests = [self._all[number] for number in start.numbers]
        for one in requests:
            one.waited = now - one.queued.arrived
        self._observe(len(requests), max(start.rows, 1), [one.waited for one in requests])
        # For whom nodes are asked is in the context: of a batch that of its first request.
        task = asyncio.create_task(self._answer(start, requests), name="batch", context=requests[0].context)
        self._batches[start.batch] = task
        for one in requests:
            one.batch = task
        # A task that is cancelled before its first step runs none of its own code: its slot is free all the
        # same.
        task.add_done_callback(functools.partial(self._ended, start, requests), context=requests[0].context)

    def _ended(
        self, start: StartBatch, requests: Sequence[_QueuedRequest], task: asyncio.Task[_BatchEnd]
    ) -> None:
        """A batch is over, however it ended: its requests are told, and its slot is free."""
        self._batches.pop(start.batch, None)
        end = _BatchEnd(error=Cancelled("the model was released")) if task.cancelled() else task.result()
        again = end.again and not self._closed
        for number, one in enumerate(requests):
            if again:
                one.batch = None
            elif one.answer.done():
                continue
            elif end.error is not None:
                one.answer.set_exception(end.error)
            else:
                one.answer.set_result(end.answers[number])
        answered = end.error is None
        self._perform(self.queue.done(start.batch, time.monotonic(), answered=answered, again=again))

    async def _answer(self, start: StartBatch, requests: Sequence[_QueuedRequest]) -> _BatchEnd:
        try:
            return _BatchEnd(await self._answers(start, requests))
        except EdgeAttentionError as problem:
            # It may be of one request alone; the others are not to suffer for it.
            return _BatchEnd(error=problem, again=len(requests) > 1 and not isinstance(problem, _NO_FAULT))
        except Exception as problem:
            log.exception("a batch of model %s cannot go on", self.queue.model)
            return _BatchEnd(error=Internal(f"the batch cannot go on: {problem!r}"))

    async def _answers(self, start: StartBatch, requests: Sequence[_QueuedRequest]) -> list[ModelAnswer]:
        feeds = [one.feeds for one in requests]
        first = requests[0]
        seconds = max(max(one.queued.deadline for one in requests) - time.monotonic(), 0.0)
        if len(requests) == 1:
            return [await self._run(first.feeds, seconds, first.partial, first.queued.caller)]
        counts = [one.queued.rows for one in requests]
        if sum(one.queued.nbytes for one in requests) > BESIDE:
            together = await asyncio.to_thread(joined, feeds, start.rows)
        else:
            together = joined(feeds, start.rows)
        answer = await self._run(together, seconds, first.partial, first.queued.caller)
        return shared(answer, counts, start.rows)

    def _end(self, number: int, error: EdgeAttentionError) -> None:
        one = self._all.get(number)
        if one is not None and not one.answer.done():
            one.answer.set_exception(error)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake = self.queue.wake
        if not math.isinf(wake):
            delay = max(wake - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self.look)
