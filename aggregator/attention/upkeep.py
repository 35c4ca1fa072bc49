"""What operators do with contexts that are there: trim them, have their copies made whole, take them out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np

from aggregator.attention.contexts import Contexts, StoredContext, StoredSegment
from aggregator.attention.stored_tokens import StoredTokens, pieces
from aggregator.engine.endings import to_the_end
from aggregator.engine.trip import Trips
from aggregator.fleet.membership import Membership
from edge_attention.core.errors import (
    EdgeAttentionError,
    EmptyContext,
    FailedPrecondition,
    InvalidArgument,
    PrivateTensor,
    Unavailable,
)
from edge_attention.core.messages.attention import (
    ContextPiece,
    Missing,
    RepairContextResponse,
    TrimContextResponse,
)
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.program import Drop
from edge_attention.core.positions import Positions
from edge_attention.graphs.attention import library

PIECE_MESSAGE = 1024 * 1024 * 15 // 16
"""Bytes of keys and values in one message of an export."""
TOLD = 256
"""Segments that are still not whole which a repair names."""


class Upkeep:
    """Trims, repairs and exports contexts."""

    def __init__(self, contexts: Contexts, membership: Membership, trips: Trips) -> None:
        self._contexts = contexts
        self._membership = membership
        self._trips = trips
        self._tokens = StoredTokens(membership, trips)

    # Trim

    async def trim(self, name: str, gone: range) -> TrimContextResponse:
        """Forget the tokens at the positions `gone`, on nodes, too. The others keep their positions.

        A segment of which some tokens stay is stored anew without the others, by its live holders.

        Raises:
            InvalidArgument: `gone` is no range of positions.
            FailedPrecondition: a segment of a node's own data would be trimmed in part; nothing has changed.
            Unavailable: none of the holders of a segment that is trimmed in part is there; the same.
        """
        if not 0 <= gone.start < gone.stop:
            raise InvalidArgument(
                f"positions [{gone.start}, {gone.stop}) are no range to trim; give the first one and the one "
                "past the last"
            )
        context = self._contexts.get(name)
        async with context.lock:
            self._contexts.require_current(context)
            touched: list[StoredSegment] = []
            stays: list[tuple[StoredSegment, Positions]] = []
            trimmed = 0
            for segment in context.segments:
                left = segment.positions.without(gone)
                count = left.count if left is not None else 0
                if count == segment.positions.count:
                    continue
                trimmed += segment.positions.count - count
                touched.append(segment)
                if left is not None:
                    stays.append((segment, left))
            if touched:
                await self._trim(context, gone, touched, stays)
            return TrimContextResponse(trimmed, self._contexts.describe(context))

    async def _trim(
        self,
        context: StoredContext,
        gone: range,
        touched: Sequence[StoredSegment],
        stays: Sequence[tuple[StoredSegment, Positions]],
    ) -> None:
        revision = await self._contexts.revisions.take()
        new: list[StoredSegment] = []
        sessions: dict[str, str] = {}
        committed = False

        async def commit() -> None:
            nonlocal committed
            struck = {segment.id for segment in touched}
            await self._contexts.commit(context, new, sessions=sessions, removed=struck)
            committed = True

        try:
            for segment, left in stays:
                new.append(made := self._anew(context, segment, left))
                context.appending.add(made.id)
                first, last = segment.positions.before(np.array([gone.start, gone.stop], np.int64)).tolist()
                kept = [range(first), range(last, segment.positions.count)]
                try:
                    await self._copy(
                        context, segment, made.holders, made.id, kept, made.holders, revision, sessions
                    )
                except PrivateTensor as error:
                    raise FailedPrecondition(
                        f"{error.message}: it is trimmed as a whole, its positions "
                        f"{segment.positions.start} to {segment.positions.stop - 1}, or not at all"
                    ) from None
            # The summaries stay: of fewer tokens they bound all the more.
            await to_the_end(commit(), counts=True)
        finally:
            if committed:
                self._drop(context, touched, revision + 1)
            else:
                self._drop(context, new, revision + 1)
            context.appending.clear()

    def _anew(self, context: StoredContext, segment: StoredSegment, left: Positions) -> StoredSegment:
        """What stays of a segment, as one of its own, at those of its holders that are there."""
        holders = self._live(context, segment)
        if not holders:
            raise Unavailable(
                f"segment {segment.id} of context {context.spec.name!r} is held by "
                f"{', '.join(segment.holders)}, of which none is there; start one, or trim it as a whole"
            )
        return StoredSegment(secrets.token_hex(4), left, holders, segment.summary)

    def _drop(self, context: StoredContext, segments: Sequence[StoredSegment], revision: int) -> None:
        """Have nodes forget these; one that is away is told when it comes back."""
        for segment in segments:
            for node in segment.holders:
                self._trips.post(node, (Drop((f"context/{context.id}/{segment.id}/",), revision),))

    # Repair

    async def repair(self, name: str, seconds: float) -> RepairContextResponse:
        """Copy segments that have fewer holders than the context has replicas, one after the other.

        A holder whose lease runs yet counts; one that is lost does not, and is named no more once there are
        copies enough. One that was started anew without its tokens may get them again. What `seconds` are too
        short for is named among what is missing.
        """
        until = time.monotonic() + seconds
        context = self._contexts.get(name)
        segments = copied = 0
        missing: list[Missing] = []
        for id in [segment.id for segment in context.segments]:
            async with context.lock:
                self._contexts.require_current(context)
                segment = next((s for s in context.segments if s.id == id), None)
                if segment is None:
                    continue  # trimmed meanwhile
                reason = "no time was left; repair again"
                if time.monotonic() < until:
                    reason, made = await self._repair(context, segment)
                    segments += made > 0
                    copied += made * segment.positions.count
                if reason:
                    hull, count = segment.positions.hull, segment.positions.count
                    missing.append(Missing(segment.id, hull, segment.holders, reason, count))
        described = self._contexts.describe(context)
        return RepairContextResponse(segments, copied, tuple(missing[:TOLD]), described)

    async def _repair(self, context: StoredContext, segment: StoredSegment) -> tuple[str, int]:
        """Why a segment is still not whole, or nothing; and how many copies were made."""
        having = self._contexts.serving(context, segment)
        live = self._live(context, segment)
        away = tuple(n for n in having if self._membership.state(n) is NodeState.SUSPECT)
        lacking = context.spec.replicas - len(live) - len(away)
        if lacking <= 0:
            return "", 0
        if not live:
            return f"none of its holders is there with its tokens: {', '.join(segment.holders)}", 0
        chosen = self._with_room(context, segment, having, lacking)
        if not chosen:
            return f"no other node is ready that has room for {segment.positions.count:,} tokens", 0
        revision = await self._contexts.revisions.take()
        # Of copies that are too few yet none is given up: who is lost may come back with its own.
        lost = (n for n in having if n not in live and n not in away)
        holders = (*live, *away, *chosen, *(lost if len(chosen) < lacking else ()))
        sessions: dict[str, str] = {}
        committed = False

        async def commit() -> None:
            nonlocal committed
            whole = replace(segment, holders=holders)
            await self._contexts.commit(context, [whole], sessions=sessions)
            committed = True

        try:
            kept = [range(segment.positions.count)]
            await self._copy(context, segment, live, segment.id, kept, chosen, revision, sessions)
            await to_the_end(commit(), counts=True)
        except EdgeAttentionError as error:
            return error.message, 0
        finally:
            if not committed:
                self._drop(context, [replace(segment, holders=chosen)], revision + 1)
        if len(chosen) < lacking:
            return f"of {lacking} copies that lack only {len(chosen)} have found a node with room", len(
                chosen
            )
        return "", len(chosen)

    def _with_room(
        self, context: StoredContext, segment: StoredSegment, having: Sequence[str], count: int
    ) -> tuple[str, ...]:
        """So many nodes, or fewer, that may take a copy: those with the fewest of its tokens first. `having`:
        those that have one."""
        size, tile = context.spec.token_bytes, library.TILE
        needed = 2 * -(-segment.positions.count // tile) * tile * size
        found = sorted(
            (self._contexts.held(context, m.name), m.memory - m.register.memory_limit, m.name)
            for m in self._membership.members()
            if m.state is NodeState.READY
            and m.name not in having
            and m.register.memory_limit - m.memory >= needed
        )
        return tuple(name for _, _, name in found[:count])

    # Export

    async def export(self, name: str) -> AsyncIterator[ContextPiece]:
        """The tokens there are now, segment by segment, in order of position within each.

        Raises:
            EmptyContext: there are none.
            PrivateTensor: some are of a node's own data.
            Unavailable: nobody is there who has some of them.
        """
        context = self._contexts.get(name)
        segments = list(context.segments)
        if not segments:
            raise EmptyContext(f"context {name!r} has no tokens yet; append some first")
        spec, count = context.spec, sum(segment.positions.count for segment in segments)
        step, first = max(1, PIECE_MESSAGE // spec.token_bytes), True
        for segment in segments:
            for stored in pieces(spec, range(segment.positions.count)):
                holders = self._live(context, segment) or segment.holders
                keys, values = await self._tokens.read(context, segment, stored, holders)
                positions = segment.positions.at(stored)
                for at in range(0, len(keys), step):
                    part = slice(at, at + step)
                    yield ContextPiece(
                        spec if first else None,
                        count if first else 0,
                        positions[part],
                        keys[part],
                        values[part],
                    )
                    first = False

    # Both

    def _live(self, context: StoredContext, segment: StoredSegment) -> tuple[str, ...]:
        """The segment's holders that are there and have all of its tokens."""
        return tuple(n for n in self._contexts.serving(context, segment) if self._membership.live(n))

    async def _copy(
        self,
        context: StoredContext,
        segment: StoredSegment,
        holders: Sequence[str],
        to: str,
        kept: Sequence[range],
        nodes: Sequence[str],
        revision: int,
        sessions: dict[str, str],
    ) -> None:
        """Have `nodes` store as segment `to` what `holders` store of `segment` as numbers `kept`."""
        at = 0
        for stretch in kept:
            for stored in pieces(context.spec, stretch):
                tokens = await self._tokens.read(context, segment, stored, holders)
                await self._tokens.store(context, to, nodes, at, tokens, revision, sessions)
                at += len(stored)
                await asyncio.sleep(0)
        for node in nodes:
            if (member := self._membership.get(node)) is not None:
                member.memory += at * context.spec.token_bytes  # until its next heartbeat says so
