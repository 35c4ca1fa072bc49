"""The bytes that sessions store on nodes, by node and owner, and whether a node has room for more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from aggregator.inference.decoding.decoder_session import DecoderSession
from aggregator.inference.decoding.flights import memory_range
from edge_attention.core.errors import ResourceExhausted
from edge_attention.core.schedule.pieces import DecoderForm

__all__ = ["BLOCK", "TILE", "SessionBytes"]

BLOCK = 64
"""Tokens that one part stores before it is the next one's turn, where parts share them."""
TILE = 64
"""Tokens of a tile: what a stored sequence grows by."""


class SessionBytes:
    """What the sessions of one decoder store, counted as it changes.

    Args:
        room: bytes that a node has for what sessions store.
    """

    def __init__(self, form: DecoderForm, room: Callable[[str], int]) -> None:
        self._form = form
        self._each = [
            (form.token_bytes(part), form.token_bytes(part, True)) for part in range(len(form.caches))
        ]
        """By part the bytes of a token, and of one of the memory."""
        self._room = room
        self._stored: Counter[tuple[str, str | None]] = Counter()
        """Bytes by node and owner; of None all owners'."""

    def on(self, node: str, but: DecoderSession | None = None, owner: str | None = None) -> int:
        """What sessions store on a node; `but`: without this one; `owner`: only that one's."""
        size = self._stored[node, owner]
        if but is not None and owner in (None, but.owner):
            size -= but.counted.get(node, 0)
        return size

    def no_room(self, session: DecoderSession, place: Sequence[str], tokens: int) -> ResourceExhausted | None:
        """Why nodes cannot store so many tokens of the session, if they cannot.

        An owner may have as much of a node as is left free after it, as of other bounds (bounds/budget.py).
        """
        for node in dict.fromkeys(place):
            parts = [part for part, at in enumerate(place) if at == node]
            size = sum(self.of_part(session, part, tokens) for part in parts)
            used, room = self.on(node, session), self._room(node)
            if size and used + size > room:
                return ResourceExhausted(
                    f"bound cache-bytes: other sessions store {used:,} bytes on node {node!r}, which has "
                    f"{room:,} for them; {size:,} more do not fit: close sessions, or start the node with a "
                    "larger --memory-limit"
                )
            own = self.on(node, session, session.owner) + size
            if session.owner and size and own > (free := room - used - size):
                return ResourceExhausted(
                    f"bound cache-bytes: your sessions would store {own:,} bytes on node {node!r}, and leave "
                    f"{free:,} free; one may have as much as it leaves: close sessions, or start the node "
                    "with a larger --memory-limit"
                )
        return None

    def of_part(self, session: DecoderSession, part: int, tokens: int) -> int:
        """What a part stores of a session of so many tokens, in whole tiles."""
        each, of_memory = self._each[part]
        if self._form.by_tokens:
            share = self._form.shares[part] / sum(self._form.shares)
            tokens = math.ceil(tokens * share) + (BLOCK if tokens else 0)
        size = each * TILE * -(-tokens // TILE)
        if session.memory is not None:
            start, stop = memory_range(self._form, part, session.memory_length)
            size += of_memory * TILE * -(-max(stop - start, 1) // TILE)
        return size

    def count(self, session: DecoderSession, there: bool) -> None:
        """Its length or its place is another one, or it has gone and is not `there`: have that counted."""
        now = Counter[str]()
        if there:
            for part, at in enumerate(session.place):
                now[at] += self.of_part(session, part, session.length)
        for node in {*session.counted, *now}:
            for key in ((node, None), (node, session.owner)):
                self._stored[key] += now[node] - session.counted.get(node, 0)
                if not self._stored[key]:
                    del self._stored[key]
        session.counted = now

    def require_counted(self, sessions: Iterable[DecoderSession]) -> None:
        """Raises AssertionError where it is not what `sessions`, which are all there are, store."""
        stored: Counter[tuple[str, str | None]] = Counter()
        for session in sessions:
            for part, at in enumerate(session.place):
                for owner in (None, session.owner):
                    stored[at, owner] += self.of_part(session, part, session.length)
        assert stored == self._stored, "what nodes store is counted wrong"
