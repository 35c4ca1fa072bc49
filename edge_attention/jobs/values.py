"""Checks of values that a user gives: each returns the value as it is used, or says what is wrong with it.

Every function raises InvalidArgument, naming the value by `what`, whatever it is given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.keywords import hint

__all__ = [
    "above",
    "called",
    "choice",
    "finite",
    "is_finite",
    "kind_of",
    "mapping",
    "member",
    "number",
    "optional",
    "optional_text",
    "part",
    "path",
    "said",
    "several",
    "share_below_one",
    "switch",
    "text",
    "texts",
]

P = TypeVar("P")
M = TypeVar("M", bound=Enum)

MOST = 1e12
"""What no number of a job is above."""
ENDLESS = 1e9
"""What is not near any number that somebody means."""
SHOWN = 200
"""Characters of a value in an error."""


def said(value: Any) -> str:
    """`value` as an error shows it: as it is written, unless that is long or fails; of an array its form."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array, {value.dtype} {list(value.shape)}"
    try:
        found = repr(str(value) if isinstance(value, PurePath) else value)
    except Exception:  # a value's own
        found = f"a {type(value).__name__}"
    if "\n" in found:  # a table's, a tensor's
        found = " ".join(found.split())
    return found if len(found) <= SHOWN else f"{found[: SHOWN - 3]}..."


def text(value: Any, what: str) -> str:
    """`value` if it is a string and not empty."""
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{what} is {said(value)}; it must be a string and not empty")
    return _encodable(value, what)


def optional_text(value: Any, what: str) -> str:
    """`value` if it is a string, which may be empty."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} is {said(value)}; it must be a string, '' for none")
    return _encodable(value, what)


def _encodable(value: str, what: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(f"{what} is {said(value)}, which holds half a character") from None
    return str(value)


def texts(values: Any, what: str) -> tuple[str, ...]:
    """`values` if they are a list of strings, each there once."""
    if not isinstance(values, tuple | list):
        raise InvalidArgument(f"{what} is {said(values)}; it must be a list of strings")
    if len(set(found := tuple(text(value, f"an entry of {what}") for value in values))) < len(found):
        raise InvalidArgument(f"{what} names one twice; name each once")
    return found


def several(values: Any, what: str) -> tuple[str, ...]:
    """`values` if they are strings, each there once, in whatever can be gone through but is no string."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidArgument(f"{what} is {said(values)}; it must be a list of strings")
    try:
        found = tuple(values)
    except TypeError:  # as of an array of no axis
        raise InvalidArgument(f"{what} is {said(values)}; it must be a list of strings") from None
    return texts(found, what)


def mapping(values: Any, what: str) -> dict[str, str]:
    """`values` if they are text by name."""
    if not isinstance(values, Mapping):
        raise InvalidArgument(f"{what} is {said(values)}; it must map names to names")
    return {text(key, f"a name in {what}"): text(value, f"{what}.{key}") for key, value in values.items()}


def choice(value: Any, what: str, known: Collection[str]) -> str:
    """`value` if it is one of `known`."""
    if not isinstance(value, str) or value not in known:
        near = hint(value, known) if isinstance(value, str) else ""
        raise InvalidArgument(f"{what} is {said(value)}; it must be one of {', '.join(known)}{near}")
    return value


def member(value: Any, what: str, kind: type[M]) -> M:
    """`value`, a member of `kind` or the value of one, as in a file."""
    if isinstance(value, kind):
        return value
    return kind(choice(value, what, [one.value for one in kind]))


def switch(value: Any, what: str) -> bool:
    """`value` if it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidArgument(f"{what} is {said(value)}; it must be True or False")
    return bool(value)


def called(value: Any, what: str) -> Callable[..., Any] | None:
    """`value` if it is None or can be called, as a function."""
    if value is None or callable(value):
        found: Callable[..., Any] | None = value
        return found
    raise InvalidArgument(f"{what} is {said(value)}; it must be a function or None")


def finite(value: Any, what: str) -> float:
    """`value` as a float, if it is a finite number; of True and False 1 and 0."""
    if not is_finite(value):
        raise InvalidArgument(f"{what} is {said(value)}; it must be a finite number, true or false")
    return float(value)


def is_finite(value: Any) -> bool:
    """Whether `value` is a finite number, True and False among them."""
    try:
        return isinstance(value, int | float | np.integer | np.floating | np.bool_) and math.isfinite(value)
    except OverflowError:  # a whole number past any float
        return False


def number(value: Any, what: str, least: float = 0.0) -> float:
    """`value` as a float, if it is a finite number and at least `least`."""
    if not _is_number(value) or not least <= value <= MOST:
        raise InvalidArgument(f"{what} is {said(value)}; it must be a number, {least:g} or above")
    return float(value)


def above(value: Any, what: str, most: float = MOST, low: float = 0.0) -> float:
    """`value` as a float, if it is a number above `low` and at most `most`."""
    if not _is_number(value) or not low < value <= most:
        # Of limits that nobody comes near only who is past them is told.
        past = _is_number(value) and value > most
        limits = [f"above {low:g}"] if past or low > -ENDLESS else []
        limits += [f"at most {most:g}"] if past or most < ENDLESS else []
        raise InvalidArgument(f"{what} is {said(value)}; it must be a number {' and '.join(limits)}".rstrip())
    return float(value)


def optional(value: Any, what: str) -> float | None:
    """`value` if it is None or a number above 0."""
    return None if value is None else above(value, what)


def share_below_one(value: Any, what: str) -> float:
    """`value` as a float in [0, 1)."""
    if (found := number(value, what)) >= 1:
        raise InvalidArgument(f"{what} is {said(value)}; it must be 0 or above, and below 1")
    return found


def part(value: Any, what: str, kind: type[P], example: str) -> P:
    """`value` if it is a `kind`; `example`: how one is written."""
    if not isinstance(value, kind):
        raise InvalidArgument(f"{what} is {said(value)}; give {kind_of(kind)}, as {example}")
    return value


def kind_of(cls: type[Any]) -> str:
    """Its name with its article."""
    return f"{'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}"


def path(value: Any, what: str) -> Path:
    """`value` as a path."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise InvalidArgument(f"{what} is {said(value)}; it must be a path, as a string or a pathlib.Path")
    try:
        usable = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise InvalidArgument(f"{what} is {said(value)}; no file can be called so")
    return Path(os.fsdecode(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
