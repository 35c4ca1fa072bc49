"""Text of tokens as they come: never half a character.

A token may end in the middle of a character, and how it is written may depend on the one before it (a space
that belongs to a word). So text is decoded from a few tokens back, and what it says anew is given out once it
does not end in the middle. Decoding itself is the caller's: this says of which tokens, and takes the text.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Detokeniser"]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are no character, yet."""
MOST_HELD = 16
"""Tokens that are held back at most: bytes that never are a character are not waited for."""


CONTEXT = 6
"""Tokens before the first that are decoded with it."""


class Detokeniser:
    """The windows of one sequence. For each token `push`, decode both `windows`, and give them to `read`.

    `before`: tokens that it goes on from. Their text is not given out, but a space that belongs to the first
    word may depend on them.
    """

    def __init__(self, before: Sequence[int] = ()) -> None:
        self._tokens = list(before[-CONTEXT:])
        """Those that are decoded again; of the first `_given` the text was given out."""
        self._given = len(self._tokens)

    def push(self, token: int) -> None:
        """The next token."""
        self._tokens.append(token)

    @property
    def windows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens whose text was given out, some of them; and the same with all that came since."""
        window = tuple(self._tokens)
        return window[: self._given], window

    def read(self, given: str, whole: str, last: bool = False) -> str:
        """The text that is new; empty where it may end in the middle of a character.

        Args:
            given, whole: the texts of the `windows`.
            last: no more will come: what is there is given out.
        """
        held = len(self._tokens) - self._given
        if given.endswith(UNFINISHED) and not whole.startswith(given):
            # It goes on from half a character, which the rest has come to: all of it is new.
            alike = zip(given, whole, strict=False)
            given = given[: next((at for at, (one, two) in enumerate(alike) if one != two), len(whole))]
        if not last and held < MOST_HELD and (whole.endswith(UNFINISHED) or len(whole) <= len(given)):
            return ""
        # What was given out last is decoded again with what comes: how that is written may depend on it.
        del self._tokens[: self._given]
        self._given = len(self._tokens)
        return whole[len(given) :]
