"""Shares of a stage for boxes that are not alike: whole units of its axis, so that all end together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import comb

__all__ = ["compositions", "even_shares", "level_shares", "shares_tried"]

Units = tuple[int, ...]


def even_shares(units: int, speeds: Sequence[float]) -> Units:
    """`units` in proportion to `speeds`, at least one each, by largest remainders.

    Raises:
        ValueError: there are fewer units than boxes.
    """
    count = len(speeds)
    if units < count:
        raise ValueError(f"{units} units for {count} boxes: one each at least")
    total = sum(speeds)
    exact = [units * speed / total for speed in speeds]
    found = [max(1, int(share)) for share in exact]
    while sum(found) < units:
        n = max(range(count), key=lambda n: (exact[n] - found[n], -n))
        found[n] += 1
    while sum(found) > units:
        n = min((n for n in range(count) if found[n] > 1), key=lambda n: (exact[n] - found[n], n))
        found[n] -= 1
    return tuple(found)


def level_shares(
    units: int, start: Units, seconds: Callable[[Units], float], slowest: Callable[[Units], Sequence[float]]
) -> tuple[Units, float]:
    """Shares from `start` on, better while moving units from one box to another helps.

    Args:
        seconds: what is to be least.
        slowest: by box, how late it is: from the latest to the earliest is tried first.

    Returns:
        The shares, and their seconds. It is a local least: `compositions` has them all, where they are few.
    """
    best, least = start, seconds(start)
    step = max(1, units // (4 * len(start)))
    while step:
        late = slowest(best)
        order = sorted(range(len(best)), key=lambda n: -late[n])
        moved = False
        for giver, taker in ((order[0], order[-1]), (order[0], order[len(order) // 2])):
            if giver == taker or best[giver] <= step:
                continue
            other = list(best)
            other[giver] -= step
            other[taker] += step
            took = seconds(tuple(other))
            if took < least:
                best, least, moved = tuple(other), took, True
                break
        if not moved:
            step //= 2
    return best, least


def compositions(units: int, parts: int) -> Iterator[Units]:
    """Every way to give `units` to `parts` boxes, one each at least."""
    if parts == 1:
        yield (units,)
        return
    for first in range(1, units - parts + 2):
        for rest in compositions(units - first, parts - 1):
            yield (first, *rest)


def shares_tried(units: int, parts: int) -> int:
    """How many `compositions` gives."""
    return comb(units - 1, parts - 1) if units >= parts else 0
