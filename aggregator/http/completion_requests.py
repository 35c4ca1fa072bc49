"""What is asked in OpenAI's form, read strictly: completions and chats. Pure.

What would change the answer and is not done here is refused, not passed over: tools, other forms of response.
What only concerns OpenAI's own service is taken and means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aggregator.http.told_tokens import TOLD_VALUES
from aggregator.inference.batching.batch_queue import PRIORITIES, PRIORITY
from aggregator.inference.generation.request import GenerationRequest, PromptTooLong
from edge_attention.core.errors import EdgeAttentionError, InvalidArgument
from edge_attention.core.generation.log_probabilities import MAX_LIKELIEST
from edge_attention.core.generation.sampling import MAX_BIASES

__all__ = ["ChatMessage", "CompletionAsk", "WrongParameter", "chat_of", "completion_of"]

MESSAGES = 1024
"""Of one chat."""
CHOICES = 128
"""That one request may have: its prompts, `n` times each."""
STOPS = 16
COMPLETION_TOKENS = 16
"""What a completion has that does not say how many: as OpenAI's."""
CHAT_TOKENS = 1024
"""The same of a chat, which there may be as long as the model's longest."""
LIKELIEST = 5
"""Other tokens of a place that a completion may ask for, as OpenAI's; a chat MAX_LIKELIEST."""
ECHOED = 1 << 21
"""Characters of prompts, or tokens of those that come so, that one answer may repeat."""
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
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (),
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
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "seed",
        "priority",
        "stop",
        "stream",
        "stream_options",
        "n",
    }
)
CHECKED = (
    "max_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "stop",
)
"""Fields of a generation that may be out of range, each looked at alone, so that it can be named."""
PART = frozenset({"type", "text", "cache_control"})
"""Fields of a message's part; the last is for others' caches."""


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
        generations: of each prompt, which a chat has one of, still "".
        messages: of a chat, whose template makes the prompt; None: of a completion.
        choices: answers to each prompt.
        stream: whether the text comes as it is made; `usage`: and what it took, at the end.
    """

    generations: tuple[GenerationRequest, ...]
    messages: tuple[ChatMessage, ...] | None = None
    choices: int = 1
    stream: bool = False
    usage: bool = False

    @property
    def model(self) -> str:
        return self.generations[0].model

    @property
    def told(self) -> bool:
        """Whether it is told how likely tokens were."""
        return self.generations[0].logprobs is not None

    def asked(self) -> tuple[GenerationRequest, ...]:
        """What is generated: all choices of the first prompt, then those of the next.

        The first choice is what its prompt alone would have; those behind it have the next seeds.
        """
        return tuple(
            one if number == 0 or one.seed is None else replace(one, seed=_beyond(one.seed, number))
            for one in self.generations
            for number in range(self.choices)
        )


def completion_of(said: Any) -> CompletionAsk:
    """The request that a body of /v1/completions makes.

    Raises:
        WrongParameter: names the field.
    """
    fields = _fields(said, {"prompt", "max_tokens", "best_of", "logprobs", "echo"})
    stream, usage = _stream(fields)
    tokens = _whole(fields, "max_tokens", COMPLETION_TOKENS)
    prompts = _prompts(fields.get("prompt"))
    choices = _choices(fields, len(prompts))
    if _whole(fields, "best_of", choices) != choices:
        raise WrongParameter("best_of is not served here with other values than n's", "best_of")
    echo = _switch(fields, "echo")
    logprobs = None
    if fields.get("logprobs", False) is not False:
        logprobs = _whole(fields, "logprobs", 0)
        if not 0 <= logprobs <= LIKELIEST:
            raise WrongParameter(f"logprobs is {logprobs}; it is 0 to {LIKELIEST}", "logprobs")
    ask = CompletionAsk(
        tuple(_generation(fields, prompt, tokens, logprobs, echo) for prompt in prompts),
        None,
        choices,
        stream,
        usage,
    )
    echoed = choices * sum(len(one.prompt) for one in ask.generations) if echo else 0
    if echoed > ECHOED:
        raise WrongParameter(
            f"bound echoed: the answer would repeat {echoed:,} characters or tokens of prompts, and repeats "
            f"{ECHOED:,} at most",
            "echo",
        )
    return _told(ask)


def chat_of(said: Any) -> CompletionAsk:
    """The request that a body of /v1/chat/completions makes.

    Raises:
        WrongParameter: names the field.
    """
    fields = _fields(said, {"messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"})
    messages = fields.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MESSAGES:
        raise WrongParameter(f"messages is a list of 1 to {MESSAGES:,} messages", "messages")
    stream, usage = _stream(fields)
    tokens = _whole(fields, "max_tokens", CHAT_TOKENS)
    tokens = _whole(fields, "max_completion_tokens", tokens)
    read = tuple(_message(number, one) for number, one in enumerate(messages))
    choices = _choices(fields, 1)
    told, likeliest = _switch(fields, "logprobs"), _whole(fields, "top_logprobs", 0)
    if not 0 <= likeliest <= MAX_LIKELIEST or (likeliest and not told):
        raise WrongParameter(
            f"top_logprobs is {likeliest}; it is 0 to {MAX_LIKELIEST}, and goes with logprobs: true only",
            "top_logprobs",
        )
    generation = _generation(fields, None, tokens, likeliest if told else None)
    return _told(CompletionAsk((generation,), read, choices, stream, usage))


def _told(ask: CompletionAsk) -> CompletionAsk:
    """The same; what its prompts will have to tell that come as texts shows once they are tokens."""
    if not ask.told:
        return ask
    values = ask.choices * sum(
        (1 + (one.logprobs or 0))
        * (one.max_tokens + (len(one.prompt) if one.echo and not isinstance(one.prompt, str) else 0))
        for one in ask.generations
    )
    if values > TOLD_VALUES:
        raise WrongParameter(
            f"bound told-values: logprobs of as many tokens and choices are {values:,} values, and an "
            f"answer has {TOLD_VALUES:,} at most",
            "logprobs",
        )
    return ask


def _fields(said: Any, own: set[str]) -> Mapping[str, Any]:
    """The fields that say something."""
    if not isinstance(said, dict):
        raise WrongParameter("the body is no JSON object", "")
    fields = {name: value for name, value in said.items() if value is not None}
    for name, value in fields.items():
        if name in ONLY and name not in own:
            good = ONLY[name]
            if not any(type(value) is type(one) and value == one for one in good):  # 0 is not false
                offered = " or ".join(map(json.dumps, good)) or "null"
                raise WrongParameter(f"{name} is not served here with other values than {offered}", name)
        elif name not in ASIDE and name not in SAMPLING and name not in own and name != "model":
            raise WrongParameter(f"Unrecognized request argument supplied: {name[:80]}", name[:80])
    if not isinstance(fields.get("model"), str):
        raise WrongParameter("you must provide a model parameter, the name of a deployed model", "model")
    return fields


def _choices(fields: Mapping[str, Any], prompts: int) -> int:
    choices = _whole(fields, "n", 1)
    if choices < 1 or choices * prompts > CHOICES:
        raise WrongParameter(
            f"n is {choices}, of {prompts:,} prompts; it is 1 at least, and a request has {CHOICES} choices "
            "at most, of all its prompts",
            "prompt" if choices == 1 else "n",
        )
    return choices


def _beyond(seed: int, number: int) -> int:
    """The seed `number` behind, of 64 bits with a sign."""
    return (seed + number + (1 << 63)) % (1 << 64) - (1 << 63)


def _generation(
    fields: Mapping[str, Any],
    prompt: str | tuple[int, ...] | None,
    max_tokens: int,
    logprobs: int | None = None,
    echo: bool = False,
) -> GenerationRequest:
    """`prompt` None: there is none yet."""
    seed = fields.get("seed")
    if seed is not None and (type(seed) is not int or not -(1 << 63) <= seed < 1 << 63):
        raise WrongParameter(f"seed must be a whole number of 64 bits, not {_shown(seed)}", "seed")
    made = GenerationRequest(
        model=fields["model"],
        prompt="" if prompt is None else prompt,
        max_tokens=max_tokens,
        temperature=_number(fields, "temperature", 1.0),
        top_p=_number(fields, "top_p", 1.0),
        top_k=max(_whole(fields, "top_k", 0), 0),  # -1 is all of them, elsewhere
        min_p=_number(fields, "min_p", 0.0),
        repetition_penalty=_number(fields, "repetition_penalty", 1.0),
        seed=seed,
        stop=_stops(fields.get("stop", ())),
        priority=_priority(fields),
        frequency_penalty=_number(fields, "frequency_penalty", 0.0),
        presence_penalty=_number(fields, "presence_penalty", 0.0),
        logit_bias=_biases(fields.get("logit_bias", {})),
        logprobs=logprobs,
        echo=echo,
    )
    plain = GenerationRequest(made.model, "x", 1, echo=echo)
    for field in CHECKED if prompt is None else ("prompt", *CHECKED):
        try:
            replace(plain, **{field: getattr(made, field)}).check()
        except PromptTooLong:
            raise  # which has a code of its own
        except InvalidArgument as error:
            raise WrongParameter(error.message, field) from None
    return made


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    several = isinstance(value, list) and value and isinstance(value[0], str | list)
    return tuple(_prompt(one) for one in (value if several else [value]))


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return _text(value, "prompt")
    if isinstance(value, list) and value and all(type(one) is int and 0 <= one < 1 << 31 for one in value):
        return tuple(value)
    raise WrongParameter("prompt is a string, or a list of token ids, or a list of those", "prompt")


def _text(value: str, where: str) -> str:
    """The text, which is one: JSON can say half a character, which no tokenizer knows."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WrongParameter(
            f"{where} has a lone surrogate, half a character: send whole ones", where
        ) from None
    return value


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
        for name in (name for part in content for name in part if name not in PART and part[name]):
            raise WrongParameter(f"{where}: {name[:40]} of a part is not served here", where)
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise WrongParameter(f"{where}: content is a string, or a list of parts of type text", where)
    name = "" if one.get("name") is None else one["name"]
    if not isinstance(name, str):
        raise WrongParameter(f"{where}: name is a string", where)
    return ChatMessage(one["role"], _text(content, where), _text(name, where))


