"""Guesses from the sequence's own tokens: what followed when its last n tokens were there before.

Prompt lookup (Saxena, 2023): text that quotes, lists or repeats itself is guessed well, at no model's cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["NgramLookup"]

SIZES = (12, 8, 5, 3)
"""Of the n-grams that are looked up, the longest first: the longer, the surer."""


class NgramLookup:
    """A sequence of tokens and where in it each n-gram was last. It may be cut back no more than it grew.

    Memory: an entry a token and size.
    """

    def __init__(self, tokens: Iterable[int] = (), sizes: Sequence[int] = SIZES) -> None:
        self.tokens: list[int] = []
        self._sizes = tuple(sorted(sizes, reverse=True))
        self._ends: dict[tuple[int, ...], int] = {}
        """n-gram -> the place after it, where it was last but for the sequence's very end."""
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """The sequence's next token. What ended at the last one has something that follows now."""
        end = len(self.tokens)
        for size in self._sizes:
            if size <= end:
                self._ends[tuple(self.tokens[end - size :])] = end
        self.tokens.append(token)

    def guess(self, most: int) -> tuple[int, tuple[int, ...]]:
        """The size of the longest n-gram at the end that was there before, and up to `most` tokens that would
        come if what followed it then followed now; (0, ()) where there is none.

        A run that reaches the end goes on into itself: "abcabcab" is guessed to go on "cabcab...".
        """
        for size in self._sizes:
            place = self._ends.get(tuple(self.tokens[-size:])) if size <= len(self.tokens) else None
            if place is not None:
                period = len(self.tokens) - place
                return size, tuple(self.tokens[place + i % period] for i in range(most))
        return 0, ()
