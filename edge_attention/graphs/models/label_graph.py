"""The graph that looks at a node's labels before a run: can the loss take them, and which classes are there.

What it tells is what a person needs to mend them, and no more: how many cannot be used, how far they reach
(whole numbers, not beyond bounds near the classes), and which classes are there.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from edge_attention.core.losses import MAX_LOSS_WEIGHT
from edge_attention.graphs.models.model_form import LabelKind
from edge_attention.graphs.onnx_builder import FLOAT, INT64, Builder
from edge_attention.graphs.onnx_file import BATCH, TensorSpec, serialize

__all__ = ["LABEL_SUMS", "label_graph", "reach"]

LABEL_SUMS = ("outside", "strange", "lowest", "highest", "seen")
"""What it adds up: labels that cannot be used, weights that cannot, how far labels reach, classes seen."""


def reach(kind: LabelKind) -> tuple[int, int]:
    """The lowest and highest label that is told; one beyond is told as that."""
    return (-100, 2 * kind.classes) if kind.classes else (-1, 2)


def label_graph(kind: LabelKind, spec: TensorSpec) -> bytes:
    """The graph.

    Inputs: the labels, as `spec` has them, dimension 0 symbolic; the rows' weights, if there are any; and
    `sum/<s>` for `s` of LABEL_SUMS, float32 [] but `sum/seen`, which is [max(1, classes)]. Outputs:
    `next/<s>`, of the same: outside and strange with those of the batch added, lowest the lower and highest
    the higher (of labels without classes the sums' own), seen 1 where a class was there.
    """
    b = Builder("labels")
    _, shape = spec
    classes = kind.classes
    inner: list[str | int] = [n or 0 for n in shape[1:]]
    labels = b.input(kind.labels, INT64 if classes else FLOAT, [BATCH, *inner])
    dims = {name: [max(1, classes)] if name == "seen" else [] for name in LABEL_SUMS}
    sums = {name: b.input(f"sum/{name}", FLOAT, dims[name]) for name in LABEL_SUMS}
    flat = b("Reshape", labels, b.ints(-1))
    floats = b("Cast", flat, to=FLOAT) if classes else flat
    if classes:
        usable = _between(b, flat, np.int64(0), np.int64(classes - 1))
    elif kind.binary:
        usable = _between(b, flat, np.float32(0), np.float32(1))  # which NaN is not
    else:
        largest = np.finfo(np.float32).max
        usable = _between(b, flat, -largest, largest)
    counts = usable
    if kind.ignore is not None:
        ignored = b("Equal", flat, b.const(np.array(kind.ignore, np.int64 if classes else np.float32)))
        usable = b("Or", usable, ignored)
        counts = b("And", counts, b("Not", ignored))
    made = dict(sums)
    made["outside"] = b("Add", sums["outside"], _count(b, b("Not", usable)))
    if kind.weights:
        weights = b.input(kind.weights, FLOAT, [BATCH])
        fair = _between(b, weights, np.float32(0), np.float32(MAX_LOSS_WEIGHT))
        made["strange"] = b("Add", sums["strange"], _count(b, b("Not", fair)))
    if classes or kind.binary:
        low, high = (np.float32(bound) for bound in reach(kind))
        told = b("Where", b("IsNaN", floats), b.const(np.float32(0)), floats)  # counted, and that is all
        if kind.ignore is not None:
            told_low = b("Where", ignored, b.const(high), told)
            told_high = b("Where", ignored, b.const(low), told)
        else:
            told_low = told_high = told
        # Whole numbers: of shares between 0 and 1 none is told.
        lowest = b("Max", b.const(low), b("Floor", b("ReduceMin", told_low, keepdims=0)))
        highest = b("Min", b.const(high), b("Ceil", b("ReduceMax", told_high, keepdims=0)))
        made["lowest"] = b("Min", sums["lowest"], lowest)
        made["highest"] = b("Max", sums["highest"], highest)
    if classes:
        # What counts for no class goes to one more, which is cut off.
        at = b("Where", counts, flat, b.const(np.array(classes, np.int64)))
        ones = b("ConstantOfShape", b("Shape", at), value=_one())
        padded = b("Concat", sums["seen"], b.const(np.zeros(1, np.float32)), axis=0)
        made["seen"] = b("Slice", b("ScatterElements", padded, at, ones, axis=0), b.ints(0), b.ints(classes))
    for name in LABEL_SUMS:
        b.output(f"next/{name}", made[name], FLOAT, dims[name])
    return serialize(b.model())


def _between(b: Builder, value: str, low: np.generic | float, high: np.generic | float) -> str:
    dtype = np.int64 if isinstance(low, np.int64) else np.float32
    least, most = (b.const(np.array(bound, dtype)) for bound in (low, high))
    return b("And", b("GreaterOrEqual", value, least), b("LessOrEqual", value, most))


def _count(b: Builder, which: str) -> str:
    return b("ReduceSum", b("Cast", which, to=FLOAT), keepdims=0)


def _one() -> TensorProto:
    return numpy_helper.from_array(np.ones(1, np.float32), "value")
