"""Answers in OpenAI's form: whole, or as chunks of a stream. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from aggregator.http.completion_requests import param_of
from aggregator.http.guard import NoSuchPath
from aggregator.http.told_tokens import LogprobsText, WrittenToken, chat_logprobs, completion_logprobs
from aggregator.inference.generation.request import GenerationUsage, PromptTooLong
from edge_attention.core.errors import EdgeAttentionError

__all__ = ["DONE", "AnswerForm", "ChoiceAnswer", "UsageOfChoices", "error_body", "error_form", "event"]

DONE = b"data: [DONE]\n\n"
ALIVE = b": alive\n\n"
"""A comment: clients pass over it."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error",
          501: "invalid_request_error"}  # fmt: skip
_CODES = {401: "invalid_api_key", 404: "model_not_found", 503: "overloaded", 504: "timeout"}
_BY_ERROR = {PromptTooLong: "context_length_exceeded", NoSuchPath: "unknown_url"}


def error_body(status: int, error: EdgeAttentionError) -> dict[str, Any]:
    """An error as OpenAI says it."""
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            "param": param_of(error),
            "code": _BY_ERROR.get(type(error)) or _CODES.get(status),
        }
    }


def error_form(status: int, error: EdgeAttentionError) -> web.Response:
    """The same as an answer."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="edge-attention"'
    return web.json_response(error_body(status, error), status=status, headers=headers)


@dataclass
class ChoiceAnswer:
    """A choice as it has come so far. `told`: what of its tokens, where that was asked for."""

    text: str = ""
    finish: str = ""
    told: LogprobsText | None = None


@dataclass(frozen=True)
class AnswerForm:
    """One answer's form.

    Attributes:
        created: seconds since 1970.
        usage: whether a stream says at its end what it took, and in each other chunk that it does not yet.
    """

    id: str
    model: str
    created: int
    chat: bool
    usage: bool = False

    def whole(self, choices: Sequence[ChoiceAnswer], usage: GenerationUsage | None) -> str:
        """All of it at once, as JSON."""
        said = []
        for index, one in enumerate(choices):
            message = {"message": {"role": "assistant", "content": one.text, "refusal": None}}
            text: dict[str, Any] = message if self.chat else {"text": one.text}
            choice = json.dumps({"index": index, **text, "finish_reason": one.finish or None})
            told = "null" if one.told is None else str(one.told)
            said.append(f'{choice[:-1]}, "logprobs": {told}}}')
        kind = "chat.completion" if self.chat else "text_completion"
        around = json.dumps({**self._head(kind), "usage": _usage(usage)})
        return f'{around[:-1]}, "choices": [{", ".join(said)}]}}'

    def begin(self, index: int = 0) -> bytes:
        """The chunk before any text of a choice; of a completion there is none."""
        return self._chunk({"role": "assistant", "content": ""}, None, index) if self.chat else b""

    def chunk(self, text: str, finish: str, index: int = 0, told: Sequence[WrittenToken] = ()) -> bytes:
        """Some text of a choice, tokens of which something is told, and at last why it ended."""
        if not self.chat:
            return self._chunk(text, finish or None, index, told)
        delta = {"content": text} if text or told else {}
        return self._chunk(delta, finish or None, index, told)

    def end(self, usage: GenerationUsage | None) -> bytes:
        """What it took, if that was asked for, and the stream's end."""
        if not self.usage:
            return DONE
        return event({**self._head(self._kind), "choices": [], "usage": _usage(usage)}) + DONE

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, delta: Any, finish: str | None, index: int, told: Sequence[WrittenToken] = ()) -> bytes:
        said = {"delta" if self.chat else "text": delta}
        logprobs = (chat_logprobs if self.chat else completion_logprobs)(told) if told else None
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self.usage else {}
        return event({**self._head(self._kind), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class UsageOfChoices:
    """What the choices of a request took together: a prompt once, of however many `choices` it has."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._all: GenerationUsage | None = None

    def add(self, place: int, usage: GenerationUsage | None) -> None:
        """What the choice at `place` took; None: not known yet."""
        if usage is None:
            return
        prompt = 0 if place % self._choices else usage.prompt_tokens
        before = self._all or replace(usage, prompt_tokens=0, completion_tokens=0)
        self._all = replace(
            before,
            prompt_tokens=before.prompt_tokens + prompt,
            completion_tokens=before.completion_tokens + usage.completion_tokens,
            lacking=before.lacking or usage.lacking,
        )

    def all(self) -> GenerationUsage | None:
        return self._all


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _usage(usage: GenerationUsage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    asked, made = usage.prompt_tokens, usage.completion_tokens
    label = {"exact": False, "lacking": usage.lacking} if usage.lacking else {}  # no field of OpenAI's
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made, **label}
