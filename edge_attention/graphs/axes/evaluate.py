"""Computes single nodes on known values: shape arithmetic, positions, masks, rotary tables.

ONNX Runtime computes, as it will on the nodes: a table differs in no bit from what the whole model has. Whole
numbers, which shape arithmetic is made of, go through NumPy where one line tells an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnxruntime
from onnx import NodeProto, helper

from edge_attention.core.tensors import Array

__all__ = ["MAX_COMPUTED", "can_be_computed", "evaluate"]

MAX_COMPUTED = 1 << 22
"""Elements of a value that is computed while a model is bound: a mask of 2,048 tokens by 2,048."""

_Operator = Callable[[Sequence[Any], Mapping[str, Any]], Any]


def _axis(arrays: Sequence[Any], attributes: Mapping[str, Any]) -> tuple[int, ...]:
    given = arrays[1] if len(arrays) > 1 and arrays[1] is not None else attributes.get("axes")
    return tuple(int(axis) for axis in np.ravel(given)) if given is not None else ()


def _unsqueeze(a: Sequence[Any], at: Mapping[str, Any]) -> Any:
    axes = _axis(a, at)
    rank = a[0].ndim + len(axes)
    left = {axis % rank for axis in axes}
    sizes = iter(a[0].shape)
    return a[0].reshape([1 if axis in left else next(sizes) for axis in range(rank)])


def _slice(a: Sequence[Any], at: Mapping[str, Any]) -> Any:
    starts, ends = np.ravel(a[1]), np.ravel(a[2])
    axes = np.ravel(a[3]) if len(a) > 3 and a[3] is not None else range(len(starts))
    steps = np.ravel(a[4]) if len(a) > 4 and a[4] is not None else [1] * len(starts)
    index = [slice(None)] * a[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            return None
        index[int(axis)] = slice(int(start), int(end), int(step))
    return a[0][tuple(index)]


def _floor_to_zero(a: Sequence[Any], at: Mapping[str, Any]) -> Any:
    if not np.all(a[1]):
        return None
    quotient = np.abs(a[0]) // np.abs(a[1])
    return (quotient * (np.sign(a[0]) * np.sign(a[1]))).astype(a[0].dtype)


def _cast(a: Sequence[Any], at: Mapping[str, Any]) -> Any:
    dtype = helper.tensor_dtype_to_np_dtype(at["to"])
    return a[0].astype(dtype) if dtype in (np.int64, np.int32, np.bool_) else None


def _reduce_prod(a: Sequence[Any], at: Mapping[str, Any]) -> Any:
    axes = _axis(a, at) or None
    return np.prod(a[0], axis=axes, keepdims=bool(at.get("keepdims", 1)), dtype=a[0].dtype)


_WHOLE_NUMBERS: Mapping[str, _Operator] = {
    "Add": lambda a, at: a[0] + a[1],
    "And": lambda a, at: a[0] & a[1],
    "Cast": _cast,
    "Concat": lambda a, at: np.concatenate(a, axis=at["axis"]),
    "Div": _floor_to_zero,
    "Equal": lambda a, at: a[0] == a[1],
    "Gather": lambda a, at: np.take(a[0], a[1].astype(np.int64), axis=at.get("axis", 0)),
    "Greater": lambda a, at: a[0] > a[1],
    "GreaterOrEqual": lambda a, at: a[0] >= a[1],
    "Identity": lambda a, at: a[0],
    "Less": lambda a, at: a[0] < a[1],
    "LessOrEqual": lambda a, at: a[0] <= a[1],
    "Max": lambda a, at: np.maximum.reduce(a) if len({x.shape for x in a}) == 1 else None,
    "Min": lambda a, at: np.minimum.reduce(a) if len({x.shape for x in a}) == 1 else None,
    "Mul": lambda a, at: a[0] * a[1],
    "Neg": lambda a, at: -a[0],
    "Not": lambda a, at: ~a[0],
    "Or": lambda a, at: a[0] | a[1],
    "ReduceProd": _reduce_prod,
    "Slice": _slice,
    "Squeeze": lambda a, at: np.squeeze(a[0], axis=_axis(a, at) or None),
    "Sub": lambda a, at: a[0] - a[1],
    "Unsqueeze": _unsqueeze,
    "Where": lambda a, at: np.where(a[0], a[1], a[2]),
}
_NEVER = frozenset(
    (
        *("If", "Loop", "Scan", "SequenceMap", "Bernoulli", "Multinomial"),
        # What shape arithmetic, positions and masks are not made of, and takes long of large constants.
        *(
            "AveragePool",
            "Col2Im",
            "Conv",
            "ConvInteger",
            "ConvTranspose",
            "DFT",
            "DeformConv",
            "Det",
            "Einsum",
        ),
        *(
            "GRU",
            "GridSample",
            "LRN",
            "LSTM",
            "LpPool",
            "MaxPool",
            "MaxRoiPool",
            "MaxUnpool",
            "MelWeightMatrix",
        ),
        *("NonMaxSuppression", "QLinearConv", "RNN", "Resize", "RoiAlign", "STFT"),
    )
)
_GROWING = frozenset(("ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Tile", "Upsample"))
"""Operators that make something large of small inputs: computed only where its size is known before."""
_MAX_PRODUCTS = 1 << 32
"""Of two tables that are multiplied."""


def can_be_computed(node: NodeProto, inputs: Sequence[Array | None], size_is_known: bool) -> bool:
    """Whether it takes little time and memory to compute a node: whose constants they are is not known."""
    if node.op_type in _NEVER or node.op_type.startswith("Random"):
        return False
    if node.op_type in _GROWING and not size_is_known:
        return False
    if node.op_type in ("MatMul", "MatMulInteger", "Gemm", "Attention"):
        sizes = [array.size for array in inputs[:2] if array is not None]
        return prod(sizes) <= _MAX_PRODUCTS
    return True


def evaluate(
    node: NodeProto, inputs: Sequence[Array | None], opsets: Mapping[str, int], ir_version: int
) -> list[Array] | None:
    """What the node makes of `inputs` (None: left out), by output; None where it cannot be said.

    Only operators of ONNX itself, none that is random or has graphs inside.
    """
    if node.domain not in ("", "ai.onnx"):
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = _WHOLE_NUMBERS.get(node.op_type)
    whole = all(x is None or x.dtype in (np.int64, np.int32, np.bool_) for x in inputs)
    try:
        if plain is not None and whole:
            found = plain(inputs, attributes)
            if found is not None:
                return [np.asarray(found)]
        return _in_runtime(node, inputs, opsets, ir_version)
    except Exception:  # what cannot be computed stays a node of the model
        return None


def _in_runtime(
    node: NodeProto, inputs: Sequence[Array | None], opsets: Mapping[str, int], ir_version: int
) -> list[Array] | None:
    alone = NodeProto()
    alone.CopyFrom(node)
    del alone.input[:], alone.output[:]
    feeds: dict[str, Array] = {}
    for position, array in enumerate(inputs):
        alone.input.append("" if array is None else f"x{position}")
        if array is not None:
            feeds[f"x{position}"] = array
    alone.output.extend(f"y{k}" if name else "" for k, name in enumerate(node.output))
    graph = helper.make_graph(
        [alone],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in feeds.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in alone.output if name],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=min(ir_version, 11),
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = [np.asarray(x) for x in session.run(None, feeds)]
    return None if any(prod(x.shape) > MAX_COMPUTED for x in found) else found
