"""What nodes are asked on a flight: each step of a part as a call of a prepared program, made once.

A program is of the steps that a node is asked for together (flight_calls.py), for so many rows, of sessions
in certain slots: it runs the segments' graphs, and where one attends it appends to each session's sequences
and attends over them.

    stored sequences   job/<deployment>/cache/<life>/s<slot>/p<part>/a<attention>/k and v, and p: positions
    kept               job/<deployment>/cache/<life>/lane<k>/p<part>/<name>

`life` tells one life of this aggregator from the next: nobody has use for what an earlier one stored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aggregator.engine.prepared import prepare
from aggregator.engine.trip import Wanted
from aggregator.inference.calls import FROZEN, TABLE, KnownWeight, constant_name, job_scope, weight_name
from aggregator.inference.course import Course, PartSegment
from aggregator.inference.decoding.flight_calls import CallShare, FlightCall
from aggregator.inference.decoding.session_bytes import TILE
from edge_attention.core.errors import ResourceExhausted
from edge_attention.core.messages.program import (
    CALL_BYTES,
    Append,
    Frozen,
    Instruction,
    Return,
    Run,
    Stored,
    Value,
)
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.pieces import (
    NEXT,
    TOKEN,
    AttentionPiece,
    EndsJoined,
    GraphPiece,
    SegmentPieces,
)
from edge_attention.core.schedule.schedule import Constant, Delivery, Kept, ModelInput, Weight
from edge_attention.core.tensors import Array
from edge_attention.graphs.attention import library

__all__ = [
    "AskedSegment",
    "FlightPrograms",
    "RowsCut",
    "cache_scope",
    "lane_of",
    "rows_shape",
    "slot_scope",
]

PROGRAMS = 4096
"""Of one decoder that are kept here; those used longest ago are made again."""
PROGRAMS_BYTES = 128 * 1024 * 1024
"""Of them together."""
DECODE_ROWS = 16
"""Rows up to which attention takes all tiles at once; of more, one tile after the other."""
ROW_GROUP = 8
"""Query heads a key head up to which one row is multiplied head by head (`graphs/attention/tiled.py`)."""

_NOTHING = np.zeros((1, 1, 1, 1), np.float32)
_NOTHING_LSE = np.full((1, 1, 1, 1), -np.inf, np.float32)


def cache_scope(deployment: str, life: str = "") -> str:
    """What the names of all that sessions store begin with; `life`: in one life of the aggregator."""
    return f"{job_scope(deployment)}cache/" + (f"{life}/" if life else "")


def slot_scope(deployment: str, life: str, slot: int) -> str:
    return f"{cache_scope(deployment, life)}s{slot}/"


def lane_of(deployment: str, life: str, lane: int) -> str:
    return f"{cache_scope(deployment, life)}lane{lane}/"


def rows_shape(rows: int) -> str:
    """What constants of a cut for so many rows are called by."""
    return f"rows{rows}"


@dataclass(frozen=True, eq=False)
class RowsCut:
    """A decoder cut for so many rows."""

    rows: int
    course: Course
    pieces: Mapping[str, SegmentPieces]
    tables: Mapping[str, frozenset[str]]
    """By digest of a graph, the inputs in which it only looks up rows."""
    ends: EndsJoined = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class AskedSegment:
    """A part's step that is asked.

    Attributes:
        ahead: it begins the token that the part's segment asked before it has ended (ahead.py): that one's
            output that has the logits, and the model's input that takes tokens.
    """

    one: PartSegment
    ahead: tuple[str, str] | None = None


class FlightPrograms:
    """The programs of one decoder.

    Args:
        weights: what is known of each weight.
    """

    def __init__(self, deployment: str, life: str, weights: Mapping[Weight, KnownWeight]) -> None:
        self.deployment = deployment
        self.life = life
        self.weights = weights
        self._made: OrderedDict[tuple[Hashable, ...], FlightCall] = OrderedDict()
        self._bytes = 0

    def remembers(self, cut: RowsCut, one: PartSegment) -> bool:
        """Whether a part's step has to do with rows of memories."""
        return any(piece.memory for piece in cut.pieces[one.segment.graph])

    def call(
        self,
        cut: RowsCut,
        asked: Sequence[AskedSegment],
        slots: tuple[str, ...],
        lane: int,
        memory: bool = False,
    ) -> FlightCall:
        """The call of these parts' steps, one after the other.

        `slots`: of its sessions, in order; `memory`: for rows of memories.

        Raises:
            ResourceExhausted: bound call-bytes; what it brings is too much for one.
        """
        attends = any(
            isinstance(piece, AttentionPiece)
            for asks in asked
            for piece in cut.pieces[asks.one.segment.graph]
        )
        which = tuple((asks.one.part, asks.one.index, asks.ahead is not None) for asks in asked)
        key = cut.rows, which, slots if attends else (), lane, memory
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(cut, asked, slots if attends else (), lane, memory)
            self._bytes += found.nbytes
            while len(self._made) > 1 and (len(self._made) > PROGRAMS or self._bytes > PROGRAMS_BYTES):
                self._bytes -= self._made.popitem(last=False)[1].nbytes
        else:
            self._made.move_to_end(key)
        return found

    def _make(
        self, cut: RowsCut, asked: Sequence[AskedSegment], slots: tuple[str, ...], lane: int, memory: bool
    ) -> FlightCall:
        instructions: list[Instruction] = []
        returns: list[Return] = []
        tensors: dict[str, Array] = {}
        frozen: dict[str, KnownWeight] = {}
        wanted: dict[str, Wanted] = {}
        shares: list[CallShare] = []
        before: _ProgramWriter | None = None
        for at, asks in enumerate(asked):
            part, ahead = asks.one.part, asks.ahead is not None
            prefix = f"{part}{'n' * ahead}."
            writer = _ProgramWriter(self, cut, asks.one, slots, lane, memory, f"task/{prefix}")
            token = ""
            ends = any(other.ahead is not None for other in asked[at + 1 : at + 2])
            if asks.ahead is not None:
                assert before is not None
                logits, ids = asks.ahead
                chosen = f"task/{prefix}token"
                writer.given[ids] = Stored(chosen)
                token = f"{prefix}token"
                wanted[token] = np.dtype(np.int64), (cut.rows, 1)
                returns.append(Return(chosen, token))
                begins = writer.written(keeps=not ends)
                one = _joined(cut.ends, instructions[-1], begins[0], chosen, {r.stored for r in returns})
                if one is None:
                    likeliest = library.digest("likeliest")
                    one = Run(likeliest, {"logits": before.value(logits)}, {"token": chosen})
                    instructions += (one, *begins)
                else:
                    instructions[-1:] = (one, *begins[1:])
            else:
                instructions += writer.written(keeps=not ends)
            # Last of all: what comes back is one message.
            names = {f"{prefix}{output}" if len(asked) > 1 else output: output for output in writer.wanted}
            returns += [Return(writer.value(output).name, name) for name, output in names.items()]
            wanted |= {name: writer.wanted[output] for name, output in names.items()}
            tensors |= writer.tensors
            frozen |= writer.frozen
            shares.append(
                CallShare(
                    part,
                    asks.one.step,
                    writer.sent,
                    writer.places,
                    tuple(writer.windows),
                    names,
                    ahead,
                    token,
                )
            )
            before = writer
        if (size := sum(array.nbytes for array in tensors.values())) > CALL_BYTES:
            raise ResourceExhausted(
                f"bound call-bytes: {cut.rows} rows bring {size:,} bytes to part "
                f"{', '.join(str(share.part) for share in shares)}, and a call {CALL_BYTES:,} at most: cut "
                "the model into fewer parts"
            )
        largest = sorted(frozen.items(), key=lambda item: -item[1].nbytes)[:FROZEN]
        kept = tuple(Frozen(stored, known.digest) for stored, known in sorted(largest, key=lambda i: i[0]))
        program = (*instructions, *returns)
        empty = {slot: tensors[slot] for share in shares for slot in share.sent}
        return FlightCall(prepare(program, tensors, kept), program, tuple(shares), wanted, empty)


