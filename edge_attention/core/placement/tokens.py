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
    most loaded node. What falls to the open segment's holders grows it: a segment is a kernel run of its
    own. With replicas each piece goes to that many nodes.

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
    growing: tuple[str, ...] = ()
    if open_segment is not None and all(name in by_name for name in open_segment.holders):
        growing = open_segment.holders
        # Fill the open segment to its limit by a small append, to its tile's end by a large one.
        spare = segment_limit - open_segment.tokens if tokens < tile else -open_segment.tokens % tile
        take = min(tokens, max(spare, 0), *(rooms[name] for name in open_segment.holders))
        if take > 0:
            pieces.append(Piece(open_segment.holders, take, extends=True))
            for name in open_segment.holders:
                loads[name] += take
                rooms[name] -= take
            tokens -= take
    if tokens == 0:
        return tuple(pieces)
    # A node holds a token once. Whole tiles if the rooms allow it, single tokens if they are that tight.
    caps = {name: max(0, min(room, -(-tokens // tile) * tile)) for name, room in rooms.items()}
    for unit in (tile, 1):
        units = -(-tokens // unit)
        room_units = {name: min(cap // unit, units) for name, cap in caps.items()}
        shares = _level(units * replicas, room_units, loads, unit)
        if sum(shares.values()) == units * replicas:
            # The open segment's holders come first, so that their share can grow that segment.
            names = sorted(loads, key=lambda name: (name not in growing, loads[name], name))
            new = _wrap([(n, shares[n]) for n in names if shares[n]], units, unit, tokens)
            if growing and set(new[0].holders) == set(growing):
                before = sum(piece.tokens for piece in pieces)
                pieces = [Piece(growing, before + new.pop(0).tokens, extends=True)]
            return tuple(pieces + new)
    room = _room(rooms, replicas)
    raise OutOfMemory(
        f"the live nodes have room for {room:,} tokens of this context, {tokens:,} were to be stored"
        + (f" on {replicas} nodes each" if replicas > 1 else "")
        + "; add a node or raise a node's --memory-limit"
    )


def _room(rooms: dict[str, int], replicas: int) -> int:
    """The most tokens that fit on `replicas` nodes each, a token once on a node (Hall)."""
    low, high = 0, sum(max(room, 0) for room in rooms.values()) // replicas
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(min(max(room, 0), middle) for room in rooms.values()) >= middle * replicas
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _level(units: int, rooms: dict[str, int], loads: dict[str, int], unit: int) -> dict[str, int]:
    """How many of `units` each node gets so that loads (in tokens) end up level; rooms are in units."""
    shares = dict.fromkeys(rooms, 0)
    while units > 0:
        levels = {n: loads[n] + shares[n] * unit for n in rooms if shares[n] < rooms[n]}
        if not levels:
            break
        lowest = min(levels.values())
        floor = sorted((n for n in levels if levels[n] < lowest + unit), key=lambda n: (levels[n], n))
        above = [level for level in levels.values() if level >= lowest + unit]
        # Raise the lowest together, to the next one's level or by an even share of what is left.
        even = units // len(floor)
        step = max(1, min((min(above) - lowest) // unit, even) if above else even)
        for name in floor:
            give = min(step, units, rooms[name] - shares[name])
            shares[name] += give
            units -= give
    return shares


def _wrap(shares: list[tuple[str, int]], units: int, unit: int, tokens: int) -> list[Piece]:
    """Pieces in which each node has its share and each token its holders, distinct (McNaughton's rule).

    The shares lie end to end on a line, and the line is wrapped into rows of `units`, a row a replica.
    No share is longer than a row, so a node never meets itself in a column; a piece is a run of like ones.
    """
    rows: list[list[tuple[int, str]]] = [[]]
    column = 0
    for name, share in shares:
        while share:
            if column == units:
                rows.append([])
                column = 0
            part = min(share, units - column)
            column, share = column + part, share - part
            rows[-1].append((column, name))
    pieces, start = [], 0
    for stop in sorted({end for row in rows for end, _ in row}):
        holders = tuple(next(name for end, name in row if end >= stop) for row in rows)
        pieces.append(Piece(holders, min(stop * unit, tokens) - start * unit, extends=False))
        start = stop
    return pieces
