"""Prepared programs: checked and kept once, known by their digest; a call of one is a program again.

What a program freezes becomes part of sessions of its own. A private tensor that is frozen is kept as it is,
and is an input at each call all the same: what ONNX Runtime computes of constants when it loads a graph would
take time, or fail, by what is in them, outside of what tasks on private data keep to. For the same reason
nothing is frozen whose size may tell of private data.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from edge_attention.core.errors import InvalidProgram, UnknownProgram
from edge_attention.core.halves import from_wire, stored_dtype
from edge_attention.core.messages.program import (
    MAX_SLOTS,
    Append,
    Batch,
    Call,
    Frozen,
    Instruction,
    PreparedProgram,
    Program,
    Repeat,
    Run,
    Stored,
)
from edge_attention.core.tensors import Array, Encoding, require_stored
from edge_attention.wire.link import prepared_program
from edge_attention.wire.tensors import check_size
from edge_node.direct import BoundRun, DirectProgram
from edge_node.limits import graphs_of
from edge_node.runtime import ForeignGraph, Graph, Runtime
from edge_node.store.store import Held, Store

if TYPE_CHECKING:
    from edge_node.frozen import FrozenSession, FrozenSessions, SessionKey

__all__ = ["BoundRun", "Prepared", "PreparedPrograms"]

MAX_PREPARED = 2048
"""Prepared programs that a node keeps; those least recently called go first, and are sent again if called."""
PREPARED_BYTES = 16 * 1024 * 1024
"""Bytes of them together, as they came; and beyond that one."""
MAX_FROZEN = 1024
"""Tensors that a program freezes."""


class Prepared:
    """A program that is kept.

    `instructions`, `wanted`, the graphs they run, and `direct`, what each call does where nobody else has to
    carry it out, change when it is frozen: what is frozen is bound then.
    """

    def __init__(self, digest: bytes, program: PreparedProgram, size: int) -> None:
        """Raises InvalidProgram (it cannot be carried out), InvalidTensor (no slot is of such a shape),
        InvalidArgument (a name is none)."""
        self.digest = digest
        self.program = program
        self.size = size
        self.instructions = program.instructions
        self.wanted = frozenset(
            graphs_of(Program("", "", range(0), program.instructions, releases=program.releases))
        )
        if len(program.slots) > MAX_SLOTS or len(program.frozen) > MAX_FROZEN:
            most = f"{MAX_SLOTS} slots and {MAX_FROZEN} frozen tensors"
            raise InvalidProgram(f"a prepared program has at most {most}")
        names = [require_stored(slot.name) for slot in program.slots]
        for slot in program.slots:
            stored = stored_dtype(slot.encoding, np.dtype(slot.data_type.value), f"slot {slot.name}")
            check_size(f"slot {slot.name}", slot.shape, stored.itemsize, slot.nbytes)
        names += [require_stored(frozen.stored) for frozen in program.frozen]
        self._names = frozenset(names)
        if len(self._names) < len(names):
            raise InvalidProgram("a prepared program names a slot or a frozen tensor twice")
        self._slots = [
            (
                s.name,
                stored_dtype(s.encoding, np.dtype(s.data_type.value), s.name),
                s.shape,
                s.nbytes,
                s.encoding,
            )
            for s in program.slots
        ]
        self.slot_bytes = sum(slot.nbytes for slot in program.slots)
        self.sessions: list[FrozenSession] = []
        """Those that what it freezes is part of."""
        self.freezing: asyncio.Task[None] | None = None
        self.direct: DirectProgram | None = None
        if program.frozen:
            _require_constant(program)
        else:
            self.carry_out(program.instructions, self.wanted)

    @property
    def ready(self) -> bool:
        """Whether nothing is left to be frozen."""
        return not self.program.frozen or self.instructions is not self.program.instructions

    def carry_out(self, instructions: tuple[Instruction, ...], wanted: frozenset[str]) -> None:
        """From now on calls carry out these, which run the graphs `wanted`."""
        self.instructions, self.wanted = instructions, wanted
        self.direct = None if self.program.releases else DirectProgram.of(instructions, self.program.slots)

    def called(self, call: Call) -> Program:
        """The program that `call` stands for. Raises as `tensors`, and InvalidProgram for one in bulk that is
        a slot, or frozen."""
        bulk = call.bulk_tensors
        if bulk and (taken := {tensor.name for tensor in bulk} & self._names):
            raise InvalidProgram(f"{min(taken)} is a slot, or frozen: it does not come in bulk")
        return Program(
            call.task_id, call.shard, call.coverage, self.instructions, call.version, call.deadline_seconds,
            self.tensors(call), bulk, call.caller, self.program.releases,
        )  # fmt: skip

    def tensors(self, call: Call) -> dict[str, Array]:
        """What `call` brings, by the slots' names.

        Raises:
            InvalidProgram: it is not what the slots take.
        """
        data = call.slots
        if len(data) != self.slot_bytes:
            raise InvalidProgram(
                f"a call of program {call.program.hex()[:12]} brings {len(data):,} bytes for slots of "
                f"{self.slot_bytes:,}"
            )
        tensors: dict[str, Array] = {}
        at = 0
        for name, dtype, shape, size, encoding in self._slots:
            # A copy, at an address that is aligned; ONNX Runtime computes on it as it is.
            part = data[at : at + size]
            array = np.frombuffer(part, dtype).reshape(shape) if size else np.zeros(shape, dtype)
            if dtype == np.bool_ and size and array.view(np.uint8).max() > 1:
                raise InvalidProgram(f"slot {name}: a BOOL element is one byte, 0 or 1; there are others")
            tensors[name] = array if encoding is Encoding.RAW else from_wire(array, encoding)
            at += size
        return tensors


class PreparedPrograms:
    """Those a node keeps, by digest, and what their frozen tensors count for in `store`."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime
        self._kept: OrderedDict[bytes, Prepared] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._serials = itertools.count()

    @cached_property
    def _sessions(self) -> FrozenSessions:
        from edge_node.frozen import FrozenSessions  # a node of which nothing is frozen spares it

        return FrozenSessions(self._store, self._drop)

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
        prepared = Prepared(call.program, prepared_program.decode(call.prepared), len(call.prepared))
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
                self._leave(prepared)
            raise
        prepared.carry_out(instructions, wanted)
        with self._lock:
            if self._kept.get(prepared.digest) is not prepared:
                self._leave(prepared)  # it has gone meanwhile: who waits for it runs it, and no one else

    def _joined(
        self, prepared: Prepared, key: SessionKey, constants: Collection[tuple[str, Held]]
    ) -> tuple[FrozenSession, bool]:
        with self._lock:
            found, new = self._sessions.join(key, constants, prepared, self._kept.values())
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
                called = sha256(f"{graph.digest}/{next(self._serials)}".encode()).hexdigest()
                found.graph = self._runtime.frozen(graph, called, arrays)
                return found.graph
            except BaseException:
                with self._lock:
                    self._sessions.end(found)
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
            held = replace(held, array=held.array.copy())  # the next append writes there
        if not frozen.digest:
            return held
        if held.origin is not None:
            raise InvalidProgram(f"{frozen.stored} is private: no program names the digest of what is in it")
        if self._sessions.digest(held) != frozen.digest:
            raise InvalidProgram(
                f"{frozen.stored} is not what the program freezes: it has another digest than "
                f"{frozen.digest[:12]}; store that first"
            )
        return held

    def _leave(self, prepared: Prepared) -> None:
        while prepared.sessions:
            self._sessions.leave(prepared.sessions.pop(), prepared)

    def _drop(self, prepared: Prepared) -> None:
        del self._kept[prepared.digest]
        self._bytes -= prepared.size
        self._leave(prepared)


