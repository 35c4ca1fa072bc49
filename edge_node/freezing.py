"""Makes what prepared programs freeze constants of sessions.

A private tensor that is frozen is kept as it is, and is an input at each call all the same: what ONNX Runtime
computes of constants when it loads a graph would take time, or fail, by what is in them, outside of what
tasks on private data keep to. For the same reason nothing is frozen whose size may tell of private data.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from hashlib import sha256
from typing import Any

from edge_attention.core.errors import InvalidProgram
from edge_attention.core.messages.program import Frozen, Instruction, Repeat, Run, Stored
from edge_node.direct import BoundRun
from edge_node.frozen import FrozenSession, FrozenSessions, SessionKey
from edge_node.prepared import Prepared, flat
from edge_node.runtime import ForeignGraph, Graph, Runtime
from edge_node.shared_memory import shared
from edge_node.store.held import Held
from edge_node.store.store import Store

__all__ = ["Freezer"]

_LIFE = secrets.token_hex(8)
_serials = itertools.count()
"""With both a graph with constants is called by what no other one is: a cell takes what is called alike for
the same."""


class Freezer:
    """Freezes what is `kept`: programs by digest, under `lock`, those called last at the end.

    `drop` forgets one of them: it has to call `leave`.
    """

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        lock: threading.Lock,
        kept: Mapping[bytes, Prepared],
        drop: Callable[[Any], None],
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._lock = lock
        self._kept = kept
        self.sessions = FrozenSessions(store, drop)

    def leave(self, prepared: Prepared) -> None:
        """The program is not kept any more, or could not be frozen. Call it under the lock."""
        while prepared.sessions:
            self.sessions.leave(prepared.sessions.pop(), prepared)

    def freeze(self, prepared: Prepared, graphs: Mapping[str, Graph | ForeignGraph]) -> None:
        """Make what the program freezes constants. Takes as long as to load its graphs; in a thread.

        Raises:
            NotFound: nothing is stored under such a name.
            InvalidProgram: something else is, or it does not fit the graph.
            InvalidGraph: the graph cannot be used so.
            OutOfMemory: it does not fit beside what is stored.
        """
        known = {frozen.stored: frozen.digest for frozen in prepared.program.frozen}
        held = {frozen.stored: self._taken(frozen) for frozen in prepared.program.frozen}
        try:
            private = [(name, one) for name, one in held.items() if one.origin is not None]
            if private:
                self._joined(prepared, ("", (("", id(prepared)),)), private)

            def bound(run: Run) -> Instruction:
                names = _frozen_inputs(run, held)
                if not names:
                    return run
                constants = {i: held[n] for i, n in names.items() if held[n].origin is None}
                given = {i: held[n] for i, n in names.items() if held[n].origin is not None}
                session = graphs[run.graph]
                if constants:
                    told = tuple((i, _told(constants[i], known[names[i]])) for i in sorted(constants))
                    session = self._session(prepared, (run.graph, told), names, constants, session)
                rest = {i: value for i, value in run.inputs.items() if i not in names}
                return BoundRun(run.graph, rest, run.outputs, session, constants, given)

            instructions = _mapped(prepared.program.instructions, bound)
            wanted = frozenset(run.graph for run in _runs(instructions) if not isinstance(run, BoundRun))
        except BaseException:
            with self._lock:
                self.leave(prepared)
            raise
        prepared.carry_out(instructions, wanted)
        with self._lock:
            if self._kept.get(prepared.digest) is not prepared:
                self.leave(prepared)  # it has gone meanwhile: who waits for it runs it, and no one else

    def _joined(
        self, prepared: Prepared, key: SessionKey, constants: Collection[tuple[str, Held]]
    ) -> tuple[FrozenSession, bool]:
        with self._lock:
            found, new = self.sessions.join(key, constants, prepared, self._kept.values())
            if found not in prepared.sessions:
                prepared.sessions.append(found)
            return found, new

    def _session(
        self,
        prepared: Prepared,
        key: SessionKey,
        names: Mapping[str, str],
        constants: Mapping[str, Held],
        graph: Graph | ForeignGraph,
    ) -> Graph | ForeignGraph:
        """`graph` with these constants, made here unless another program has done so, or does now."""
        while True:
            found, new = self._joined(prepared, key, [(names[i], one) for i, one in constants.items()])
            if not new:
                found.made.wait()
                if found.graph is not None:
                    return found.graph
                continue  # whoever made it has failed: this one does, or says why not
            try:
                arrays = {i: one.array for i, one in constants.items()}
                # Not by what is in it: its digest would tell of that.
                called = sha256(f"{graph.digest}/{_LIFE}/{next(_serials)}".encode()).hexdigest()
                found.graph = self._runtime.frozen(graph, called, arrays)
                return found.graph
            except BaseException:
                with self._lock:
                    self.sessions.end(found)
                raise
            finally:
                found.made.set()

    def _taken(self, frozen: Frozen) -> Held:
        held = self._store.get(frozen.stored)
        if held.chosen:
            # What there is room for beside it, and which programs go, would tell how large it is.
            raise InvalidProgram(
                f"{frozen.stored} cannot be frozen: a graph has made it of private data, and its size may "
                "tell of them; bind it as it is stored"
            )
        if self._store.is_sequence(frozen.stored):
            held = Held(shared(held.array.copy()), held.origin)  # the next append writes there
        if not frozen.digest:
            return held
        if held.origin is not None:
            raise InvalidProgram(f"{frozen.stored} is private: no program names the digest of what is in it")
        if self.sessions.digest(held) != frozen.digest:
            raise InvalidProgram(
                f"{frozen.stored} is not what the program freezes: it has another digest than "
                f"{frozen.digest[:12]}; store that first"
            )
        return held


def _told(held: Held, digest: str) -> Hashable:
    """What tells a constant from others: the digest that a program names, else that it is this very tensor.

    The session holds the tensor: no other has its id while there is the session.
    """
    array = held.array
    return (digest, array.dtype.name, array.shape) if digest else id(held)


def _frozen_inputs(run: Run, names: Mapping[str, object]) -> dict[str, str]:
    """Of a run's inputs those that are frozen, and their names in the store."""
    found: dict[str, str] = {}
    for name, value in run.inputs.items():
        if isinstance(value, Stored) and value.name in names:
            if value.tiles is not None:
                raise InvalidProgram(
                    f"{value.name} is frozen as a whole: a run cannot take some of its tiles"
                )
            found[name] = value.name
    return found


def _runs(block: tuple[Instruction, ...]) -> Iterator[Run]:
    return (instruction for instruction in flat(block) if isinstance(instruction, Run))


def _mapped(block: tuple[Instruction, ...], of_run: Callable[[Run], Instruction]) -> tuple[Instruction, ...]:
    """`block` with each Run replaced."""
    found: list[Instruction] = []
    for instruction in block:
        match instruction:
            case Run():
                instruction = of_run(instruction)
            case Repeat(times, body):
                instruction = Repeat(times, _mapped(body, of_run))
        found.append(instruction)
    return tuple(found)
