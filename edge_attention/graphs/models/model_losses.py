"""The standard losses, appended to a model that ends in logits or predictions, and what they count.

Every loss is `sum_i w_i l_i / sum_i w_i` over the labels of a batch, where `w_i` is what label i counts: its
row's weight times its class's, 0 where it is ignored; 1 where nothing is said, so that the loss is the mean.
Where nothing counts the loss is 0. The forms do not overflow: log-softmax rather than log of softmax, and
softplus(z) - z*y for a yes or no. docs/federated.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    L1Loss,
    MeanSquaredError,
    StandardLoss,
    loss_of,
)
from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.models.loss_front import LossFront, cut_off, find_front
from edge_attention.graphs.models.model_form import LOSS_WEIGHT, METRIC, LabelKind
from edge_attention.graphs.onnx_file import BATCH, TensorSpec

__all__ = ["AddedLoss", "add_loss"]

_PREFIX = "loss/"
_FLOAT = np.dtype(np.float32)
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class AddedLoss:
    """What `add_loss` has added.

    Attributes:
        metrics: outputs `metric/<name>`.
        weighted: there is an output LOSS_WEIGHT.
        label: what the labels must be.
        notes: sentences for the user.
    """

    metrics: tuple[str, ...]
    weighted: bool
    label: LabelKind
    notes: tuple[str, ...] = ()


def add_loss(
    graph: GraphProto, loss: LossSpec, spec: TensorSpec, place: str, last: Callable[[str], int | None]
) -> AddedLoss:
    """Append the standard loss `loss.name` of output `loss.output`, whose dtype and shape are `spec`.

    Adds the input `loss.labels`, `loss.weights` (float32 [B]) if it is named, the output `loss` (float32
    scalar), outputs `metric/<name>` (float32 scalars, sums over the batch), and where labels do not all count
    alike LOSS_WEIGHT (float32 scalar): what the batch counts, in rows, by which `loss` of batches folds.
    `last` tells the size of a value's last dimension; None: it is not known.

    Raises InvalidGraph for an unknown loss or option, and for logits it has no meaning for.
    """
    try:
        chosen = loss_of(loss)
    except InvalidArgument as error:
        raise InvalidGraph(f"{place}: {error.message}") from None
    dtype, shape = spec
    if dtype != _FLOAT or not shape or shape[0] is not None or not all(shape[1:]):
        raise InvalidGraph(
            f"{place}: output '{loss.output}' is {dtype} {_show(shape)}; {loss.name} needs float32 whose "
            "first dimension is the batch and whose others are fixed"
        )
    writer = _Writer(graph, loss, shape, place, last)
    _WRITERS[type(chosen)](writer, chosen)
    outputs = [
        "loss",
        *(METRIC + name for name in writer.metrics),
        *([LOSS_WEIGHT] if writer.weighted else []),
    ]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in outputs)
    assert writer.label is not None
    return AddedLoss(tuple(writer.metrics), writer.weighted, writer.label, tuple(writer.notes))


def _cross_entropy(g: _Writer, chosen: StandardLoss) -> None:
    assert isinstance(chosen, CrossEntropy)
    loss, rank = g.loss, len(g.shape)
    front = g.front("Softmax", "LogSoftmax")
    axis = _class_axis(g, chosen, front)
    classes = (g.shape[axis] or 0) if axis else 0
    if classes < 2:
        several = math.prod(n or 0 for n in g.shape[1:]) > 1
        other = (
            f"its axis {axis} has {classes}" if several else "for one number a row use binary_cross_entropy"
        )
        raise InvalidGraph(
            f"{g.place}: cross_entropy needs logits of two classes or more, [B, C] or [B, T, C], or with "
            f"class_axis = 1 [B, C, T]; '{loss.output}' is {_show(g.shape)}; {other}"
        )
    if loss.class_weights and len(loss.class_weights) != classes:
        raise InvalidGraph(
            f"{g.place}: class_weights of the loss are {len(loss.class_weights)}, one a class; "
            f"'{loss.output}' has {classes} classes"
        )
    ignore = chosen.ignore_index
    if ignore is not None and 0 <= ignore < classes and classes == 2:
        g.notes.append(f"ignore_index {ignore} is one of the two classes: only labels {1 - ignore} count")
    places = tuple(n for i, n in enumerate(g.shape) if i != axis)
    logits = g.logits(front)
    g.declare(LabelKind(loss.labels, loss.weights, classes, ignore=ignore), TensorProto.INT64, places[1:])
    live = g.live(ignore, np.int64)
    # GatherElements rather than OneHot: a label out of range is an error, not a loss of zero. A negative
    # one would count from the last class; it is made one that is too large.
    zero = g.number(0, np.int64)
    safe = g("Where", live, loss.labels, zero) if live else loss.labels
    known = g("Where", g("Less", safe, zero), g.number(classes, np.int64), safe)
    log_p = g("LogSoftmax", logits, axis=axis)
    at = g("Unsqueeze", known, g.ints(axis))
    each = g("Neg", g("Squeeze", g("GatherElements", log_p, at, axis=axis), g.ints(axis)))
    counts = g.counts(live, len(places))
    weights, of_class = counts, ""
    if loss.class_weights:
        of_class = g("Gather", g.floats(loss.class_weights), known, axis=0)
        weights = g("Mul", of_class, counts) if counts else of_class
    if chosen.label_smoothing:
        smooth = _smooth(g, log_p, axis, classes, rank)
        share = chosen.label_smoothing
        own = g("Mul", each, of_class) if of_class else each
        own = g("Mul", own, g.number(1 - share))
        each = g("Add", own, g("Mul", smooth, g.number(share / classes)))
        total = g("ReduceSum", g("Mul", each, counts) if counts else each, keepdims=0) if weights else ""
        g.mean(each, weights, places, total)
    else:
        g.mean(each, weights, places)
    g.count_equal(g("ArgMax", logits, axis=axis, keepdims=0), loss.labels, live)
    g.count_labels(live, "tokens" if rank == 3 else "labels", bool(places[1:]) or live != "")


def _smooth(g: _Writer, log_p: str, axis: int, classes: int, rank: int) -> str:
    """sum_c -w_c log p_c, of the labels' shape: what label smoothing adds, PyTorch's formula."""
    if g.loss.class_weights:
        shape = [1] * rank
        shape[axis] = classes
        log_p = g("Mul", log_p, g("Reshape", g.floats(g.loss.class_weights), g.ints(*shape)))
    return g("Neg", g("ReduceSum", log_p, g.ints(axis), keepdims=0))


def _class_axis(g: _Writer, chosen: CrossEntropy, front: LossFront | None) -> int:
    """The axis of the classes, from 0; it is never the batch's."""
    rank = len(g.shape)
    said = chosen.class_axis
    if said is not None and (not -rank < said < rank or said == 0):
        raise InvalidGraph(
            f"{g.place}: class_axis of the loss is {said}; '{g.loss.output}' is {_show(g.shape)}, whose axes "
            f"besides the batch are 1 to {rank - 1}"
        )
    found = front.axis % rank if front is not None else rank - 1
    if front is not None and found == 0:
        raise InvalidGraph(
            f"{g.place}: output '{g.loss.output}' is made by {front.kind} '{front.name}' over axis 0, "
            "which is the batch: samples would share a probability; export it over the axis of the classes"
        )
    axis = found if said is None else said % rank
    if front is not None and axis != found:
        raise InvalidGraph(
            f"{g.place}: output '{g.loss.output}' is made by {front.kind} '{front.name}' over axis {found}, "
            f"and class_axis of the loss is {said}; leave class_axis out, or export the model without it"
        )
    return axis


