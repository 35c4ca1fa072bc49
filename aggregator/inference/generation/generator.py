"""Generations: the loop of a course over a session, as a stream of events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Generic, TypeVar

import numpy as np

from aggregator.bounds.bounds import GENERATIONS
from aggregator.bounds.budget import Budgets
from aggregator.engine.endings import to_the_end
from aggregator.inference.generation.metrics import GenerationMetrics
from aggregator.inference.generation.request import (
    Finish,
    GenerationEvent,
    GenerationRequest,
    GenerationUsage,
    PromptTooLong,
)
from aggregator.inference.generation.sessions import TokenForm, TokenSessions
from aggregator.inference.generation.texts import DeploymentText, DeploymentTexts
from aggregator.inference.generation.written_text import WrittenText
from aggregator.inference.traffic import ModelTraffic
from edge_attention.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from edge_attention.core.generation.course import PROMPT_ROWS, GenerationCourse
from edge_attention.core.generation.speculation import SpeculationRule
from edge_attention.core.tensors import Float32

__all__ = ["Generator"]

S = TypeVar("S")

GenerationEnded = Callable[[str, float, GenerationUsage | None], None]
"""Told of a model's name, the seconds that a generation took, and what; None: it failed, or was left."""

LOGIT_BYTES = 16 * 1024 * 1024
"""Of the logits of one trip: a prompt is read in as many tokens at a time."""
ON_THE_LOOP = 16_384
"""Logits from which on a token is chosen by a thread: to sort 100,000 takes 10 ms."""
TURNS = 2
"""Of the loop, in which the next trip's programs are sent before what came is."""
RULES = 256
"""Models whose trips are remembered."""


