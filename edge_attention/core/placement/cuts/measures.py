"""What a fleet was measured to do, kept up by every answer: speeds of boxes, segments' seconds, links.

Pure: whoever measures says when. An estimate forgets: what was measured HALF_LIFE seconds ago weighs half.
A box's slowness is measured by predicted seconds, so that what one model's segments took says something of
a plan that nothing has run yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox

__all__ = ["HALF_LIFE", "MOST_SEGMENTS", "DecayedMean", "FleetMeasures"]

HALF_LIFE = 600.0
"""Seconds."""
MOST_SEGMENTS = 20_000
"""Of all boxes whose seconds are kept; of more, the one that was not measured for longest goes."""
SMALL_BYTES = 64 * 1024
"""Bytes up to which a transfer says something of latency and nothing of bandwidth."""


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


@dataclass
class _BoxMeasures:
    slowness: DecayedMean | None = None
    """Logarithm of measured by predicted seconds: a mean of ratios would lean to the slow side."""
    latency: DecayedMean | None = None
    down: DecayedMean | None = None
    up: DecayedMean | None = None
    """Seconds a byte."""


_MEANS = ("slowness", "latency", "down", "up")
_MOST = 1e6
"""Of a slowness's logarithm, far more than is; of seconds, and seconds a byte."""


@dataclass
class FleetMeasures:
    """Estimates by box. All methods take `now` in seconds of any clock that does not go back.

    Bounded by the boxes that are told of (`forget` those that left) and by MOST_SEGMENTS.
    """

    _boxes: dict[str, _BoxMeasures] = field(default_factory=dict)
    _segments: dict[tuple[str, str], DecayedMean] = field(default_factory=dict)

    def computed(self, box: str, seconds: float, predicted: float, now: float) -> None:
        """Work took `seconds` on the box where `ComputeBox.seconds`, slowness 1, says `predicted`."""
        if seconds > 0 and predicted > 0:
            of = self._of(box)
            of.slowness = _plus(of.slowness, math.log(seconds / predicted), now, predicted)

    def segment(self, box: str, segment: str, seconds: float, now: float) -> None:
        """A segment took `seconds` on the box. `segment`: any name for what does the same each time."""
        if seconds < 0:
            return
        key = box, segment
        # The last measured is the last of the dictionary.
        self._segments[key] = _plus(self._segments.pop(key, None), seconds, now)
        if len(self._segments) > MOST_SEGMENTS:
            del self._segments[next(iter(self._segments))]

    def round_trip(self, box: str, seconds: float, now: float) -> None:
        """A message to the box and its answer, both small, took `seconds`, the box's own time left out."""
        if seconds >= 0:
            of = self._of(box)
            of.latency = _plus(of.latency, seconds / 2, now)

    def moved(self, box: str, size: int, seconds: float, now: float, *, down: bool) -> None:
        """So many bytes took `seconds` one way. Few of them say nothing."""
        if size <= SMALL_BYTES or seconds <= 0:
            return
        of = self._of(box)
        each = max(seconds - (of.latency.value if of.latency else 0.0), 1e-9) / size
        if down:
            of.down = _plus(of.down, each, now, size)
        else:
            of.up = _plus(of.up, each, now, size)

    def forget(self, box: str) -> None:
        """The box is gone, or has become another one."""
        self._boxes.pop(box, None)
        for key in [key for key in self._segments if key[0] == box]:
            del self._segments[key]

    def box(self, stated: ComputeBox) -> ComputeBox:
        """The box with its measured slowness, where there is one."""
        found = self._boxes.get(stated.name)
        if found is None or found.slowness is None:
            return stated
        return replace(stated, slowness=math.exp(found.slowness.value))

    def links(self, stated: BoxLinks) -> BoxLinks:
        """The links with what was measured of each in place of what is stated."""
        of = dict(stated.of)
        for name, found in self._boxes.items():
            link = stated.to(name)
            of[name] = BoxLink(
                found.latency.value if found.latency else link.latency,
                1 / found.down.value if found.down else link.down,
                1 / found.up.value if found.up else link.up,
                link.both,
                link.medium,
            )
        return replace(stated, of=of)

    def saved(self, now: float) -> dict[str, dict[str, list[float]]]:
        """By box what was measured of it and its link, to be kept: value, weight and age of each mean.

        Segments are measured anew.
        """
        return {
            name: {
                what: [mean.value, mean.weight, max(now - mean.at, 0.0)]
                for what in _MEANS
                if (mean := getattr(found, what)) is not None
            }
            for name, found in self._boxes.items()
        }

    def restore(self, box: str, means: Mapping[str, Sequence[float]], now: float) -> None:
        """What `saved` said of the box, in place of what is known. Nothing is restored where this raises.

        Raises ValueError: it is none of that.
        """
        found = _BoxMeasures()
        for what, (value, weight, age) in means.items():
            sound = all(map(math.isfinite, (value, weight, age))) and weight > 0 and age >= 0
            if what not in _MEANS or not sound or (what != "slowness" and value < 0) or abs(value) > _MOST:
                raise ValueError(f"{what} of {box!r}: {value}, {weight}, {age}")
            setattr(found, what, DecayedMean(float(value), float(weight), now - age))
        self._boxes[box] = found

    @property
    def segments(self) -> Mapping[tuple[str, str], float]:
        """Box and segment -> seconds."""
        return {key: mean.value for key, mean in self._segments.items()}

    def _of(self, box: str) -> _BoxMeasures:
        return self._boxes.setdefault(box, _BoxMeasures())


def _plus(mean: DecayedMean | None, value: float, now: float, weight: float = 1.0) -> DecayedMean:
    return DecayedMean(value, weight, now) if mean is None else mean.plus(value, now, weight)
