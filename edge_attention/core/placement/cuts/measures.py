"""What a fleet was measured to do, kept up by every answer: boxes, segments' seconds, links, requests.

Pure: whoever measures says when. Of a box it keeps two lines (measured_lines.py): seconds of a segment by
what its work should take, so that what one model's segments took says something of a plan that nothing has
run yet; and seconds of a call beside that, by bytes and by how long it computed (measured_ways.py). Of
requests a third: what they take beside their calls, by steps.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.measured_bins import DecayedMean
from edge_attention.core.placement.cuts.measured_lines import FittedLine, MeasuredLine
from edge_attention.core.placement.cuts.measured_ways import MeasuredWays

__all__ = ["MOST_SEGMENTS", "FleetMeasures"]

MOST_SEGMENTS = 20_000
"""Of all boxes whose seconds are kept; of more, the one that was not measured for longest goes."""

MOST_CALL = 8.0
"""Times the seconds that a call is taken to cost before it was measured, and more on a slow box: at most."""
SEGMENT_BEFORE = FittedLine(0.3e-3, 1.0)
"""Seconds of a segment by what its work should take, as on a daemon of this project on a x86 core."""
WAY_BEFORE = 1.0e-3
"""Seconds of a call and its answer, on loopback."""
REQUEST_BEFORE = FittedLine(0.3e-3, 0.3e-3)
"""Seconds of a request beside its calls, by steps."""

_LEAST_SLOWNESS = 1e-6
_MOST_SKEW = 6.0
"""Of the logarithm of how many times as long a byte takes up as down."""


@dataclass
class _BoxMeasures:
    segments: MeasuredLine = field(default_factory=lambda: MeasuredLine(SEGMENT_BEFORE, 1e-5, MOST_CALL))
    way: MeasuredWays = field(default_factory=lambda: MeasuredWays(WAY_BEFORE))
    """By bytes down and, as many times as long as one takes more there, up."""
    skew: DecayedMean | None = None
    """The logarithm of that."""
    beside: DecayedMean | None = None
    """The logarithm of how many of its machine's boxes that one computes for at their full speed."""


