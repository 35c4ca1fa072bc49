"""How many guessed tokens a trip should verify: a rule over what trips took and how guesses fared.

A trip of one token takes `first` seconds, each further one `further` more, and a wrong guess is taken back in
`back`. With a share `p` of guesses right, one after another, k guesses give 1 + p + p^2 + ... + p^k tokens.
The rule takes the k with most tokens a second, and none unless that is worth it: on one box, whose every row
costs, there is nothing to gain; over a network, where the trip is what takes time, almost any guess pays.

How guesses fare is learnt from all, also from those that nobody verified: what came says if they were right.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["GAIN", "ROWS", "SpeculationRule"]

ROWS = (1, 2, 4, 8, 16)
"""Rows that a trip may have: few, as nodes are made ready for each number."""
GAIN = 1.1
"""Tokens a second with guesses by those without, from which on it is worth it."""
_NEW = 0.2
"""How much a trip weighs in the means of seconds."""
_FARED = 0.1
"""How much a guess weighs in the share that was right."""
_PRIOR = 0.5
"""The share that is right, before there were any."""
_GUESSED = 0.05
"""What a further row is taken for, by a trip of one, before one was measured, or where that was long ago."""
_FORGET = 64
"""Trips after which what further rows took is doubted, if there were none meanwhile."""


class SpeculationRule:
    """Of one model: what its trips take is a mean over sessions. `rows`: how many a trip may have."""

    def __init__(self, rows: Sequence[int] = ROWS) -> None:
        self._rows = tuple(sorted(rows))
        self._first: float | None = None
        self._further: float | None = None
        self._back = 0.0
        self._since = 0

    @property
    def most(self) -> int:
        """Guesses that a trip can verify at most."""
        return self._rows[-1] - 1

    def took(self, rows: int, seconds: float) -> None:
        """A trip of `rows` tokens took that long."""
        if rows == 1:
            self._first = _mean(self._first, seconds)
            self._since += 1
        elif self._first is not None and rows <= self._rows[-1]:
            self._further = _mean(self._further, max(seconds - self._first, 0.0) / (rows - 1))
            self._since = 0

    def taken_back(self, seconds: float) -> None:
        """Wrong guesses were taken back in that time."""
        self._back = _mean(self._back or None, seconds)

    def guesses(self, known: int, right: float) -> int:
        """How many of `known` guessed tokens the next trip should verify; 0: none.

        `right`: the share of such guesses that are right.
        """
        if self._first is None or not known:
            return 0
        further = _GUESSED * self._first
        if self._further is not None and (self._since < _FORGET or self._further < further):
            further = self._further
        best, rate = 0, GAIN / self._first
        for rows in self._rows[1:]:
            k = min(rows - 1, known)
            tokens = sum(right**i for i in range(k + 1))
            # Rows that are filled up cost as the others do.
            found = tokens / (self._first + (rows - 1) * further + (1 - right**k) * self._back)
            if found > rate:
                best, rate = k, found
            if k == known:
                break
        return best


class GuessRecord:
    """How the guesses of one session fared, by size of the n-gram they came from."""

    def __init__(self) -> None:
        self._right: dict[int, float] = {}

    def right(self, size: int) -> float:
        """The share of guesses from n-grams of that size that are right."""
        return self._right.get(size, _PRIOR)

    def fared(self, size: int, right: bool) -> None:
        """The next token of a guess was right, or not."""
        before = self.right(size)
        self._right[size] = before + (float(right) - before) * _FARED


def _mean(before: float | None, new: float) -> float:
    return new if before is None else before + (new - before) * _NEW
