"""What the daemon and a cell say to each other: a small message on a socket, and two windows of memory.

A lane is a socket and two windows, one for each direction; who sends writes to its window first:

    socket   magic, kind, bytes of the head, and a number: to the cell the job, from it nanoseconds that
             ONNX Runtime has run for it since the last; descriptors of what is too large for the window
    window   the head, JSON, from 0; tensors from HEAD on, each at a multiple of ALIGNMENT

    daemon                                cell
    LOAD {graph}, the file, and
    the constants that are not in it  ->  LOADED {in, out}    or FAILED
    RUN {graph, in, out}            ->    DONE {out}          or FAILED; or, for outputs that are large:
                                    <-    NEED {out}
    ROOM {out}, descriptors         ->    DONE {}

Runs that are alike in all but their numbers have the same head, byte for byte: who has read it keeps what it
says. A cell is foreign: the daemon takes nothing from it but what the functions here let pass, and copies
what it checks before it checks it.
"""

from __future__ import annotations

import array
import json
import math
import os
import socket
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np

from edge_attention.core.tensors import MAX_RANK, Array, DataType

__all__ = [
    "DTYPES",
    "HEAD",
    "KEPT_BYTES",
    "LARGE",
    "WINDOW",
    "CellKind",
    "Channel",
    "Frame",
    "Message",
    "Nonsense",
    "Placed",
    "dims_of",
    "encoded",
    "keep",
    "names_of",
    "text_of",
    "types_of",
]

HEAD = 1 << 20
"""Bytes of a message's head at most."""
WINDOW = HEAD + (6 << 20)
"""Bytes of a window. It is memory only as far as it was ever used."""
LARGE = 2 << 20
"""Bytes from which a tensor has memory of its own, so that it need not be copied out of a window."""
ALIGNMENT = 64
DESCRIPTORS = 200
"""Descriptors of one message at most; the kernel takes 253."""
TEXT = 1000
"""Letters of an error at most."""
MOST_TENSORS = 16_384
"""Outputs of a run, or inputs, at most."""

KEPT, KEPT_BYTES = 32, 4096
"""Heads that are kept with what they say, and how long one may be."""

_FRAME = struct.Struct("<4sIIQ")
_MAGIC = b"EAC1"
_RIGHTS = socket.CMSG_SPACE(DESCRIPTORS * 4)
_NO_RIGHTS, _CUT = int(socket.MSG_CTRUNC), int(socket.MSG_TRUNC)
"""As numbers: to ask an IntFlag takes longer than all the rest of a frame."""


K = TypeVar("K")
V = TypeVar("V")


class Nonsense(Exception):
    """The other side said what cannot be."""


class CellKind(IntEnum):
    LOAD, RUN, ROOM = 1, 2, 3
    LOADED, DONE, NEED, FAILED = 4, 5, 6, 7


DTYPES = {np.dtype(kind.value): kind.value for kind in DataType}
"""NumPy makes up a dtype's name anew each time it is asked."""
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
_KINDS = {kind.value: kind for kind in CellKind}


Frame = tuple[int, int, int, list[int]]
"""Of a message that has come: its kind, the bytes of its head, its number and its descriptors."""


class Message(NamedTuple):
    """One that has come. `text` is the head as it was sent; `head` is of all messages of this text: not ours
    to change. `number`: the job, or nanoseconds (see above)."""

    kind: CellKind
    head: dict[str, Any]
    descriptors: list[int]
    number: int
    text: bytes


