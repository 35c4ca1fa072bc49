"""What OpenAI calls logprobs: an answer's tokens, each with its text, its place and how likely it was."""

from __future__ import annotations

import codecs
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.inference.generation.coders import TextCoder, TokenText
from aggregator.inference.generation.request import GenerationEvent
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.inference import ToldToken

__all__ = [
    "TOLD_VALUES",
    "LogprobsText",
    "TokenWords",
    "ToldText",
    "WrittenToken",
    "chat_logprobs",
    "completion_logprobs",
]

TOLD_VALUES = 1 << 18
"""Log probabilities in one answer, of all its choices: each is some 200 bytes of it, and of memory before."""
NEVER = -9999.0
"""The log probability of what could not come, as OpenAI says it: JSON has no infinity."""


@dataclass(frozen=True)
class WrittenToken:
    """A token with its words. `offset`: characters of the choice's text before it."""

    text: TokenText
    offset: int
    logprob: float | None
    likeliest: tuple[tuple[TokenText, float], ...]


class TokenWords:
    """The words of the tokens of one request, each asked for once.

    Raises InvalidArgument once there is more to tell than TOLD_VALUES.
    """

    def __init__(self, coder: TextCoder) -> None:
        self._coder = coder
        self._known: dict[int, TokenText] = {}
        self._values = 0

    async def of(self, told: Sequence[ToldToken], until: float) -> Mapping[int, TokenText]:
        """Those of all these tokens, and more. `until`: of the steady clock."""
        self._values += sum(1 + len(one.likeliest) for one in told)
        if self._values > TOLD_VALUES:
            raise InvalidArgument(
                f"bound told-values: the answer would have more than {TOLD_VALUES:,} log probabilities: ask "
                "with fewer or shorter prompts, fewer tokens or choices, or a smaller logprobs"
            )
        ids = {one.token for one in told} | {other.token for one in told for other in one.likeliest}
        asked = sorted(ids - self._known.keys())
        if asked:
            words = await self._coder.written(asked, until - time.monotonic())
            self._known.update(zip(asked, words, strict=True))
        return self._known


class ToldText:
    """What is told of the tokens of one choice, as its text comes.

    Args:
        held: whether a word may end the text. It is not given out, so what is told of its tokens is not
            either: tokens wait then until their text has come.
        end: whether the token that ended the text is told, too: those of a completion have one more then than
            the text, as OpenAI has it, which who asks for one token counts on.
    """

    def __init__(self, words: TokenWords, held: bool, end: bool) -> None:
        self._words = words
        self._held = held
        self._end = end
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: deque[WrittenToken] = deque()
        self._begins = ""
        """The first character of the text."""
        self._offset: int | None = None
        self._given = 0

    async def after(self, event: GenerationEvent, until: float) -> list[WrittenToken]:
        """What can be told once this has come. `until`: of the steady clock."""
        self._given += len(event.text)
        self._begins = self._begins or event.text[:1]
        told = (*event.told, event.end) if self._end and event.end is not None else event.told
        words = await self._words.of(told, until)
        self._waiting.extend(self._written(one, words) for one in told)
        sure = not self._held or event.finish == "length" or event.end is not None
        found = []
        while self._waiting and (sure or self._waiting[0].offset < self._given):
            found.append(self._waiting.popleft())
        return found

    def _written(self, told: ToldToken, words: Mapping[int, TokenText]) -> WrittenToken:
        text = words[told.token]
        offset = max(self._offset or 0, 0)
        if text.shown:
            if self._offset is None:
                # The space that begins a text's first word is written within texts alone, by some tokenizers.
                left_out = text.data.startswith(b" ") and self._begins not in ("", " ")
                self._offset = -1 if left_out else 0
            self._offset += len(self._decoder.decode(text.data))
        likeliest = tuple((words[other.token], other.value) for other in told.likeliest)
        return WrittenToken(text, offset, told.logprob, likeliest)


class LogprobsText:
    """`logprobs` of a whole choice as JSON, written as its tokens come: to write it at once, of as many as
    there may be, would hold the event loop for a second.

    Args:
        chat: whether it is of a chat.
    """

    def __init__(self, chat: bool) -> None:
        self._chat = chat
        empty = (chat_logprobs if chat else completion_logprobs)(())
        self._parts: dict[str, list[str]] = {name: [] for name, one in empty.items() if one is not None}

    def add(self, told: Sequence[WrittenToken]) -> None:
        if told:
            said = (chat_logprobs if self._chat else completion_logprobs)(told)
            for name, parts in self._parts.items():
                parts.append(json.dumps(said[name], separators=(",", ":"))[1:-1])

    def __str__(self) -> str:
        lists = ",".join(f'"{name}":[{",".join(parts)}]' for name, parts in self._parts.items())
        return f'{{{lists},"refusal":null}}' if self._chat else f"{{{lists}}}"


def completion_logprobs(told: Sequence[WrittenToken]) -> dict[str, Any]:
    """Those of a completion: `top_logprobs` has the token that came besides the likeliest."""
    tops: list[dict[str, float] | None] = []
    for one in told:
        if one.logprob is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for text, logprob in (*one.likeliest, (one.text, one.logprob)):
            top.setdefault(_name(text), _number(logprob))  # of two that are written alike the likelier
        tops.append(top)
    return {
        "tokens": [_name(one.text) for one in told],
        "token_logprobs": [None if one.logprob is None else _number(one.logprob) for one in told],
        "top_logprobs": tops,
        "text_offset": [one.offset for one in told],
    }


def chat_logprobs(told: Sequence[WrittenToken]) -> dict[str, Any]:
    """Those of a chat."""
    content = [
        {**_entry(one.text, one.logprob or 0.0), "top_logprobs": [_entry(*other) for other in one.likeliest]}
        for one in told
    ]
    return {"content": content, "refusal": None}


def _entry(text: TokenText, logprob: float) -> dict[str, Any]:
    token = text.data.decode("utf-8", "replace")
    return {"token": token, "logprob": _number(logprob), "bytes": list(text.data)}


def _name(text: TokenText) -> str:
    """Its text; where that is no whole characters, its bytes, as OpenAI writes them."""
    try:
        return text.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text.data)


def _number(logprob: float) -> float:
    return max(logprob, NEVER)
