"""What nodes are asked: each segment as a call of a prepared program, made once and used by all requests.

Its weights are frozen into it, by digest; its constants and what the part keeps are stored on the node; what
it is sent comes in the call's slots, or, where that is too large for a message, is fetched by the node.

    weights    job/<deployment>/kept/w/<digest>       outlive a restart of the node
    changing   job/<deployment>/p/<piece>             weights that are others from version to version: bound
    as they are stored at each call, and not frozen
    constants  job/<deployment>/<shape>/c/<digest>
    kept       job/<deployment>/lane<k>/p<part>/<name>
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from aggregator.engine.prepared import PreparedData, prepare
from aggregator.engine.trip import Wanted
from aggregator.inference.course import Course, PartSegment
from edge_attention.core.errors import NotFinite
from edge_attention.core.halves import to_wire
from edge_attention.core.messages.program import (
    CALL_BYTES,
    MAX_SLOTS,
    Batch,
    Frozen,
    Instruction,
    Return,
    Run,
    Stored,
    Value,
)
from edge_attention.core.messages.table import ColumnRead, TensorRead
from edge_attention.core.schedule.extents import WHOLE, Extent, extent_shape, take
from edge_attention.core.schedule.meeting import PAST_HALF, Meetings
from edge_attention.core.schedule.schedule import (
    Constant,
    ConstantSpec,
    Delivery,
    Kept,
    ModelInput,
    TensorForm,
    Weight,
)
from edge_attention.core.schedule.traffic import halved
from edge_attention.core.tensors import Array, Encoding

__all__ = [
    "CallTerms",
    "KnownWeight",
    "NodeRead",
    "SegmentCall",
    "SegmentCalls",
    "changing_name",
    "constant_name",
    "job_scope",
    "kept_scope",
    "lane_scope",
    "weight_name",
]

WARM = -1
"""The lane in which nodes load segments before there are requests."""
_ANY = -2
TABLE = 16 * 1024 * 1024
"""Bytes from which a table of rows is not frozen: it would be in a node's memory beside its store. To bind it
at each call took 0.9 ms for 47 MB, of 3.8."""
FROZEN = 1024
"""Tensors that a program freezes, the largest ones; any others are bound as they are stored."""


def job_scope(deployment: str) -> str:
    """What the names of all that a deployment has on nodes begin with."""
    return f"job/{deployment}/"


def lane_scope(deployment: str, lane: int) -> str:
    return f"{job_scope(deployment)}lane{lane}/"


def kept_scope(deployment: str, lane: int, part: int) -> str:
    """What the names of all that a part keeps of a request begin with."""
    return f"{lane_scope(deployment, lane)}p{part}/"


def weight_name(deployment: str, weight: KnownWeight) -> str:
    """Of equal bytes with another shape it is another name."""
    form = f"{weight.form.dtype}{weight.form.shape}{weight.digest}"
    return f"{job_scope(deployment)}kept/w/{sha256(form.encode()).hexdigest()[:40]}"


def changing_name(deployment: str, weight: Weight) -> str:
    """Of a piece of a weight that changes: the same one for all versions, and for all shapes, of which one
    at a time has nodes given it (runner.py)."""
    piece = f"{weight.name}{weight.extent}"
    return f"{job_scope(deployment)}p/{sha256(piece.encode()).hexdigest()[:40]}"


def constant_name(deployment: str, shape: str, constant: ConstantSpec) -> str:
    """Of the same bytes there may be constants of several types and shapes."""
    form = "x".join(map(str, constant.spec.shape))
    return f"{job_scope(deployment)}{shape}/c/{constant.digest[:40]}-{constant.spec.dtype}-{form}"


@dataclass(frozen=True)
class KnownWeight:
    """A piece of a weight: the SHA-256 of its bytes, and its form."""

    digest: str
    form: TensorForm

    @property
    def nbytes(self) -> int:
        return _bytes(self.form, Encoding.RAW)


@dataclass(frozen=True)
class NodeRead:
    """An input of the model that nodes read of their own data, and that nobody sends.

    Attributes:
        dataset: of the node that holds the part.
        tensor: how its rows are read.
        complete: rows that lack a value in one of these are not counted.
        rows: the feed that has the numbers of the rows, int64 [rows].
    """

    dataset: str
    tensor: TensorRead
    rows: str
    complete: tuple[ColumnRead, ...] = ()


@dataclass(frozen=True)
class CallTerms:
    """What holds for all calls of a deployment, beside its schedule.

    Attributes:
        halves: boundaries of float32 travel in float16.
        changing: tensors of the model's file that are others from version to version.
        reads: input of the model -> how nodes read it themselves.
        releases: texts of what lets leave what is computed from that.
    """

    halves: bool = False
    changing: frozenset[str] = frozenset()
    reads: Mapping[str, NodeRead] = field(default_factory=dict)
    releases: tuple[str, ...] = ()


@dataclass(frozen=True)
class SentTensor:
    """What a segment is sent, and how it travels."""

    source: ModelInput | Delivery
    form: TensorForm
    encoding: Encoding

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return _bytes(self.form, self.encoding)

    def zeros(self) -> Array:
        """As many elements as travel, of which nothing is in memory."""
        dtype = self.form.dtype if self.encoding is Encoding.RAW else np.float16
        return np.broadcast_to(np.zeros((), dtype), self.form.shape)

    def elements(self, feeds: Mapping[str, Array], meetings: Meetings) -> Array:
        """Its elements, as they travel.

        Raises:
            NotFinite: they are past float16.
        """
        source = self.source
        if isinstance(source, ModelInput):
            return take(feeds[source.name], source.extent)
        found = meetings.take(source)
        if self.encoding is Encoding.RAW:
            return found
        halves = to_wire(found, self.encoding)
        if not np.isfinite(halves).all() and np.isfinite(found).all():
            raise NotFinite(f"boundary {source.boundary}: {PAST_HALF}")
        return halves


@dataclass(frozen=True, eq=False)
class SegmentCall:
    """A segment as it is called in one lane.

    Attributes:
        releases: texts that its program brings.
        slots: what comes with each call, by the names it is stored under there.
        lent: the same, of what a call has no room for.
        wanted: what comes back, by the graph's outputs; `halved` are those that come in float16.
        down, up: bytes of tensors.
        session: the graph, and what is frozen into it.
    """

    prepared: PreparedData
    instructions: tuple[Instruction, ...]
    slots: Mapping[str, SentTensor]
    lent: Mapping[str, SentTensor]
    wanted: Mapping[str, Wanted]
    halved: frozenset[str]
    down: int
    up: int
    session: tuple[str, tuple[str, ...]]
    releases: tuple[str, ...] = ()

    def require_held(self, outputs: Mapping[str, Array]) -> None:
        """Raises NotFinite where what came in float16 was past it."""
        for name in self.halved:
            if np.isinf(outputs[name]).any():
                raise NotFinite(f"{name}: {PAST_HALF}")


class SegmentCalls:
    """The calls of one deployment's segments for inputs of one shape.

    Args:
        weights: what is known of each weight.
        tables: by graph the inputs in which it only looks up rows.
    """

    def __init__(
        self,
        deployment: str,
        shape: str,
        course: Course,
        weights: Mapping[Weight, KnownWeight],
        tables: Mapping[str, frozenset[str]],
        terms: CallTerms = CallTerms(),
    ) -> None:
        self._deployment = deployment
        self._shape = shape
        self._course = course
        self._weights = weights
        self._tables = tables
        self.terms = terms
        self._halved = halved(course.schedule) if terms.halves else frozenset[str]()
        self._made: dict[tuple[int, int, int, bool], SegmentCall] = {}
        self._private = {
            one.part
            for own in course.parts
            for one in own
            for source in one.segment.inputs.values()
            if isinstance(source, ModelInput) and source.name in terms.reads
        }
        """Parts that work on what their nodes have read: what they return has to be released."""

    @property
    def feeds(self) -> dict[str, TensorForm]:
        """What a request brings, and as what: the model's inputs, or the numbers of rows that nodes read."""
        forms = self._course.schedule.feeds
        found: dict[str, TensorForm] = {}
        for name, form in forms.items():
            how = self.terms.reads.get(name)
            found |= {name: form} if how is None else {how.rows: TensorForm("int64", form.shape[:1])}
        return found

    def call(self, one: PartSegment, lane: int, again: bool) -> SegmentCall:
        """The call of a segment in `lane`, or in WARM; `again`: only what it keeps is needed."""
        key = one.part, one.index, lane if _keeps(one) else _ANY, again
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(one, lane, again)
        return found

    @property
    def warm_scope(self) -> str:
        """What the names of all that is kept in WARM begin with: no request's."""
        return f"{job_scope(self._deployment)}{self._shape}/warm/"

    def forget(self, lane: int) -> None:
        """The lane is not used any more."""
        for key in [key for key in self._made if key[2] == lane]:
            del self._made[key]

    def _make(self, one: PartSegment, lane: int, again: bool) -> SegmentCall:
        schedule, segment = self._course.schedule, one.segment
        scope = self.warm_scope if lane == WARM else lane_scope(self._deployment, lane)
        kept = f"{scope}p{one.part}/"
        tables = self._tables.get(segment.graph, frozenset[str]())
        inputs: dict[str, Value] = {}
        sent: dict[str, SentTensor] = {}
        weights: dict[str, KnownWeight] = {}
        read: dict[str, str] = {}
        private = one.part in self._private
        for name, source in segment.inputs.items():
            match source:
                case Weight(tensor) if tensor in self.terms.changing:
                    inputs[name] = Stored(changing_name(self._deployment, source))
                case ModelInput(tensor) if tensor in self.terms.reads:
                    read[name] = tensor
                case Weight():
                    stored = weight_name(self._deployment, self._weights[source])
                    if name not in tables or self._weights[source].nbytes < TABLE:
                        weights[stored] = self._weights[source]
                    inputs[name] = Stored(stored)
                case Constant(constant):
                    known = schedule.constants[constant]
                    inputs[name] = Stored(constant_name(self._deployment, self._shape, known))
                case Kept(tensor):
                    inputs[name] = Stored(kept + tensor)
                case ModelInput() | Delivery():
                    sent[name] = self._sent(source)
        batches, own, rows = self._reads(read)
        slots, lent, places = _in_a_call({**sent, **rows})
        inputs |= {name: Stored(place) for name, place in (places | own).items() if name in segment.inputs}
        outputs: dict[str, str] = {output: kept + name for output, name in segment.kept.items()}
        returns: dict[str, Return] = {}
        wanted: dict[str, Wanted] = {}
        up = 0
        for made in () if again else segment.contributions:
            if made.output in returns:
                continue  # an output that goes to several boundaries comes back once
            outputs.setdefault(made.output, f"task/o{len(outputs)}")
            form = self._form(made.boundary, made.extent)
            # What goes to several boundaries comes as the most exact of them wants it.
            to = {other.boundary for other in segment.contributions if other.output == made.output}
            encoding = Encoding.FLOAT16 if to <= self._halved else Encoding.RAW
            wanted[made.output] = np.dtype(form.dtype), form.shape
            returns[made.output] = Return(outputs[made.output], made.output, encoding)
            up += _bytes(form, encoding)
        instructions: tuple[Instruction, ...] = (
            *(replace(batch, rows=Stored(places[feed])) for feed, batch in batches.items()),
            Run(schedule.graphs[segment.graph], inputs, outputs),
            *returns.values(),
        )
        largest = sorted(weights.items(), key=lambda item: -item[1].nbytes)[:FROZEN]
        frozen = tuple(
            Frozen(stored, known.digest) for stored, known in sorted(largest, key=lambda item: item[0])
        )
        prepared = prepare(
            instructions,
            {name: _empty(tensor.form) for name, tensor in slots.items()},
            frozen,
            self.terms.releases if private else (),
            encodings={name: tensor.encoding for name, tensor in slots.items()},
        )
        return SegmentCall(
            prepared=prepared,
            instructions=instructions,
            slots=slots,
            lent=lent,
            wanted=wanted,
            halved=frozenset(name for name, one in returns.items() if one.encoding is not Encoding.RAW),
            down=sum(tensor.nbytes for tensor in sent.values()),
            up=up,
            releases=self.terms.releases if private else (),
            session=(schedule.graphs[segment.graph], _frozen_in(inputs, frozen)),
        )

    def _reads(
        self, read: Mapping[str, str]
    ) -> tuple[dict[str, Batch], dict[str, str], dict[str, SentTensor]]:
        """What a node reads itself for inputs of a graph (`read`: input -> the model's).

        By feed of rows: the instruction, without its rows. What it stores the inputs as. The feeds, as they
        are sent.
        """
        batches: dict[str, Batch] = {}
        own: dict[str, str] = {}
        rows: dict[str, SentTensor] = {}
        for at, (name, tensor) in enumerate(read.items()):
            how = self.terms.reads[tensor]
            own[name] = f"task/d{at}"
            of = replace(how.tensor, stored=own[name])
            before = batches.get(how.rows)
            tensors = (*before.tensors, of) if before is not None else (of,)
            batches[how.rows] = Batch(how.dataset, {}, None, tensors=tensors, complete=how.complete)
            count = self._course.schedule.feeds[tensor].shape[0]
            rows[how.rows] = SentTensor(
                ModelInput(how.rows, WHOLE), TensorForm("int64", (count,)), Encoding.RAW
            )
        return batches, own, rows

    def _sent(self, source: ModelInput | Delivery) -> SentTensor:
        if isinstance(source, ModelInput):
            spec = self._course.schedule.feeds[source.name]
            form = TensorForm(spec.dtype, extent_shape(spec.shape, source.extent))
            return SentTensor(source, form, Encoding.RAW)
        form = self._form(source.boundary, source.extent)
        return SentTensor(source, form, self._encoding(source.boundary))

    def _form(self, boundary: str, extent: Extent) -> TensorForm:
        spec = self._course.schedule.boundaries[boundary].spec
        return TensorForm(spec.dtype, extent_shape(spec.shape, extent))

    def _encoding(self, boundary: str) -> Encoding:
        return Encoding.FLOAT16 if boundary in self._halved else Encoding.RAW


