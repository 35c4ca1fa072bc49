"""Tokens of a deployed decoder, followed as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

from edge_attention.client.connection import DEADLINE_MARGIN, ClientConnection
from edge_attention.core.errors import DataLoss, FailedPrecondition, InvalidArgument
from edge_attention.core.generation.sampling import MAX_BIAS, MAX_COUNTED
from edge_attention.core.messages.inference import (
    GenerateReport,
    GenerateRequest,
    GenerateResponse,
    TensorPiece,
    TokenValue,
    ToldToken,
)
from edge_attention.core.tensors import Array, DataType
from edge_attention.jobs import values
from edge_attention.jobs.checks import require_whole
from edge_attention.wire import services

__all__ = ["AsyncGeneration", "GeneratedPiece", "generate_request"]

MAX_DEADLINE = 3600.0
"""Seconds, the server's limit."""


@dataclass(frozen=True)
class GeneratedPiece:
    """Tokens that came, and the text that is sure by now, which may lag behind them.

    `told`: with `logprobs`, these tokens with their log probabilities, and before them the prompt's with
    `echo`.
    """

    text: str
    tokens: tuple[int, ...]
    told: tuple[ToldToken, ...] = ()

    def __str__(self) -> str:
        return self.text


class AsyncGeneration:
    """What comes after a prompt. Iterate over it once, for pieces as they come; or `await` its `rest`.

    Leaving the iteration ends the generation at once, also at the aggregator.

    Attributes:
        text, tokens, told: all that came so far.
        report: why it ended and what it took, once it has; None before.
    """

    def __init__(self, connection: ClientConnection, request: GenerateRequest) -> None:
        self._connection = connection
        self._request = request
        self._begun = False
        self.text = ""
        self.tokens: list[int] = []
        self.told: list[ToldToken] = []
        self.report: GenerateReport | None = None

    def __aiter__(self) -> AsyncIterator[GeneratedPiece]:
        return self.pieces()

    async def pieces(self) -> AsyncGenerator[GeneratedPiece]:
        """The pieces; close it to leave.

        Raises:
            FailedPrecondition: it was iterated over before: ask again for the same with its seed.
            NotFound: no such model is deployed.
            InvalidArgument: names what is wrong with the request.
            DeadlineExceeded: says how far it came.
            FailedPrecondition: the aggregator is of an earlier release, which passed over an option.
        """
        if self._begun:
            raise InvalidArgument("a generation is iterated over once; call generate again, with its seed")
        self._begun = True
        seconds = self._request.deadline_seconds
        timeout = None if seconds is None else seconds + DEADLINE_MARGIN
        came: AsyncIterator[GenerateResponse] = self._connection.caller.receive(
            services.GENERATE, self._request, timeout, SILENCE if timeout is None else None
        )
        async for response in came:
            self.text += response.text
            self.tokens.extend(response.tokens)
            self.told.extend(response.told)
            self.report = response.report or self.report
            if response.text or response.tokens or response.told:
                yield GeneratedPiece(response.text, response.tokens, response.told)
        if self.report is None:
            raise DataLoss(
                f"the aggregator at {self._connection.address} ended the generation without a word"
            )
        passed = [name for name in self._request.later if name not in self.report.heeded]
        if passed:
            raise FailedPrecondition(
                f"the aggregator at {self._connection.address} is of an earlier release, which passes over "
                f"{', '.join(passed)}: leave that out, or upgrade the aggregator"
            )

    async def rest(self) -> str:
        """All of the text, once it has come."""
        async for _ in self:
            pass
        return self.text


SILENCE = 300.0
"""Seconds without a token, of a generation without a deadline: the server's own default."""


def generate_request(
    model: str,
    prompt: str | Iterable[int],
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
    stop: str | Iterable[str],
    deadline: float | None,
    speculate: bool,
    priority: int,
    arrays: Mapping[str, Array],
    frequency_penalty: float,
    presence_penalty: float,
    logit_bias: Mapping[int, float],
    logprobs: int | None,
    echo: bool,
) -> GenerateRequest:
    """The request; `arrays`: the encoder's inputs.

    Raises:
        InvalidArgument: names what is of a wrong type.
    """
    text, ids = (prompt, ()) if isinstance(prompt, str) else ("", _ids(prompt))
    if not text and not ids and not arrays:
        raise InvalidArgument("the prompt is empty; give at least one token to go on from")
    return GenerateRequest(
        model,
        text,
        ids,
        require_whole(max_tokens, "max_tokens", 0 if values.switch(echo, "echo") else 1, 2**31 - 1),
        values.number(temperature, "temperature"),
        require_whole(top_k, "top_k", 0, 2**31 - 1),
        values.number(top_p, "top_p"),
        values.number(min_p, "min_p"),
        values.number(repetition_penalty, "repetition_penalty"),
        None if seed is None else require_whole(seed, "seed", -(2**63), 2**63 - 1),
        values.several((stop,) if isinstance(stop, str) else stop, "stop"),
        None if deadline is None else values.above(deadline, "deadline", MAX_DEADLINE),
        not values.switch(speculate, "speculate"),
        tuple(
            TensorPiece(name, DataType.of(array.dtype, name), array.shape, 0, array.tobytes())
            for name, array in arrays.items()
        ),
        require_whole(priority, "priority", 0, 16),
        values.number(frequency_penalty, "frequency_penalty", -MAX_COUNTED),
        values.number(presence_penalty, "presence_penalty", -MAX_COUNTED),
        _biases(logit_bias),
        None if logprobs is None else require_whole(logprobs, "logprobs", 0, 2**31 - 1),
        echo,
    )


def _biases(found: Mapping[int, float]) -> tuple[TokenValue, ...]:
    if not isinstance(found, Mapping):
        raise InvalidArgument(
            f"logit_bias is {values.said(found)}; give numbers by token id, as {{50: -100}}"
        )
    return tuple(
        TokenValue(
            require_whole(token, "a token of logit_bias", 0, 2**63 - 1),
            values.number(bias, "a logit_bias", -MAX_BIAS),
        )
        for token, bias in found.items()
    )


def _ids(prompt: Iterable[int]) -> tuple[int, ...]:
    try:
        found = tuple(prompt)
    except TypeError:
        raise InvalidArgument(f"prompt is {values.said(prompt)}; give a text, or token ids") from None
    return tuple(require_whole(one, "a token of the prompt", 0, 2**63 - 1) for one in found)
