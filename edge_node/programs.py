"""The prepared programs that a node keeps: known by their digest, those least recently called go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from edge_attention.core.errors import InvalidProgram, UnknownProgram
from edge_attention.core.messages.program import Call, PreparedProgram
from edge_attention.wire.link import prepared_program
from edge_node.prepared import Prepared, ProgramForm, form_of
from edge_node.runtime import ForeignGraph, Graph, Runtime
from edge_node.store.store import Store

if TYPE_CHECKING:
    from edge_node.freezing import Freezer

__all__ = ["PreparedPrograms"]

MAX_PREPARED = 2048
"""Prepared programs that a node keeps; those least recently called go first, and are sent again if called."""
PREPARED_BYTES = 8 * 1024 * 1024
"""Bytes of them together, as they came; and beyond that one."""
SHARED, SHARED_BYTES = 8, 64 * 1024
"""Programs that nodes of one process read once for all of them, and bytes of one as it came."""


class PreparedPrograms:
    """Those a node keeps, by digest, and what their frozen tensors count for in `store`."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime
        self._kept: OrderedDict[bytes, Prepared] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._made: Freezer | None = None
        self._making = threading.Lock()

    @property
    def _freezer(self) -> Freezer:
        """One for all: since Python 3.12 several threads would each make a `cached_property` of their own."""
        with self._making:
            if self._made is None:
                from edge_node.freezing import Freezer  # a node that freezes nothing spares it

                self._made = Freezer(self._store, self._runtime, self._lock, self._kept, self._drop)
            return self._made

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, call: Call) -> Prepared:
        """The program that is called, kept from now on if it came with the call.

        Raises:
            UnknownProgram: it is neither here nor in the call: to be sent again, with it.
            InvalidProgram: what came has another digest, or cannot be carried out.
            InvalidArgument: it cannot be read.
        """
        with self._lock:
            found = self._kept.get(call.program)
            if found is not None:
                self._kept.move_to_end(call.program)
                return found
        if not call.prepared:
            raise UnknownProgram(
                f"this node knows no program {call.program[:32].hex()}: send it with the call"
            )
        if sha256(call.prepared).digest() != call.program:
            raise InvalidProgram(
                f"the program that came as {call.program[:32].hex()} has another digest: send both anew"
            )
        size = len(call.prepared)
        program, form = (_shared if size <= SHARED_BYTES else _read)(call.prepared)
        prepared = Prepared(call.program, program, size, form)
        with self._lock:
            self._kept[call.program] = prepared
            self._bytes += prepared.size
            while len(self._kept) > 1 and (len(self._kept) > MAX_PREPARED or self._bytes > PREPARED_BYTES):
                self._drop(next(iter(self._kept.values())))
        return prepared

    def forget(self, scope: str) -> None:
        """What `scope`, a name that ends in `/`, owned is freed with it: programs that froze some of it."""
        with self._lock:
            for kept in list(self._kept.values()):
                if any(frozen.stored.startswith(scope) for frozen in kept.program.frozen):
                    self._drop(kept)

    def freeze(self, prepared: Prepared, graphs: Mapping[str, Graph | ForeignGraph]) -> None:
        """See `Freezer.freeze`."""
        self._freezer.freeze(prepared, graphs)

    def _drop(self, prepared: Prepared) -> None:
        del self._kept[prepared.digest]
        self._bytes -= prepared.size
        if prepared.sessions:
            self._freezer.leave(prepared)


def _read(data: bytes) -> tuple[PreparedProgram, ProgramForm]:
    program = prepared_program.decode(data)
    return program, form_of(program)


_shared = lru_cache(SHARED)(_read)
