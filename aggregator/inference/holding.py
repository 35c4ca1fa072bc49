"""Who holds which part of a model cut for inputs of one shape: given what it needs, kept so, found anew.

A node holds a part once it has stored its weights and constants; a new process of that node has the weights
on its disk and not the constants, so it is given them again before it is asked. Where a part's nodes are gone
another one of the fleet is picked and given the part.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from aggregator.fleet.membership import Membership
from aggregator.inference.delivery import NodeDeliveries, StoredPiece
from edge_attention.core.errors import (
    EdgeAttentionError,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
)
from edge_attention.core.messages.fleet import NodeState

__all__ = ["PartTaker", "Pick", "ShapeHolders", "roomiest"]

log = logging.getLogger(__name__)

AGAIN_SECONDS = 30.0
"""A node that could not be given what it needs is not tried again before."""
GIVE_SECONDS = 3600.0
"""What a node is given takes no longer: it is a model's weights, over a slow link."""

_NO_VERSION = -1
_FINAL = (ResourceExhausted, InvalidArgument, PermissionDenied)
"""What a node says that waiting does not mend."""


@dataclass(frozen=True)
class PartTaker:
    """A node that could be given a part.

    Attributes:
        bytes: of weights and constants that it would be given for it.
        parts: how many others it is to hold already.
    """

    node: str
    bytes: int
    parts: int


Pick = Callable[[Sequence[PartTaker]], str]
"""Of the nodes that could be given a part: the one that is."""

Warm = Callable[[str, int], Awaitable[None]]

Told = Callable[[str, int, int], None]
"""Told of a node how many bytes of how many it has."""


def roomiest(membership: Membership) -> Pick:
    """The plainest Pick: who has most memory left."""

    def room(node: str) -> int:
        member = membership.get(node)
        return 0 if member is None else member.register.memory_limit - member.memory

    return lambda candidates: max((one.node for one in candidates), key=room)


