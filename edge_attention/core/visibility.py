"""Masks by position: which tokens of a segment each query sees, as one range a query.

Causal and sliding-window masks, and the end of a segment inside its last tile, are all a half-open range
of tokens: position p sees [p - window + 1, p] of the context. A mask added here becomes available
everywhere as long as it is one range of tokens for each query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.positions import Positions
from edge_attention.core.tensors import Int64


@dataclass(frozen=True, eq=False)
class Visibility:
    """What each query sees of a context: query i the positions start[i] <= p < stop[i].

    Attributes:
        start: int64 [queries].
        stop: int64 [queries].
    """

    start: Int64
    stop: Int64


@dataclass(frozen=True, eq=False)
class SegmentView:
    """What queries see of one segment, for a graph that reads the segment's tiles `tiles`.

    lo, hi: int64 [queries], counted from the first token of tile tiles.start.
    """

    tiles: range
    lo: Int64
    hi: Int64


def visible(tokens: int, positions: Int64, *, causal: bool = False, window: int | None = None) -> Visibility:
    """What queries at `positions` see of a context of `tokens` tokens.

    Args:
        positions: int64 [queries]; not negative, may lie past the end.
        causal: see only positions up to and with one's own.
        window: see only the last `window` positions up to and with one's own (implies causal).

    Raises:
        InvalidArgument: a window under 1, or a negative position.
    """
    if window is not None and window < 1:
        raise InvalidArgument(f"window is {window}; a query sees at least its own position: give 1 or more")
    if positions.size and int(positions.min()) < 0:
        raise InvalidArgument(f"position {int(positions.min())} is negative; positions count from 0")
    masked = causal or window is not None
    # Never `positions + 1`: it overflows at the largest int64, which a peer may send.
    stop = np.minimum(positions, tokens - 1) + 1 if masked else np.full_like(positions, tokens)
    start = np.zeros_like(positions) if window is None else np.maximum(positions - (window - 1), 0)
    return Visibility(np.minimum(start, stop), stop)


def seen_by_any(view: Visibility) -> Positions | None:
    """The positions that some query sees; None if there are none."""
    some = view.stop > view.start
    if not some.any():
        return None
    order = np.argsort(view.start[some], kind="stable")
    starts, stops = view.start[some][order], np.maximum.accumulate(view.stop[some][order])
    apart = starts[1:] > stops[:-1]
    return Positions(starts[np.append(True, apart)], stops[np.append(apart, True)])


def of_segment(view: Visibility, segment: Positions, tile: int) -> SegmentView | None:
    """What the queries see of `segment`, kept in tiles of `tile` tokens; None if they see nothing of it.

    Also of a segment whose positions are not one range it is one range of the tokens stored: they ascend.
    """
    lo, hi = segment.before(view.start), segment.before(view.stop)
    some = hi > lo
    if not some.any():
        return None
    tiles = range(int(lo[some].min()) // tile, -(-int(hi[some].max()) // tile))
    first = tiles.start * tile
    return SegmentView(tiles, np.where(some, lo - first, 0), np.where(some, hi - first, 0))