class _ProgramWriter:
    """What one segment does, while it is written. Values of the segment are looked up in `names`.

    Attributes:
        given: input of the model -> what it is here, of those that no slot brings.
        sent, places, windows: as of CallShare; `tensors`: what all slots have.
        wanted: output -> what it is, of those that come back.
    """

    def __init__(
        self,
        programs: FlightPrograms,
        cut: RowsCut,
        one: PartSegment,
        slots: tuple[str, ...],
        lane: int,
        memory: bool,
        own: str,
    ) -> None:
        self._all = programs
        self._cut = cut
        self._one = one
        self._slots = slots
        self._memory = memory
        self._own = own
        """What the names of the task's own tensors begin with."""
        self._kept = f"{lane_of(programs.deployment, programs.life, lane)}p{one.part}/"
        self._names: dict[str, Value] = {}
        self._weights: dict[str, Weight] = {}
        self.given: dict[str, Stored] = {}
        self.frozen: dict[str, KnownWeight] = {}
        self.sent: dict[str, ModelInput | Delivery] = {}
        self.places: dict[str, str] = {}
        self.tensors: dict[str, Array] = {}
        self.windows: dict[int, None] = {}
        self.wanted: dict[str, Wanted] = {}
        self._instructions: list[Instruction] = []
        # Attentions of a part are numbered through its segments.
        self._attention = sum(
            isinstance(piece, AttentionPiece)
            for before in cut.course.parts[one.part][: one.index]
            for piece in cut.pieces[before.segment.graph]
        )

    def value(self, name: str) -> Stored:
        """What is stored of a value that the segment has made."""
        found = self._names[name]
        assert isinstance(found, Stored)
        return found

    def written(self, keeps: bool) -> tuple[Instruction, ...]:
        """What it does, but for what comes back. `keeps`: what the part keeps is stored, for later steps."""
        segment, schedule = self._one.segment, self._cut.course.schedule
        pieces = self._cut.pieces[segment.graph]
        read = _read_by(pieces, self._memory)
        for name, source in segment.inputs.items():
            if name in read:
                self._source(name, source)
        kept = {output: self._kept + name for output, name in segment.kept.items()} if keeps else {}
        for piece in pieces:
            match piece:
                case GraphPiece() if piece.memory is self._memory:
                    self._run(piece, kept)
                case AttentionPiece() if self._memory:
                    self._remember(piece)
                case AttentionPiece():
                    self._attend(piece, kept)
        for made in () if self._memory else segment.contributions:
            spec = schedule.boundaries[made.boundary].spec
            if made.output not in self.wanted:
                self.wanted[made.output] = np.dtype(spec.dtype), extent_shape(spec.shape, made.extent)
        return tuple(self._instructions)

    def _source(self, name: str, source: ModelInput | Delivery | Kept | Weight | Constant) -> None:
        schedule = self._cut.course.schedule
        match source:
            case Weight():
                stored = weight_name(self._all.deployment, self._all.weights[source])
                self._names[name] = Stored(stored)
                self._weights[name] = source
            case Constant(constant):
                known = schedule.constants[constant]
                shape = rows_shape(self._cut.rows)
                self._names[name] = Stored(constant_name(self._all.deployment, shape, known))
            case Kept(tensor):
                self._names[name] = Stored(self._kept + tensor)
            case ModelInput(of) if of in self.given:
                self._names[name] = self.given[of]
            case ModelInput(of, extent):
                form = schedule.feeds[of]
                self._slot(name, source, form.dtype, extent_shape(form.shape, extent))
            case Delivery(boundary, extent):
                form = schedule.boundaries[boundary].spec
                self._slot(name, source, form.dtype, extent_shape(form.shape, extent))

    def _slot(self, name: str, source: ModelInput | Delivery, dtype: str, shape: tuple[int, ...]) -> None:
        slot = f"{self._own}i{len(self.sent)}"
        self.sent[slot] = source
        self.tensors[slot] = np.broadcast_to(np.zeros((), dtype), shape)
        self._names[name] = Stored(slot)

    def _run(self, piece: GraphPiece, kept: Mapping[str, str]) -> None:
        tables = self._cut.tables.get(piece.graph, frozenset())
        inputs: dict[str, Value] = {}
        for name, of in piece.inputs.items():
            inputs[name] = self._names[of]
            if of in self._weights:
                known = self._all.weights[self._weights[of]]
                if name not in tables or known.nbytes < TABLE:
                    self.frozen[weight_name(self._all.deployment, known)] = known
        outputs: dict[str, str] = {}
        for output, of in piece.outputs.items():
            outputs[output] = kept.get(of) or f"{self._own}v{len(self._names)}"
            self._names[of] = Stored(outputs[output])
        self._instructions.append(Run(piece.graph, inputs, outputs))

    def _attend(self, piece: AttentionPiece, kept: Mapping[str, str]) -> None:
        number, part = self._attention, self._one.part
        self._attention += 1
        self.windows[piece.window] = None
        rows = self._cut.rows
        sees_all = not (piece.window or piece.bias or piece.lse or piece.cap)
        if rows == 1 and sees_all and 1 <= piece.group <= ROW_GROUP:
            return self._attend_row(piece, f"{self._slots[0]}p{part}/a{number}/", kept)
        lo, hi = (
            self._place(name if piece.memory else f"{name}/{piece.window}", (rows,))
            for name in (("mlo", "mhi") if piece.memory else ("lo", "hi"))
        )
        queries = self._names[piece.queries]
        before: tuple[Value, Value] = _NOTHING, _NOTHING_LSE
        scale = np.array(piece.scale, np.float32)
        for at, slot in enumerate(self._slots):
            scope = f"{slot}p{part}/a{number}/"
            place = "" if piece.memory else self._place(f"at.{at}", (3,))
            chunk = self._place(f"rows.{at}", (2,))
            if not piece.memory:
                self._append(piece, scope, place)
            last = at == len(self._slots) - 1
            out = (kept.get(piece.out) if last else None) or f"{self._own}o{number}.{at}"
            lse = (kept.get(piece.lse) if last else None) or f"{self._own}l{number}.{at}"
            graph = "cached_decode" if rows <= DECODE_ROWS else "cached_prefill"
            more: dict[str, Value] = {}
            if piece.cap:
                graph = "cached_capped_prefill" if rows > DECODE_ROWS else "cached_capped"
                more = {"cap": np.array(piece.cap, np.float32)}
            if piece.bias:
                graph, where = "cached_biased", self._place("where", (rows, 1, 1), "float32")
                self._instructions.append(Append(f"{scope}p", Stored(where), tile=TILE, place=place))
                more = {
                    "bias": self._names[piece.bias],
                    "where": Stored(where),
                    "places": Stored(f"{scope}p"),
                }
            self._instructions.append(
                Run(
                    library.digest(graph),
                    {
                        "q": queries,
                        "keys": Stored(f"{scope}k"),
                        "values": Stored(f"{scope}v"),
                        "scale": scale,
                        "rows": Stored(chunk),
                        "lo": Stored(lo),
                        "hi": Stored(hi),
                        "before": before[0],
                        "before_lse": before[1],
                        **more,
                    },
                    {"out": out, "lse": lse},
                )
            )
            before = Stored(out), Stored(lse)
        self._names[piece.out] = before[0]
        if piece.lse:
            self._names[piece.lse] = before[1]

    def _attend_row(self, piece: AttentionPiece, scope: str, kept: Mapping[str, str]) -> None:
        """One row sees all that is stored before it: fewer operators do."""
        if not piece.memory:
            self._append(piece, scope, self._place("at.0", (3,)))
        hi = self._place("mhi" if piece.memory else f"hi/{piece.window}", (1,))
        out = kept.get(piece.out) or f"{self._own}o{len(self._names)}"
        inputs: dict[str, Value] = {
            "q": self._names[piece.queries],
            "keys": Stored(f"{scope}k"),
            "values": Stored(f"{scope}v"),
            "scale": np.array(piece.scale, np.float32),
            "hi": Stored(hi),
        }
        self._instructions.append(Run(library.digest("cached_row"), inputs, {"out": out}))
        self._names[piece.out] = Stored(out)

    def _remember(self, piece: AttentionPiece) -> None:
        """Store rows of the memory; nobody asks for anything."""
        number = self._attention
        self._attention += 1
        if piece.memory:
            self.windows[0] = None
            for at, slot in enumerate(self._slots):
                self._append(piece, f"{slot}p{self._one.part}/a{number}/", self._place(f"at.{at}", (3,)))

    def _append(self, piece: AttentionPiece, scope: str, place: str) -> None:
        self._instructions += [
            Append(f"{scope}k", self._names[piece.keys], tile=TILE, place=place),
            Append(f"{scope}v", self._names[piece.values], tile=TILE, place=place),
        ]

    def _place(self, name: str, shape: tuple[int, ...], dtype: str = "int64") -> str:
        """The slot that brings it."""
        for slot, known in self.places.items():
            if known == name:
                return slot
        slot = f"{self._own}p{len(self.places)}"
        self.places[slot] = name
        self.tensors[slot] = np.broadcast_to(np.zeros((), dtype), shape)
        return slot


