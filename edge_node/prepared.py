"""Prepared programs: checked and kept once, known by their digest; a call of one is a program again."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
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
from edge_node.store.store import Store

if TYPE_CHECKING:
    from edge_node.freezing import Freezer
    from edge_node.frozen import FrozenSession

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

    @cached_property
    def _freezer(self) -> Freezer:
        from edge_node.freezing import Freezer  # a node that freezes nothing spares it

        return Freezer(self._store, self._runtime, self._lock, self._kept, self._drop)

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
        """See `Freezer.freeze`."""
        self._freezer.freeze(prepared, graphs)

    def _drop(self, prepared: Prepared) -> None:
        del self._kept[prepared.digest]
        self._bytes -= prepared.size
        if prepared.sessions:
            self._freezer.leave(prepared)


def _require_constant(program: PreparedProgram) -> None:
    """Refuse a program that changes what it freezes, or does not use it."""
    names = {frozen.stored for frozen in program.frozen}
    unread = set(names)
    for name in names:
        if name.startswith("task/") or name.endswith("/"):
            raise InvalidProgram(f"{name} cannot be frozen: name one stored tensor that outlives a task")
    for instruction in flat(program.instructions):
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


def flat(block: tuple[Instruction, ...]) -> Iterator[Instruction]:
    for instruction in block:
        yield instruction
        if isinstance(instruction, Repeat):
            yield from flat(instruction.body)
