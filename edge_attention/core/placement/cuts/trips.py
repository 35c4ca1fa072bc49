"""How long one step takes: the aggregator asks its parts, each computes, all answer, one link for all.

    aggregator  |call 0|call 1|call 2|              |answer 0|answer 2|answer 1|
    part 0              | compute         |
    part 1                     | compute                    |
    part 2                            | compute      |

Calls go out one after another; answers are taken as they come, one after another. A quicker link, processor
or box never makes a step longer: that is a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox

__all__ = ["StepErrand", "computing", "trip_seconds"]


@dataclass(frozen=True)
class StepErrand:
    """What one part does in a step: bytes to it, seconds of work on its box, bytes back."""

    box: ComputeBox
    seconds: float
    down: float
    up: float


def trip_seconds(errands: Sequence[StepErrand], links: BoxLinks) -> float:
    """Seconds from the first call to the last answer."""
    hub = links.hub
    times = computing([(errand.box, errand.seconds) for errand in errands])
    sent = 0.0
    free: dict[str, float] = {}
    """By medium, or box, when its link is free again."""
    done: list[tuple[float, float, StepErrand]] = []
    for errand, seconds in zip(errands, times, strict=True):
        link = links.to(errand.box.name)
        sent += links.call_seconds / 2 + errand.down * (links.byte_seconds + 1 / hub.down)
        key = link.medium or errand.box.name
        came = max(sent, free.get(key, 0.0) + errand.down / link.down)
        free[key] = came
        latency = hub.latency + link.latency
        end = came + latency + seconds
        done.append((end, latency, errand))
    taken = last = 0.0
    air: dict[str, float] = {}
    for end, latency, errand in sorted(done, key=lambda one: one[0] + one[1]):
        link = links.to(errand.box.name)
        key = link.medium or errand.box.name
        came = max(end, air.get(key, 0.0)) + errand.up / link.up
        air[key] = came
        # The aggregator takes bytes while they come, of several links at once: one that is slow holds up
        # nobody else's, and it is done with the last byte of all, not of each.
        taken = max(taken, end + latency) + links.call_seconds / 2
        taken += errand.up * (links.byte_seconds + 1 / hub.up)
        last = max(last, came + latency)
    return links.trip_seconds + max(taken, last)


def computing(work: Sequence[tuple[ComputeBox, float]]) -> list[float]:
    """Each box's seconds, longer where boxes of one machine have too few cores."""
    by_machine: dict[str, float] = {}
    for box, seconds in work:
        if box.machine:
            by_machine[box.machine] = by_machine.get(box.machine, 0.0) + seconds
    return [
        max(seconds, by_machine[box.machine] / box.cores) if box.machine else seconds for box, seconds in work
    ]