def _joined(
    ends: EndsJoined, last: Instruction, first: Instruction, token: str, returned: Collection[str]
) -> Run | None:
    """One run of what ends a token and what begins the next, which takes `token`; None: they are two.

    `returned`: what comes back of the task: of what the last one makes nobody else reads anything.
    """
    if not (isinstance(last, Run) and isinstance(first, Run)):
        return None
    graph = ends.get((last.graph, first.graph))
    if graph is None:
        return None
    inputs = {NEXT + name: value for name, value in first.inputs.items() if value != Stored(token)}
    outputs = {output: name for output, name in last.outputs.items() if name in returned}
    begun = {NEXT + output: name for output, name in first.outputs.items()}
    return Run(graph, {**last.inputs, **inputs}, {**outputs, TOKEN: token, **begun})


def _read_by(pieces: SegmentPieces, memory: bool) -> set[str]:
    """What of a segment's values these pieces read: for rows of memories, or for tokens."""
    found: set[str] = set()
    for piece in pieces:
        match piece:
            case GraphPiece(_, inputs, _, of):
                found.update(inputs.values() if of is memory else ())
            case AttentionPiece(queries, keys, values, memory=of, bias=bias):
                found.update((keys, values) if of is memory else ())
                found.update(filter(None, () if memory else (queries, bias)))
    return found
