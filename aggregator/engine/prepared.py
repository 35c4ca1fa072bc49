"""Programs that run again, as nodes are sent them: once, and then called by their digest.

Nobody says beforehand what will run again. What has come before, the very same instructions with tensors of
the same shapes, comes as a call from its second time on; a program that freezes something from the first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from edge_attention.core.errors import EdgeAttentionError, MessageTooLarge
from edge_attention.core.messages.program import (
    CALL_BYTES,
    MAX_SLOTS,
    SLOT_BYTES,
    Append,
    Batch,
    Frozen,
    Instruction,
    PreparedProgram,
    Repeat,
    Run,
    Slot,
)
from edge_attention.core.tensors import Array, DataType, Encoding
from edge_attention.wire.link import prepared_program
from edge_attention.wire.tensors import VIEWED, elements

__all__ = ["KNOWN", "PreparedData", "Repeated", "prepare"]

KNOWN = 2048
"""Programs remembered to have come; then those that came longest ago are new again."""
_BYTES = 64 * 1024
"""A larger program is not prepared: so many of them would fill memory here, and push out others at a node."""
_INLINE = 8 * 1024
"""Bytes of tensors in a program's instructions from which it hardly comes again, and is not remembered."""

_RAW: Mapping[str, Encoding] = {}


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A program as it travels: `digest` is the SHA-256 of `data`; calls bring `slots`, by name, in order."""

    digest: bytes
    data: bytes
    slots: tuple[str, ...]

    def packed(self, tensors: Mapping[str, Array]) -> bytes | tuple[bytes | memoryview, ...]:
        """What a call brings of `tensors`, which have the slots' shapes: of large ones where they lie."""
        pieces = tuple([elements(tensors[name]) for name in self.slots])
        return b"".join(pieces) if sum(map(len, pieces)) < VIEWED else pieces


def prepare(
    instructions: tuple[Instruction, ...],
    tensors: Mapping[str, Array],
    frozen: tuple[Frozen, ...] = (),
    releases: tuple[str, ...] = (),
    encodings: Mapping[str, Encoding] = _RAW,
) -> PreparedData:
    """The program of `instructions` whose slots are for tensors as `tensors` are.

    `encodings`: of slots that do not travel as they are; who calls puts elements in them that are encoded.

    Raises:
        InvalidTensor, InvalidArgument: something of it does not travel.
    """
    slots = tuple(
        Slot(name, DataType.of(array.dtype, name), array.shape, encodings.get(name, Encoding.RAW))
        for name, array in tensors.items()
    )
    data = prepared_program.encode(PreparedProgram(instructions, slots, frozen, releases))
    return PreparedData(sha256(data).digest(), data, tuple(tensors))


@dataclass(frozen=True, eq=False)
class _Seen:
    """A program that came before. The instructions are held so that nothing else gets their id meanwhile."""

    instructions: tuple[Instruction, ...]
    again: bool = False
    prepared: PreparedData | None = None


class Repeated:
    """Finds out which programs run again."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[Any, ...], _Seen] = OrderedDict()

    def find(
        self,
        instructions: tuple[Instruction, ...],
        tensors: Mapping[str, Array],
        releases: tuple[str, ...] = (),
        frozen: tuple[Frozen, ...] = (),
        limit: int = SLOT_BYTES,
    ) -> PreparedData | None:
        """The program to call, or None: it is to be sent as it is.

        A call brings `limit` bytes at most; of a program that freezes something CALL_BYTES.

        Raises:
            MessageTooLarge: it freezes something, and its tensors are too large for a call.
            InvalidTensor, InvalidArgument: it freezes something, and cannot travel.
        """
        limit = CALL_BYTES if frozen else limit
        if sum([array.nbytes for array in tensors.values()]) > limit or len(tensors) > MAX_SLOTS:
            if frozen:
                raise MessageTooLarge(
                    f"a program that freezes tensors takes {MAX_SLOTS:,} others at each call, of {limit:,} "
                    "bytes together, at most: lend those that are larger, or store them first"
                )
            return None
        shapes = tuple([(name, array.dtype, array.shape) for name, array in tensors.items()])
        key = (id(instructions), shapes, releases, frozen)
        seen = self._seen.get(key)
        if seen is not None and seen.again:
            self._seen.move_to_end(key)
            return seen.prepared
        if seen is None and not frozen:
            if _inline(instructions) <= _INLINE:
                self._keep(key, _Seen(instructions))
            return None
        prepared: PreparedData | None = None
        try:
            prepared = prepare(instructions, tensors, frozen, releases)
        except EdgeAttentionError:
            if frozen:
                raise
            # As it is sent otherwise, it says what is wrong.
        if prepared is not None and not frozen and not 0 < len(prepared.data) <= _BYTES:
            prepared = None  # of no bytes at all nobody could say that it came
        self._keep(key, _Seen(instructions, True, prepared))
        return prepared

    def _keep(self, key: tuple[Any, ...], seen: _Seen) -> None:
        self._seen[key] = seen
        self._seen.move_to_end(key)
        if len(self._seen) > KNOWN:
            self._seen.popitem(last=False)


def _inline(block: tuple[Instruction, ...]) -> int:
    """Bytes of the tensors that instructions hold themselves."""
    size = 0
    for instruction in block:
        match instruction:
            case Run():
                size += sum([v.nbytes for v in instruction.inputs.values() if isinstance(v, np.ndarray)])
            case Append(_, np.ndarray() as array) | Batch(_, _, np.ndarray() as array):
                size += array.nbytes
            case Repeat(_, body):
                size += _inline(body)
    return size
