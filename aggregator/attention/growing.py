"""Which segment appended tokens go to, and how many of them a context may have. Pure.

A segment grows at its end, and its positions ascend; they need not be one range. So nodes that are appended
to in turn, a token each, have a long segment each, which an attend runs one kernel over.
"""

from __future__ import annotations

from collections.abc import Callable

from aggregator.attention.contexts import StoredContext, StoredSegment
from aggregator.bounds.bounds import CONTEXT_SEGMENTS, CONTEXT_STRETCHES
from edge_attention.core.errors import ResourceExhausted
from edge_attention.graphs.attention import library

SEGMENT_LIMIT = 32 * library.TILE
"""Tokens to which small appends fill a segment before another node gets the next, and to which one grows that
is not the context's last."""

STRETCHES = 4096
"""Stretches of positions to which a segment grows that is not the context's last: all are written at each
append to it."""


def open_segment(
    context: StoredContext,
    holders: frozenset[str] | None,
    serving: Callable[[StoredSegment], tuple[str, ...]],
) -> StoredSegment | None:
    """The segment that tokens for `holders` extend, or for anybody if None. None: they begin a new one.

    It is the last of these holders, if all of them have its tokens (`serving`) and it is no long one; the
    context's last may be long.
    """
    theirs = (
        segment
        for segment in context.segments
        if holders is None or (len(segment.holders) == len(holders) and holders.issuperset(segment.holders))
    )
    last = max(theirs, key=lambda segment: segment.positions.stop, default=None)
    if last is None or set(serving(last)) != set(last.holders):
        return None
    at = last.positions
    short = at.count < SEGMENT_LIMIT and at.number < STRETCHES
    return last if short or at.stop == context.tokens else None


def require_few(context: StoredContext, segments: int, stretches: int) -> None:
    """Refuse an append that makes so many more segments, and stretches of positions, than a context may have.

    Raises:
        ResourceExhausted: naming the bound.
    """
    remedy = "append more tokens at a time, or to fewer nodes in turn"
    name, have = context.spec.name, len(context.segments)
    if segments and have + segments > CONTEXT_SEGMENTS:
        raise ResourceExhausted(
            f"bound context-segments: context {name!r} has {have:,} segments, and {segments:,} more would be "
            f"over {CONTEXT_SEGMENTS:,}: {remedy}"
        )
    have = context.stretches if stretches else 0
    if stretches and have + stretches > CONTEXT_STRETCHES:
        raise ResourceExhausted(
            f"bound context-stretches: the segments of context {name!r} are {have:,} stretches of positions, "
            f"and {stretches:,} more would be over {CONTEXT_STRETCHES:,}: {remedy}"
        )
