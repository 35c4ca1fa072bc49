"""What nodes are asked on a flight: each step of a part as a call of a prepared program, made once.

A program is of a part's step, for so many rows, of sessions in certain slots: it runs the segment's graphs,
and where the segment attends it appends to each session's sequences and attends over them.

    stored sequences   job/<deployment>/cache/<life>/s<slot>/p<part>/a<attention>/k and v, and p: positions
    kept               job/<deployment>/cache/<life>/lane<k>/p<part>/<name>

`life` tells one life of this aggregator from the next: nobody has use for what an earlier one stored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aggregator.engine.prepared import PreparedData, prepare
from aggregator.engine.trip import Wanted
from aggregator.inference.calls import FROZEN, TABLE, KnownWeight, constant_name, job_scope, weight_name
from aggregator.inference.course import Course, PartSegment
from aggregator.inference.decoding.flights import Flight, part_places
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
from edge_attention.core.schedule.extents import extent_shape, take
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.pieces import AttentionPiece, DecoderForm, GraphPiece, SegmentPieces
from edge_attention.core.schedule.schedule import Constant, Delivery, Kept, ModelInput, Weight
from edge_attention.core.tensors import Array
from edge_attention.graphs.attention import library

__all__ = [
    "FlightCall",
    "FlightPrograms",
    "cache_scope",
    "lane_of",
    "rows_shape",
    "slot_scope",
]

PROGRAMS = 4096
"""Of one decoder that are kept here; those used longest ago are made again."""
PROGRAMS_BYTES = 128 * 1024 * 1024
"""Of them together."""
INSTRUCTION_BYTES = 2048
"""What an instruction takes here, about, beside what is sent of it."""
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
class FlightCall:
    """A part's step.

    Attributes:
        sent: slot -> what of the model's inputs or of boundaries it brings.
        places: slot -> which of `part_places` it brings; of `lo` and `hi` with the window that they are for.
        windows: of the attentions in it.
        empty: of `sent`, zeros.
    """

    prepared: PreparedData
    instructions: tuple[Instruction, ...]
    sent: Mapping[str, ModelInput | Delivery]
    places: Mapping[str, str]
    windows: tuple[int, ...]
    wanted: Mapping[str, Wanted]
    empty: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        """What it takes to keep it, about."""
        return len(self.prepared.data) + INSTRUCTION_BYTES * len(self.instructions)

    def zeros(self, flight: Flight, form: DecoderForm, part: int) -> dict[str, Array]:
        """What is in its slots before there are sessions: zeros, and where the flight's rows are."""
        return dict(self.empty) | self._where(flight, form, part, {})

    def inline(
        self,
        flight: Flight,
        form: DecoderForm,
        part: int,
        feeds: Mapping[str, Array],
        meetings: Meetings,
        known: dict[tuple[int, int], dict[str, Array]],
    ) -> dict[str, Array]:
        """What is in its slots. `known`: gets where the flight's rows are, by part and window."""
        found: dict[str, Array] = {}
        for slot, source in self.sent.items():
            if isinstance(source, ModelInput):
                found[slot] = take(feeds[source.name], source.extent)
            else:
                found[slot] = meetings.take(source)
        return found | self._where(flight, form, part, known)

    def _where(
        self, flight: Flight, form: DecoderForm, part: int, known: dict[tuple[int, int], dict[str, Array]]
    ) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for window, slots in self._places_by_window:
            places = known.get((part, window))
            if places is None:
                places = known[part, window] = part_places(flight, form, part, window)
            for slot, name in slots:
                found[slot] = places[name]
        return found

    @cached_property
    def _places_by_window(self) -> list[tuple[int, list[tuple[str, str]]]]:
        """By window the slots, and what each brings of `part_places`: found once, not at each trip."""
        return [
            (
                window,
                [
                    (slot, name.removesuffix(f"/{window}"))
                    for slot, name in self.places.items()
                    if "/" not in name or name.endswith(f"/{window}")
                ],
            )
            for window in self.windows
        ]


