"""What is asked in OpenAI's form, read strictly: completions and chats. Pure.

What would change the answer and is not done here is refused, not passed over: several choices, log
probabilities, tools, penalties. What only concerns OpenAI's own service is taken and means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.inference.batching.batch_queue import PRIORITIES, PRIORITY
from aggregator.inference.generation.request import GenerationRequest
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument

__all__ = ["ChatMessage", "CompletionAsk", "WrongParameter", "chat_of", "completion_of"]

MESSAGES = 1024
"""Of one chat."""
STOPS = 16
COMPLETION_TOKENS = 16
"""What a completion has that does not say how many: as OpenAI's."""
CHAT_TOKENS = 1024
"""The same of a chat, which there may be as long as the model's longest."""
ROLES = ("system", "developer", "user", "assistant", "tool")
ASIDE = frozenset(
    {
        "user",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
    }
)
"""Fields that mean nothing here."""
ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
}
"""Fields of which there is one value, as null is, that changes nothing; others are refused."""
SAMPLING = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "seed",
        "priority",
        "stop",
        "stream",
        "stream_options",
    }
)


class WrongParameter(InvalidArgument):
    """A field of the request is wrong. `param`: which."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class ChatMessage:
    role: str
    content: str
    name: str = ""


@dataclass(frozen=True)
class CompletionAsk:
    """One request.

    Attributes:
        messages: of a chat, whose template makes the prompt; None: of a completion.
        generation: what is generated; the prompt of a chat is still "".
        stream: whether the text comes as it is made; `usage`: and what it took, at the end.
    """

    generation: GenerationRequest
    messages: tuple[ChatMessage, ...] | None = None
    stream: bool = False
    usage: bool = False


def completion_of(said: Any) -> CompletionAsk:
    """The request that a body of /v1/completions makes.

    Raises:
        WrongParameter: names the field.
    """
    fields = _fields(said, {"prompt", "max_tokens"})
    stream, usage = _stream(fields)
    tokens = _whole(fields, "max_tokens", COMPLETION_TOKENS)
    return CompletionAsk(_generation(fields, _prompt(fields.get("prompt")), tokens), None, stream, usage)


def chat_of(said: Any) -> CompletionAsk:
    """The request that a body of /v1/chat/completions makes.

    Raises:
        WrongParameter: names the field.
    """
    fields = _fields(said, {"messages", "max_tokens", "max_completion_tokens"})
    messages = fields.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MESSAGES:
        raise WrongParameter(f"messages is a list of 1 to {MESSAGES:,} messages", "messages")
    stream, usage = _stream(fields)
    tokens = _whole(fields, "max_tokens", CHAT_TOKENS)
    tokens = _whole(fields, "max_completion_tokens", tokens)
    read = tuple(_message(number, one) for number, one in enumerate(messages))
    return CompletionAsk(_generation(fields, "", tokens), read, stream, usage)


def _fields(said: Any, own: set[str]) -> Mapping[str, Any]:
    """The fields that say something."""
    if not isinstance(said, dict):
        raise WrongParameter("the body is no JSON object", "")
    fields = {name: value for name, value in said.items() if value is not None}
    for name, value in fields.items():
        if name in ONLY:
            good = ONLY[name]
            # 0.0 is 0, and neither is false: `logprobs: 0` asks for some.
            if not any(type(value) is type(one) and value == one for one in good) and not (
                value == 0 and type(value) is float and any(type(one) is int and one == 0 for one in good)
            ):
                offered = " or ".join(map(json.dumps, good)) or "null"
                raise WrongParameter(f"{name} is not served here with other values than {offered}", name)
        elif name not in ASIDE and name not in SAMPLING and name not in own and name != "model":
            raise WrongParameter(f"Unrecognized request argument supplied: {name[:80]}", name[:80])
    if not isinstance(fields.get("model"), str):
        raise WrongParameter("you must provide a model parameter, the name of a deployed model", "model")
    return fields


def _generation(
    fields: Mapping[str, Any], prompt: str | tuple[int, ...], max_tokens: int
) -> GenerationRequest:
    seed = fields.get("seed")
    if seed is not None and (type(seed) is not int or not -(1 << 63) <= seed < 1 << 63):
        raise WrongParameter(f"seed must be a whole number of 64 bits, not {_shown(seed)}", "seed")
    return GenerationRequest(
        model=fields["model"],
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=_number(fields, "temperature", 1.0),
        top_p=_number(fields, "top_p", 1.0),
        top_k=max(_whole(fields, "top_k", 0), 0),  # -1 is all of them, elsewhere
        min_p=_number(fields, "min_p", 0.0),
        repetition_penalty=_number(fields, "repetition_penalty", 1.0),
        seed=seed,
        stop=_stops(fields.get("stop", ())),
        priority=_priority(fields),
    )


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(one) is int and 0 <= one < 1 << 31 for one in value):
        return tuple(value)
    several = isinstance(value, list) and len(value) > 1 and isinstance(value[0], str | list)
    raise WrongParameter(
        "several prompts in one request are not served here; send a request each"
        if several
        else "prompt is a string, or a list of token ids",
        "prompt",
    )


def _message(number: int, one: Any) -> ChatMessage:
    where = f"messages[{number}]"
    if not isinstance(one, dict) or one.get("role") not in ROLES:
        raise WrongParameter(f"{where} has a role of {', '.join(ROLES)}, and content", where)
    for name in one:
        if name not in ("role", "content", "name", "refusal", "tool_call_id") and one[name]:
            raise WrongParameter(f"{where}: {name[:40]} is not served here", where)
    content = one.get("content")
    if isinstance(content, list):
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            raise WrongParameter(f"{where}: only parts of type text are served here", where)
        if any(not isinstance(part.get("text"), str) for part in content):
            raise WrongParameter(f"{where}: a part of type text has its text, a string", where)
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise WrongParameter(f"{where}: content is a string, or a list of parts of type text", where)
    name = one.get("name", "")
    return ChatMessage(one["role"], content, name if isinstance(name, str) else "")


def _stream(fields: Mapping[str, Any]) -> tuple[bool, bool]:
    stream, options = fields.get("stream", False), fields.get("stream_options", {})
    if type(stream) is not bool:
        raise WrongParameter("stream is true or false", "stream")
    if not isinstance(options, dict) or (options and not stream):
        raise WrongParameter("stream_options is an object, and goes with stream only", "stream_options")
    usage = options.get("include_usage", False)
    if type(usage) is not bool:
        raise WrongParameter("stream_options.include_usage is true or false", "stream_options")
    return stream, usage


def _stops(value: Any) -> tuple[str, ...]:
    stops: Sequence[Any] = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list | tuple)
        or len(stops) > STOPS
        or not all(isinstance(s, str) for s in stops)
    ):
        raise WrongParameter(f"stop is a string, or a list of at most {STOPS}", "stop")
    return tuple(one for one in stops if one)


def _priority(fields: Mapping[str, Any]) -> int:
    value = _whole(fields, "priority", 0)
    if not 0 <= value <= PRIORITIES:
        raise WrongParameter(
            f"priority is {value}; 1 goes first, {PRIORITIES} last, 0 is {PRIORITY}", "priority"
        )
    return value


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if type(value) not in (int, float):
        raise WrongParameter(f"{name} must be a number, not {_shown(value)}", name)
    try:
        return float(value)
    except OverflowError:
        raise WrongParameter(f"{name} is out of range", name) from None


def _whole(fields: Mapping[str, Any], name: str, default: int) -> int:
    value = fields.get(name, default)
    if type(value) is not int or abs(value) >= 1 << 31:
        raise WrongParameter(f"{name} must be a whole number of 32 bits, not {_shown(value)}", name)
    return value


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def param_of(error: EdgeAttentionError) -> str | None:
    """The field that an error is about, if it is known."""
    return (error.param or None) if isinstance(error, WrongParameter) else None
