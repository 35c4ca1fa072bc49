"""Where appended tokens go: a pure decision over the nodes that are there and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_attention.core.errors import OutOfMemory, Unavailable


@dataclass(frozen=True)
class Candidate:
    """A live node: tokens of this context it holds, and how many more it has memory for."""

    name: str
    held: int
    room: int


@dataclass(frozen=True)
class OpenSegment:
    """The context's last segment, which may still grow: its holders and its size in tokens."""

    holders: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class Piece:
    """`tokens` go to `holders`: into the open segment, or into a new one."""

    holders: tuple[str, ...]
    tokens: int
    extends: bool


def place(
    tokens: int,
    candidates: Sequence[Candidate],
    open_segment: OpenSegment | None,
    *,
    replicas: int = 1,
    tile: int,
    segment_limit: int,
) -> tuple[Piece, ...]:
    """Cut `tokens` into pieces for nodes, in order of position.

    A small append extends the open segment (a token at a time must not make a segment each); a large one
    is spread so that the nodes' loads even out, in whole tiles, because an attend takes as long as its
    most loaded node. With replicas each piece goes to that many nodes.

    Raises:
        Unavailable: fewer live nodes than replicas.
        OutOfMemory: the nodes together have no room for the tokens.
    """
    if len(candidates) < replicas:
        raise Unavailable(
            f"{len(candidates)} live nodes, but each segment is to have {replicas} holders; "
            "start more nodes or create the context with fewer replicas"
        )
    pieces: list[Piece] = []
    by_name = {c.name: c for c in candidates}
    loads = {c.name: c.held for c in candidates}
    rooms = {c.name: c.room for c in candidates}
    if open_segment is not None and all(name in by_name for name in open_segment.holders):
        # Fill the open segment to its limit by a small append, to its tile's end by a large one.
        spare = segment_limit - open_segment.tokens if tokens < tile else -open_segment.tokens % tile
        take = min(tokens, max(spare, 0), *(rooms[name] for name in open_segment.holders))
        if take > 0:
            pieces.append(Piece(open_segment.holders, take, extends=True))
            for name in open_segment.holders:
                loads[name] += take
                rooms[name] -= take
            tokens -= take
    shares = _level(tokens * replicas, loads, rooms, tile)
    if sum(shares.values()) < tokens * replicas:
        raise OutOfMemory(
            f"the live nodes have room for {sum(rooms.values()) // replicas:,} tokens of this context, "
            f"{tokens:,} were to be stored; add a node or raise a node's --memory-limit"
        )
    names = sorted(loads, key=lambda name: (loads[name], name))
    if replicas == 1:
        new = [Piece((name,), shares[name], extends=False) for name in names if shares[name]]
    else:
        # Chained replicas: piece i on nodes i, i+1, ...: every node holds about the same.
        used = [name for name in names if rooms[name] > 0]
        if len(used) < replicas:
            raise OutOfMemory(f"only {len(used)} nodes have room, each segment is to have {replicas} holders")
        cut = _cut(tokens, len(used), tile)
        new = [
            Piece(tuple(used[(i + k) % len(used)] for k in range(replicas)), size, extends=False)
            for i, size in enumerate(cut)
            if size
        ]
    return tuple(pieces + new)


def _cut(tokens: int, parts: int, tile: int) -> list[int]:
    """`tokens` in at most `parts` sizes, whole tiles but for the last."""
    tiles = -(-tokens // tile)
    sizes = [(tiles // parts + (i < tiles % parts)) * tile for i in range(parts)]
    excess = sum(sizes) - tokens
    last = max((i for i, size in enumerate(sizes) if size), default=0)
    sizes[last] -= excess
    return sizes


def _level(tokens: int, loads: dict[str, int], rooms: dict[str, int], tile: int) -> dict[str, int]:
    """How many of `tokens` each node gets so that loads end up level, in whole tiles, within the rooms."""
    shares = dict.fromkeys(loads, 0)
    left = tokens
    while left > 0:
        able = [n for n in sorted(loads) if rooms[n] - shares[n] > 0]
        if not able:
            break
        lowest = min(loads[n] + shares[n] for n in able)
        floor = [n for n in able if loads[n] + shares[n] < lowest + tile]
        above = [loads[n] + shares[n] for n in able if n not in floor]
        # Raise the lowest nodes together, to the next one's level or by an even share of what is left.
        step = max(min((min(above) - lowest) if above else left, -(-left // len(floor))), 1)
        step = -(-step // tile) * tile
        for name in floor:
            give = min(step, left, rooms[name] - shares[name])
            shares[name] += give
            left -= give
            if left == 0:
                break
    return shares
