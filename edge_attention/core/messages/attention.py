"""What a client says of contexts and attention, and what it gets back. One class a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.table import TableSpec
from edge_attention.core.tensors import Array, Encoded, Encoding, require_name

WIDTH = 262_144
"""Heads times dimension, of queries and of values: what one query brings and gets is a MiB at most, so that
it fits a message also where the answer is partial and has a bound beside it."""

TOKEN_BYTES = 1024 * 1024
"""Bytes of one token's keys and values: it fits a message, and a tile of them a node."""

CONTEXT_LIMITS: Mapping[str, int] = {
    "query_heads": 1024,
    "key_heads": 1024,
    "key_dim": 4096,
    "value_dim": 4096,
    "replicas": 64,
}
"""What of a context is at most so large."""

ATTEND_QUERIES = 65_536
"""Queries of one attend."""

ATTEND_BYTES = 128 * 1024 * 1024
"""What one attend may take of the aggregator's memory (`attend_bytes`)."""

GRADIENT_SCORES = 1 << 24
"""Scores, queries times heads times tokens, of one call for gradients: a node has five of them at a time."""


@dataclass(frozen=True)
class ContextSpec:
    """The shape of a context: heads, dimensions, and on how many nodes each segment is kept."""

    name: str
    query_heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    replicas: int = 1

    def __post_init__(self) -> None:
        if self.replicas == 0:  # not said on the wire
            object.__setattr__(self, "replicas", 1)

    def check(self) -> ContextSpec:
        """This spec, if there can be such a context.

        Raises:
            InvalidArgument: a bad name, a size out of range, or heads that do not divide.
        """
        require_name(self.name, "context")
        for name, limit in CONTEXT_LIMITS.items():
            size = getattr(self, name)
            if not 1 <= size <= limit:
                raise InvalidArgument(f"context {self.name!r}: {name} is {size}; it must be 1 to {limit}")
        if self.query_heads % self.key_heads:
            raise InvalidArgument(
                f"context {self.name!r}: {self.key_heads} key heads do not divide {self.query_heads} query "
                "heads; each key head serves the same number of query heads"
            )
        for name in ("key_dim", "value_dim"):
            if (width := self.query_heads * getattr(self, name)) > WIDTH:
                raise InvalidArgument(
                    f"context {self.name!r}: query_heads times {name} is {width:,}; the bound width is "
                    f"{WIDTH:,}: give it fewer heads or dimensions, or several contexts"
                )
        if self.token_bytes > TOKEN_BYTES:
            raise InvalidArgument(
                f"context {self.name!r}: a token takes {self.token_bytes:,} bytes; the bound token-bytes is "
                f"{TOKEN_BYTES:,}: give it fewer key heads or dimensions, or several contexts"
            )
        return self

    @property
    def token_bytes(self) -> int:
        """Bytes one token takes on a node."""
        return 4 * self.key_heads * (self.key_dim + self.value_dim)


def attend_bytes(spec: ContextSpec, queries: int, segments: int) -> int:
    """What an attend of so many queries over so many segments takes of the aggregator's memory, at most.

    Every second segment's `out` and `lse` may have to wait for the one before it (core/fold.py), one is
    merged into another, every segment's `lse` and mass are kept, and what each query sees of it.
    """
    partials = segments // 2 + 3
    floats = spec.key_dim + partials * (spec.value_dim + 1) + 2 * segments
    return queries * (4 * spec.query_heads * floats + 16 * segments)


class _Placed:
    """What has positions in a context, which need not be one range."""

    tokens: range
    count: int
    bounds: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.count == 0:  # not said on the wire
            object.__setattr__(self, "count", len(self.tokens))

    @property
    def stretches(self) -> tuple[range, ...]:
        """Its positions, as far as they were told."""
        if not self.bounds:
            return (self.tokens,)
        return tuple(map(range, self.bounds[::2], self.bounds[1::2]))


@dataclass(frozen=True)
class Segment(_Placed):
    """Tokens of a context in order of position, the nodes that hold them, and those of them reachable now.

    Attributes:
        tokens: from its first position to past its last. Where appends went to nodes in turn, others have
            positions in between.
        count: how many tokens it has.
        bounds: of each range of its positions the first and the one past its last, if they are more than one
            and were asked for: `stretches` are these ranges.
    """

    id: str
    tokens: range
    holders: tuple[str, ...]
    live: tuple[str, ...] = ()
    count: int = 0
    bounds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Context:
    """A context: its shape, its length in tokens, and its segments in order of their first positions."""

    spec: ContextSpec
    tokens: int
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True)
class CreateContextRequest:
    spec: ContextSpec


@dataclass(frozen=True)
class CreateContextResponse:
    context: Context


