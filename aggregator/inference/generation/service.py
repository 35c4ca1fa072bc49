"""Generate, as InferenceService has it: a few lines over the generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from aggregator.inference.feeds import whole_arrays
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.request import GenerationEvent, GenerationRequest
from aggregator.serving.rpc import end_unread
from aggregator.trust.callers import caller_of
from aggregator.trust.endpoint import Endpoint
from edge_attention.core.errors import DeadlineExceeded, InvalidArgument
from edge_attention.core.messages.inference import GenerateReport, GenerateRequest, GenerateResponse
from edge_attention.wire import services

__all__ = ["GENERATE_SECONDS", "MAX_GENERATE_SECONDS", "GenerationApi"]

GENERATE_SECONDS, MAX_GENERATE_SECONDS = 300.0, 3600.0
"""What a generation has that names no deadline, and at most."""
UNREAD_SECONDS = 30.0
"""After its deadline, a stream whose caller takes nothing ends, and with it what it holds."""


class GenerationApi:
    def __init__(self, generator: Generator[Any]) -> None:
        self._generator = generator

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (Endpoint(services.GENERATE, self.generate, "user"),)

    async def generate(self, request: GenerateRequest, call: Any) -> AsyncGenerator[GenerateResponse]:
        asked, seconds = _asked(request), _seconds(request.deadline_seconds)
        left = call.time_remaining()
        seconds = min(seconds, MAX_GENERATE_SECONDS if left is None else max(float(left), 0.0))
        task = asyncio.current_task()
        assert task is not None
        # While a response waits to be read nothing else here looks at the clock.
        late = f"the stream was not read to its end {UNREAD_SECONDS:g} s after its deadline: read as it comes"
        end = partial(end_unread, task, call, DeadlineExceeded(late))
        ending = asyncio.get_running_loop().call_later(seconds + UNREAD_SECONDS, end)
        try:
            async with aclosing(self._generator.generate(asked, caller_of(call), seconds)) as events:
                async for event in events:
                    report = _report(event, request.later)
                    yield GenerateResponse(event.text, event.tokens, report, event.told)
        finally:
            ending.cancel()


def _asked(request: GenerateRequest) -> GenerationRequest:
    if request.text and request.ids:
        raise InvalidArgument("the prompt is given as text and as ids; give one of both")
    return GenerationRequest(
        request.model,
        request.text or request.ids,
        request.max_tokens,
        request.temperature,
        1.0 if request.top_p is None else request.top_p,
        request.top_k,
        request.seed,
        request.stop,
        request.min_p,
        1.0 if request.repetition_penalty is None else request.repetition_penalty,
        not request.no_speculation,
        inputs=whole_arrays(request.inputs),
        priority=request.priority,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=tuple((one.token, one.value) for one in request.logit_bias),
        logprobs=request.logprobs,
        echo=request.echo,
    )


def _seconds(deadline: float | None) -> float:
    if deadline is None:
        return GENERATE_SECONDS
    if not 0 < deadline <= MAX_GENERATE_SECONDS:
        raise InvalidArgument(
            f"deadline_seconds is {deadline:g}; it must be above 0 and at most {MAX_GENERATE_SECONDS:g}"
        )
    return deadline


def _report(event: GenerationEvent, heeded: tuple[str, ...]) -> GenerateReport | None:
    usage = event.usage
    if usage is None:
        return None
    return GenerateReport(
        event.finish,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.seed,
        usage.trips,
        usage.guessed,
        usage.accepted,
        usage.seconds,
        not usage.lacking,
        usage.lacking,
        heeded,
        event.end,
    )