@dataclass(frozen=True, eq=False)
class RowsCut:
    """A decoder cut for so many rows."""

    rows: int
    course: Course
    pieces: Mapping[str, SegmentPieces]
    tables: Mapping[str, frozenset[str]]
    """By digest of a graph, the inputs in which it only looks up rows."""


class FlightPrograms:
    """The programs of one decoder.

    Args:
        weights: what is known of each weight.
    """

    def __init__(self, deployment: str, life: str, weights: Mapping[Weight, KnownWeight]) -> None:
        self.deployment = deployment
        self.life = life
        self.weights = weights
        self._made: OrderedDict[tuple[int, int, int, tuple[str, ...], int, bool], FlightCall] = OrderedDict()
        self._bytes = 0

    def remembers(self, cut: RowsCut, one: PartSegment) -> bool:
        """Whether a part's step has to do with rows of memories."""
        return any(piece.memory for piece in cut.pieces[one.segment.graph])

    def call(
        self, cut: RowsCut, one: PartSegment, slots: tuple[str, ...], lane: int, memory: bool = False
    ) -> FlightCall:
        """The call of a part's step; `slots`: of its sessions, in order; `memory`: for rows of memories."""
        attends = any(isinstance(piece, AttentionPiece) for piece in cut.pieces[one.segment.graph])
        key = cut.rows, one.part, one.index, slots if attends else (), lane, memory
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(cut, one, slots if attends else (), lane, memory)
            self._bytes += found.nbytes
            while len(self._made) > 1 and (len(self._made) > PROGRAMS or self._bytes > PROGRAMS_BYTES):
                self._bytes -= self._made.popitem(last=False)[1].nbytes
        else:
            self._made.move_to_end(key)
        return found

    def _make(
        self, cut: RowsCut, one: PartSegment, slots: tuple[str, ...], lane: int, memory: bool
    ) -> FlightCall:
        return _ProgramWriter(self, cut, one, slots, lane, memory).written()


