"""How long one step takes: the aggregator asks its parts, each computes, all answer, one link for all.

    aggregator  |call 0|call 1|call 2|              |answer 0|answer 2|answer 1|
    part 0              | compute         |
    part 1                     | compute                    |
    part 2                            | compute      |

Calls are made one after another; answers are taken as they come, one after another. A quicker link, processor
or box never makes a step longer: that is a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox, forgotten

__all__ = ["StepErrand", "computing", "shared_seconds", "trip_seconds", "unshared_seconds"]


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
    sent = carried = 0.0
    # A link of one way at a time is an air: all calls are in it at once, and it takes answers after them.
    shares = [errand.down / hub.down for errand in errands]
    if hub.both:
        shares = shared_seconds(shares, 1.0)
    free: dict[str, float] = {}
    """By medium, or box, when its link is free again."""
    done: list[tuple[float, float, StepErrand]] = []
    for errand, seconds, share in zip(errands, times, shares, strict=True):
        link = links.to(errand.box.name)
        sent += links.call_seconds / 2 + errand.down * links.byte_seconds
        carried = share if hub.both else carried + share
        key = link.medium or errand.box.name
        came = max(sent + carried, free.get(key, 0.0) + errand.down / link.down)
        free[key] = came
        latency = hub.latency + link.latency
        end = came + latency + seconds + link.cold * forgotten(seconds)
        done.append((end, latency, errand))
    taken, last = sent + max(shares, default=0.0) if hub.both else 0.0, 0.0
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
    """When each box has done its seconds of work, all beginning at once.

    Boxes of one machine share its cores: while more are at work than it has cores for, each is slower.
    """
    found = [seconds for _, seconds in work]
    machines: dict[str, list[int]] = {}
    for number, (box, _) in enumerate(work):
        if box.machine:
            machines.setdefault(box.machine, []).append(number)
    for numbers in machines.values():
        ended = shared_seconds([found[number] for number in numbers], work[numbers[0]][0].cores)
        for number, seconds in zip(numbers, ended, strict=True):
            found[number] = seconds
    return found


def shared_seconds(alone: Sequence[float], cores: float) -> list[float]:
    """When each ends of what would take `alone`, all beginning at once on so many cores, evenly shared."""
    ended, now, done = [0.0] * len(alone), 0.0, 0.0
    order = sorted(range(len(alone)), key=lambda number: alone[number])
    for at, number in enumerate(order):
        now += (alone[number] - done) * max((len(alone) - at) / cores, 1.0)
        done = alone[number]
        ended[number] = now
    return ended


def unshared_seconds(spans: Sequence[tuple[float, float]], cores: float) -> list[float]:
    """What each would have taken alone that ran from begin to end, beside the others on so many cores."""
    change = dict.fromkeys((at for span in spans for at in span), 0)
    for begin, end in spans:
        change[begin] += 1
        change[end] -= 1
    done: dict[float, float] = {}
    """What one that was at work all the time would have done by then."""
    now, at_work, before = 0.0, 0, 0.0
    for at in sorted(change):
        now += (at - before) * min(cores / at_work, 1.0) if at_work else 0.0
        done[at], at_work, before = now, at_work + change[at], at
    return [done[end] - done[begin] for begin, end in spans]
