"""The text of one generation as its tokens come, up to the first word that ends it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from aggregator.inference.generation.coders import TextCoder
from edge_attention.core.generation.detokenise import Detokeniser
from edge_attention.core.generation.stops import StopWords

__all__ = ["WrittenText"]


class WrittenText:
    """`coder`: None where tokens have no text. `before`: tokens that it goes on from.

    `stopped`: a stop word was there; no more will come.
    """

    def __init__(self, coder: TextCoder | None, stop: Sequence[str], before: Sequence[int] = ()) -> None:
        self._coder = coder
        self._detokeniser = Detokeniser(before)
        self._stops = StopWords(stop)

    @property
    def stopped(self) -> bool:
        return self._stops.found

    async def after(self, came: Sequence[int], last: bool, until: float = math.inf) -> tuple[str, int]:
        """The text that is sure once these tokens came, and how many of them are of it: a stop word may end
        it among them. `last`: no more will come.

        Raises DeadlineExceeded: it could not be told until then, by the steady clock.
        """
        if self._coder is None:
            return "", len(came)
        parts = []
        for number, token in enumerate(came, start=1):
            self._detokeniser.push(token)
            parts.append(await self._read(self._coder, last and number == len(came), until))
            if self.stopped:
                return "".join(parts), number
        if last:
            if not came:  # a token that ends the text came alone
                parts.append(await self._read(self._coder, True, until))
            parts.append(self._stops.end())
        return "".join(parts), len(came)

    async def _read(self, coder: TextCoder, last: bool, until: float) -> str:
        given, whole = await coder.decode(self._detokeniser.windows, until - time.monotonic())
        return self._stops.take(self._detokeniser.read(given, whole, last))