@dataclass(frozen=True, eq=False)
class AppendRequest:
    """One message of an append; `context`, `node` and `request_id` count in the first.

    With a `request_id` it happens once, however often it is sent. One without keys and values asks what
    became of it: see attention.proto.
    """

    context: str
    node: str
    keys: Array | None = None
    values: Array | None = None
    request_id: str = ""


@dataclass(frozen=True)
class AppendResponse:
    """The positions that the tokens were given, and the segments that hold them."""

    tokens: range
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class AppendDatasetRequest:
    """Have `node` compute tokens from its own dataset, one a row, and keep them.

    Attributes:
        graph: the SHA-256 of the graph that makes keys and values of rows.
        inputs: input of the graph -> column.
        rows: None: all.
        request_id: as in AppendRequest.
    """

    context: str
    node: str
    dataset: str
    graph: str
    inputs: Mapping[str, str]
    rows: range | None = None
    request_id: str = ""
    table: TableSpec = field(default_factory=TableSpec)


@dataclass(frozen=True, eq=False)
class AttendRequest:
    """See `AttendRequest` in attention.proto for shapes and defaults."""

    context: str
    queries: Array
    positions: Array | None = None
    causal: bool = False
    window: int | None = None
    scale: float | None = None
    deadline_seconds: float | None = None
    encoding: Encoding = Encoding.RAW
    weights: bool = False
    until: int | None = None


@dataclass(frozen=True, eq=False)
class AttendGradientsRequest:
    """See `AttendGradientsRequest` in attention.proto for shapes and formulae."""

    context: str
    queries: Array
    lse: Array
    dout: Array
    delta: Array
    positions: Array | None = None
    causal: bool = False
    window: int | None = None
    scale: float | None = None
    deadline_seconds: float | None = None
    first: int = 0
    until: int | None = None
    tokens: bool = False
    coverage: tuple[range, ...] = ()


@dataclass(frozen=True, eq=False)
class AttendGradientsResponse:
    """float32 [queries, query_heads, key_dim]; if asked for [tokens, key_heads, key_dim], [.., value_dim]."""

    dqueries: Array
    dkeys: Array | None = None
    dvalues: Array | None = None


@dataclass(frozen=True, eq=False)
class ShardMass:
    """exp(lse_shard - lse), float32 [queries, query_heads]: the share of attention a shard received.

    `tokens`, `count`: as a segment's.
    """

    shard: str
    node: str
    tokens: range
    mass: Array
    count: int = 0

    def __post_init__(self) -> None:
        if self.count == 0:  # not said on the wire
            object.__setattr__(self, "count", len(self.tokens))


@dataclass(frozen=True, eq=False)
class Bound:
    """|out - exact out| <= error, element by element; tight if every missing lse was known."""

    error: Array
    tight: bool


@dataclass(frozen=True)
class Missing(_Placed):
    """A shard the answer does not stand on, and why. `tokens`, `count`, `stretches`: as a segment's."""

    shard: str
    tokens: range
    holders: tuple[str, ...]
    reason: str
    count: int = 0
    bounds: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class AttendResponse:
    """The answer to an attend, and what it stands on. See `AttendResponse` in attention.proto for shapes."""

    out: Array | Encoded
    lse: Array
    exact: bool
    coverage: tuple[range, ...]
    mass: tuple[ShardMass, ...]
    tokens: int
    weights: Array | None = None
    bound: Bound | None = None
    missing: tuple[Missing, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DescribeContextRequest:
    context: str


@dataclass(frozen=True)
class DescribeContextResponse:
    context: Context


@dataclass(frozen=True)
class ListContextsRequest:
    pass


@dataclass(frozen=True)
class ListContextsResponse:
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class DropContextRequest:
    context: str


@dataclass(frozen=True)
class DropContextResponse:
    pass


@dataclass(frozen=True)
class TrimContextRequest:
    """Forget the tokens at the positions `tokens`."""

    context: str
    tokens: range


@dataclass(frozen=True)
class TrimContextResponse:
    """How many tokens are gone, and the context without them."""

    trimmed: int
    context: Context


@dataclass(frozen=True)
class ExportContextRequest:
    context: str


@dataclass(frozen=True, eq=False)
class ContextPiece:
    """Some of a context's tokens: `positions` int64 [tokens], ascending; keys and values as an append's.

    In the first one also the context's `spec`, and of how many tokens all pieces together are.
    """

    spec: ContextSpec | None
    count: int
    positions: Array
    keys: Array
    values: Array


@dataclass(frozen=True)
class RepairContextRequest:
    context: str


@dataclass(frozen=True)
class RepairContextResponse:
    """What was copied, what is still not whole and why, and the context as it is now."""

    segments: int
    copied: int
    missing: tuple[Missing, ...]
    context: Context