def _binary_cross_entropy(g: _Writer, chosen: StandardLoss) -> None:
    assert isinstance(chosen, BinaryCrossEntropy)
    loss = g.loss
    front = g.front("Sigmoid")
    inner = () if g.shape[1:] == (1,) else g.shape[1:]
    weights = loss.positive_weights
    if len(weights) > 1 and len(weights) != (inner[-1] if inner else 1):
        raise InvalidGraph(
            f"{g.place}: positive_weights of the loss are {len(weights)}; give one for all labels or one a "
            f"label: '{loss.output}' is {_show(g.shape)}"
        )
    logits = g.logits(front)
    if inner != g.shape[1:]:
        logits = g("Reshape", logits, g.ints(-1))
    g.declare(
        LabelKind(loss.labels, loss.weights, binary=True, ignore=chosen.ignore_index),
        TensorProto.FLOAT,
        inner,
    )
    live = g.live(chosen.ignore_index, np.float32)
    labels = g("Where", live, loss.labels, g.number(0.0)) if live else loss.labels
    if weights:
        # (1 - y) z + (1 + (p - 1) y) softplus(-z): p counts the yes, and nothing overflows
        more = g.floats([value - 1 for value in weights]) if len(weights) > 1 else g.number(weights[0] - 1)
        factor = g("Add", g("Mul", labels, more), g.number(1.0))
        no = g("Mul", g("Sub", g.number(1.0), labels), logits)
        each = g("Add", no, g("Mul", factor, g("Softplus", g("Neg", logits))))
    else:
        each = g("Sub", g("Softplus", logits), g("Mul", logits, labels))
    g.mean(each, g.counts(live, 1 + len(inner)), (None, *inner))
    said = g("Greater", logits, g.number(0.0))
    g.count_equal(said, g("Greater", labels, g.number(0.5)), live)
    g.count_labels(live, "labels", bool(inner) or live != "")


