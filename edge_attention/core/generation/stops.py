"""Words that end a text: what may be the beginning of one is held back until it is sure."""

from __future__ import annotations

from collections.abc import Sequence

from edge_attention.core.errors import InvalidArgument

__all__ = ["MAX_STOPS", "MAX_STOP_CHARACTERS", "StopWords"]

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


class StopWords:
    """Looks for `words` in a text that comes in pieces. `found`: one was there; no more text is given out.

    Raises:
        InvalidArgument: too many, too long, or an empty one.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if len(words) > MAX_STOPS:
            raise InvalidArgument(f"there are {len(words)} stop words; give at most {MAX_STOPS}")
        for word in words:
            if not word:
                raise InvalidArgument("a stop word is empty; leave it out")
            if len(word) > MAX_STOP_CHARACTERS:
                raise InvalidArgument(
                    f"a stop word has {len(word)} characters; give it at most {MAX_STOP_CHARACTERS}"
                )
        self._words = tuple(words)
        self._held = ""
        self.found = False

    def take(self, text: str) -> str:
        """What of the text so far can be given out now: up to the first stop word, or what may become one."""
        if self.found:
            return ""
        text = self._held + text
        # The first to end, so that it does not matter in what pieces the text comes.
        places = [(at + len(word), at) for word in self._words if (at := text.find(word)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)[1]]
        held = max((_begun(text, word) for word in self._words), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """The text has ended: what was held back."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, word: str) -> int:
    """How many of the last characters of `text` are the first of `word`, but not all of it."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
