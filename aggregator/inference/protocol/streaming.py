"""Several requests on one stream: they run at once, and are answered in the order in which they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aggregator.bounds.bounds import INFERENCE_STREAMS
from aggregator.bounds.budget import Budgets
from aggregator.inference.protocol.data_plane import DataPlane
from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError
from edge_attention.core.messages.open_inference import InferenceRequest, InferenceResponse, StreamedInference

__all__ = ["AT_ONCE", "RequestStream"]

AT_ONCE = 64
"""Requests of one stream under way, and answers that wait to be read: the next is read when one has gone."""

UNREAD_SECONDS = 60.0
"""An answer that nobody takes for so long ends its request, and with it what that holds."""


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
        """
        with self._budgets.take(INFERENCE_STREAMS, self._caller):
            room = asyncio.Semaphore(AT_ONCE)
            answers: asyncio.Queue[StreamedInference | None] = asyncio.Queue(AT_ONCE)
            reading = asyncio.create_task(self._read(requests, room, answers), name="requests of a stream")
            try:
                while (answer := await answers.get()) is not None:
                    yield answer
                    del answer
                await reading
            finally:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError, EdgeAttentionError):
                    await reading

    async def _read(
        self,
        requests: AsyncGenerator[InferenceRequest],
        room: asyncio.Semaphore,
        answers: asyncio.Queue[StreamedInference | None],
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
        answers: asyncio.Queue[StreamedInference | None],
    ) -> None:
        try:
            if request.refused is not None:
                raise request.refused
            async with aclosing(self._plane.stream(request, self._caller)) as responses:
                async for response in responses:
                    async with asyncio.timeout(UNREAD_SECONDS):
                        await answers.put(StreamedInference(response))
        except TimeoutError:
            late = f"nobody has read an answer of the stream for {UNREAD_SECONDS:g} s: read it as it comes"
            await answers.put(self._refusal(request, DeadlineExceeded(late)))
        except EdgeAttentionError as error:
            await answers.put(self._refusal(request, error))
        finally:
            room.release()

    @staticmethod
    def _refusal(request: InferenceRequest, error: EdgeAttentionError) -> StreamedInference:
        empty = InferenceResponse(request.model, request.version, request.id)
        return StreamedInference(empty, error.message)