def _squared(g: _Writer, chosen: StandardLoss) -> None:
    miss, inner = _miss(g)
    g.mean(g("Mul", miss, miss), g.counts("", 1 + len(inner)), (None, *inner))


def _absolute(g: _Writer, chosen: StandardLoss) -> None:
    miss, inner = _miss(g)
    g.mean(g("Abs", miss), g.counts("", 1 + len(inner)), (None, *inner))


def _miss(g: _Writer) -> tuple[str, Shape]:
    """Predictions minus labels; predictions [B, 1] have labels [B], as a column of a table is."""
    loss = g.loss
    inner = () if g.shape[1:] == (1,) else g.shape[1:]
    g.declare(LabelKind(loss.labels, loss.weights), TensorProto.FLOAT, inner)
    predicted = g("Reshape", loss.output, g.ints(-1)) if inner != g.shape[1:] else loss.output
    return g("Sub", predicted, loss.labels), inner


_WRITERS: dict[type[StandardLoss], Callable[[_Writer, StandardLoss], None]] = {
    BinaryCrossEntropy: _binary_cross_entropy,
    CrossEntropy: _cross_entropy,
    L1Loss: _absolute,
    MeanSquaredError: _squared,
}


@dataclass(eq=False)
class _Writer:
    """Appends nodes under names of its own, and gathers what becomes an output."""

    graph: GraphProto
    loss: LossSpec
    shape: Shape
    place: str
    last: Callable[[str], int | None]
    metrics: list[str] = field(default_factory=list)
    weighted: bool = False
    label: LabelKind | None = None
    notes: list[str] = field(default_factory=list)
    _count: int = 0

    def __call__(self, kind: str, *inputs: str, to: str = "", dtype: int = 0, **attributes: Any) -> str:
        name = to or self._fresh()
        if dtype:
            attributes["to"] = dtype
        label = f"{_PREFIX}{kind}_{self._count}"
        self._count += 1
        self.graph.node.append(helper.make_node(kind, inputs, [name], name=label, **attributes))
        return name

    def front(self, *fitting: str) -> LossFront | None:
        """The Softmax or Sigmoid in front of this loss, if it is of a kind that the loss makes itself."""
        loss = self.loss
        front = find_front(self.graph, loss.output, len(self.shape))
        if front is None:
            return None
        # A Reshape that cuts the classes into several axes, or joins several, leaves no axis of a Softmax.
        if front.kind != "Sigmoid" and front.folded and self.last(front.logits) != self.shape[-1]:
            front = replace(front, sure=False)
        what = f"output '{loss.output}' is made by {front.kind} '{front.name}'"
        if front.kind in fitting and not front.sure:
            self.notes.append(
                f"{what}, through operators that cannot be followed back: {loss.name} takes logits, and "
                "trains on the output as if it were logits; export the model without it, or name its logits "
                "as loss.output"
            )
            return None
        if front.kind in fitting:
            if front.kind != "LogSoftmax":  # whose logarithm of a softmax is itself
                self.notes.append(f"{what}: {loss.name} is taken of what that takes, the logits")
            return front
        other = "binary_cross_entropy" if front.kind == "Sigmoid" else "cross_entropy"
        self.notes.append(
            f"{what}, and {loss.name} takes logits: it trains on probabilities as if they were logits; use "
            f"{other}, which sees the {front.kind}, or export the model without it"
        )
        return None

    def logits(self, front: LossFront | None) -> str:
        """What the loss is of: the output, or what the Softmax or Sigmoid that makes it takes."""
        if front is None:
            return self.loss.output
        return cut_off(self.graph, front, _PREFIX)

    def declare(self, label: LabelKind, dtype: int, inner: Shape) -> None:
        """Declare the labels, [B, *inner], and the rows' weights, [B]."""
        self.label = label
        value = helper.make_tensor_value_info
        self.graph.input.append(value(label.labels, dtype, [BATCH, *inner]))
        if label.weights:
            self.graph.input.append(value(label.weights, TensorProto.FLOAT, [BATCH]))

    def live(self, ignore: int | None, dtype: type[np.generic]) -> str:
        """Which labels count, bool of their shape; empty: all."""
        if ignore is None:
            return ""
        return self("Not", self("Equal", self.loss.labels, self.number(ignore, dtype)))

    def counts(self, live: str, rank: int) -> str:
        """What labels of `rank` axes count without their class, which broadcasts over them; empty: 1."""
        counts = self("Cast", live, dtype=TensorProto.FLOAT) if live else ""
        if not self.loss.weights:
            return counts
        rows = self.loss.weights
        if rank > 1:
            rows = self("Unsqueeze", rows, self.ints(*range(1, rank)))
        return self("Mul", rows, counts) if counts else rows

    def mean(self, each: str, weights: str, places: Shape, total: str = "") -> None:
        """The output `loss`, of `each` [B, *places[1:]]; with `weights`, which broadcast, LOSS_WEIGHT too.

        `total`: the sum of what is weighted already.
        """
        if not weights:
            self("ReduceMean", each, to="loss", keepdims=0)
            return
        self.weighted = True
        inner = math.prod(n or 1 for n in places[1:])
        total = total or self("ReduceSum", self("Mul", each, weights), keepdims=0)
        sum_of = self("ReduceSum", weights, keepdims=0)
        # Rows' weights alone are [B, 1, ..]: each counts for `inner` labels, and is in rows already.
        alone = self.loss.weights and not self.loss.class_weights and not self._ignores()
        rows = sum_of if alone or inner == 1 else self("Div", sum_of, self.number(float(inner)))
        self("Identity", rows, to=LOSS_WEIGHT)
        some = self("Where", self("Greater", rows, self.number(0.0)), rows, self.number(1.0))
        each_row = total if inner == 1 else self("Div", total, self.number(float(inner)))
        self("Div", each_row, some, to="loss")

    def _ignores(self) -> bool:
        return self.label is not None and self.label.ignore is not None

    def count_equal(self, left: str, right: str, live: str) -> None:
        """The metric `correct`: in how many places that count the two agree."""
        agree = self("Equal", left, right)
        if live:
            agree = self("And", agree, live)
        self("ReduceSum", self("Cast", agree, dtype=TensorProto.FLOAT), to=METRIC + "correct", keepdims=0)
        self.metrics.append("correct")

    def count_labels(self, live: str, name: str, wanted: bool) -> None:
        """The metric `name`: how many labels count, where that is not the number of rows."""
        if not wanted:
            return
        if live:
            self("ReduceSum", self("Cast", live, dtype=TensorProto.FLOAT), to=METRIC + name, keepdims=0)
        else:
            self("Cast", self("Size", self.loss.labels), to=METRIC + name, dtype=TensorProto.FLOAT)
        self.metrics.append(name)

    def ints(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def floats(self, values: Any) -> str:
        return self._constant(np.array(values, np.float32))

    def number(self, value: float, dtype: type[np.generic] = np.float32) -> str:
        return self._constant(np.array(value, dtype))

    def _constant(self, array: np.ndarray[Any, Any]) -> str:
        name = self._fresh()
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _fresh(self) -> str:
        self._count += 1
        return f"{_PREFIX}{self._count}"


def _show(shape: Shape) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
