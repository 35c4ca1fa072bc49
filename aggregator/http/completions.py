"""Text in OpenAI's form: what its clients ask of a server that is another's.

    GET  /v1/models, /v1/models/NAME
    POST /v1/completions, /v1/chat/completions

With `"stream": true` tokens come as server-sent events, `data: [DONE]` at the end. Who goes away ends its
generation at once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import web

from aggregator.bounds.bounds import BODIES, GENERATIONS
from aggregator.bounds.budget import Budgets
from aggregator.http.bodies import read_body
from aggregator.http.chat_prompts import PLAIN_STOP, ChatPrompts
from aggregator.http.choices import Choices
from aggregator.http.completion_answers import (
    ALIVE,
    AnswerForm,
    ChoiceAnswer,
    UsageOfChoices,
    error_body,
    event,
)
from aggregator.http.completion_requests import CompletionAsk, chat_of, completion_of
from aggregator.http.endpoints import HttpCall, HttpEndpoint, http_status
from aggregator.http.json_tensors import strict_json
from aggregator.http.told_tokens import LogprobsText, TokenWords, ToldText, WrittenToken
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.request import GenerationEvent, GenerationRequest
from aggregator.inference.generation.texts import DeploymentText
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition, MessageTooLarge, NotFound

__all__ = ["Completions"]

ASKED_BYTES = 2 * 1024 * 1024
"""Of one request: a prompt, or a chat."""
ASKED_VALUES = 64 * 1024
"""Commas and brackets in it: text has few, and what has many takes the event loop long to read."""
GENERATION_SECONDS = 600.0
"""For all of a text."""
STUCK_SECONDS = 30.0
"""A client that takes nothing for so long is gone."""


class Completions:
    def __init__(self, generator: Generator[Any], budgets: Budgets) -> None:
        self._generator = generator
        self._budgets = budgets
        self._prompts = ChatPrompts()
        self._began = int(time.time())

    def endpoints(self) -> tuple[HttpEndpoint, ...]:
        return (
            HttpEndpoint("GET", "/v1/models", self.models, "viewer"),
            HttpEndpoint("GET", "/v1/models/{model}", self.model, "viewer"),
            HttpEndpoint("POST", "/v1/completions", self.complete, "user"),
            HttpEndpoint("POST", "/v1/chat/completions", self.chat, "user"),
        )

    async def close(self) -> None:
        """End the processes that make prompts."""
        await self._prompts.close()

    async def models(self, call: HttpCall) -> web.StreamResponse:
        data = [self._told(name) for name in await self._generator.writers()]
        return web.json_response({"object": "list", "data": data})

    async def model(self, call: HttpCall) -> web.StreamResponse:
        name = call.request.match_info["model"]
        if name not in (writers := await self._generator.writers()):
            known = ", ".join(writers) or "none"
            raise NotFound(f"the model {name[:80]!r} does not exist; models that make text here: {known}")
        return web.json_response(self._told(name))

    def _told(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "edge-attention"}

    async def complete(self, call: HttpCall) -> web.StreamResponse:
        ask = completion_of(await self._said(call))
        until = time.monotonic() + GENERATION_SECONDS
        with self._budgets.take(GENERATIONS, call.caller or None):
            deployment = self._generator.deployment(ask.model)
            text = await self._text(ask.model)
        if ask.told:  # in the words of this deployment
            told = (replace(one, deployment=deployment) for one in ask.generations)
            ask = replace(ask, generations=tuple(told))
        form = AnswerForm(*_new("cmpl", ask), chat=False, usage=ask.usage)
        return await self._answer(call, ask, form, text, until)

    async def chat(self, call: HttpCall) -> web.StreamResponse:
        ask = chat_of(await self._said(call))
        until = time.monotonic() + GENERATION_SECONDS
        with self._budgets.take(GENERATIONS, call.caller or None):  # a template takes its time, too
            deployment = self._generator.deployment(ask.model)  # another has another template
            text = await self._text(ask.model)
            files = text.files
            template, left = files.chat_template, until - time.monotonic()
            prompt = await self._prompts.of(template, files.special, ask.messages or (), left)
        (one,) = ask.generations
        generation = replace(one, prompt=prompt, special=template is None, deployment=deployment)
        if template is None:
            generation = replace(generation, stop=(*generation.stop, PLAIN_STOP))
        ask = replace(ask, generations=(generation,))
        form = AnswerForm(*_new("chatcmpl", ask), chat=True, usage=ask.usage)
        return await self._answer(call, ask, form, text, until)

    async def _text(self, model: str) -> DeploymentText:
        """Raises FailedPrecondition: it has no tokenizer, so there would be no text to answer with."""
        found = await self._generator.texts(model)
        if found is None:
            raise FailedPrecondition(
                f"model {model!r} has no tokenizer, and an answer is text: deploy it with --tokenizer, or "
                f"ask it by Generate or {model}.generate, which take and give token ids"
            )
        return found

    async def _said(self, call: HttpCall) -> Any:
        with self._budgets.take(BODIES, call.caller, 0) as lease:
            body = await read_body(call.request, lease, ASKED_BYTES)
            if sum(map(body.count, (b",", b"[", b"{"))) > ASKED_VALUES:
                raise MessageTooLarge(
                    f"bound asked-values: the body has more than {ASKED_VALUES:,} commas and brackets; send "
                    "a shorter prompt"
                )
            return strict_json(body, "the body is no JSON")

    async def _answer(
        self, call: HttpCall, ask: CompletionAsk, form: AnswerForm, text: DeploymentText, until: float
    ) -> web.StreamResponse:
        caller = call.caller

        def generated(request: GenerationRequest) -> AsyncGenerator[GenerationEvent]:
            return self._generator.generate(request, caller, until - time.monotonic())

        asked = ask.asked()
        usages = UsageOfChoices(ask.choices)
        words = TokenWords(text.coder)
        told = [ToldText(words, bool(one.stop), not form.chat) for one in asked] if ask.told else None
        made = Choices([partial(generated, one) for one in asked], until).events()
        async with aclosing(made), aclosing(_told(made, told, until)) as events:
            if ask.stream:
                return await _streamed(call, events, form, usages, len(asked))
            choices = [ChoiceAnswer(told=LogprobsText(form.chat) if ask.told else None) for _ in asked]
            async for found in events:
                if found is not None:
                    at, one, tokens = found
                    choices[at].text += one.text
                    choices[at].finish = one.finish or choices[at].finish
                    if (so_far := choices[at].told) is not None:
                        so_far.add(tokens)
                    usages.add(at, one.usage)
            whole = form.whole(choices, usages.all())
            return web.Response(text=whole, content_type="application/json")


_Come = tuple[int, GenerationEvent, Sequence[WrittenToken]]
"""The choice's place, what came of it, and which of its tokens can be told now."""


