"""What a cut model is between graph and segments: operations on forms of tensors, and moves between forms.

A tensor has one form where each part of a stage has all of it, another where each has its range of an axis of
the model, another where each has a summand. An operation takes forms and gives forms, by each part alone; a
move makes one form of another and is what passes the aggregator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from onnx import NodeProto

from edge_attention.core.schedule.plan import Crossing, Cut
from edge_attention.core.schedule.schedule import Collective
from edge_attention.graphs.axes.rule import Rule

__all__ = [
    "Form",
    "FormSource",
    "FormState",
    "Move",
    "Operation",
    "Partition",
    "Scaled",
    "SplitBy",
    "StageCut",
    "Unfolded",
]


@dataclass(frozen=True)
class SplitBy:
    """Each part has its range of the axis `axis` of the model, within dimension `dim` of the tensor."""

    dim: int
    axis: int


@dataclass(frozen=True)
class Unfolded:
    """Each part has what its range of `axis` gives towards all of the tensor: they are to be folded."""

    collective: Collective
    axis: int


FormState = SplitBy | Unfolded | None
"""None: each part has all of it."""


class FormSource(Enum):
    """Where a form is from that no operation makes."""

    FEED = "feed"
    WEIGHT = "weight"
    LITERAL = "literal"
    DERIVED = "derived"


@dataclass(eq=False)
class Form:
    """One form of a tensor among the parts of a stage.

    Attributes:
        level: the step from which on a part can have it.
        origin: what makes it.
        fixed: it follows from weights and constants alone: made anew wherever it is used, never kept.
        lse: of what a softmax over a cut axis made, and what follows from it until the product with the
            values: the logarithm of its sum, and which rows see any key. Of the unfolded product the lse.
    """

    stage: int
    tensor: str
    state: FormState
    level: int
    origin: Operation | Move | FormSource
    fixed: bool = False
    lse: tuple[Form, ...] = ()


class Scaled(Enum):
    """What is to be done to an operation's node, beside making it local."""

    NO = "no"
    SHARE = "share"
    """The result is multiplied by the part's share of the axis: a mean of its range becomes a summand."""
    SLICE = "slice"
    """No node: each part takes its range of what it has whole."""


@dataclass(eq=False)
class Operation:
    """A node, done by each part on its own.

    Attributes:
        node: as in the graph, or made here.
        inputs: by input of the node; None: left out.
        captured: what graphs within the node read of around it: name -> form, whole.
        results: by output of the node; None: left out.
        axis: the axis of which each part does its range, if any.
        rule: of the node, where it is the graph's.
    """

    stage: int
    level: int
    node: NodeProto
    inputs: tuple[Form | None, ...]
    captured: dict[str, Form]
    axis: int | None
    rule: Rule | None = None
    results: tuple[Form | None, ...] = ()
    scaled: Scaled = Scaled.NO
    asked: bool = False
    """It makes an output of the model: it is done once, though it follows from constants alone."""

    @property
    def fixed(self) -> bool:
        return not self.asked and all(
            form.fixed for form in (*self.inputs, *self.captured.values()) if form is not None
        )


@dataclass(eq=False)
class Move:
    """One form becomes another, through the aggregator."""

    source: Form


@dataclass(frozen=True)
class StageCut:
    """A stage as it is cut.

    Attributes:
        parts: that do it, by number.
        ranges: axis of the model -> by part of the stage its range; the axes that may be cut.
        home: the axes that tensors are cut by outside of attention; of a stage by heads the same as all.
        sums: whether parts may have a summand each. Else what they have of a tensor is gathered where it is
            to be summed over, and each does all that comes then.
    """

    number: int
    parts: tuple[int, ...]
    cut: Cut
    crossing: Crossing
    ranges: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    home: frozenset[int] = frozenset()
    sums: bool = True

    def range_of(self, axis: int, part: int) -> tuple[int, int]:
        return self.ranges[axis][self.parts.index(part)]

    def has_any(self, part: int) -> bool:
        """Whether the part has some of any axis; of a stage that cuts nothing its part has all."""
        spans = [self.range_of(axis, part) for axis in self.ranges]
        return not spans or any(start < stop for start, stop in spans)


@dataclass(eq=False)
class Partition:
    """All of a model, cut.

    Attributes:
        operations: in an order in which each comes after what it needs.
        results: output of the model -> the form that holds it.
        everywhere: whether all parts of a result's stage make it, of which one contributes it and the others
            keep it: so that they can go on with it.
    """

    stages: tuple[StageCut, ...]
    operations: list[Operation] = field(default_factory=list)
    results: dict[str, Form] = field(default_factory=dict)
    everywhere: bool = False
