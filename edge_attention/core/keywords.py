"""What a class says of a field that it does not have, or was not given: an error of the catalogue's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, TypeVar

from edge_attention.core.errors import InvalidArgument

C = TypeVar("C")


def named_fields(cls: type[C]) -> type[C]:
    """Have the dataclass `cls`, which users make, refuse unknown, missing and surplus fields by their names.

    Raises:
        InvalidArgument: when one is made so, in place of Python's TypeError.
    """
    make = cls.__init__

    @functools.wraps(make)
    def __init__(self: C, *values: Any, **named: Any) -> None:
        try:
            make(self, *values, **named)
        except TypeError as error:
            if (wrong := _wrong(cls, len(values), named)) is None:
                raise
            raise InvalidArgument(wrong) from error

    setattr(cls, "__init__", __init__)  # noqa: B010  # a type checker wants none assigned
    return cls


def _wrong(cls: type[Any], given: int, named: dict[str, Any]) -> str | None:
    """What is wrong with these fields; None if nothing is."""
    fields = [field for field in dataclasses.fields(cls) if field.init]
    names = [field.name for field in fields]
    if unknown := [name for name in named if name not in names]:
        return (
            f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(names)}{hint(unknown[0], names)}"
        )
    if given > len(names):
        return f"{cls.__name__} has {len(names)} fields, and {given} were given: {', '.join(names)}"
    if twice := [name for name in names[:given] if name in named]:
        return f"{cls.__name__} was given {twice[0]!r} twice, by its place and by its name"
    needed = [
        field.name
        for field in fields[given:]
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in named
    ]
    return f"{cls.__name__} needs {', '.join(map(repr, needed))}" if needed else None


def hint(name: str, known: Iterable[str]) -> str:
    """What may have been meant by `name`, to go at a sentence's end; empty if nothing is like it."""
    from difflib import get_close_matches

    found = get_close_matches(name, list(known), 1)
    return f" (did you mean {found[0]!r}?)" if found else ""