def _in_a_call(
    sent: Mapping[str, SentTensor],
) -> tuple[dict[str, SentTensor], dict[str, SentTensor], dict[str, str]]:
    """What goes into slots, the smallest ones, and what is lent, by their names in the task; and these."""
    slots: dict[str, SentTensor] = {}
    lent: dict[str, SentTensor] = {}
    places: dict[str, str] = {}
    room = CALL_BYTES
    for number, (name, tensor) in enumerate(sorted(sent.items(), key=lambda item: item[1].nbytes)):
        place = places[name] = f"task/i{number}"
        if tensor.nbytes <= room and len(slots) < MAX_SLOTS:
            slots[place] = tensor
            room -= tensor.nbytes
        else:
            lent[place] = tensor
    return slots, lent, places


def _frozen_in(inputs: Mapping[str, Value], frozen: Sequence[Frozen]) -> tuple[str, ...]:
    """Which inputs have which of the frozen tensors, as texts."""
    names = {one.stored for one in frozen}
    found = {i: value.name for i, value in inputs.items() if isinstance(value, Stored)}
    return tuple(sorted(f"{i}={name}" for i, name in found.items() if name in names))


def _keeps(one: PartSegment) -> bool:
    """Whether its call is another one in another lane."""
    return bool(one.segment.kept) or any(isinstance(s, Kept) for s in one.segment.inputs.values())


def _bytes(form: TensorForm, encoding: Encoding) -> int:
    return math.prod(form.shape) * (np.dtype(form.dtype).itemsize if encoding is Encoding.RAW else 2)


def _empty(form: TensorForm) -> Array:
    """An array of that form, of which nothing is in memory."""
    return np.broadcast_to(np.zeros((), form.dtype), form.shape)
