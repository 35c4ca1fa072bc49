"""The schedule of a cut model: steps of segments, and the boundaries between them.

    feeds ──> step 0: part 0, part 1, ... ──> boundaries ──> step 1: ... ──> boundaries ──> results
                 each runs a segment,            fold as contributions arrive,
                 an ONNX graph of its own        each part is sent what it needs of them

A **part** is a share of the model's work; a node that holds a part has its weights. A part does at most one
segment a step. What it needs again later it keeps; all else passes the aggregator, so whoever else holds the
part does what it did from the feeds and the boundaries, with the same result to the bit.

A schedule is for inputs of the very shapes it says. Graphs and weights are the same for others where they can
be: what differs is in `constants`, which are inputs of the graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.schedule.extents import WHOLE, Extent

__all__ = [
    "Boundary",
    "Collective",
    "Constant",
    "ConstantSpec",
    "Contributed",
    "Delivery",
    "Kept",
    "ModelInput",
    "ModelSegment",
    "Schedule",
    "Source",
    "Step",
    "TensorForm",
    "Weight",
    "ending_output",
]


@dataclass(frozen=True)
class TensorForm:
    """NumPy's name of a dtype, and a shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ConstantSpec:
    """An array known by the SHA-256 of its bytes."""

    digest: str
    spec: TensorForm


class Collective(Enum):
    """How contributions to a boundary fold."""

    GATHER = "gather"
    """Each has its own extent of the tensor, which no other has."""
    SUM = "sum"
    """They are added, in the parts' order; each in its extent of zeros."""
    MERGE = "merge"
    """Partials of attention: `out` here, and the boundary `lse` has their `lse`. They merge in the parts'
    order; where nothing came the identity stands."""
    MIN = "min"
    """Element by element, as MAX."""
    MAX = "max"


@dataclass(frozen=True)
class Boundary:
    """A tensor that passes the aggregator.

    Attributes:
        spec: of the whole tensor.
        lse: of MERGE: the boundary that has the partials' `lse`, of `out`'s shape with 1 as its last size;
            that one is a MERGE, too, with `lse` empty.
        rounded: of GATHER: segments round float32 to float16 for it, so that an Inf is a number past that.
    """

    spec: TensorForm
    collective: Collective = Collective.GATHER
    lse: str = ""
    rounded: bool = False


@dataclass(frozen=True)
class ModelInput:
    """An extent of an input of the model."""

    name: str
    extent: Extent = WHOLE


@dataclass(frozen=True)
class Kept:
    """What the part itself kept, in an earlier step."""

    name: str


@dataclass(frozen=True)
class Delivery:
    """An extent of a boundary of an earlier step."""

    boundary: str
    extent: Extent = WHOLE


@dataclass(frozen=True)
class Weight:
    """An extent of a weight: the tensor `name` of the model's file. It becomes a constant of the session."""

    name: str
    extent: Extent = WHOLE


@dataclass(frozen=True)
class Constant:
    """What follows from the shapes alone, in `Schedule.constants`; it travels once, not with each request."""

    name: str


Source = ModelInput | Kept | Delivery | Weight | Constant


@dataclass(frozen=True)
class Contributed:
    """An output of a segment that goes into the extent of a boundary."""

    output: str
    boundary: str
    extent: Extent = WHOLE


@dataclass(frozen=True)
class ModelSegment:
    """What one part does in one step.

    Attributes:
        graph: the name of its graph in `Schedule.graphs`.
        inputs: input of the graph -> where it comes from.
        kept: output of the graph -> the name it is kept under until the request ends.
        contributions: outputs that pass the aggregator; an output may go to several boundaries.
    """

    part: int
    graph: str
    inputs: Mapping[str, Source]
    kept: Mapping[str, str] = field(default_factory=dict)
    contributions: tuple[Contributed, ...] = ()