async def _told(
    events: AsyncGenerator[tuple[int, GenerationEvent] | None],
    told: Sequence[ToldText] | None,
    until: float,
) -> AsyncGenerator[_Come | None]:
    """The events with what is told of their tokens."""
    async for found in events:
        if found is None:
            yield None
        else:
            at, one = found
            yield at, one, () if told is None else await told[at].after(one, until)


async def _streamed(
    call: HttpCall,
    events: AsyncGenerator[_Come | None],
    form: AnswerForm,
    usages: UsageOfChoices,
    choices: int,
) -> web.StreamResponse:
    """What goes wrong before the first token has a status of its own; behind, it is an event."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    begun = False
    try:
        async for found in events:
            data = ALIVE
            if found is not None:
                data, (at, one, tokens) = b"", found
                if one.text or one.finish or tokens:
                    # All begin before any goes on, in their order: OpenAI's package counts on it.
                    data = b"" if begun else b"".join(map(form.begin, range(choices)))
                    data += form.chunk(one.text, one.finish, at, tokens)
                    begun = True
                usages.add(at, one.usage)
            await _write(call, response, data)
        await _write(call, response, form.end(usages.all()))
    except EdgeAttentionError as error:
        if call.response is None:
            raise
        await _write(call, response, event(error_body(http_status(error), error)))
    except TimeoutError:
        call.abort()
        return response
    await response.write_eof()
    return response


async def _write(call: HttpCall, response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(STUCK_SECONDS):
        if call.response is None:
            call.response = response
            await response.prepare(call.request)
        if data:
            await response.write(data)


def _new(kind: str, ask: CompletionAsk) -> tuple[str, str, int]:
    return f"{kind}-{secrets.token_hex(12)}", ask.model, int(time.time())