@dataclass
class FleetMeasures:
    """Estimates by box. All methods take `now` in seconds of any clock that does not go back.

    Bounded by the boxes that are told of (`forget` those that left) and by MOST_SEGMENTS.
    """

    _boxes: dict[str, _BoxMeasures] = field(default_factory=dict)
    _segments: dict[tuple[str, str], DecayedMean] = field(default_factory=dict)
    _requests: MeasuredLine = field(default_factory=lambda: MeasuredLine(REQUEST_BEFORE, 0.5))
    _hub: DecayedMean | None = None
    """Logarithm of seconds a byte of all links together."""
    _both: bool = False
    """Whether what they share has one way at a time, as a Wi-Fi."""

    def computed(self, box: str, segments: Iterable[tuple[float, float]], now: float) -> None:
        """Segments of one request, on the box: what `ComputeBox.seconds`, slowness 1, says of each, and the
        seconds it took."""
        found = [(predicted, seconds) for predicted, seconds in segments if seconds > 0 and predicted > 0]
        if found:
            self._of(box).segments.add(found, now)

    def called(self, box: str, calls: Iterable[tuple[float, float, float, float]], now: float) -> None:
        """Calls of one request and their answers: bytes down, bytes up, the box's seconds, those beside."""
        found = [call for call in calls if min(call[:3]) >= 0 and call[3] > 0]
        if found:
            of = self._of(box)
            skew = math.exp(of.skew.value if of.skew else 0.0)
            of.way.add([(down + skew * up, run, seconds) for down, up, run, seconds in found], now)

    def skewed(self, box: str, times: float, now: float) -> None:
        """A byte from the box takes so many times as long as one to it."""
        if times > 0:
            of, value = self._of(box), math.log(times)
            of.skew = _plus(of.skew, min(max(value, -_MOST_SKEW), _MOST_SKEW), now)

    def beside(self, box: str, boxes: float, now: float) -> None:
        """So many boxes of its machine seemed to compute at their full speed beside each other."""
        of, value = self._of(box), math.log(max(boxes, 1.0))
        of.beside = DecayedMean(value, 1.0, now) if of.beside is None else of.beside.near(value, now)

    def requested(self, seconds: float, steps: int, now: float) -> None:
        """A request of so many steps took `seconds` beside the longest call of each of them."""
        if seconds > 0 and steps > 0:
            self._requests.add([(steps, seconds)], now)

    def shared(self, byte_seconds: float, both: bool, now: float) -> None:
        """A byte of one link made the others wait for so long; `both`: one of the other way, too."""
        if byte_seconds > 0:
            self._hub, self._both = _plus(self._hub, math.log(byte_seconds), now), both

    def not_shared(self) -> None:
        """Links did not wait for each other, other than for the aggregator's processor."""
        self._hub = None

    def segment(self, box: str, segment: str, seconds: float, now: float) -> None:
        """A segment took `seconds` on the box. `segment`: any name for what does the same each time."""
        if seconds < 0:
            return
        key = box, segment
        # The last measured is the last of the dictionary.
        self._segments[key] = _plus(self._segments.pop(key, None), seconds, now)
        if len(self._segments) > MOST_SEGMENTS:
            del self._segments[next(iter(self._segments))]

    def forget(self, box: str) -> None:
        """The box is gone, or has become another one."""
        self._boxes.pop(box, None)
        for key in [key for key in self._segments if key[0] == box]:
            del self._segments[key]

    def keep(self, boxes: Container[str]) -> None:
        """Of others nothing is kept."""
        for box in [box for box in self._boxes if box not in boxes]:
            self.forget(box)

    def reached(self, box: str) -> bool:
        """Whether anything was measured of its link."""
        found = self._boxes.get(box)
        return found is not None and found.way.measured

    def box(self, stated: ComputeBox) -> ComputeBox:
        """The box with what was measured of it, if anything was."""
        found = self._boxes.get(stated.name)
        if found is None or not found.segments.measured:
            return stated
        line = found.segments.line
        return replace(stated, slowness=max(line.each, _LEAST_SLOWNESS), call_seconds=line.fixed)

    def at_once(self, box: str) -> float:
        """How many of its machine's boxes that one computes for at their full speed; 0: not measured."""
        found = self._boxes.get(box)
        return math.exp(found.beside.value) if found is not None and found.beside is not None else 0.0

    def segment_seconds(self, box: str, predicted: float) -> float:
        """What a segment takes on the box where `ComputeBox.seconds`, slowness 1, says `predicted`."""
        found = self._boxes.get(box)
        return (found.segments.line if found is not None else SEGMENT_BEFORE).at(predicted)

    @property
    def shared_byte(self) -> float:
        """Seconds that a byte of one link makes the others wait; 0: not measured, or none."""
        return math.exp(self._hub.value) if self._hub is not None else 0.0

    def link(self, box: str, stated: BoxLinks) -> BoxLink:
        """The box's link with what was measured of it in place of what is stated."""
        link, found = stated.to(box), self._boxes.get(box)
        if found is None or not found.way.measured:
            return link
        way = found.way.fit
        skew = math.exp(found.skew.value if found.skew else 0.0)
        return BoxLink(
            way.fixed / 2,
            1 / way.each if way.each else math.inf,
            1 / (skew * way.each) if way.each else math.inf,
            link.both,
            link.medium,
            way.cold,
        )

    def links(self, stated: BoxLinks) -> BoxLinks:
        """The links with what was measured of each in place of what is stated.

        With latencies that were measured a step takes beside them what requests say, and not what is stated.
        """
        measured = {name: self.link(name, stated) for name in self._boxes if self.reached(name)}
        if not measured:
            return stated
        of = {**stated.of, **measured}
        requests = self._requests.line
        each = self.shared_byte
        hub = stated.hub
        if each:
            hub = replace(hub, down=1 / each, up=1 / each, both=1 / each if self._both else 0.0)
        return replace(stated, of=of, hub=hub, request_seconds=requests.fixed, trip_seconds=requests.each)

    def saved(self, now: float) -> dict[str, Any]:
        """What was measured of requests, to be kept. Of boxes: `saved_box`. Segments are measured anew."""
        return {
            "requests": self._requests.saved(now),
            "hub": _saved(self._hub, now),
            "both": self._both,
        }

    def saved_box(self, box: str, now: float) -> dict[str, Any]:
        """What was measured of the box and its link, to be kept."""
        found = self._boxes.get(box, _BoxMeasures())
        return {
            "segments": found.segments.saved(now),
            "way": found.way.saved(now),
            "skew": _saved(found.skew, now),
            "beside": _saved(found.beside, now),
        }

    def restore(self, data: Mapping[str, Any], aged: float, now: float) -> None:
        """What `saved` said `aged` seconds ago. Raises ValueError: it is none of that; nothing is changed."""
        requests = MeasuredLine(REQUEST_BEFORE, 0.5)
        requests.restore(data["requests"], aged, now)
        hub = _restored(data["hub"], aged, now)
        self._requests, self._hub, self._both = requests, hub, bool(data["both"])

    def restore_box(self, box: str, data: Mapping[str, Any], aged: float, now: float) -> None:
        """What `saved_box` said of the box `aged` seconds ago, in place of what is known.

        Raises ValueError, KeyError, TypeError: it is none of that; nothing is changed.
        """
        found = _BoxMeasures()
        found.segments.restore(data["segments"], aged, now)
        found.way.restore(data["way"], aged, now)
        found.skew = _restored(data["skew"], aged, now)
        found.beside = _restored(data["beside"], aged, now)
        self._boxes[box] = found

    def restore_means(self, box: str, means: Mapping[str, Sequence[float]], aged: float, now: float) -> None:
        """What the version before lines kept of a box: logarithm of slowness, latency, seconds a byte.

        Raises as `restore_box`.
        """
        if unknown := set(means) - {"slowness", "latency", "down", "up"}:
            raise ValueError(f"{unknown} of {box!r}")
        found = _BoxMeasures()
        kept = {what: _restored(mean, aged, now) for what, mean in means.items()}
        if any(mean is None or (what != "slowness" and mean.value < 0) for what, mean in kept.items()):
            raise ValueError(f"{means} of {box!r}")
        slow, late, down, up = (kept.get(what) for what in ("slowness", "latency", "down", "up"))
        if slow is not None:
            found.segments.add([(_MEANT_FOR, math.exp(slow.value) * _MEANT_FOR)], slow.at)
        if late is not None:
            found.way.add([(0.0, 0.0, 2 * late.value + WAY_BEFORE)], late.at)
        if down is not None and down.value > 0:
            found.way.add([(2**20, 0.0, 2**20 * down.value + WAY_BEFORE)], down.at)
        if down is not None and up is not None and min(down.value, up.value) > 0:
            found.skew = DecayedMean(math.log(up.value / down.value), 1.0, up.at)
        self._boxes[box] = found

    @property
    def segments(self) -> Mapping[tuple[str, str], float]:
        """Box and segment -> seconds."""
        return {key: mean.value for key, mean in self._segments.items()}

    def _of(self, box: str) -> _BoxMeasures:
        return self._boxes.setdefault(box, _BoxMeasures())


_MEANT_FOR = 0.03
"""Seconds of work that an older version's slowness was of, about: its products that were measured."""


def _plus(mean: DecayedMean | None, value: float, now: float, weight: float = 1.0) -> DecayedMean:
    return DecayedMean(value, weight, now) if mean is None else mean.plus(value, now, weight)


def _saved(mean: DecayedMean | None, now: float) -> list[float]:
    """Value, weight and age; nothing of none."""
    return [] if mean is None else [mean.value, mean.weight, max(now - mean.at, 0.0)]


def _restored(data: Sequence[float], aged: float, now: float) -> DecayedMean | None:
    if not data:
        return None
    value, weight, age = map(float, data)
    if not all(map(math.isfinite, (value, weight, age))) or weight <= 0 or age < 0 or abs(value) > 40:
        raise ValueError(f"no measure: {value}, {weight}, {age}")
    return DecayedMean(value, weight, now - age - aged)