def _stream(fields: Mapping[str, Any]) -> tuple[bool, bool]:
    stream, options = fields.get("stream", False), fields.get("stream_options", {})
    if type(stream) is not bool:
        raise WrongParameter("stream is true or false", "stream")
    if not isinstance(options, dict) or (options and not stream):
        raise WrongParameter("stream_options is an object, and goes with stream only", "stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):  # the other pads OpenAI's own chunks
            raise WrongParameter(f"stream_options: {name[:40]} is not served here", "stream_options")
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
    return tuple(_text(one, "stop") for one in stops if one)


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict):
        raise WrongParameter("logit_bias is an object, of token ids with a number each", "logit_bias")
    if len(value) > MAX_BIASES:
        raise WrongParameter(
            f"bound logit-biases: logit_bias has {len(value):,} tokens; give it at most {MAX_BIASES}",
            "logit_bias",
        )
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10) or type(bias) not in (int, float):
            raise WrongParameter(
                f"logit_bias has {_shown(token)}: {_shown(bias)}; it is a token's id with a number",
                "logit_bias",
            )
    return tuple(
        (int(token), _number({"logit_bias": bias}, "logit_bias", 0.0)) for token, bias in value.items()
    )


def _switch(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if type(value) is not bool:
        raise WrongParameter(f"{name} is true or false, not {_shown(value)}", name)
    return value


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
