"""Points that were measured, amounts and the seconds they took, gathered in bins of amounts that are alike.

So many small ones do not drown a few large ones, and however many there are takes little memory. A bin keeps
plain means of its amounts, and of the logarithm of its seconds a mean that forgets, and to which what is far
off counts little, as a box that was disturbed for a while. What is drawn through the bins: measured_lines.py
and measured_ways.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["HALF_LIFE", "Bin", "DecayedMean", "MeasuredBins", "doubling"]

HALF_LIFE = 600.0
"""Seconds."""
NEAR = 0.15
"""By how much of itself a value may be off a mean and count in full; of what is farther off each counts as
much as one that is so far, so that it moves the mean no more."""
MOST_WEIGHT = 200.0
"""Of the values in a mean: beyond, the older give way, however quickly they came."""
FULL_WEIGHT = 32.0
"""Of a bin: more values in it do not make it count more beside others."""
MOST_DOUBLINGS = 32

_LEAST = 1e-9
_MOST = 1e15


@dataclass(frozen=True)
class DecayedMean:
    """A mean whose older values weigh less."""

    value: float
    weight: float
    at: float

    def plus(self, value: float, at: float, weight: float = 1.0) -> DecayedMean:
        """With another value, measured at `at`; one from before the last counts as of the same time."""
        kept = self.weight * math.pow(0.5, max(at - self.at, 0.0) / HALF_LIFE)
        total = kept + weight
        return DecayedMean((kept * self.value + weight * value) / total, total, max(at, self.at))

    def near(self, value: float, at: float) -> DecayedMean:
        """`plus` of logarithms, robustly: NEAR bounds what a value counts, MOST_WEIGHT what was before."""
        off = abs(value - self.value)
        bounded = DecayedMean(self.value, min(self.weight, MOST_WEIGHT), self.at)
        return bounded.plus(value, at, min(1.0, NEAR / off) if off > 0 else 1.0)


@dataclass(frozen=True)
class Bin:
    """Plain means of its points' amounts, and the mean of the logarithms of their seconds."""

    amounts: tuple[float, ...]
    logarithm: DecayedMean

    @property
    def seconds(self) -> float:
        return math.exp(self.logarithm.value)

    def weight(self, at: float) -> float:
        """What it counts beside others at `at`: the older the less, and no more than FULL_WEIGHT."""
        aged = math.pow(0.5, (at - self.logarithm.at) / HALF_LIFE)
        return min(self.logarithm.weight * aged, FULL_WEIGHT)

    def plus(self, amounts: Sequence[float], seconds: float, now: float) -> Bin:
        """With another point, measured at `now`."""
        mean = self.logarithm.near(math.log(seconds), now)
        share = 1.0 / max(mean.weight, 1.0)
        moved = (old + share * (new - old) for old, new in zip(self.amounts, amounts, strict=True))
        return Bin(tuple(moved), mean)


@dataclass
class MeasuredBins:
    """The bins of points of one kind.

    Attributes:
        number: amounts -> the bin they belong to. There are as many bins as it has values.
    """

    number: Callable[[Sequence[float]], Hashable]
    _bins: dict[Hashable, Bin] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many bins have points."""
        return len(self._bins)

    @property
    def all(self) -> list[Bin]:
        return list(self._bins.values())

    def add(self, points: Iterable[tuple[tuple[float, ...], float]], now: float) -> None:
        """Such amounts took so many seconds, again and again in what is one whole, as the calls of a request.

        Of those of one bin the plain mean is one point: they add up, and now and then one takes long. What is
        no measure is left out.
        """
        together: dict[Hashable, list[tuple[float, ...]]] = {}
        for amounts, seconds in points:
            if all(0 <= amount < _MOST for amount in amounts) and 0 < seconds < _MOST:
                together.setdefault(self.number(amounts), []).append((*amounts, seconds))
        for number, alike in together.items():
            *means, seconds = (sum(values) / len(alike) for values in zip(*alike, strict=True))
            seconds = max(seconds, _LEAST)
            if (found := self._bins.get(number)) is not None:
                self._bins[number] = found.plus(means, seconds, now)
            else:
                self._bins[number] = Bin(tuple(means), DecayedMean(math.log(seconds), 1.0, now))

    def saved(self, now: float) -> list[list[float]]:
        """By bin: the first amount, logarithm of seconds, weight, age, and the other amounts."""
        found: list[list[float]] = []
        for one in self._bins.values():
            first, *others = one.amounts
            mean = one.logarithm
            found.append([first, mean.value, mean.weight, max(now - mean.at, 0.0), *others])
        return found

    def restore(self, bins: Iterable[Sequence[float]], aged: float, now: float) -> None:
        """What `saved` said `aged` seconds ago, in place of what is known.

        Raises ValueError: it is none of that; nothing is changed.
        """
        found: dict[Hashable, Bin] = {}
        for first, value, weight, age, *others in bins:
            amounts = (float(first), *map(float, others))
            sound = all(map(math.isfinite, (value, weight, age)))
            sound = sound and abs(value) <= 40 and weight > 0 and age >= 0
            if not sound or not all(0 <= amount < _MOST for amount in amounts):
                raise ValueError(f"no measure: {amounts}, {value}, {weight}, {age}")
            mean = DecayedMean(float(value), float(weight), now - age - aged)
            found[self.number(amounts)] = Bin(amounts, mean)
        self._bins = found


def doubling(amount: float, unit: float) -> int:
    """How many times `unit` is doubled until it is `amount`: 0 up to `unit`; fewer than MOST_DOUBLINGS."""
    number = math.ceil(math.log2(amount / unit)) if amount > unit else 0
    return min(number, MOST_DOUBLINGS - 1)
