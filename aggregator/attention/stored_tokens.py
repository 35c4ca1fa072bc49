"""The tokens that nodes store of a context: read back a few tiles at a time, and stored anew elsewhere.

What passes here passes the aggregator's memory and disk, as an append does. Of a node's own data nothing
does: the node refuses to return it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import numpy as np

from aggregator.attention.contexts import StoredContext, StoredSegment
from aggregator.engine.arriving import require_tokens
from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand, Trips
from aggregator.fleet.membership import Membership
from edge_attention.core.errors import InvalidTensor, PrivateTensor, Unavailable
from edge_attention.core.messages.attention import ContextSpec
from edge_attention.core.messages.program import Append, Return, Run, Stored
from edge_attention.core.tensors import Array, Float32
from edge_attention.graphs.attention import library

PIECE_BYTES = 8 * 1024 * 1024
"""Bytes of tokens that are read at a time; a tile at least."""
PIECE_SECONDS = 60.0
"""What a node has to return a piece, or to store one."""

_TILES = library.digest("stored_tiles")
_FLOAT32 = np.dtype(np.float32)


def pieces(spec: ContextSpec, stored: range) -> Iterator[range]:
    """`stored` in pieces that are read at a time, each within whole tiles but at the ends."""
    step = max(1, PIECE_BYTES // (spec.token_bytes * library.TILE)) * library.TILE
    at = stored.start
    while at < stored.stop:
        stop = min((at // step + 1) * step, stored.stop)
        yield range(at, stop)
        at = stop


class StoredTokens:
    """Reads and stores tokens of segments, a piece at a time."""

    def __init__(self, membership: Membership, trips: Trips) -> None:
        self._membership = membership
        self._trips = trips

    async def read(
        self, context: StoredContext, segment: StoredSegment, stored: range, holders: Sequence[str]
    ) -> tuple[Float32, Float32]:
        """The keys and values of the tokens that are stored as numbers `stored`, of one of `holders`.

        Raises:
            PrivateTensor: they are of a node's own data.
            Unavailable, DeadlineExceeded: no holder has returned them.
            InvalidTensor: a holder has returned what cannot be such tokens.
        """
        spec, tile = context.spec, library.TILE
        tiles = range(stored.start // tile, -(-stored.stop // tile))
        names = {"keys": context.keys(segment.id), "values": context.values(segment.id)}
        errand = Errand(
            shard=segment.id,
            holders=tuple(holders),
            coverage=stored,
            instructions=(
                *(
                    Run(_TILES, {"tiles": Stored(name, tiles)}, {"out": f"task/{what}"})
                    for what, name in names.items()
                ),
                *(Return(f"task/{what}", what) for what in names),
            ),
            wanted={
                "keys": (_FLOAT32, (len(tiles), spec.key_heads, tile, spec.key_dim)),
                "values": (_FLOAT32, (len(tiles), spec.key_heads, tile, spec.value_dim)),
            },
        )
        answers: list[Returned] = []
        try:
            outcome = await self._trips.make([errand], PIECE_SECONDS, answers.append, spooled=True)
        except PrivateTensor:
            raise self._private(context, segment) from None
        if outcome.missing:
            if issubclass(outcome.cause, PrivateTensor):
                raise self._private(context, segment)
            raise outcome.cause(f"segment {segment.id} of context {spec.name!r}: {outcome.why}")
        answer = answers[-1]
        part = slice(stored.start - tiles.start * tile, stored.stop - tiles.start * tile)
        try:
            return await asyncio.to_thread(_tokens, spec, answer, part)
        except InvalidTensor as error:
            raise InvalidTensor(
                f"node {answer.node!r} returned of segment {segment.id}: {error.message}"
            ) from None
        finally:
            answer.close()

    async def store(
        self,
        context: StoredContext,
        segment: str,
        holders: Sequence[str],
        at: int,
        tokens: tuple[Float32, Float32],
        revision: int,
        sessions: dict[str, str],
    ) -> None:
        """Store keys and values behind `at` tokens of a segment, on all of `holders`.

        `sessions`: gets of each holder the session in which it has stored them. One that has stored the
        tokens before these in another may have lost them.

        Raises:
            EdgeAttentionError: not all of them have; what some have stored is to be dropped.
        """
        keys, values = tokens
        tile = library.TILE
        instructions = (
            Append(context.keys(segment), Stored("task/keys"), at, tile, keys.shape, revision),
            Append(context.values(segment), Stored("task/values"), at, tile, values.shape, revision),
        )
        errands = [
            Errand(
                shard=f"{segment}@{holder}",
                holders=(holder,),
                coverage=range(at, at + len(keys)),
                instructions=instructions,
                tensors={"task/keys": keys, "task/values": values},
            )
            for holder in holders
        ]
        changed: list[str] = []

        def stored(answer: Returned) -> None:
            member = self._membership.get(answer.node)
            session = "" if member is None else member.session
            if sessions.setdefault(answer.node, session) != session:
                changed.append(answer.node)

        outcome = await self._trips.make(errands, PIECE_SECONDS, stored, believed=())
        if outcome.missing:
            raise outcome.cause(f"context {context.spec.name!r} was not copied: {outcome.why}")
        if changed:
            who = f"node {changed[0]!r} was started anew"
            raise Unavailable(f"context {context.spec.name!r} was not copied: {who}; try again")

    def _private(self, context: StoredContext, segment: StoredSegment) -> PrivateTensor:
        return PrivateTensor(
            f"segment {segment.id} of context {context.spec.name!r} is of the own data of node "
            f"{segment.holders[0]!r}, and does not leave it"
        )


def _tokens(spec: ContextSpec, answer: Returned, part: slice) -> tuple[Float32, Float32]:
    """Tiles as they were returned as tokens [tokens, heads, dim]. Blocks."""

    def rows(tiles: Array) -> Float32:
        _, heads, _, dim = tiles.shape
        return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3).reshape(-1, heads, dim)[part])

    keys, values = rows(answer.array("keys")), rows(answer.array("values"))
    require_tokens(spec, keys, values)
    return keys, values
