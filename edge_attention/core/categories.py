"""Categories: when a value is one of them, whether a table holds it as a word or as a number."""

from __future__ import annotations

import math

__all__ = ["number_of", "same_for_all"]

_TRUTH = {"true": 1.0, "false": 0.0}


def number_of(word: str) -> float | None:
    """The number that a word stands for, as tables are read; None: none, and it is itself."""
    word = word.strip()
    if (truth := _TRUTH.get(word.lower())) is not None:
        return truth
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def same_for_all(word: str) -> str:
    """`word` in the one form that is compared: two files may hold a value as `1`, `1.0` or `True`."""
    number = number_of(word)
    return word.strip() if number is None else repr(number)