class Generator(Generic[S]):
    """Generations of all deployed decoders."""

    def __init__(
        self,
        sessions: TokenSessions[S],
        texts: DeploymentTexts,
        budgets: Budgets,
        metrics: GenerationMetrics,
        traffic: ModelTraffic | None = None,
        ended: GenerationEnded = lambda model, seconds, usage: None,
    ) -> None:
        self._sessions = sessions
        self._ended = ended
        self._texts = texts
        self._metrics = metrics
        self._traffic = traffic or ModelTraffic()
        self._budgets = budgets
        self._rules: dict[str, SpeculationRule] = {}

    def models(self) -> Sequence[str]:
        """Names of the models that can be asked."""
        return self._sessions.models()

    async def writers(self) -> Sequence[str]:
        """Names of those that have a tokenizer, too: they make text."""
        found = []
        for name in self._sessions.models():
            with suppress(NotFound):  # it has gone meanwhile
                if await self._texts.there(name):
                    found.append(name)
        return found

    def deployment(self, model: str) -> str:
        """Names the deployment that generations are of now, and no other. Raises NotFound: there is none."""
        return self._sessions.version(model)

    async def texts(self, model: str) -> DeploymentText | None:
        """The tokenizer, template and special tokens of a model; None: it has none.

        Raises:
            NotFound, FailedPrecondition: it is not deployed, or no decoder.
            InvalidArgument: its files are not what they should be.
        """
        return await self._texts.get(model, self._sessions.form(model).vocabulary)

    async def generate(
        self, request: GenerationRequest, owner: str, seconds: float
    ) -> AsyncGenerator[GenerationEvent]:
        """The tokens that come after the prompt, as they come. Close the iterator to end it at once.

        Args:
            owner: at whose cost the session is.
            seconds: for all of it.

        Raises:
            InvalidArgument: names the field of the request that is wrong.
            NotFound, FailedPrecondition: no decoder of that name is deployed; it has no tokenizer.
            ResourceExhausted: too many go on.
            DeadlineExceeded: the time is over; says how far it came.
            Unavailable: it is for a deployment that serves no more.
        """
        began = time.monotonic()
        request.check()
        with self._budgets.take(GENERATIONS, owner or None), self._metrics.counted():
            usage: GenerationUsage | None = None
            self._sessions.form(request.model)  # there is one
            try:
                running = await self._read(request, began, began + seconds)
                async with aclosing(running.events(owner)) as events:
                    async for event in events:
                        self._metrics.came(event)
                        usage = event.usage or usage
                        self._traffic.add(request.model, "tokens", len(event.tokens))
                        yield event
            finally:
                self._ended(request.model, time.monotonic() - began, usage)

    async def _read(self, request: GenerationRequest, began: float, until: float) -> _RunningGeneration[S]:
        """The generation, whose prompt is in the tokens of what serves when this returns: of another version
        they may be others."""
        while True:
            serves, form = self._sessions.version(request.model), self._sessions.form(request.model)
            if request.deployment not in ("", serves):
                raise Unavailable(f"another version of model {request.model!r} serves by now: ask again")
            running = await self._read_for(form, request, began, until)
            if serves == self._sessions.version(request.model):
                return running

    async def _read_for(
        self, form: TokenForm, request: GenerationRequest, began: float, until: float
    ) -> _RunningGeneration[S]:
        request.sampling(0).check_vocabulary(form.vocabulary)
        if request.echo and form.states:
            raise InvalidArgument(f"model {request.model!r} has an encoder: echo is of decoders alone")
        text = await self._texts.get(request.model, form.vocabulary)
        prompt: tuple[int, ...] = ()
        if request.prompt:
            prompt = await _prompt(request, text, form, until - time.monotonic())
        encoded: tuple[int, ...] = ()
        if form.states:
            encoded, prompt = await self._beside_encoder(request, form, prompt)
        elif request.inputs:
            raise InvalidArgument(
                f"model {request.model!r} has no encoder that takes inputs: give a prompt alone"
            )
        seed = secrets.randbits(63) if request.seed is None else request.seed
        running = _RunningGeneration(self._sessions, form, request, prompt, text, seed, began, until)
        running.encoded = encoded
        running.rule = self._rule(request.model) if request.speculate else None
        return running

    async def _beside_encoder(
        self, request: GenerationRequest, form: TokenForm, prompt: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The encoder's tokens, and those that the decoder begins with."""
        if request.inputs and prompt:
            return (), prompt
        begins = await self._texts.begins(request.model)
        if not begins or max(begins) >= form.vocabulary:
            raise FailedPrecondition(
                f"with which token the decoder of model {request.model!r} begins is not known: give inputs "
                "of the encoder, and the decoder's first tokens as the prompt (on a stream of the Open "
                "Inference Protocol as decoder_input_ids); or deploy it with a tokenizer's "
                "folder whose generation_config.json says decoder_start_token_id"
            )
        return prompt, begins

    def _rule(self, model: str) -> SpeculationRule:
        rule = self._rules.pop(model, None) or SpeculationRule()
        self._rules[model] = rule
        while len(self._rules) > RULES:
            del self._rules[next(iter(self._rules))]
        return rule


class _RunningGeneration(Generic[S]):
    """One generation."""

    def __init__(
        self,
        sessions: TokenSessions[S],
        form: TokenForm,
        request: GenerationRequest,
        prompt: tuple[int, ...],
        text: DeploymentText | None,
        seed: int,
        began: float,
        until: float,
    ) -> None:
        self._sessions = sessions
        self._request = request
        self._prompt = prompt
        self._text = text
        self._seed = seed
        self._began, self._until = began, until
        self._vocabulary, longest = form.vocabulary, form.length
        if len(prompt) > longest:
            raise PromptTooLong(
                f"the prompt has {len(prompt):,} tokens, and a session of model {request.model!r} has "
                f"{longest:,} at most; send a shorter one"
            )
        # The last token that comes needs no place in the session.
        self._most = min(request.max_tokens, longest - len(prompt) + 1)
        self._written = WrittenText(None if text is None else text.coder, request.stop, prompt)
        self._count = self._trips = 0
        self._lacking = ""
        self.rule: SpeculationRule | None = None
        self.encoded: tuple[int, ...] = ()
        """Tokens of the encoder's text, where it has one."""

    async def events(self, owner: str) -> AsyncGenerator[GenerationEvent]:
        request = self._request
        session = await self._sessions.open(
            request.model, owner, self._left(), request.inputs or None, self.encoded, request.priority,
            request.sampling(self._seed).greedy,
        )  # fmt: skip
        try:
            self._lacking = self._sessions.lacking(session)
            async with aclosing(self._come(session)) as events:
                async for event in events:
                    yield event
        finally:
            await to_the_end(self._sessions.close(session))

    async def _come(self, session: S) -> AsyncGenerator[GenerationEvent]:
        request, rule = self._request, self.rule
        course = GenerationCourse(
            self._prompt,
            request.sampling(self._seed),
            self._most,
            self._text.ends if self._text is not None else (),
            rule,
            max(1, min(PROMPT_ROWS, LOGIT_BYTES // (4 * self._vocabulary))),
            request.logprobs,
            request.echo,
        )
        prompted, held = 0.0, 0
        finish: Finish = course.finish
        if request.echo:
            usage = self._usage(course, prompted) if finish else None
            yield GenerationEvent(await self._echoed(), (), finish, usage, course.told)
        asked: tuple[int, ...] = ()
        ahead: asyncio.Task[tuple[Float32, float]] | None = None
        try:
            while not finish:
                asked = course.ask() if ahead is None else asked
                trip, ahead = ahead or self._trip(session, asked, self._left()), None
                try:
                    logits, took = await trip
                except DeadlineExceeded as error:
                    raise self._late(error.message) from None
                self._trips += 1
                held += len(asked)
                came = await self._taken(course, logits)
                told = course.told
                if not came and not course.finish:
                    if told:
                        yield GenerationEvent(told=told)
                    continue
                if not prompted:
                    prompted = time.monotonic() - self._began
                elif rule is not None:
                    rule.took(len(asked), took)
                if not course.finish and course.length < held:
                    back, held = time.monotonic(), course.length
                    await self._sessions.truncate(session, held)
                    if rule is not None:
                        rule.taken_back(time.monotonic() - back)
                left = self._until - time.monotonic()
                if not (course.finish or request.stop) and left > 0:
                    # What came is told while the next trip is under way.
                    asked = course.ask()
                    ahead = asyncio.create_task(self._trip(session, asked, left))
                    for _ in range(TURNS):
                        await asyncio.sleep(0)
                try:
                    text, kept = await self._written.after(came, bool(course.finish), self._until)
                except DeadlineExceeded as error:
                    raise self._late(error.message) from None
                finish = "stop" if self._written.stopped else course.finish
                self._count += kept
                usage = self._usage(course, prompted) if finish else None
                if text or kept or finish:
                    told = told[: len(told) - len(came) + kept]
                    end = None if self._written.stopped else course.end
                    yield GenerationEvent(text, came[:kept], finish, usage, told, end)
        finally:
            if ahead is not None:
                ahead.cancel()
                await to_the_end(asyncio.wait([ahead]))
                if not ahead.cancelled():
                    ahead.exception()  # nobody is to be told

    async def _echoed(self) -> str:
        """The prompt's text, as it was asked with or as its tokens are written; "" without a tokenizer."""
        if isinstance(self._request.prompt, str):
            return self._request.prompt
        if self._text is None:
            return ""
        try:
            (text,) = await self._text.coder.decode([self._prompt], self._until - time.monotonic())
        except DeadlineExceeded as error:
            raise self._late(error.message) from None
        return text

    async def _trip(self, session: S, asked: Sequence[int], left: float) -> tuple[Float32, float]:
        """The logits of these tokens, and how long they took."""
        sent = time.monotonic()
        logits = await self._sessions.extend(session, np.array(asked, np.int64), left)
        return logits, time.monotonic() - sent

    async def _taken(self, course: GenerationCourse, logits: Float32) -> tuple[int, ...]:
        if logits.size < ON_THE_LOOP:
            return course.take(logits)
        return await asyncio.to_thread(course.take, logits)

    def _usage(self, course: GenerationCourse, prompted: float) -> GenerationUsage:
        seconds = time.monotonic() - self._began
        return GenerationUsage(
            len(self.encoded) + len(self._prompt),
            self._count,
            self._seed,
            self._trips,
            course.guessed,
            course.accepted,
            {"prompt": prompted, "tokens": seconds - prompted, "all": seconds},
            self._lacking,
        )

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise self._late("it had just come to the next one")
        return left

    def _late(self, waited: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"model {self._request.model!r} had written {self._count:,} of {self._most:,} tokens at the "
            f"deadline ({waited}); ask for fewer, or with a longer one"
        )


async def _prompt(
    request: GenerationRequest, text: DeploymentText | None, form: TokenForm, seconds: float
) -> tuple[int, ...]:
    if not isinstance(request.prompt, str):
        known = form.vocabulary
        wrong = next((one for one in request.prompt if not 0 <= one < known), None)
        if wrong is not None:
            raise InvalidArgument(
                f"the prompt has token {wrong}; model {request.model!r} knows 0 to {known - 1}"
            )
        return request.prompt
    if text is None:
        raise FailedPrecondition(
            f"model {request.model!r} has no tokenizer: send token ids, or deploy it with --tokenizer"
        )
    prompt = await text.coder.encode(request.prompt, request.special, seconds)
    if not prompt:
        raise InvalidArgument("the prompt has no tokens; give at least one to go on from")
    return prompt
