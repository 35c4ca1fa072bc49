"""Options of optimizers, strategies and combines: a default and a range, checked when the thing is made.

@dataclass(frozen=True)
class SGD(Configured):
    kind: ClassVar[str] = "optimizer"
    name: ClassVar[str] = "sgd"
    lr: float = option(1e-3, POSITIVE)
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.keywords import hint

POSITIVE, NOT_NEGATIVE, SHARE, SWITCH = "above 0", "0 or above", "in [0, 1)", "true or false"
BELOW_HALF, COUNT, COUNT_OR_ZERO = "in [0, 0.5)", "a whole number, 1 or above", "a whole number, 0 or above"
INTEGER = "a whole number"
EPSILON = "1e-30 or above"  # one that rounds to zero in float32 divides 0 by 0
_RANGES: dict[str, Callable[[float], bool]] = {
    POSITIVE: lambda x: x > 0,
    NOT_NEGATIVE: lambda x: x >= 0,
    SHARE: lambda x: 0 <= x < 1,
    SWITCH: lambda x: x in (0, 1),
    EPSILON: lambda x: x >= 1e-30,
    BELOW_HALF: lambda x: 0 <= x < 0.5,
    COUNT: lambda x: x >= 1 and x == int(x),
    COUNT_OR_ZERO: lambda x: x >= 0 and x == int(x),
    INTEGER: lambda x: x == int(x) and abs(x) < 1 << 53,  # the wire has doubles
}
_TYPES: dict[str, type[bool] | type[int]] = {SWITCH: bool, COUNT: int, COUNT_OR_ZERO: int, INTEGER: int}


def option(default: float | None, expected: str) -> Any:
    """A field and the range it may take: one of the constants of this file. A default of None: not set."""
    return field(default=default, metadata={"expected": expected})


@dataclass(frozen=True)
class Configured:
    """What has options in range.

    Raises `InvalidArgument` for an option out of range. `True`/`False` options accept 1 and 0 and whole
    numbers accept 3.0, because the wire carries options as doubles.
    """

    kind: ClassVar[str]
    name: ClassVar[str]

    def __post_init__(self) -> None:
        for known in dataclasses.fields(self):
            value, expected = getattr(self, known.name), known.metadata.get("expected")
            if expected is None or (value is None and known.default is None):
                continue
            usable = isinstance(value, numbers.Real) and (expected == SWITCH or not isinstance(value, bool))
            if not usable or not _is_finite(value) or not _RANGES[expected](value):
                raise InvalidArgument(
                    f"option {known.name} of {self.kind} {self.name} is {value!r}; it must be {expected}"
                )
            object.__setattr__(self, known.name, _TYPES.get(expected, float)(value))


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number past any float
        return False


C = TypeVar("C", bound=Configured)


def find(by_name: Mapping[str, type[C]], kind: str, name: str) -> type[C]:
    """The class `name` of `by_name`.

    Raises:
        InvalidArgument: there is none; it lists those there are.
    """
    if name not in by_name:
        have = ", ".join(sorted(by_name))
        raise InvalidArgument(f"there is no {kind} {name!r}; there are {have}{hint(name, by_name)}")
    return by_name[name]


def configure(made: type[C], options: Mapping[str, Any]) -> C:
    """A `made` with these options, the others at their defaults.

    Raises:
        InvalidArgument: an option that does not exist (it lists those that do), or is out of range.
    """
    known = [field.name for field in dataclasses.fields(made)]
    for name in options:
        if name not in known:
            have = ", ".join(known) or "none"
            raise InvalidArgument(
                f"{made.kind} {made.name} has no option {name!r}; it has {have}{hint(name, known)}"
            )
    return made(**options)
