"""A prepared program: checked once; a call of it is a program again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_attention.core.errors import InvalidProgram
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
from edge_attention.wire.tensors import VIEWED, check_size
from edge_node.direct import DirectProgram
from edge_node.limits import graphs_of

if TYPE_CHECKING:
    from edge_node.frozen import FrozenSession

__all__ = ["Prepared", "ProgramForm", "flat", "form_of"]

MAX_FROZEN = 1024
"""Tensors that a program freezes."""


@dataclass(frozen=True, eq=False)
class ProgramForm:
    """What is found of a program once, the same for all nodes that keep it.

    Attributes:
        wanted: the graphs it runs.
        names: of its slots, and of what it freezes.
        slots: of each its name, dtype, shape, bytes and encoding.
    """

    wanted: frozenset[str]
    names: frozenset[str]
    slots: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int, Encoding], ...]


def form_of(program: PreparedProgram) -> ProgramForm:
    """The program, checked.

    Raises:
        InvalidProgram: it cannot be carried out.
        InvalidTensor: no slot is of such a shape.
        InvalidArgument: a name is none.
    """
    asked = Program("", "", range(0), program.instructions, releases=program.releases)
    wanted = frozenset(graphs_of(asked))
    if len(program.slots) > MAX_SLOTS or len(program.frozen) > MAX_FROZEN:
        most = f"{MAX_SLOTS} slots and {MAX_FROZEN} frozen tensors"
        raise InvalidProgram(f"a prepared program has at most {most}")
    names = [require_stored(slot.name) for slot in program.slots]
    slots = []
    for slot in program.slots:
        stored = stored_dtype(slot.encoding, np.dtype(slot.data_type.value), f"slot {slot.name}")
        check_size(f"slot {slot.name}", slot.shape, stored.itemsize, slot.nbytes)
        slots.append((slot.name, stored, slot.shape, slot.nbytes, slot.encoding))
    names += [require_stored(frozen.stored) for frozen in program.frozen]
    if len(set(names)) < len(names):
        raise InvalidProgram("a prepared program names a slot or a frozen tensor twice")
    return ProgramForm(wanted, frozenset(names), tuple(slots))


class Prepared:
    """A program that is kept.

    `instructions`, `wanted`, the graphs they run, and `direct`, what each call does where nobody else has to
    carry it out, change when it is frozen: what is frozen is bound then.
    """

    def __init__(
        self, digest: bytes, program: PreparedProgram, size: int, form: ProgramForm | None = None
    ) -> None:
        """`form`: `form_of(program)`, where that is known. Raises as it does."""
        self.digest = digest
        self.program = program
        self.size = size
        self.instructions = program.instructions
        form = form or form_of(program)
        self.wanted, self._names, self._slots = form.wanted, form.names, form.slots
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

    def tensors(self, call: Call, lying: bool = False) -> dict[str, Array]:
        """What `call` brings, by the slots' names. `lying`: large ones as they lie in the message, and not
        aligned, as ONNX Runtime needs them.

        Raises:
            InvalidProgram: it is not what the slots take.
        """
        data = call.slots
        assert not isinstance(data, tuple)  # it has come
        if len(data) != self.slot_bytes:
            raise InvalidProgram(
                f"a call of program {call.program.hex()[:12]} brings {len(data):,} bytes for slots of "
                f"{self.slot_bytes:,}"
            )
        tensors: dict[str, Array] = {}
        at = 0
        for name, dtype, shape, size, encoding in self._slots:
            part = data[at : at + size]
            if not lying or size < VIEWED:
                part = bytes(part)
            array = np.frombuffer(part, dtype).reshape(shape) if size else np.zeros(shape, dtype)
            if dtype == np.bool_ and size and array.view(np.uint8).max() > 1:
                raise InvalidProgram(f"slot {name}: a BOOL element is one byte, 0 or 1; there are others")
            tensors[name] = array if encoding is Encoding.RAW else from_wire(array, encoding)
            at += size
        return tensors


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