def ending_output(segment: ModelSegment, results: str) -> str:
    """The output of a last segment that has the boundary `results`; "" where it has none, or several.

    Who does not contribute the results keeps them.
    """
    made = [one.output for one in segment.contributions if one.boundary == results]
    outputs = made or list(segment.kept)
    return outputs[0] if len(outputs) == 1 else ""


@dataclass(frozen=True)
class Step:
    """Segments of different parts, which need nothing of each other."""

    segments: tuple[ModelSegment, ...]


@dataclass(frozen=True)
class Schedule:
    """How a model runs in parts, for inputs of one shape.

    Attributes:
        feeds: the model's inputs.
        results: output of the model -> the boundary that has it.
        graphs: name -> SHA-256 of the file, by which a node knows it.
        constants: name -> which array it is; nodes store each once.
        coverage: 1 if the parts together do all of the model; less for a plan that leaves some of it out, as
            a share of it.
        lacking: in words, why its answers are not exact: what is left out, or rounded; empty: they are.
    """

    parts: int
    feeds: Mapping[str, TensorForm]
    results: Mapping[str, str]
    boundaries: Mapping[str, Boundary]
    steps: tuple[Step, ...]
    graphs: Mapping[str, str]
    constants: Mapping[str, ConstantSpec]
    coverage: float = 1.0
    lacking: str = ""

    def of_part(self, part: int) -> Iterator[tuple[int, ModelSegment]]:
        """The part's segments, with their steps' numbers, in order."""
        for number, step in enumerate(self.steps):
            for segment in step.segments:
                if segment.part == part:
                    yield number, segment

    def weights_of(self, part: int) -> set[Weight]:
        """What of the weights the part needs."""
        return {
            s for _, segment in self.of_part(part) for s in segment.inputs.values() if isinstance(s, Weight)
        }

    def check(self) -> None:
        """Raises ValueError if it does not hold together: a source that nothing has made before, two segments
        of a part in one step, extents beyond their tensor."""
        # What nobody contributes to, of a plan that leaves it out, is zeros.
        made = set(self.boundaries) if self.coverage < 1.0 else set()
        made -= {one.boundary for step in self.steps for s in step.segments for one in s.contributions}
        kept: set[tuple[int, str]] = set()
        for number, step in enumerate(self.steps):
            parts = [segment.part for segment in step.segments]
            if len(set(parts)) < len(parts) or not set(parts) <= set(range(self.parts)):
                raise ValueError(f"step {number} is of the parts {parts}")
            for segment in step.segments:
                for name, source in segment.inputs.items():
                    self._check_source(
                        f"step {number}, part {segment.part}, {name}", source, segment, made, kept
                    )
            for segment in step.segments:
                kept |= {(segment.part, name) for name in segment.kept.values()}
                made |= {one.boundary for one in segment.contributions}
        unmade = {name: boundary for name, boundary in self.results.items() if boundary not in made}
        unmade = {n: b for n, b in unmade.items() if b not in self.boundaries or self.coverage == 1.0}
        if unmade:
            raise ValueError(f"nothing makes {', '.join(unmade)}")

    def _check_source(
        self, where: str, source: Source, segment: ModelSegment, made: set[str], kept: set[tuple[int, str]]
    ) -> None:
        match source:
            case ModelInput(name, extent):
                known = self.feeds.get(name)
                shape = known.shape if known is not None else None
            case Delivery(name, extent):
                shape = self.boundaries[name].spec.shape if name in made else None
            case Kept(name):
                if (segment.part, name) not in kept:
                    raise ValueError(f"{where}: {name} is not kept")
                return
            case Constant(name):
                if name not in self.constants:
                    raise ValueError(f"{where}: there is no constant {name}")
                return
            case Weight():
                return
        if shape is None:
            raise ValueError(f"{where}: nothing has made {name}")
        for span in extent:
            if shape[span.axis] != span.outer * span.size * span.inner:
                raise ValueError(f"{where}: {span} is not of {shape}")
