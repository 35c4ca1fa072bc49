"""Checks of numbers a caller gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.jobs import values

__all__ = ["require_number", "require_sizes", "require_whole"]


ENDLESS = 2**31 - 1
"""A limit from which on nobody is told of it who is not past it."""


def require_number(value: Any, what: str, above: float, most: float) -> None:
    """Refuse `value`, called `what` in the error, unless it is a number above `above` and at most `most`."""
    values.above(value, what, most, above)


def require_whole(value: Any, what: str, low: int = 0, high: int = 2**32 - 1) -> int:
    """`value` as an int; refused unless it is a whole number from `low` to `high`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and low <= value <= high:
        return int(value)
    wanted = "a whole number"
    if high < ENDLESS or (whole and value > high):
        wanted += f" from {low} to {high}"
    elif low > -ENDLESS:
        wanted += f", {low} or above"
    raise InvalidArgument(f"{what} is {values.said(value)}; it must be {wanted}")


def require_sizes(sizes: Any, what: str) -> dict[str, int]:
    """`sizes` if they are sizes of dimensions by name."""
    if not isinstance(sizes, Mapping):
        raise InvalidArgument(f"{what} is {values.said(sizes)}; it must map names of dimensions to sizes")
    return {
        values.text(name, f"a name in {what}"): require_whole(size, f"{what}.{name}", 1, 2**31 - 1)
        for name, size in sizes.items()
    }
