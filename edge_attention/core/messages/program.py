"""Programs: what an aggregator asks of a node, and the contributions it gets back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_attention.core.messages.table import ColumnRead, TensorRead
from edge_attention.core.tensors import Array, DataType, Encoded, Encoding

SLOT_BYTES = 1024 * 1024
"""Bytes of tensors up to which the aggregator sends them with a call; more go their own way."""
CALL_BYTES = 7 * 512 * 1024
"""The same for programs that freeze tensors; and up to so many bytes a message of the answer has its tensors
itself. It is what a message holds, with room for the program."""
MAX_SLOTS = 1024
"""Tensors that each call of a prepared program brings."""


@dataclass(frozen=True)
class Fault:
    """An error of the catalogue, as data. `name` is the class's name."""

    name: str
    message: str


@dataclass(frozen=True)
class Stored:
    """A tensor in the node's store; of a sequence, the tiles `tiles` (all in use if None)."""

    name: str
    tiles: range | None = None


Value = Stored | Array


@dataclass(frozen=True)
class BulkTensor:
    """A tensor known by the SHA-256 of its bytes, which travel by Download or Upload."""

    name: str
    data_type: DataType
    shape: tuple[int, ...]
    encoding: Encoding
    digest: str
    size: int


@dataclass(frozen=True)
class Run:
    """Run the graph `graph` (its SHA-256): `inputs` by input name, `outputs` output -> stored name."""

    graph: str
    inputs: Mapping[str, Value]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Append:
    """Grow `sequence` by `source` [tokens, heads, dim] at token `at` (None: the end).

    A private source needs `shape`, its shape: by how much a sequence grows is seen from outside.
    `place`, if not empty, is the name of an int64 [3]: the first of the source's rows that are appended, how
    many they are, and the token they begin at.
    `revision` tells a change of a context that was overtaken: it is refused. 0: none.
    """

    sequence: str
    source: Value
    at: int | None = None
    tile: int = 0
    shape: tuple[int, ...] = ()
    revision: int = 0
    place: str = ""


@dataclass(frozen=True)
class Batch:
    """Read `rows` (int64 [rows], or [times, rows] inside a Repeat; None: all) of `dataset`.

    `columns` maps a column to the stored name it gets, as it is; `tensors` are read as a job says.
    `complete`, if not empty: rows are numbered among those that have a value in each of these columns, and
    `rows` is needed.
    `identity_output` names the keyed hashes of the rows' ids: uint8 [rows, 16].
    """

    dataset: str
    columns: Mapping[str, str]
    rows: Value | None = None
    identity_output: str = ""
    identity_key: bytes = b""
    tensors: tuple[TensorRead, ...] = ()
    complete: tuple[ColumnRead, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """Run `body` `times` times."""

    times: int
    body: tuple[Instruction, ...]


@dataclass(frozen=True)
class Return:
    """Stream the tensor `stored` to the aggregator as `name`."""

    stored: str
    name: str
    encoding: Encoding = Encoding.RAW


@dataclass(frozen=True)
class Drop:
    """Forget tensors; a name that ends in `/` stands for all that begin with it. `revision` as Append's."""

    stored: tuple[str, ...]
    revision: int = 0


Instruction = Run | Append | Batch | Repeat | Return | Drop


@dataclass(frozen=True)
class Program:
    """One task for one node, and for `caller`. See `protos/edge_attention/v1/program.proto`."""

    task_id: str
    shard: str
    coverage: range
    instructions: tuple[Instruction, ...]
    version: int = 0
    deadline_seconds: float | None = None
    tensors: Mapping[str, Array] = field(default_factory=dict)
    bulk_tensors: tuple[BulkTensor, ...] = ()
    caller: str = ""
    releases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slot:
    """A tensor that each call of a prepared program brings, placed in the store as `name`.

    `encoding`: how its elements travel; `nbytes` of them are in a call.
    """

    name: str
    data_type: DataType
    shape: tuple[int, ...] = ()
    encoding: Encoding = Encoding.RAW

    @property
    def nbytes(self) -> int:
        size = np.dtype(self.data_type.value).itemsize if self.encoding is Encoding.RAW else 2
        return math.prod(self.shape) * size


@dataclass(frozen=True)
class Frozen:
    """A stored tensor that becomes a constant of the graphs that read it.

    Attributes:
        digest: SHA-256 of its bytes, which a node compares; empty: whatever is stored. A private tensor's is
            nobody's to ask for.
        version: tells programs apart that freeze other contents of the same name.
    """

    stored: str
    digest: str = ""
    version: int = 0


@dataclass(frozen=True)
class PreparedProgram:
    """A program that will run again. See `protos/edge_attention/v1/program.proto`."""

    instructions: tuple[Instruction, ...]
    slots: tuple[Slot, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    releases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """One task for one node: a prepared program, known by `program`, the SHA-256 of its bytes.

    Attributes:
        slots: the elements of its slots, one after the other; of a large call that is to be sent in pieces,
            which are joined once, as it is written. Of a large one that has come they are a view of the
            message.
        prepared: the program's bytes, where the node may not know it.
        bulk_tensors: tensors of this call that are too large for a message: in no slot.
    """

    task_id: str
    shard: str
    coverage: range
    version: int = 0
    deadline_seconds: float | None = None
    program: bytes = b""
    slots: bytes | tuple[bytes | memoryview, ...] = b""
    caller: str = ""
    prepared: bytes = b""
    bulk_tensors: tuple[BulkTensor, ...] = ()


@dataclass(frozen=True)
class Contribution:
    """What a task returns: one of these or several, numbered; the last is `final`."""

    task_id: str
    shard: str
    coverage: range
    version: int
    number: int
    tensors: Mapping[str, Array | Encoded] = field(default_factory=dict)
    bulk_tensors: tuple[BulkTensor, ...] = ()
    final: bool = False
    error: Fault | None = None
    run_seconds: float = 0.0
    task_seconds: float = 0.0