def _told(held: Held, digest: str) -> Hashable:
    """What tells a constant from others: the digest that a program names, else that it is this very tensor.

    The session holds the tensor: no other has its id while there is the session.
    """
    array = held.array
    return (digest, array.dtype.name, array.shape) if digest else id(held)


def _require_constant(program: PreparedProgram) -> None:
    """Refuse a program that changes what it freezes, or does not use it."""
    names = {frozen.stored for frozen in program.frozen}
    unread = set(names)
    for name in names:
        if name.startswith("task/") or name.endswith("/"):
            raise InvalidProgram(f"{name} cannot be frozen: name one stored tensor that outlives a task")
    for instruction in _flat(program.instructions):
        written: set[str] = set()
        match instruction:
            case Run(_, inputs, outputs):
                unread -= {value.name for value in inputs.values() if isinstance(value, Stored)}
                written = set(outputs.values())
            case Append():
                written = {instruction.sequence}
            case Batch():
                named = {tensor.stored for tensor in instruction.tensors}
                written = {*instruction.columns.values(), *named, instruction.identity_output}
        if both := sorted(written & names):
            raise InvalidProgram(f"{both[0]} is frozen and written by the same program")
    if unread:
        raise InvalidProgram(f"{min(unread)} is frozen, and no graph of the program reads it")


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


def _flat(block: tuple[Instruction, ...]) -> Iterator[Instruction]:
    for instruction in block:
        yield instruction
        if isinstance(instruction, Repeat):
            yield from _flat(instruction.body)


def _runs(block: tuple[Instruction, ...]) -> Iterator[Run]:
    return (instruction for instruction in _flat(block) if isinstance(instruction, Run))


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
