"""What a node and the aggregator say to each other besides programs and contributions."""

from __future__ import annotations

from dataclasses import dataclass

from edge_attention.core.messages.box import Box
from edge_attention.core.messages.program import Call, Contribution, Program
from edge_attention.core.tensors import DataType

PROTOCOL = 4
SPOKEN = frozenset({PROTOCOL})
"""Protocols of nodes that an aggregator of this release takes. A release that raises PROTOCOL keeps the one
before it here: while a fleet is upgraded nodes and aggregator are one apart (docs/life_cycle.md)."""


@dataclass(frozen=True)
class Column:
    """A column of a dataset.

    Attributes:
        data_type: of its values.
        shape: of one row.
        float32, int64: each value can be read as one, exactly; fractions are rounded to the nearest.
        words: it holds words, to be read as categories.
        gaps: some row lacks a value.
    """

    name: str
    data_type: DataType
    shape: tuple[int, ...] = ()
    float32: bool = False
    int64: bool = False
    words: bool = False
    gaps: bool = False


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset outside its node: never its rows.

    `digest`: another one where anything of it is another, with a key of the node's alone; empty: unknown.
    """

    name: str
    rows: int
    columns: tuple[Column, ...]
    identified: bool
    digest: str = ""


@dataclass(frozen=True)
class Sequence:
    """A stored sequence and how many tokens it holds."""

    name: str
    tokens: int


@dataclass(frozen=True)
class Credit:
    """A grant: how much more its receiver may send than was granted before.

    Attributes:
        bytes: more bytes.
        messages: more messages.
    """

    bytes: int
    messages: int


@dataclass(frozen=True)
class Register:
    """A node's first message. `taken`: contributions before those it sends on this stream."""

    protocol: int
    software: str
    name: str
    instance: str
    session: str
    provider: str
    threads: int
    memory_limit: int
    datasets: tuple[Dataset, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    releases: tuple[str, ...] = ()
    box: Box | None = None
    taken: int = 0


@dataclass(frozen=True)
class Registered:
    """The aggregator's first message: the session, its terms, what the node may forget (`drop`).

    `taken`: contributions of the session that have come, which the node need not send again.
    """

    session: str
    lease_seconds: float
    heartbeat_seconds: float
    resumed: bool
    credit: Credit
    drop: tuple[str, ...] = ()
    taken: int = 0


@dataclass(frozen=True)
class Heartbeat:
    """A node's sign of life, which renews its lease.

    `metrics`: the node's own, as Prometheus text, now and then.

    `sent`, `received`: messages on this stream before this one, so that what got lost is missed; 0: not
    counted.

    `interval_seconds`: between this one and the next; 0: not said.
    """

    number: int
    memory: int
    tasks: int
    draining: bool = False
    metrics: bytes = b""
    sent: int = 0
    received: int = 0
    interval_seconds: float = 0.0


@dataclass(frozen=True)
class HeartbeatAck:
    """The answer to the heartbeat `number`.

    `sent`: messages to the node on this stream before this one; 0: not counted.

    `lease_seconds`, `heartbeat_seconds`: how the node is to go on, as in Registered; 0: as it does.
    """

    number: int
    sent: int = 0
    lease_seconds: float = 0.0
    heartbeat_seconds: float = 0.0


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for the task any more: the node is to end it."""

    task_id: str


FromNode = Register | Heartbeat | Contribution | Credit
ToNode = Registered | HeartbeatAck | Program | Call | Cancel | Credit


@dataclass(frozen=True)
class DownloadRequest:
    """Asks for the file with SHA-256 `digest`, from byte `offset` on."""

    session: str
    digest: str
    offset: int = 0


@dataclass(frozen=True)
class Chunk:
    """A piece of a file of `size` bytes, going down."""

    offset: int
    size: int
    data: bytes


@dataclass(frozen=True)
class UploadChunk:
    """A piece of the file with SHA-256 `digest`, going up; without data it asks how much is there."""

    session: str
    digest: str
    offset: int
    size: int
    data: bytes


@dataclass(frozen=True)
class Uploaded:
    """The answer to an upload: `received` bytes are there; chunks have at most `chunk_bytes` (0: any)."""

    received: int
    chunk_bytes: int = 0
