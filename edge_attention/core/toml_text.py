"""TOML as people write it, read within what numbers here hold."""

from __future__ import annotations

import tomllib
from typing import Any

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import shown

__all__ = ["read_toml_text"]

MOST_WHOLE = 1 << 63
"""Whole numbers are less, and no less than the negative of it, as TOML has it."""


def read_toml_text(text: str, what: str) -> dict[str, Any]:
    """What the text says. `what` begins each message, as "jobs.toml is not TOML".

    Raises:
        InvalidArgument: it is none, is nested too deeply, or has a whole number of more than 64 bits.
    """
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise InvalidArgument(f"{what}: it is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{what}: {shown(error, 200)}") from None
    except ValueError:  # Python takes whole numbers of so many digits only
        raise InvalidArgument(f"{what}: {_TOO_LARGE}") from None
    left: list[Any] = [found]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list):
            left += one
        elif type(one) is int and not -MOST_WHOLE <= one < MOST_WHOLE:
            raise InvalidArgument(f"{what}: {_TOO_LARGE}")
    return found


_TOO_LARGE = "it has a whole number of more than 64 bits"
