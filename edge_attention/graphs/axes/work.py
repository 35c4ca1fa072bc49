"""What an operator does, from shapes alone: flops of products, bytes that other operators move.

On one core of an EPYC with AVX-512, MiniLM in float32 takes what `ComputeBox.seconds` says of it, with 100
GFLOP/s and 0.28 bytes moved for a flop, within 8% from 16 to 512 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_attention.core.placement.cuts.boxes import HALF_ROWS
from edge_attention.core.placement.cuts.costs import LayerWork
from edge_attention.core.schedule.extents import Extent, extent_shape
from edge_attention.core.schedule.schedule import (
    Constant,
    Delivery,
    Kept,
    ModelInput,
    Schedule,
    TensorForm,
    Weight,
)
from edge_attention.core.tensors import Array

__all__ = ["graph_work", "operator_work", "schedule_work", "work_of"]

Forms = Mapping[str, TensorForm]

_PRODUCTS = (
    "MatMul",
    "FusedMatMul",
    "MatMulInteger",
    "QLinearMatMul",
    "MatMulBnb4",
    "MatMulNBits",
    "MatMulIntegerToFloat",
)

_ATTENTIONS = ("Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention")

_PICKING = frozenset(
    (
        "Gather",
        "GatherBlockQuantized",
        "GatherElements",
        "GatherND",
        "Slice",
        "Split",
        "Expand",
        "EmbedLayerNormalization",
    )
)
"""Of whose inputs no more is read than is made."""

_SHAPE = 1024
"""Elements of a constant up to which it may say a shape."""

_NOTHING = frozenset(
    ("Constant", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Shape", "Size", "Dropout")
)
"""Views, or gone before a session runs."""

_HEAVY: Mapping[str, float] = {
    "Softmax": 4.0,
    "LogSoftmax": 4.0,
    "Erf": 3.0,
    "Gelu": 3.0,
    "FastGelu": 3.0,
    "Tanh": 3.0,
    "Sigmoid": 3.0,
    "Exp": 3.0,
    "LayerNormalization": 2.0,
    "SkipLayerNormalization": 2.0,
    "SkipSimplifiedLayerNormalization": 2.0,
    "EmbedLayerNormalization": 2.0,
    "Transpose": 2.0,
    "Pow": 2.0,
}
"""Operators whose arithmetic, or whose order of reading, takes longer than their bytes: so many times."""


def work_of(nodes: Iterable[NodeProto], forms: Forms, padded: bool = False) -> LayerWork:
    """The work of all of them."""
    total = LayerWork()
    for node in nodes:
        total += operator_work(node, forms, padded)
    return total


def schedule_work(
    schedule: Schedule,
    graph: Callable[[str], bytes],
    constant: Callable[[str], Array],
    weight: Callable[[Weight], TensorForm],
) -> dict[tuple[int, int], LayerWork]:
    """By step and part, the work of each segment; its flops count what few rows lose.

    Args:
        graph: the bytes of a graph by digest.
        constant: an array by digest.
        weight: what form a piece of a weight has.
    """
    found: dict[tuple[int, int], LayerWork] = {}
    kept: dict[tuple[int, str], TensorForm] = {}
    known: dict[object, tuple[LayerWork, Forms]] = {}
    models: dict[str, ModelProto] = {}
    for number, step in enumerate(schedule.steps):
        for segment in step.segments:
            forms: dict[str, TensorForm] = {}
            arrays: dict[str, Array] = {}
            digests: list[str] = []
            for name, source in segment.inputs.items():
                match source:
                    case Constant(of):
                        forms[name] = schedule.constants[of].spec
                        digests.append(schedule.constants[of].digest)
                        if math.prod(forms[name].shape) <= _SHAPE:
                            arrays[name] = constant(digests[-1])
                    case Kept(of):
                        if (segment.part, of) in kept:
                            forms[name] = kept[segment.part, of]
                    case ModelInput(of, extent):
                        forms[name] = _within(schedule.feeds[of], extent)
                    case Delivery(of, extent):
                        forms[name] = _within(schedule.boundaries[of].spec, extent)
                    case Weight():
                        forms[name] = weight(source)
            key = segment.graph, tuple(sorted((n, f.dtype, f.shape) for n, f in forms.items())), *digests
            if key not in known:
                if segment.graph not in models:
                    models[segment.graph] = ModelProto.FromString(graph(schedule.graphs[segment.graph]))
                known[key] = graph_work(models[segment.graph], forms, arrays)
            found[number, segment.part], made = known[key]
            kept |= {(segment.part, to): made[name] for name, to in segment.kept.items() if name in made}
    return found


def graph_work(
    model: ModelProto, inputs: Forms, constants: Mapping[str, Array] | None = None
) -> tuple[LayerWork, Forms]:
    """The work of a segment's graph, for inputs of these forms, and the forms of all that it makes.

    Its flops count what few rows lose. `constants`: inputs whose values say shapes.
    """
    sized = ModelProto()
    sized.CopyFrom(model)
    constants = constants or {}
    del sized.graph.input[:]
    for value in model.graph.input:
        if value.name in constants:
            sized.graph.initializer.append(numpy_helper.from_array(constants[value.name], value.name))
        elif value.name in inputs:
            form = inputs[value.name]
            kind = TensorProto.BFLOAT16 if form.dtype == "bfloat16" else _number(form.dtype)
            sized.graph.input.append(helper.make_tensor_value_info(value.name, kind, form.shape))
        else:
            sized.graph.input.append(value)
    del sized.graph.value_info[:]
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    forms = {one.name: TensorForm(_dtype(one.data_type), tuple(one.dims)) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if tensor.elem_type and tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            forms[value.name] = TensorForm(_dtype(tensor.elem_type), tuple(dim.dim_value for dim in dims))
    return work_of(graph.node, forms, padded=True), forms


def _within(form: TensorForm, extent: Extent) -> TensorForm:
    return TensorForm(form.dtype, extent_shape(form.shape, extent))


def _number(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _dtype(kind: int) -> str:
    return "bfloat16" if kind == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(kind).name


def operator_work(node: NodeProto, forms: Forms, padded: bool = False) -> LayerWork:
    """The work of one operator. A tensor `forms` does not know counts as nothing.

    `padded`: flops count what a product of few rows loses, `HALF_ROWS`.
    """
    kind = node.op_type
    if kind in _NOTHING:
        return LayerWork()
    out = forms.get(node.output[0])
    shapes = [forms[name].shape if name in forms else () for name in node.input]
    if out is None:
        return LayerWork(operators=1)
    flops = _flops(node, shapes, out.shape)
    if flops:
        rows = _rows(kind, out.shape)
        return LayerWork(flops=flops * (1 + HALF_ROWS / rows) if padded else flops, operators=1)
    # Of operands that are smaller than the result, such as a bias, each is read from the cache.
    read = max((_bytes(forms[name]) for name in node.input if name in forms), default=0)
    made = sum(_bytes(forms[name]) for name in node.output if name in forms)
    if kind in _PICKING:
        read = made
    return LayerWork(moved=_HEAVY.get(kind, 1.0) * (read + made), operators=1)


def _rows(kind: str, out: tuple[int, ...]) -> int:
    """Of the product, or of each of its matrices where it has many; at least 1."""
    if "Conv" in kind:
        return max(1, math.prod(out[2:]))
    return max(1, math.prod(out[:-1]) if len(out) < 4 else out[-2])


def _flops(node: NodeProto, shapes: list[tuple[int, ...]], out: tuple[int, ...]) -> float:
    """Two for each multiplication and addition; 0: it is no product."""
    kind = node.op_type
    if kind in _PRODUCTS and shapes[0]:
        inner = shapes[0][-1]
        if kind == "FusedMatMul" and _attribute(node, "transA"):
            inner = shapes[0][-2]
        return 2.0 * math.prod(out) * inner
    if kind == "Gemm" and len(shapes[0]) == 2:
        return 2.0 * math.prod(out) * shapes[0][0 if _attribute(node, "transA") else 1]
    if kind in ("Conv", "ConvInteger", "QLinearConv") and len(shapes) > 1:
        weight = shapes[3] if kind == "QLinearConv" and len(shapes) > 3 else shapes[1]
        return 2.0 * math.prod(out) * math.prod(weight[1:])
    if kind == "Einsum":
        return 2.0 * _einsum(node, shapes)
    if kind in _ATTENTIONS and shapes[0]:
        return _attention(node, shapes, out)
    return 0.0


def _attention(node: NodeProto, shapes: list[tuple[int, ...]], out: tuple[int, ...]) -> float:
    """Two products over all pairs of a query and a key, masked or not, and those that it is fused with.

    `out` is [batch, heads, tokens, dim] or [batch, tokens, hidden], of as many elements as the queries have.
    """
    shape = dict(enumerate(shapes))

    def tokens(index: int) -> int:
        of = shape.get(index, ())
        return of[-2] if len(of) >= 2 else 0

    if node.op_type == "GroupQueryAttention":
        # Packed, the first input has keys and values as well; a cache may be longer than what is in it.
        keys = tokens(3) + tokens(0)
        return 4.0 * math.prod(out) * keys
    if node.op_type == "MultiHeadAttention":
        key = shape.get(1, ())
        # Keys are [batch, tokens, hidden], of another model [batch, heads, tokens, dim], or with the queries.
        keys = (tokens(1) if len(key) < 5 else key[1]) or shapes[0][1]
        return 4.0 * math.prod(out) * (keys + tokens(6))
    if node.domain == "com.microsoft":
        weight = shape.get(1, ())
        past = tokens(4)
        projected = 2.0 * math.prod(shapes[0]) * (weight[-1] if weight else 0)
        return projected + 4.0 * math.prod(out) * (tokens(0) + past)
    return 4.0 * math.prod(out) * (tokens(1) + tokens(4))


def _einsum(node: NodeProto, shapes: list[tuple[int, ...]]) -> float:
    equation = next((a.s.decode() for a in node.attribute if a.name == "equation"), "")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if "." in equation or len(terms) < 2:
        return 0.0
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=False)
        for letter, size in zip(term, shape, strict=False)
    }
    return float(math.prod(sizes.values()))


def _attribute(node: NodeProto, name: str) -> int:
    found = next((a for a in node.attribute if a.name == name), None)
    return int(helper.get_attribute_value(found)) if found is not None else 0


def _bytes(form: TensorForm) -> int:
    return math.prod(form.shape) * _item(form.dtype)


def _item(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
