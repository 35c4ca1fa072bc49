"""What something takes beside how much it is: `seconds = fixed + each * amount`, kept up point by point.

    a segment's call   seconds in graphs by what its work should take
    a call's way       seconds beside that by bytes
    a request          seconds beside its calls by its steps

Points are gathered by amount (measured_bins.py), a factor of two to a bin. The line is the least squares of
the bins, of relative errors. What it was taken for before anything was measured counts where nothing else
says anything: its `fixed`, while all points are of one size; its `each`, while there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from edge_attention.core.placement.cuts.measured_bins import Bin, MeasuredBins, doubling

__all__ = ["FittedLine", "MeasuredLine"]

_FIXED = 0.05
"""Points as the least that what was taken before counts as: it decides where nothing else does."""


@dataclass(frozen=True)
class FittedLine:
    """`fixed + each * amount`, neither below 0."""

    fixed: float
    each: float

    def at(self, amount: float) -> float:
        return self.fixed + self.each * amount


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
    _bins: MeasuredBins = field(init=False)
    _fitted: FittedLine | None = None

    def __post_init__(self) -> None:
        self._bins = MeasuredBins(lambda amounts: doubling(amounts[0], self.unit))

    @property
    def measured(self) -> bool:
        return len(self._bins) > 0

    def add(self, points: Iterable[tuple[float, float]], now: float) -> None:
        """So much took so many seconds, in one whole; see `MeasuredBins.add`."""
        counted = (((amount if amount > self.unit else min(amount, 0.0),), took) for amount, took in points)
        self._bins.add(counted, now)
        self._fitted = None

    @property
    def line(self) -> FittedLine:
        """The line as it is now."""
        if self._fitted is None:
            self._fitted = _fit(self._bins.all, self.before, self.most_fixed)
        return self._fitted

    def saved(self, now: float) -> list[list[float]]:
        """By bin: amount, logarithm of seconds, weight, age."""
        return self._bins.saved(now)

    def restore(self, bins: Sequence[Sequence[float]], aged: float, now: float) -> None:
        """What `saved` said `aged` seconds ago, in place of what is known.

        Raises ValueError: it is none of that; nothing is changed.
        """
        if any(len(one) != 4 for one in bins):
            raise ValueError("no measure: one has an amount, a logarithm of seconds, a weight and an age")
        self._bins.restore(bins, aged, now)
        self._fitted = None


def _fit(bins: Sequence[Bin], before: FittedLine, most_fixed: float) -> FittedLine:
    if not bins:
        return before
    last = max(one.logarithm.at for one in bins)
    count = x_sum = xx_sum = y_sum = xy_sum = 0.0
    for one in bins:
        (x,), y = one.amounts, one.seconds
        weight = one.weight(last) / (y * y)
        count += weight
        x_sum += weight * x
        xx_sum += weight * x * x
        y_sum += weight * y
        xy_sum += weight * x * y
    least = min(one.seconds for one in bins)
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