class _ProgramWriter:
    """One program, while it is written. Values of the segment are looked up in `names`."""

    def __init__(
        self,
        programs: FlightPrograms,
        cut: RowsCut,
        one: PartSegment,
        slots: tuple[str, ...],
        lane: int,
        memory: bool,
    ) -> None:
        self._all = programs
        self._cut = cut
        self._one = one
        self._slots = slots
        self._memory = memory
        self._kept = f"{lane_of(programs.deployment, programs.life, lane)}p{one.part}/"
        self._names: dict[str, Value] = {}
        self._weights: dict[str, Weight] = {}
        self._frozen: dict[str, KnownWeight] = {}
        self._sent: dict[str, ModelInput | Delivery] = {}
        self._places: dict[str, str] = {}
        self._tensors: dict[str, Array] = {}
        self._windows: dict[int, None] = {}
        self._instructions: list[Instruction] = []
        # Attentions of a part are numbered through its segments.
        self._attention = sum(
            isinstance(piece, AttentionPiece)
            for before in cut.course.parts[one.part][: one.index]
            for piece in cut.pieces[before.segment.graph]
        )

    def written(self) -> FlightCall:
        segment, schedule = self._one.segment, self._cut.course.schedule
        pieces = self._cut.pieces[segment.graph]
        read = _read_by(pieces, self._memory)
        for name, source in segment.inputs.items():
            if name in read:
                self._source(name, source)
        kept = {output: self._kept + name for output, name in segment.kept.items()}
        for piece in pieces:
            match piece:
                case GraphPiece() if piece.memory is self._memory:
                    self._run(piece, kept)
                case AttentionPiece() if self._memory:
                    self._remember(piece)
                case AttentionPiece():
                    self._attend(piece, kept)
        wanted: dict[str, Wanted] = {}
        for made in () if self._memory else segment.contributions:
            if made.output in wanted:
                continue
            spec = schedule.boundaries[made.boundary].spec
            wanted[made.output] = np.dtype(spec.dtype), extent_shape(spec.shape, made.extent)
            value = self._names[made.output]
            assert isinstance(value, Stored)
            self._instructions.append(Return(value.name, made.output))
        largest = sorted(self._frozen.items(), key=lambda item: -item[1].nbytes)[:FROZEN]
        frozen = tuple(Frozen(stored, known.digest) for stored, known in sorted(largest, key=lambda i: i[0]))
        if (size := sum(array.nbytes for array in self._tensors.values())) > CALL_BYTES:
            raise ResourceExhausted(
                f"bound call-bytes: {self._cut.rows} rows bring {size:,} bytes to part {self._one.part}, and "
                f"a call {CALL_BYTES:,} at most: cut the model into fewer parts"
            )
        instructions = tuple(self._instructions)
        return FlightCall(
            prepare(instructions, self._tensors, frozen),
            instructions,
            self._sent,
            self._places,
            tuple(self._windows),
            wanted,
            {slot: self._tensors[slot] for slot in self._sent},
        )

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
            case ModelInput(of, extent):
                form = schedule.feeds[of]
                self._slot(name, source, form.dtype, extent_shape(form.shape, extent))
            case Delivery(boundary, extent):
                form = schedule.boundaries[boundary].spec
                self._slot(name, source, form.dtype, extent_shape(form.shape, extent))

    def _slot(self, name: str, source: ModelInput | Delivery, dtype: str, shape: tuple[int, ...]) -> None:
        slot = f"task/{self._one.part}.i{len(self._sent)}"  # all parts of a step are sent one mapping
        self._sent[slot] = source
        self._tensors[slot] = np.broadcast_to(np.zeros((), dtype), shape)
        self._names[name] = Stored(slot)

    def _run(self, piece: GraphPiece, kept: Mapping[str, str]) -> None:
        tables = self._cut.tables.get(piece.graph, frozenset())
        inputs: dict[str, Value] = {}
        for name, of in piece.inputs.items():
            inputs[name] = self._names[of]
            if of in self._weights:
                known = self._all.weights[self._weights[of]]
                if name not in tables or known.nbytes < TABLE:
                    self._frozen[weight_name(self._all.deployment, known)] = known
        outputs: dict[str, str] = {}
        for output, of in piece.outputs.items():
            outputs[output] = kept.get(of) or f"task/v{len(self._names)}"
            self._names[of] = Stored(outputs[output])
        self._instructions.append(Run(piece.graph, inputs, outputs))

    def _attend(self, piece: AttentionPiece, kept: Mapping[str, str]) -> None:
        number, part = self._attention, self._one.part
        self._attention += 1
        self._windows[piece.window] = None
        rows = self._cut.rows
        sees_all = not (piece.window or piece.bias or piece.lse)
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
            out = (kept.get(piece.out) if last else None) or f"task/o{number}.{at}"
            lse = f"task/l{number}.{at}"
            graph = "cached_decode" if rows <= DECODE_ROWS else "cached_prefill"
            biased: dict[str, Value] = {}
            if piece.bias:
                graph, where = "cached_biased", self._place("where", (rows, 1, 1), "float32")
                self._instructions.append(Append(f"{scope}p", Stored(where), tile=TILE, place=place))
                biased = {
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
                        **biased,
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
        out = kept.get(piece.out) or f"task/o{len(self._names)}"
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
            self._windows[0] = None
            for at, slot in enumerate(self._slots):
                self._append(piece, f"{slot}p{self._one.part}/a{number}/", self._place(f"at.{at}", (3,)))

    def _append(self, piece: AttentionPiece, scope: str, place: str) -> None:
        self._instructions += [
            Append(f"{scope}k", self._names[piece.keys], tile=TILE, place=place),
            Append(f"{scope}v", self._names[piece.values], tile=TILE, place=place),
        ]

    def _place(self, name: str, shape: tuple[int, ...], dtype: str = "int64") -> str:
        """The slot that brings it."""
        for slot, known in self._places.items():
            if known == name:
                return slot
        slot = f"task/{self._one.part}.p{len(self._places)}"
        self._places[slot] = name
        self._tensors[slot] = np.broadcast_to(np.zeros((), dtype), shape)
        return slot


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
