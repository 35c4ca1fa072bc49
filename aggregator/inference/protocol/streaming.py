"""Several requests on one stream: they run at once, and are answered in the order in which they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field

from aggregator.bounds.bounds import INFERENCE_BYTES, INFERENCE_STREAMS
from aggregator.bounds.budget import Budgets
from aggregator.inference.protocol.data_plane import DataPlane
from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError
from edge_attention.core.messages.open_inference import InferenceRequest, InferenceResponse, StreamedInference

__all__ = ["AT_ONCE", "RequestStream"]

AT_ONCE = 64
"""Requests of one stream of which an answer is to come, or waits to be read: the next is read when one has
gone."""

UNREAD_SECONDS = 60.0
"""An answer that nobody takes for so long ends its request, and with it what that holds."""
ABANDONED_SECONDS = 300.0
"""An answer that nobody takes for so long ends the stream: its others are forgotten, and what they hold. gRPC
keeps that one until its caller has taken it or has gone, so it is counted until then."""


@dataclass(frozen=True, eq=False)
class _UnreadAnswer:
    """An answer that waits to be read. `taken`: set once it was, and the next one is asked for."""

    answer: StreamedInference
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class RequestStream:
    """One stream of requests of one caller."""

    def __init__(self, plane: DataPlane, budgets: Budgets, caller: str) -> None:
        self._plane = plane
        self._budgets = budgets
        self._caller = caller

    async def answers(self, requests: AsyncGenerator[InferenceRequest]) -> AsyncGenerator[StreamedInference]:
        """What comes of the requests, as it comes; an error of one is its answer, and the stream goes on.

        It ends once the requests have, and each has been answered. Close it where it is left early.

        Raises:
            EdgeAttentionError: what cannot be read of the stream itself, or that there are too many streams.
            DeadlineExceeded: once an answer is taken that was not for ABANDONED_SECONDS.
        """
        with ExitStack() as held:
            held.enter_context(self._budgets.take(INFERENCE_STREAMS, self._caller))
            room = asyncio.Semaphore(AT_ONCE)
            answers: asyncio.Queue[_UnreadAnswer | None] = asyncio.Queue(AT_ONCE)
            reading = asyncio.create_task(self._read(requests, room, answers), name="requests of a stream")
            abandoned = False

            def abandon(answer: StreamedInference) -> None:
                nonlocal abandoned
                abandoned = True
                kept = self._budgets[INFERENCE_BYTES].keep(self._caller, answer.response.nbytes)
                held.enter_context(kept)
                reading.cancel()

            try:
                while (waiting := await answers.get()) is not None:
                    # While an answer waits to be taken nothing else here looks at the clock. Whoever takes it
                    # is not cancelled: while gRPC sends, that would leave the call without a status.
                    ending = asyncio.get_running_loop().call_later(ABANDONED_SECONDS, abandon, waiting.answer)
                    try:
                        yield waiting.answer
                    finally:
                        ending.cancel()
                    if abandoned:
                        late = f"no answer of the stream was taken for {ABANDONED_SECONDS:g} s"
                        raise DeadlineExceeded(f"{late}: take each as it comes")
                    waiting.taken.set()
                    del waiting
                await reading
            finally:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError, EdgeAttentionError):
                    await reading

    async def _read(
        self,
        requests: AsyncGenerator[InferenceRequest],
        room: asyncio.Semaphore,
        answers: asyncio.Queue[_UnreadAnswer | None],
    ) -> None:
        """Begin requests as they come; None in `answers` when all have been answered."""
        try:
            async with asyncio.TaskGroup() as group, aclosing(requests):
                await room.acquire()
                async for request in requests:
                    group.create_task(self._answer(request, room, answers))
                    del request
                    await room.acquire()
        except BaseExceptionGroup as errors:
            await answers.put(None)
            raise errors.exceptions[0] from None
        await answers.put(None)  # not where this is cancelled: then nobody takes it

    async def _answer(
        self,
        request: InferenceRequest,
        room: asyncio.Semaphore,
        answers: asyncio.Queue[_UnreadAnswer | None],
    ) -> None:
        """Answer a request. What it holds of bounds is held until the last of its answers was taken."""
        last: _UnreadAnswer | None = None
        try:
            with self._plane.room(self._caller) as held:
                try:
                    if request.refused is not None:
                        raise request.refused
                    async with aclosing(self._plane.stream(request, self._caller, held)) as responses:
                        async for response in responses:
                            last = _UnreadAnswer(StreamedInference(response))
                            del response
                            async with asyncio.timeout(UNREAD_SECONDS):
                                await answers.put(last)
                except TimeoutError:
                    late = f"nobody has read an answer of the stream for {UNREAD_SECONDS:g} s: read it"
                    last = _UnreadAnswer(self._refusal(request, DeadlineExceeded(f"{late} as it comes")))
                    await answers.put(last)
                except EdgeAttentionError as error:
                    last = _UnreadAnswer(self._refusal(request, error))
                    await answers.put(last)
                del request
                if last is not None:
                    await last.taken.wait()
        finally:
            room.release()

    @staticmethod
    def _refusal(request: InferenceRequest, error: EdgeAttentionError) -> StreamedInference:
        empty = InferenceResponse(request.model, request.version, request.id)
        return StreamedInference(empty, error.message)