class Placed(NamedTuple):
    """A tensor: in the window (`where` -1) or in the descriptor of that number, at byte `offset`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    where: int
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Channel:
    """One side of a lane. `reads` and `writes` are the windows, uint8 [WINDOW].

    `takes`: whether the other side may send descriptors. `descriptor` can be read from when it has answered.
    """

    def __init__(self, connection: socket.socket, reads: Array, writes: Array, takes: bool = True) -> None:
        self.socket = connection
        self.descriptor = connection.fileno()
        self.reads = reads
        self.writes = writes
        self._rights = _RIGHTS if takes else 0
        # quicker for a few bytes
        self._read = reads.data
        self._written = writes.data
        self._end = HEAD
        self._heads: dict[bytes, dict[str, Any]] = {}
        self.numbers = 0
        """The sum of the numbers of all messages that have come."""

    def begin(self) -> None:
        """What is placed from now on belongs to the next message."""
        self._end = HEAD

    def room(self, size: int) -> int | None:
        """Where `size` bytes may be written for the next message; None: the window is full."""
        start = -(-self._end // ALIGNMENT) * ALIGNMENT
        if start + size > len(self.writes):
            return None
        self._end = start + size
        return start

    def place(self, data: Array) -> int | None:
        """Write `data` for the next message; where, or None if the window is full."""
        start = self.room(data.nbytes)
        if start is not None:
            self.put(data, start)
        return start

    def put(self, data: Array, start: int) -> None:
        """Write `data` where `place` has put data of this size in a message like the next one."""
        self.view(data, start)[...] = data

    def view(self, data: Array, start: int) -> Array:
        """Where `put` writes `data`, or what has its type and shape."""
        return np.ndarray(data.shape, data.dtype, self.writes, start)

    def send(
        self, kind: CellKind, head: dict[str, Any] | bytes, descriptors: Sequence[int] = (), number: int = 0
    ) -> None:
        """Send a message; `head` may be `encoded` already.

        Raises:
            OSError: the other side is gone.
            ValueError: it is too much for one message.
        """
        text = head if isinstance(head, bytes) else encoded(head)
        if len(text) > HEAD or len(descriptors) > DESCRIPTORS:
            raise ValueError("too many names or tensors for a message")
        self._written[: len(text)] = text
        frame = _FRAME.pack(_MAGIC, kind, len(text), number)
        if descriptors:
            rights = array.array("i", descriptors)
            self.socket.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        else:
            self.socket.send(frame)

    def receive(self) -> Message | None:
        """The next message; None: the other side is gone. The caller closes its descriptors.

        Raises:
            Nonsense: it is none.
        """
        frame = self.take()
        return None if frame is None else self.read(frame)

    def take(self) -> Frame | None:
        """The next message's frame, for `read`; None: the other side is gone. Raises Nonsense."""
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(64, self._rights, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        descriptors = _taken(ancillary) if ancillary else []
        try:
            if not data and not descriptors and not flags & _NO_RIGHTS:
                return None
            if flags & _NO_RIGHTS:
                raise Nonsense("descriptors that nobody asked for")
            if len(data) != _FRAME.size or flags & _CUT:
                raise Nonsense("a frame of another size")
            magic, kind, length, number = _FRAME.unpack(data)
            if magic != _MAGIC or length > HEAD:
                raise Nonsense("no frame of this protocol")
            return kind, length, number, descriptors
        except Nonsense:
            _close(descriptors)
            raise

    def read(self, frame: Frame) -> Message:
        """The message that has come with `frame`. Raises Nonsense."""
        kind, length, number, descriptors = frame
        try:
            try:
                # Copied first: who writes to the window may do so while this is read.
                text = bytes(self._read[:length])
                known = self._heads.get(text)
                found = json.loads(text) if known is None else known
                message = Message(_KINDS[kind], found, descriptors, number, text)
            except (ValueError, KeyError, RecursionError) as error:
                raise Nonsense(f"a head that is none: {type(error).__name__}") from None
            if not isinstance(found, dict):
                raise Nonsense("a head that is no object")
            if known is None and length <= KEPT_BYTES:
                keep(self._heads, text, found)
            self.numbers += number
            return message
        except Nonsense:
            _close(descriptors)
            raise


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _taken(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message: they are this process's now."""
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % 4])
    return descriptors.tolist()


def encoded(head: dict[str, Any]) -> bytes:
    """A head as it is sent."""
    return json.dumps(head).encode()


def keep(kept: dict[K, V], key: K, value: V, most: int = KEPT) -> None:
    """`kept[key] = value`; of more than `most` the oldest goes. Lanes may do so at the same time."""
    kept[key] = value
    if len(kept) > most:
        kept.pop(list(kept)[0], None)  # noqa: RUF015  (a copy in one step: others change it meanwhile)


def names_of(value: Any) -> list[str]:
    """Raises Nonsense unless `value` is a list of names, none twice."""
    names = _listed(value)
    if not all(isinstance(name, str) and len(name) <= 1024 for name in names) or len({*names}) < len(names):
        raise Nonsense("names that are none")
    return names


def dims_of(value: Any) -> tuple[int | str | None, ...]:
    """Raises Nonsense unless `value` is a declared shape: sizes, names and nulls."""
    dims = _listed(value)
    for size in dims:
        named = size is None or (isinstance(size, str) and len(size) <= 1024)
        if not named and not (type(size) is int and abs(size) < 1 << 62):
            raise Nonsense("dimensions that are none")
    return tuple(dims)


def types_of(value: Any, places: bool) -> list[Placed]:
    """Tensors as [dtype, shape] or, with `places`, [dtype, shape, where, offset]. Raises Nonsense."""
    found: list[Placed] = []
    for item in _listed(value):
        fields = _listed(item)
        if len(fields) != (4 if places else 2):
            raise Nonsense("a tensor of other fields")
        kind, shape, where, offset = (*fields, -1, 0)[:4]
        dtype = _BY_NAME.get(kind) if isinstance(kind, str) else None
        if dtype is None:
            raise Nonsense("an element type that does not travel")
        sizes = _listed(shape)
        numbers = [*sizes, where + 1, offset] if type(where) is int and type(offset) is int else [-1]
        if len(sizes) > MAX_RANK or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise Nonsense("a shape or a place that is none")
        # One without elements has a shape, too, and NumPy none larger than all memory.
        if math.prod(size for size in sizes if size) * dtype.itemsize >= 1 << 48:
            raise Nonsense("a tensor larger than all memory")
        found.append(Placed(dtype, tuple(sizes), where, offset))
    return found


def text_of(value: Any) -> str:
    """Raises Nonsense unless `value` is a text, which is cut."""
    if not isinstance(value, str):
        raise Nonsense("a text that is none")
    return value[:TEXT]


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MOST_TENSORS:
        raise Nonsense("a list that is none")
    return value
