"""What something takes beside how much it is: `seconds = fixed + each * amount`, kept up point by point.

    a segment's call   seconds in graphs by what its work should take
    a call's way       seconds beside that by bytes
    a request          seconds beside its calls by its steps

Points are gathered by amount, a factor of two to a bin, so that many small ones do not drown a few large
ones. A bin keeps a mean that forgets, and to which what is far off counts little, as a box that was
disturbed for a while. The line is the least squares of the bins, of relative errors. What it was taken for
before anything was measured counts where nothing else says anything: its `fixed`, while all points are of
one size; its `each`, while there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["HALF_LIFE", "DecayedMean", "FittedLine", "MeasuredLine"]

HALF_LIFE = 600.0
"""Seconds."""
NEAR = 0.15
"""By how much of itself a value may be off a mean and count in full; of what is farther off each counts as
much as one that is so far, so that it moves the mean no more."""
MOST_WEIGHT = 200.0
"""Of the values in a mean: beyond, the older give way, however quickly they came."""
FULL_WEIGHT = 32.0
"""Of a bin: more values in it do not make it count more beside others."""
MOST_BINS = 32
_FIXED = 0.05
"""Points as the least that what was taken before counts as: it decides where nothing else does."""
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
class FittedLine:
    """`fixed + each * amount`, neither below 0."""

    fixed: float
    each: float

    def at(self, amount: float) -> float:
        return self.fixed + self.each * amount


@dataclass(frozen=True)
class _Bin:
    """Means of logarithms; of the amount its plain mean, which may be 0."""

    amount: float
    seconds: DecayedMean

    def plus(self, amount: float, seconds: float, now: float) -> _Bin:
        mean = self.seconds.near(math.log(seconds), now)
        share = 1.0 / max(min(self.seconds.weight, MOST_WEIGHT) + 1.0, 1.0)
        return _Bin(self.amount + share * (amount - self.amount), mean)


@dataclass
class MeasuredLine:
    """A line that points are added to.

    Attributes:
        before: what it is taken for.
        unit: the amount up to which it counts as nothing.
        most_fixed: `fixed` is at most so many times what it was taken for, more where `each` is. Points that
            lie close together and are a little off say anything of what ten times as much would take.
    """

    before: FittedLine
    unit: float
    most_fixed: float = math.inf
    _bins: dict[int, _Bin] = field(default_factory=dict)
    _fitted: FittedLine | None = None

    @property
    def measured(self) -> bool:
        return bool(self._bins)

    def add(self, points: Iterable[tuple[float, float]], now: float) -> None:
        """So much took so many seconds, again and again in what is one whole, as the calls of a request.

        Of those of one bin the plain mean is one value: they add up, and now and then one takes long. What is
        no measure is left out.
        """
        together: dict[int, tuple[int, float, float]] = {}
        for amount, seconds in points:
            if 0 <= amount < _MOST and 0 < seconds < _MOST:
                number = self._number(amount)
                amount = amount if number else 0.0
                count, amounts, sums = together.get(number, (0, 0.0, 0.0))
                together[number] = count + 1, amounts + amount, sums + seconds
        for number, (count, amounts, sums) in together.items():
            amount, seconds = amounts / count, max(sums / count, _LEAST)
            found = self._bins.get(number)
            first = _Bin(amount, DecayedMean(math.log(seconds), 1.0, now))
            self._bins[number] = first if found is None else found.plus(amount, seconds, now)
            self._fitted = None

    @property
    def line(self) -> FittedLine:
        """The line as it is now."""
        if self._fitted is None:
            self._fitted = _fit(self._bins.values(), self.before, self.most_fixed)
        return self._fitted

    def saved(self, now: float) -> list[list[float]]:
        """By bin: amount, logarithm of seconds, weight, age."""
        return [
            [one.amount, one.seconds.value, one.seconds.weight, max(now - one.seconds.at, 0.0)]
            for one in self._bins.values()
        ]

    def restore(self, bins: Sequence[Sequence[float]], now: float) -> None:
        """What `saved` said, in place of what is known.

        Raises ValueError: it is none of that; nothing is changed.
        """
        found: dict[int, _Bin] = {}
        for amount, value, weight, age in bins:
            sound = all(map(math.isfinite, (amount, value, weight, age)))
            if not sound or not 0 <= amount < _MOST or abs(value) > 40 or weight <= 0 or age < 0:
                raise ValueError(f"no measure: {amount}, {value}, {weight}, {age}")
            found[self._number(amount)] = _Bin(
                float(amount), DecayedMean(float(value), float(weight), now - age)
            )
        self._bins, self._fitted = found, None

    def _number(self, amount: float) -> int:
        number = math.ceil(math.log2(amount / self.unit)) if amount > self.unit else 0
        return min(number, MOST_BINS - 1)


def _fit(bins: Iterable[_Bin], before: FittedLine, most_fixed: float) -> FittedLine:
    points = [(one.amount, math.exp(one.seconds.value), one.seconds) for one in bins]
    if not points:
        return before
    last = max(mean.at for _, _, mean in points)
    count = x_sum = xx_sum = y_sum = xy_sum = 0.0
    for x, y, mean in points:
        weight = mean.weight * math.pow(0.5, (last - mean.at) / HALF_LIFE)
        weight = min(weight, FULL_WEIGHT) / (y * y)
        count += weight
        x_sum += weight * x
        xx_sum += weight * x * x
        y_sum += weight * y
        xy_sum += weight * x * y
    least = min(y for _, y, _ in points)
    # What takes less than `fixed` was taken for shows that it is less.
    fixed = min(before.fixed, 0.5 * least)
    if xx_sum <= 0:
        return FittedLine(y_sum / count, before.each)
    if fixed > 0:
        weight = _FIXED / (least * least)
        count += weight
        y_sum += weight * fixed
    spread = count * xx_sum - x_sum * x_sum
    if spread > 1e-12 * count * xx_sum:
        found = (y_sum * xx_sum - x_sum * xy_sum) / spread
        each = (count * xy_sum - x_sum * y_sum) / spread
        if found >= 0 and each > 0:
            if most_fixed < math.inf:
                most = most_fixed * before.fixed * max(xy_sum / xx_sum / before.each, 1.0)
                with_most = (xy_sum - most * x_sum) / xx_sum
                if found > most and with_most > 0:
                    return FittedLine(most, with_most)
            return FittedLine(found, each)
        if each <= 0:
            # More would take less: that is chance, so nothing is known but how long all of them take.
            return FittedLine(fixed, (xy_sum - fixed * x_sum) / xx_sum)
    return FittedLine(0.0, xy_sum / xx_sum)
