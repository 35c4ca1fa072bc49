"""Where what a session stores lies: by part the node that is asked, by tokens the part whose turn it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from aggregator.inference.decoding.decoder_session import DecoderSession
from aggregator.inference.decoding.flights import TokenSpan, owned_before
from aggregator.inference.decoding.session_bytes import BLOCK
from aggregator.inference.part_of_request import PartsNodes
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.schedule.pieces import DecoderForm

__all__ = ["SessionPlaces"]


class SessionPlaces:
    """Chooses for the sessions of one decoder; changes nothing of them.

    Args:
        nodes: what is known of nodes, and of who holds which part.
    """

    def __init__(self, form: DecoderForm, nodes: PartsNodes) -> None:
        self._form = form
        self._nodes = nodes

    def of(
        self, session: DecoderSession, sessions: Collection[DecoderSession]
    ) -> tuple[tuple[str, ...] | None, int | None]:
        """By part the node to ask; or None, and the part for which another node is to be found, if any.

        A part that nobody stores anything of yet goes to the node with the fewest of `sessions`.
        """
        place: list[str] = []
        for part, forms in enumerate(self._form.caches):
            holders = self._nodes.holders(part)
            ready = [n for n in holders if self._nodes.state(n) is NodeState.READY]
            old = session.place[part] if session.place else ""
            if old in ready:
                place.append(old)
                continue
            if old and forms and self._nodes.state(old) is NodeState.SUSPECT:
                return None, None  # it may be back with what it stores
            if not ready:
                suspect = any(self._nodes.state(n) is NodeState.SUSPECT for n in holders)
                return None, None if suspect else part
            loads = {node: sum(node in other.place for other in sessions) for node in ready}
            place.append(min(ready, key=lambda n: (loads[n], ready.index(n))))
        return tuple(place), None

    def moved(self, session: DecoderSession, place: tuple[str, ...]) -> bool:
        """Whether some of what is stored of it is not there any more, once it is stored at `place`."""
        return bool(session.place) and any(
            forms
            and (session.place[part], session.lives[part]) != (place[part], self._nodes.life(place[part]))
            for part, forms in enumerate(self._form.caches)
        )

    def spans(self, session: DecoderSession, start: int, stop: int) -> tuple[TokenSpan, ...]:
        """Who stores what: new tokens go to the part that stored the last ones, until it has a block."""
        spans = [span for span in session.spans if span.start < start]
        last = spans[-1] if spans else None
        if last is not None and last.stop - last.start < BLOCK:
            return (*spans[:-1], replace(last, stop=stop))
        shares = self._form.shares
        parts = [part for part in range(len(shares)) if shares[part] > 0]
        part = min(parts, key=lambda p: (owned_before(spans, p, start) / shares[p], p))
        return (*spans, TokenSpan(part, start, stop))
