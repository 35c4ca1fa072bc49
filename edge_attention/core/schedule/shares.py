"""How an axis is divided among parts by their shares."""

from __future__ import annotations

from collections.abc import Sequence

from edge_attention.core.schedule.plan import Ranges

__all__ = ["shared_ranges"]


def shared_ranges(size: int, shares: Sequence[float]) -> Ranges:
    """An axis in consecutive ranges, in proportion to `shares` as nearly as whole numbers are.

    >>> shared_ranges(12, (2, 1, 1))
    ((0, 6), (6, 9), (9, 12))
    """
    total = sum(shares)
    exact = [size * share / total for share in shares]
    lengths = [int(one) for one in exact]
    order = sorted(range(len(shares)), key=lambda n: (lengths[n] - exact[n], n))
    for n in order[: size - sum(lengths)]:
        lengths[n] += 1
    found, start = [], 0
    for length in lengths:
        found.append((start, start + length))
        start += length
    return tuple(found)
