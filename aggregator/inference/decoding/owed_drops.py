"""What nodes are to drop of sessions that have gone, until each has said that it has.

A node is asked for all of it at a time, and once at a time: what a second one drops may be another session's
by then. Who is away, or does not say that it has, is asked again when something changes with the nodes. A new
process of a node has nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from aggregator.engine.trip import Errand, Trips
from aggregator.fleet.membership import Membership
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.messages.program import Drop

__all__ = ["OWED", "OwedDrops"]

log = logging.getLogger(__name__)

OWED = 4096
"""Scopes of one decoder that nodes have not said they have dropped. Of more the oldest is not asked for
again: the node keeps it until it ends or the model does, and nothing else is stored there."""
AT_ONCE = 256
"""Scopes in one message."""
FORGET_SECONDS = 30.0


@dataclass(eq=False)
class _Owed:
    """`lives`: node that has not said that it has dropped it -> its life then. `slot`: free after that."""

    lives: dict[str, str]
    slot: int | None


class OwedDrops:
    """Those of one decoder.

    Args:
        start: has work done that nobody waits for.
        freed: told of a slot that nobody stores anything in any more.
    """

    def __init__(
        self,
        trips: Trips,
        membership: Membership,
        start: Callable[[Coroutine[Any, Any, None]], None],
        freed: Callable[[int], None],
    ) -> None:
        self._trips = trips
        self._membership = membership
        self._start = start
        self._freed = freed
        self._owed: OrderedDict[str, _Owed] = OrderedDict()
        self._asking: set[str] = set()
        self._again: set[str] = set()
        """Of those, nodes that are asked again in any case, as something has changed meanwhile."""

    def __len__(self) -> int:
        return len(self._owed)

    def owe(self, scope: str, nodes: Sequence[str], slot: int | None = None) -> None:
        """Have these drop it, whether they are there now or come back."""
        members = ((node, self._membership.get(node)) for node in nodes)
        lives = {node: member.register.instance for node, member in members if member is not None}
        if (known := self._owed.pop(scope, None)) is not None:  # others are to drop it, too
            lives = known.lives | lives
        self._owed[scope] = _Owed(lives, slot)
        if not lives:
            self._settled(scope)
        while len(self._owed) > OWED:
            scope, given_up = self._owed.popitem(last=False)
            log.warning(
                "nodes %s have not dropped %s: they keep it until they end", ", ".join(given_up.lives), scope
            )
        for node in lives:
            self._begin(node)

    def look(self) -> None:
        """Something has changed with the nodes."""
        for node in {node for owed in self._owed.values() for node in owed.lives}:
            if node in self._asking:
                self._again.add(node)
            self._begin(node)

    def _begin(self, node: str) -> None:
        if node not in self._asking and self._of(node) and self._membership.live(node):
            self._asking.add(node)
            self._start(self._drop(node))

    async def _drop(self, node: str) -> None:
        """Have it drop all that it is to, or as much as it says that it has."""
        try:
            while (scopes := self._of(node)) and self._membership.live(node):
                errand = Errand(f"forget.{node}", (node,), range(1), (Drop(scopes),))
                outcome = await self._trips.make([errand], FORGET_SECONDS, believed=(), patient=False)
                if not outcome.answered:
                    log.info("node %s keeps what sessions stored for now", node)
                    return
                for scope in scopes:
                    self._dropped(scope, node)
        except EdgeAttentionError as error:
            log.info("node %s keeps what sessions stored for now: %s", node, error)
        except asyncio.CancelledError:
            self._again.clear()  # it ends
            raise
        finally:
            self._asking.discard(node)
            if node in self._again:
                self._again.discard(node)
                self._begin(node)

    def _of(self, node: str) -> tuple[str, ...]:
        """What it is to drop, the first of it. What another process of it had stored is gone."""
        member = self._membership.get(node)
        life = member.register.instance if member is not None else None
        for scope in [s for s, owed in self._owed.items() if owed.lives.get(node, life) != life]:
            self._dropped(scope, node)
        return tuple(islice((scope for scope, owed in self._owed.items() if node in owed.lives), AT_ONCE))

    def _dropped(self, scope: str, node: str) -> None:
        owed = self._owed.get(scope)
        if owed is not None:
            owed.lives.pop(node, None)
            self._settled(scope)

    def _settled(self, scope: str) -> None:
        """Nobody has it any more, if that is so."""
        if not self._owed[scope].lives:
            slot = self._owed.pop(scope).slot
            if slot is not None:
                self._freed(slot)