class ShapeHolders:
    """The holders of each part.

    Args:
        pieces: by part, what a node needs for it.
        assigned: part -> nodes that are to hold it, those to be asked first in front.
        warm: has a node make ready what it was given for a part. Raises where it cannot.
        load: how many parts of requests a node has in hand.
        changed: called where somebody holds a part now who did not.
        may: whether a node may hold a part at all.
    """

    def __init__(
        self,
        membership: Membership,
        deliveries: NodeDeliveries,
        pieces: Sequence[Sequence[StoredPiece]],
        assigned: Mapping[int, Sequence[str]],
        pick: Pick,
        warm: Warm,
        load: Callable[[str], int],
        changed: Callable[[], None],
        may: Callable[[int, str], bool] = lambda part, node: True,
    ) -> None:
        self._membership = membership
        self._deliveries = deliveries
        self._pieces = pieces
        self._pick = pick
        self._warm = warm
        self._changed = changed
        self._assigned = {part: list(assigned.get(part, ())) for part in range(len(pieces))}
        self._may = may
        self._given: dict[tuple[int, str], tuple[str, int]] = {}
        """Part and node -> the process that holds it, and with which version of what changes."""
        self._changing: Sequence[Sequence[StoredPiece]] = [()] * len(pieces)
        """By part, what a node needs besides, of the version that counts."""
        self._version = 0
        self._giving: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, tuple[int, int]] = {}
        """Node that is being given something -> bytes it has, and in all."""
        self._failed: dict[tuple[int, str], tuple[float, EdgeAttentionError]] = {}
        self._say: Told = lambda node, done, total: None
        self._news = asyncio.Event()
        self._closed = False
        self._resting = False
        self.load = load

    # PartsNodes

    def state(self, node: str) -> NodeState:
        return self._membership.state(node)

    def life(self, node: str) -> str:
        member = self._membership.get(node)
        return "" if member is None else member.register.instance

    def holders(self, part: int) -> tuple[str, ...]:
        """Nodes that hold the part; of those that are away whoever did."""
        return tuple(node for node in self._assigned[part] if self._holds(part, node))

    def _holds(self, part: int, node: str) -> bool:
        life, version = self._given.get((part, node), ("", _NO_VERSION))
        return version == self._version and (life == self.life(node) or not self._membership.live(node))

    # What is done about it

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes that have, or are to have, something of it."""
        return tuple(dict.fromkeys(node for nodes in self._assigned.values() for node in nodes))

    @property
    def lacking(self) -> tuple[int, ...]:
        """The parts that no node holds which is there."""
        return tuple(
            part
            for part in self._assigned
            if not any(self._membership.live(node) for node in self.holders(part))
        )

    def why(self, part: int) -> str:
        """For a person: what became of those that are to hold the part."""
        said = []
        for node in self._assigned[part]:
            failed = self._failed.get((part, node))
            if node in self._giving:
                done, total = self._progress.get(node, (0, 0))
                said.append(f"node {node!r} is being given it, {done:,} of {total:,} bytes so far")
            elif failed is not None:
                said.append(failed[1].message)
            else:
                state = self._membership.state(node).value if self._membership.get(node) else "never seen"
                said.append(f"node {node!r} is {state}")
        return "; ".join(said) or "no node was named for it"

    def ensure(self, say: Told | None = None) -> None:
        """Have every node that is there given what it is to hold and does not."""
        self._say = say or self._say
        if self._closed or self._resting:
            return
        for node in self.nodes:
            if node in self._giving or not self._membership.live(node):
                continue
            now = time.monotonic()
            parts = [
                part
                for part, nodes in self._assigned.items()
                if node in nodes
                and not self._holds(part, node)
                and self._failed.get((part, node), (-AGAIN_SECONDS,))[0] + AGAIN_SECONDS <= now
            ]
            if parts:
                task = asyncio.create_task(self._give(node, parts), name=f"give {node}")
                self._giving[node] = task
                task.add_done_callback(lambda done, node=node: self._gave(node))  # type: ignore[misc]

    def renew(self, version: int, pieces: Sequence[Sequence[StoredPiece]]) -> None:
        """From now on a node holds a part only with these pieces besides (by part), of that version.

        Nothing may run meanwhile that is to be of the version before. What a node was given of an earlier
        version is not taken from it: pieces of one name are written over.
        """
        self._resting = False
        self._version, self._changing = version, pieces
        self.ensure()

    async def rest(self, seconds: float) -> bool:
        """Give nobody anything until `renew`: what changes is another shape's from now on.

        What is under way is waited for, not called back: a node may store what it was sent already, and must
        not after what it is sent for that other shape. Whether that is over, in `seconds` at most. Then
        nobody holds a part of this shape.
        """
        self._resting = True
        tasks = list(self._giving.values())
        if tasks and (await asyncio.wait(tasks, timeout=seconds))[1]:
            return False
        self._given = {key: (life, _NO_VERSION) for key, (life, _) in self._given.items()}
        return True

    def seek(self, part: int, without: frozenset[str]) -> None:
        """No node that is there holds the part: have one that is not in `without` given it."""
        if self._resting:
            return
        self.ensure()
        if any(node in self._giving for node in self._assigned[part] if node not in without):
            return
        now = time.monotonic()
        candidates = [
            member.name
            for member in self._membership.members()
            if member.state is NodeState.READY
            and member.name not in without
            and self._may(part, member.name)
            and not self._holds(part, member.name)
            and self._failed.get((part, member.name), (-AGAIN_SECONDS,))[0] + AGAIN_SECONDS <= now
        ]
        if candidates:
            node = self._pick([self._candidate(part, node) for node in candidates])
            if node not in self._assigned[part]:
                self._assigned[part].append(node)
            log.info("part %d goes to node %s: no node that is there held it", part, node)
            self.ensure()

    def _candidate(self, part: int, node: str) -> PartTaker:
        """As Pick is told of it. What it is to hold of other parts it is not given again."""
        parts = [other for other, nodes in self._assigned.items() if node in nodes and other != part]
        has = {piece.name for other in parts for piece in self._pieces[other]}
        size = sum(piece.nbytes for piece in self._pieces[part] if piece.name not in has)
        return PartTaker(node, size, len(parts))

    def supply(self, part: int, node: str) -> None:
        """The node has lost what it was given."""
        self._deliveries.lost(node)
        for key in [key for key in self._given if key[1] == node]:
            del self._given[key]
        self.ensure()

    def refused(self) -> EdgeAttentionError | None:
        """What all nodes that are to hold a part have against it, where none can be had by waiting."""
        for part in self.lacking:
            failed = [self._failed.get((part, node)) for node in self._assigned[part]]
            errors = [one[1] for one in failed if one is not None and isinstance(one[1], _FINAL)]
            if errors and len(errors) == len(failed):
                return errors[0]
        return None

    async def settled(self, seconds: float, *, seek: bool = False) -> bool:
        """Wait until nobody is being given anything and each part has a holder that is there; whether so.

        `seek`: a part whose nodes have gone is given to another one.

        Raises:
            EdgeAttentionError: as `refused` says, once nobody is being given anything.
        """
        until = time.monotonic() + seconds
        while self._giving or self.lacking:
            if not self._giving and (error := self.refused()) is not None:
                raise error
            left = until - time.monotonic()
            if left <= 0:
                return not self.lacking
            self.ensure()
            for part in self.lacking if seek and not self._giving else ():
                if not any(self._membership.state(n) is NodeState.SUSPECT for n in self._assigned[part]):
                    self.seek(part, frozenset())
            self._news.clear()
            try:
                async with asyncio.timeout(min(left, 0.5)):  # also to see who has come
                    await self._news.wait()
            except TimeoutError:
                continue
        return True

    async def close(self) -> None:
        """Nobody is given anything any more. What was given stays where it is."""
        self._closed = True
        tasks = list(self._giving.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _give(self, node: str, parts: Sequence[int]) -> None:
        life, version = self.life(node), self._version
        wanted: dict[str, StoredPiece] = {}
        changing: dict[str, StoredPiece] = {}
        fresh = [part for part in parts if self._given.get((part, node), ("", 0))[0] != life]
        for part in fresh:
            wanted |= {piece.name: piece for piece in self._pieces[part]}
        for part in parts:
            changing |= {piece.name: piece for piece in self._changing[part]}
        total, done = sum(piece.nbytes for piece in wanted.values()), 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            self._progress[node] = done, total
            self._say(node, done, total)

        count(0)
        try:
            if wanted:
                await self._deliveries.give(node, life, list(wanted.values()), GIVE_SECONDS, count)
            if changing:
                await self._deliveries.renew(node, list(changing.values()), GIVE_SECONDS)
            for part in fresh:
                await self._warm(node, part)
        except Exception as problem:
            error = problem if isinstance(problem, EdgeAttentionError) else Internal(f"a defect: {problem!r}")
            if error is not problem:
                log.exception("node %s cannot be given its share of a model", node)
            log.warning("node %s cannot be given its share of a model: %s", node, error.message)
            if error is not problem or (self._membership.live(node) and self.life(node) == life):
                # Else it has gone in the middle, and is given it when it is back.
                for part in parts:
                    self._failed[part, node] = time.monotonic(), error
            return
        for part in parts:
            self._given[part, node] = life, version
            self._failed.pop((part, node), None)

    def _gave(self, node: str) -> None:
        self._giving.pop(node, None)
        self._progress.pop(node, None)
        self._news.set()
        self._changed()
