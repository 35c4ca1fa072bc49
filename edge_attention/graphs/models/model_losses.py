"""The standard losses, appended to a model that ends in logits or predictions, and what they count.

Every loss is the mean over the batch (over tokens too, where there are tokens), in a form that does not
overflow: log-softmax rather than log of softmax, and softplus(z) - z*y for a yes or no.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.models.model_form import METRIC
from edge_attention.graphs.onnx_file import BATCH, TensorSpec

__all__ = ["STANDARD_LOSSES", "add_loss"]

_PREFIX = "loss/"
_FLOAT = np.dtype(np.float32)


def add_loss(graph: GraphProto, loss: LossSpec, spec: TensorSpec, place: str) -> tuple[str, ...]:
    """Append the standard loss `loss.name` of output `loss.output`, whose dtype and shape are `spec`.

    Adds the input `loss.labels`, the output `loss` (float32 scalar) and outputs `metric/<name>` (float32
    scalars, sums over the batch); returns the metrics' names.

    Raises InvalidGraph for an unknown loss and for logits it has no meaning for.
    """
    if loss.name not in STANDARD_LOSSES:
        raise InvalidGraph(
            f"{place}: no loss '{loss.name}'; there are {', '.join(sorted(STANDARD_LOSSES))}, and 'output' "
            "for a loss that the model computes itself"
        )
    dtype, shape = spec
    if dtype != _FLOAT or not shape or shape[0] is not None or not all(shape[1:]):
        raise InvalidGraph(
            f"{place}: output '{loss.output}' is {dtype} {_show(shape)}; {loss.name} needs float32 whose "
            "first dimension is the batch and whose others are fixed"
        )
    writer = _Writer(graph)
    metrics = STANDARD_LOSSES[loss.name](writer, loss, shape, place)
    graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    graph.output.extend(
        helper.make_tensor_value_info(METRIC + name, TensorProto.FLOAT, []) for name in metrics
    )
    return metrics


Shape = tuple[int | None, ...]


def _cross_entropy(g: _Writer, loss: LossSpec, shape: Shape, place: str) -> tuple[str, ...]:
    if len(shape) not in (2, 3) or (shape[-1] or 0) < 2:
        raise InvalidGraph(
            f"{place}: cross_entropy needs logits [B, C] or [B, T, C] of two classes or more; "
            f"'{loss.output}' is {_show(shape)}; for one number a row use binary_cross_entropy"
        )
    g.labels(loss, TensorProto.INT64, shape[1:-1])
    # GatherElements rather than OneHot: a label out of range is an error, not a loss of zero. A negative
    # one would count from the last class; it is made one that is too large.
    beyond = g.number(shape[-1] or 0, np.int64)
    known = g("Where", g("Less", loss.labels, g.number(0, np.int64)), beyond, loss.labels)
    picked = g(
        "GatherElements",
        g("LogSoftmax", loss.output, axis=-1),
        g("Unsqueeze", known, g.ints(-1)),
        axis=len(shape) - 1,
    )
    g("Neg", g("ReduceMean", picked, keepdims=0), to="loss")
    g.count_equal(g("ArgMax", loss.output, axis=-1, keepdims=0), loss.labels)
    if len(shape) == 2:
        return ("correct",)
    g("Cast", g("Size", loss.labels), to=METRIC + "tokens", dtype=TensorProto.FLOAT)
    return "correct", "tokens"


def _binary_cross_entropy(g: _Writer, loss: LossSpec, shape: Shape, place: str) -> tuple[str, ...]:
    if shape[1:] not in ((), (1,)):
        raise InvalidGraph(
            f"{place}: binary_cross_entropy needs logits [B] or [B, 1]; '{loss.output}' is {_show(shape)}; "
            "for several classes use cross_entropy"
        )
    g.labels(loss, TensorProto.FLOAT, ())
    logits = g("Reshape", loss.output, g.ints(-1))
    each = g("Sub", g("Softplus", logits), g("Mul", logits, loss.labels))
    g("ReduceMean", each, to="loss", keepdims=0)
    said = g("Greater", logits, g.number(0.0))
    g.count_equal(said, g("Greater", loss.labels, g.number(0.5)))
    return ("correct",)


def _squared(g: _Writer, loss: LossSpec, shape: Shape, place: str) -> tuple[str, ...]:
    miss = _miss(g, loss, shape)
    g("ReduceMean", g("Mul", miss, miss), to="loss", keepdims=0)
    return ()


def _absolute(g: _Writer, loss: LossSpec, shape: Shape, place: str) -> tuple[str, ...]:
    g("ReduceMean", g("Abs", _miss(g, loss, shape)), to="loss", keepdims=0)
    return ()


def _miss(g: _Writer, loss: LossSpec, shape: Shape) -> str:
    """Predictions minus labels; predictions [B, 1] have labels [B], as a column of a table is."""
    inner = () if shape[1:] == (1,) else shape[1:]
    g.labels(loss, TensorProto.FLOAT, inner)
    predicted = g("Reshape", loss.output, g.ints(-1)) if inner != shape[1:] else loss.output
    return g("Sub", predicted, loss.labels)


STANDARD_LOSSES: dict[str, Callable[[_Writer, LossSpec, Shape, str], tuple[str, ...]]] = {
    "binary_cross_entropy": _binary_cross_entropy,
    "cross_entropy": _cross_entropy,
    "l1": _absolute,
    "mse": _squared,
}


class _Writer:
    """Appends nodes under names of its own."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def __call__(self, kind: str, *inputs: str, to: str = "", dtype: int = 0, **attributes: Any) -> str:
        name = to or self._fresh()
        if dtype:
            attributes["to"] = dtype
        label = f"{_PREFIX}{kind}_{self._count}"
        self._count += 1
        self._graph.node.append(helper.make_node(kind, inputs, [name], name=label, **attributes))
        return name

    def labels(self, loss: LossSpec, dtype: int, inner: Shape) -> None:
        """Declare the labels, [B, *inner]."""
        self._graph.input.append(helper.make_tensor_value_info(loss.labels, dtype, [BATCH, *inner]))

    def count_equal(self, left: str, right: str) -> None:
        """The metric `correct`: in how many places the two agree."""
        agree = self("Cast", self("Equal", left, right), dtype=TensorProto.FLOAT)
        self("ReduceSum", agree, to=METRIC + "correct", keepdims=0)

    def ints(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def number(self, value: float, dtype: type[np.generic] = np.float32) -> str:
        return self._constant(np.array(value, dtype))

    def _constant(self, array: np.ndarray[Any, Any]) -> str:
        name = self._fresh()
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _fresh(self) -> str:
        self._count += 1
        return f"{_PREFIX}{self._count}"


def _show(shape: Shape) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
