"""Sessions with constants of their own: one for all programs that freeze the same into the same graph.

Programs that differ in their lanes, or in what calls bring, freeze the same weights: these are packed once.
What is the same is told by its digest, where a program names one, else by being the very tensor that is
stored. The memory of a session is the node's: it counts, with what it was made of, until the last of its
programs has gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from edge_attention.core.errors import OutOfMemory
from edge_node.runtime import ForeignGraph, Graph
from edge_node.store.store import Held, Store

__all__ = ["FROZEN_PART", "FROZEN_SESSIONS", "SESSION_BYTES", "FrozenSession", "FrozenSessions", "SessionKey"]

FROZEN_PART = 0.875
"""Of the node's memory that sessions with constants take at most, and what these are made of where that is in
memory, too: the rest is for what tasks store."""
FROZEN_SESSIONS = 1024
"""Sessions with constants of their own, at a time."""
SESSION_BYTES = 512 * 1024
"""What a session takes beside its constants: 0.4 to 0.8 MB were measured, of 25 nodes and on two threads."""

SessionKey = tuple[str, tuple[tuple[str, Hashable], ...]]
"""A graph's digest, and by input what tells its constant from others."""


@dataclass(eq=False)
class FrozenSession:
    """A graph with constants; or what is private and bound as it is, which no two programs share.

    Attributes:
        size: bytes that are counted for it.
        part: bytes of those that all may take together: what it is made of, too.
        pinned: what it holds of the store.
        programs: those that run it.
        made: it is loaded, or could not be: then `graph` is None, and it is not kept.
    """

    key: SessionKey
    size: int
    part: int
    pinned: list[tuple[str, Held]]
    programs: set[Hashable] = field(default_factory=set)
    graph: Graph | ForeignGraph | None = None
    made: threading.Event = field(default_factory=threading.Event)


class FrozenSessions:
    """Those there are, and their bytes in `store`. One thread at a time uses them, but for `digest`.

    `drop` forgets a program: it calls `leave` with all that program's sessions.
    """

    def __init__(self, store: Store, drop: Callable[[Any], None]) -> None:
        self._store = store
        self._drop = drop
        self._sessions: dict[SessionKey, FrozenSession] = {}
        self._digests: WeakKeyDictionary[Held, str] = WeakKeyDictionary()
        self.size = 0
        """The sum of their parts."""

    def __len__(self) -> int:
        return len(self._sessions)

    def digest(self, held: Held) -> str:
        """SHA-256 of what is held, which never changes: found once. Takes a second a gigabyte."""
        found = held.digest or self._digests.get(held)
        if found is None:
            data = np.ascontiguousarray(held.array).reshape(-1).view(np.uint8).data
            found = self._digests[held] = sha256(data).hexdigest()
        return found

    def join(
        self,
        key: SessionKey,
        constants: Collection[tuple[str, Held]],
        program: Hashable,
        order: Iterable[Hashable],
    ) -> tuple[FrozenSession, bool]:
        """The session of this key, which `program` runs from now on; and whether the caller has to make it.

        Args:
            constants: what they are stored as, and what is stored.
            order: all programs, those called last at the end. Others than `program` make room, those that
                were called longest ago first.

        Raises:
            OutOfMemory: it does not fit beside what is stored. No other has gone for it.
        """
        session = self._sessions.get(key)
        new = session is None
        if session is None:
            # As they are packed; what they are packed from is stored, and stays as long as the session.
            size = sum(held.array.nbytes for _, held in constants)
            private = any(held.origin is not None for _, held in constants)
            if not private:
                size += SESSION_BYTES
            part = size if private else size + sum(held.nbytes for _, held in constants)
            self._reserve(size, part, program, order)
            session = FrozenSession(key, size, part, [])
            try:
                for name, held in () if private else constants:
                    self._store.pin(name, held)
                    session.pinned.append((name, held))
            except OutOfMemory:
                self._release(session)
                raise
            self._sessions[key] = session
        session.programs.add(program)
        return session, new

    def leave(self, session: FrozenSession, program: Hashable) -> None:
        """The program does not run the session any more: after the last one it is not kept."""
        session.programs.discard(program)
        if not session.programs:
            self.end(session)

    def end(self, session: FrozenSession) -> None:
        """The session is not kept, whoever runs it: it could not be made. Ending it again does nothing."""
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
            self._release(session)

    def _release(self, session: FrozenSession) -> None:
        for name, held in session.pinned:
            self._store.unpin(name, held)
        self.size -= session.part
        self._store.release(session.size)

    def _reserve(self, size: int, part: int, program: Hashable, order: Iterable[Hashable]) -> None:
        most = int(FROZEN_PART * self._store.limit)
        last = {one: number for number, one in enumerate(order)}
        others = [one for one in self._sessions.values() if program not in one.programs]
        others.sort(key=lambda one: -max(last.get(user, -1) for user in one.programs))
        own = self.size - sum(one.part for one in others)
        if own + part > most:
            raise OutOfMemory(
                f"what a program freezes takes {own + part:,} bytes, and such programs have {most:,} of this "
                "node's memory; start it with a larger --memory-limit"
            )
        # Nobody goes for what does not fit all the same.
        self._store.require(size - sum(one.part for one in others), "what a program freezes")
        while True:
            if self.size + part <= most and len(self._sessions) < FROZEN_SESSIONS:
                try:
                    self._store.reserve(size, "what a program freezes")
                    self.size += part
                    return
                except OutOfMemory:
                    if not others:
                        raise
            if not others:
                raise OutOfMemory(f"this program freezes into more than {FROZEN_SESSIONS:,} graphs")
            for user in list(others.pop().programs):
                self._drop(user)
