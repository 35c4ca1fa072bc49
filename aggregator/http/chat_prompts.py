"""The prompt of a chat: by its model's own template, or, where it has none, by a plain one.

The plain one is a line a message, and the assistant's turn:

    system: You are brief.
    user: What is a node?
    assistant:
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from aggregator.bounds.bounds import TEMPLATE_PROCESS
from aggregator.engine.kept_process import KeptProcess
from aggregator.http.completion_requests import ChatMessage
from edge_attention.core.errors import InvalidArgument

__all__ = ["PLAIN_STOP", "ChatPrompts", "plain_prompt"]

TEMPLATES = 8
"""Templates that have a process at a time; then the one used longest ago ends."""
TEMPLATE_CHARACTERS = 256 * 1024
PLAIN_STOP = "\nuser:"
"""Ends an answer to a plain prompt: the model goes on as the user there."""


def plain_prompt(messages: Sequence[ChatMessage]) -> str:
    """The prompt of a model without a template."""
    return "".join(f"{one.role}: {one.content}\n" for one in messages) + "assistant:"


class ChatPrompts:
    """Makes prompts. Each template has a process of its own: what one does no other's chats can see."""

    def __init__(self) -> None:
        self._processes: OrderedDict[str, KeptProcess] = OrderedDict()

    async def of(
        self,
        template: str | None,
        special: Mapping[str, str],
        messages: Sequence[ChatMessage],
        seconds: float = math.inf,
    ) -> str:
        """The prompt of a chat. `special`: the model's special tokens, as `bos_token`.

        Raises:
            InvalidArgument: the template says so, or cannot be rendered within its bounds.
            DeadlineExceeded: nor in `seconds`, the turn of other chats included.
        """
        if template is None:
            return plain_prompt(messages)
        if len(template) > TEMPLATE_CHARACTERS:
            raise InvalidArgument(
                f"bound template-characters: the model's chat template has {len(template):,} characters, and "
                f"one has {TEMPLATE_CHARACTERS:,} at most"
            )
        said = [
            {"role": one.role, "content": one.content} | ({"name": one.name} if one.name else {})
            for one in messages
        ]
        variables = {**special, "messages": said, "add_generation_prompt": True, "tools": None}
        text = await (await self._process(template)).ask([template, variables], seconds)
        if not isinstance(text, str):
            raise InvalidArgument("the model's chat template makes no text")
        return text

    async def close(self) -> None:
        """End the processes."""
        while self._processes:
            await self._processes.popitem()[1].close()

    async def _process(self, template: str) -> KeptProcess:
        key = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
        found = self._processes.pop(key, None) or KeptProcess(
            TEMPLATE_PROCESS, "aggregator.http.chat_template", what="the model's chat template"
        )
        self._processes[key] = found
        while len(self._processes) > TEMPLATES:
            await self._processes.popitem(last=False)[1].close()
        return found
