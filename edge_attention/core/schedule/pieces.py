"""A segment of a decoder in pieces: graphs, and between them attention over what is stored.

    GraphPiece ──> queries, new keys and values ──> AttentionPiece ──> GraphPiece ──> ...
                                                   appends, attends

Keys and values of earlier tokens are stored sequences, one of each for every attention that a part does and
every session. A part's attentions are numbered in the order in which it comes to them.

A decoder beside an encoder attends to the **memory**, too: what the encoder made of its input. Its keys and
values are stored once a session, by pieces of their own, and new tokens add nothing to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_attention.core.errors import DataLoss

__all__ = [
    "NEXT",
    "TOKEN",
    "AttentionPiece",
    "CacheForm",
    "DecoderForm",
    "EndsJoined",
    "GraphPiece",
    "SegmentPieces",
    "dumps_decoder",
    "dumps_ends",
    "dumps_pieces",
    "dumps_tables",
    "loads_decoder",
    "loads_ends",
    "loads_pieces",
    "loads_tables",
]


@dataclass(frozen=True)
class GraphPiece:
    """A graph, by digest: its inputs and outputs by what the segment calls these values.

    `memory`: it runs for rows of the memory, and for no token.
    """

    graph: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    memory: bool = False


@dataclass(frozen=True)
class AttentionPiece:
    """Attention of new rows over the sequence of the session that each belongs to.

    Attributes:
        queries, keys, values: f32 [rows, key heads, group, dk], [rows, key heads, dk], [rows, key heads, dv].
        out, lse: what it makes, f32 [rows, key heads, group, dv] and [..., 1]. `lse` is empty where nobody
            asks for it.
        window: a row sees so many tokens, its own included; 0: all before it.
        memory: over the session's memory, all of which each row sees.
        bias: what is added to scores by distance, f32 [key heads, group, distances], the last for all beyond;
            empty: nothing.
        group: query heads a key head; 0: nobody has written it down, as earlier releases.
        cap: c of c tanh(score / c), before biases are added; 0: none.
    """

    queries: str
    keys: str
    values: str
    out: str
    lse: str
    scale: float
    window: int = 0
    memory: bool = False
    bias: str = ""
    group: int = 0
    cap: float = 0.0


TOKEN, NEXT = "next", "next/"
"""In a graph that ends a token and begins the next: its output that is the token, and what the names of the
inputs and outputs of the graph that begins it begin with there."""

EndsJoined = dict[tuple[str, str], str]
"""By the graphs of the piece that ends a token and of the one that begins it, the graph of both."""

SegmentPiece = GraphPiece | AttentionPiece
SegmentPieces = tuple[SegmentPiece, ...]


@dataclass(frozen=True)
class CacheForm:
    """What a part stores for one of its attentions, of each token; `memory`: of each token of the memory.

    `biased`: with its position, by which scores are biased.
    """

    heads: int
    key_width: int
    value_width: int
    window: int = 0
    memory: bool = False
    biased: bool = False

    @property
    def token_bytes(self) -> int:
        return 4 * self.heads * (self.key_width + self.value_width) + 4 * self.biased


@dataclass(frozen=True)
class DecoderForm:
    """What serving a model as sessions takes.

    Attributes:
        ids, positions: the inputs, int64 or int32 [rows, 1], that have the new tokens and where they are.
        logits: the output, f32 [rows, 1, vocabulary].
        vocabulary: how many tokens there are.
        length: tokens of a session at most: positions that the model has.
        rows: for how many rows it is cut, ascending.
        by_tokens: parts share the stored tokens, in proportion to `shares`; else the heads, or layers.
        caches: by part, its attentions in order.
        states: the input that has the memory, f32 [rows, 1, `states_width`]; empty: there is none.
    """

    ids: str
    positions: str
    logits: str
    vocabulary: int
    length: int
    rows: tuple[int, ...]
    by_tokens: bool = False
    shares: tuple[float, ...] = ()
    caches: tuple[tuple[CacheForm, ...], ...] = field(default=())
    states: str = ""
    states_width: int = 0

    def token_bytes(self, part: int, memory: bool = False) -> int:
        """What the part stores of one token that is its own; `memory`: of one of the memory."""
        return sum(one.token_bytes for one in self.caches[part] if one.memory is memory)


def dumps_pieces(pieces: Mapping[str, SegmentPieces]) -> str:
    """By graph of a schedule its pieces, as JSON."""
    return json.dumps({name: [_piece(one) for one in of] for name, of in pieces.items()})


def loads_pieces(text: str) -> dict[str, SegmentPieces]:
    """What `dumps_pieces` wrote. Raises DataLoss where it is none."""
    try:
        return {str(name): tuple(map(_to_piece, of)) for name, of in json.loads(text).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _lost(error) from None


def dumps_tables(tables: Mapping[str, frozenset[str]]) -> str:
    """By digest of a graph the inputs in which it only looks up rows, as JSON."""
    return json.dumps({digest: sorted(names) for digest, names in tables.items() if names})


def loads_tables(text: str) -> dict[str, frozenset[str]]:
    """What `dumps_tables` wrote. Raises DataLoss where it is none."""
    try:
        return {str(digest): frozenset(map(str, names)) for digest, names in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise _lost(error) from None


def dumps_ends(joined: EndsJoined) -> str:
    """Which graphs are joined, as JSON."""
    return json.dumps([[*pair, digest] for pair, digest in joined.items()])


def loads_ends(text: str) -> EndsJoined:
    """What `dumps_ends` wrote. Raises DataLoss where it is none."""
    try:
        return {(str(last), str(first)): str(digest) for last, first, digest in json.loads(text)}
    except (ValueError, TypeError) as error:
        raise _lost(error) from None


def dumps_decoder(form: DecoderForm) -> str:
    """The form as JSON."""
    caches = [[list(vars(one).values()) for one in part] for part in form.caches]
    return json.dumps({**vars(form), "caches": caches})


def loads_decoder(text: str) -> DecoderForm:
    """What `dumps_decoder` wrote. Raises DataLoss where it is none."""
    try:
        data = json.loads(text)
        return DecoderForm(
            str(data["ids"]),
            str(data["positions"]),
            str(data["logits"]),
            int(data["vocabulary"]),
            int(data["length"]),
            tuple(map(int, data["rows"])),
            bool(data["by_tokens"]),
            tuple(map(float, data["shares"])),
            tuple(tuple(_to_cache(one) for one in part) for part in data["caches"]),
            str(data.get("states", "")),
            int(data.get("states_width", 0)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _lost(error) from None


def _to_cache(data: Sequence[int]) -> CacheForm:
    heads, key_width, value_width, window, *more = map(int, data)
    memory, biased = (*more, 0, 0)[:2]  # earlier releases wrote four numbers
    return CacheForm(heads, key_width, value_width, window, bool(memory), bool(biased))


def _lost(error: Exception) -> DataLoss:
    return DataLoss(f"what is kept of a decoder cannot be read ({error}): deploy the model again")


def _piece(piece: SegmentPiece) -> Sequence[Any]:
    match piece:
        case GraphPiece(graph, inputs, outputs, memory):
            return [graph, dict(inputs), dict(outputs), memory]
        case AttentionPiece():
            return list(vars(piece).values())


def _to_piece(data: Any) -> SegmentPiece:
    if len(data) < 5:  # earlier releases knew no memory, nor biases
        graph, inputs, outputs, memory = (*data, False)[:4]
        return GraphPiece(
            str(graph),
            {str(k): str(v) for k, v in inputs.items()},
            {str(k): str(v) for k, v in outputs.items()},
            bool(memory),
        )
    known = list(data)
    queries, keys, values, out, lse, scale, window, memory, bias, group, cap = (
        known + [False, "", 0, 0.0][len(known) - 7 :]
    )
    return AttentionPiece(
        str(queries), str(keys), str(values), str(out), str(lse), float(scale), int(window), bool(memory),
        str(bias), int(group), float(cap),
    )  # fmt: skip
