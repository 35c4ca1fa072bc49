"""The other side of `tokenizing.py`: a tokenizer that is asked in its process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aggregator.bounds.bounds import TOKENIZER_PROCESS
from aggregator.engine.kept_process import KeptProcess
from aggregator.inference.generation.coders import TokenText
from edge_attention.core.errors import InvalidArgument

__all__ = ["TokenizerProcess"]

_MODULE = "aggregator.inference.generation.tokenizing"
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
TOKENS_ENCODED = 1 << 20
"""Of one text."""
LONG_TEXT = 16_384
"""Characters from which a text is encoded by a process of its own, which is there while there are such: texts
that are being written wait for their tokens' words, and are not to wait for long prompts as well."""


class TokenizerProcess:
    """A TextCoder, of a `tokenizer.json`. `vocabulary`: ids are below, as the model knows no others."""

    def __init__(self, file: Path, vocabulary: int) -> None:
        self._process, self._long = (
            KeptProcess(
                TOKENIZER_PROCESS,
                _MODULE,
                str(file),
                what="the deployment's tokenizer",
                environment=_ENVIRONMENT,
            )
            for _ in range(2)
        )
        self._vocabulary = vocabulary

    async def encode(self, text: str, special: bool = True, seconds: float = math.inf) -> tuple[int, ...]:
        """Raises InvalidArgument: it took too long, or gives tokens that are none of the model's."""
        text = text.encode("utf-8", "replace").decode()  # the library takes no half surrogates
        process = self._process if len(text) < LONG_TEXT else self._long
        ids = await process.ask(["encode" if special else "encode_plain", text], seconds)
        if not _is_ids(ids, self._vocabulary):
            raise InvalidArgument(
                f"the tokenizer gives tokens that the model, of {self._vocabulary:,}, does not know: "
                "deploy the model with its own tokenizer.json"
            )
        return tuple(ids)

    async def decode(self, windows: Sequence[Sequence[int]], seconds: float = math.inf) -> tuple[str, ...]:
        texts = await self._process.ask(["decode", [list(window) for window in windows]], seconds)
        if not (
            isinstance(texts, list) and len(texts) == len(windows) and all(isinstance(t, str) for t in texts)
        ):
            raise InvalidArgument("the deployment's tokenizer gives no text for these tokens")
        return tuple(texts)

    async def written(self, ids: Sequence[int], seconds: float = math.inf) -> tuple[TokenText, ...]:
        found = await self._process.ask(["written", list(ids)], seconds)
        try:
            told = tuple(TokenText(bytes.fromhex(data), bool(shown)) for data, shown in found)
        except (TypeError, ValueError):
            told = ()
        if len(told) != len(ids):
            raise InvalidArgument("the deployment's tokenizer does not say how these tokens are written")
        return told

    async def token(self, text: str) -> int | None:
        found = await self._process.ask(["token", text])
        return found if type(found) is int and 0 <= found < self._vocabulary else None

    async def close(self) -> None:
        """End its processes."""
        await self._process.close()
        await self._long.close()


def _is_ids(found: Any, vocabulary: int) -> bool:
    return (
        isinstance(found, list)
        and len(found) <= TOKENS_ENCODED
        and all(type(one) is int and 0 <= one < vocabulary for one in found)
    )
