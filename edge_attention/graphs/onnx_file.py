"""ONNX files that users bring: read, checked, stripped; and small operations on their graphs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
    version_converter,
)
from onnx.inliner import inline_local_functions

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.printable import RUNTIME_WORDS
from edge_attention.graphs.onnx_builder import IR_VERSION, OPSET
from edge_attention.graphs.reading import Wanted, read_needed, read_with_notes
from edge_attention.graphs.reading.needed import CutOff, graphs_in, keep_needed, reads

__all__ = [
    "BATCH",
    "TensorSpec",
    "all_nodes",
    "bind_batch",
    "check_batch_first",
    "check_operators",
    "first_line",
    "fixed_shapes",
    "foreign_kinds",
    "infer_outputs",
    "ints",
    "keep",
    "made_in",
    "make_batch_symbolic",
    "opset_of",
    "parse",
    "parse_needed",
    "prune",
    "raise_opset",
    "rename_values",
    "serialize",
    "spec_of",
    "strip",
    "tensors_in",
    "values_of",
]

TensorSpec = tuple[np.dtype[Any], tuple[int | None, ...]]
"""dtype and shape of a tensor; None is a dimension that is not fixed (dimension 0: the batch)."""

BATCH = "batch"  # the one symbolic dimension of a graph users bring

# A gradient graph computes the forward pass again: a random operator would answer otherwise.
_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
# Stands for the batch while shapes are inferred: prime and large, so no fixed dimension is mistaken for it.
_PROBE = 10_007
MAX_FOLLOWED = 1 << 18
"""Elements of the longest vector beside which values are followed while shapes are inferred."""


def bind_batch(model: ModelProto, batch: int, strict: bool = True) -> ModelProto:
    """A copy with dimension 0 of every data input fixed to `batch` and all shapes inferred.

    Raises onnx's own InferenceError where the shapes contradict each other and `strict` says so.
    """
    bound = ModelProto()
    bound.CopyFrom(model)
    for value in bound.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = batch
    bound.graph.ClearField("value_info")
    for value in bound.graph.output:  # declared dimensions may be symbols that mean nothing any more
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    return infer_shapes(bound, strict)


def infer_shapes(model: ModelProto, strict: bool = False) -> ModelProto:
    """A copy with all shapes inferred; values that become shapes are followed. `strict`: raise what is wrong.

    Raises onnx's own InferenceError where the shapes contradict each other.
    """
    # onnx follows the values of each tensor with one dimension, number by number: for a vector of a million
    # that takes seconds an operator, and no shape is as long.
    lengths = [
        value.type.tensor_type.shape.dim[0].dim_value
        for value in model.graph.input
        if len(value.type.tensor_type.shape.dim) == 1
    ]
    lengths += [tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 1]
    follow = max(lengths, default=0) <= MAX_FOLLOWED
    return shape_inference.infer_shapes(model, check_type=strict, strict_mode=strict, data_prop=follow)


def fixed_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every value of the main graph whose shape is known and fixed."""
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return shapes


def prune(graph: GraphProto) -> None:
    """Drop, in place, every node, initializer and input that no graph output depends on."""
    keep_needed(graph, {value.name for value in graph.output})


def serialize(model: ModelProto) -> bytes:
    """The model's bytes; the same model gives the same bytes in every process."""
    return model.SerializeToString(deterministic=True)


def spec_of(value: ValueInfoProto) -> TensorSpec:
    """dtype and shape that a graph's input or output declares."""
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return helper.tensor_dtype_to_np_dtype(kind.elem_type), shape


def parse(data: bytes, place: str) -> ModelProto:
    """Read an ONNX file that somebody brings, its exporter's notes included; functions are inlined.

    Raises InvalidGraph for a file that a node would refuse, too, in the same words, and for an invalid one.
    """
    return _load(read_with_notes(data, place), place)


def parse_needed(data: bytes, place: str, wanted: Wanted) -> tuple[ModelProto, CutOff]:
    """The same of what the wanted values need alone, of an opset that may be old; and what was cut off.

    Raises InvalidGraph as `parse`, for what is not cut off.
    """
    written, cut = read_needed(data, place, wanted)
    return _load(written, place), cut


def _load(written: bytes, place: str) -> ModelProto:
    try:
        model = onnx.load_model_from_string(written)
        onnx.checker.check_model(written)  # the bytes: of the model it would make them again
        return inline_local_functions(model) if model.functions else model
    except (DecodeError, onnx.checker.ValidationError, RuntimeError) as error:
        raise InvalidGraph(f"{place}: not a valid ONNX graph: {first_line(error)}") from error


def check_operators(graph: GraphProto, place: str, trained: Collection[str] | None = None) -> None:
    """Refuse operators that no gradient can be made of: random ones, and of other domains.

    `trained`: the values that train; an operator that none of them has a part in may be of any domain.
    """
    moving = set(trained or ())
    for node in graph.node:
        if trained is None or reads(node) & moving:
            moving.update(node.output)
            for inner in _with_inner(node):
                _check_domain(inner, place)
    for node in all_nodes(graph):
        label = f"operator {node.op_type} (node '{node.name or node.output[0]}')"
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]):
            raise InvalidGraph(f"{place}: {label} is random, so its gradient is not defined; remove it")


def _with_inner(node: NodeProto) -> Iterator[NodeProto]:
    yield node
    for graph in graphs_in(node):
        yield from all_nodes(graph)


def _check_domain(node: NodeProto, place: str) -> None:
    if node.domain not in ("", "ai.onnx"):
        label = f"operator {node.op_type} (node '{node.name or node.output[0]}')"
        raise InvalidGraph(
            f"{place}: {label} is of domain '{node.domain}'; only standard ONNX can be differentiated: "
            "export without fused operators, or train only what comes after it, by naming parameters"
        )


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators that the model imports."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OPSET)


def raise_opset(model: ModelProto, place: str) -> ModelProto:
    """`model` in the opset of the graphs that are made here, if it is older.

    So that what is appended to it, and what it is composed with, has one meaning of every operator. From
    opset 18 on only DFT and GridSample changed theirs.

    Raises InvalidGraph where an operator cannot be converted.
    """
    raised = ModelProto()
    raised.CopyFrom(model)
    raised.ir_version = max(model.ir_version, IR_VERSION)
    imported = next(o for o in raised.opset_import if o.domain in ("", "ai.onnx"))
    if imported.version >= OPSET:
        return raised
    if imported.version >= 18 and not {"DFT", "GridSample"} & {n.op_type for n in all_nodes(model.graph)}:
        imported.version = OPSET
        return raised
    try:
        return version_converter.convert_version(raised, OPSET)
    except Exception as error:  # the converter raises whatever its C++ half does
        raise InvalidGraph(
            f"{place}: opset {imported.version} cannot be converted to {OPSET} ({first_line(error)}); "
            "export with opset 18 or later"
        ) from error


def make_batch_symbolic(value: ValueInfoProto, place: str) -> None:
    """Call dimension 0 of a data input the batch; the others have to be fixed (`bind_dimensions`)."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type in (0, TensorProto.STRING):
        raise InvalidGraph(f"{place}: input '{value.name}' is no numeric tensor; encode it before the graph")
    check_batch_first(value, place)
    dims = kind.shape.dim
    if any(not dim.HasField("dim_value") for dim in dims[1:]):
        raise InvalidGraph(
            f"{place}: input '{value.name}' has a dynamic dimension besides the batch; export it fixed"
        )
    dims[0].dim_param = BATCH


def check_batch_first(value: ValueInfoProto, place: str) -> None:
    """Refuse a data input whose dimension 0 cannot be the batch."""
    dims = value.type.tensor_type.shape.dim
    what = f"{place}: dimension 0 of input '{value.name}' must be the batch"
    if not dims:
        raise InvalidGraph(
            f"{what}, and it is one number; make it a constant of the file, or have one number a sample"
        )
    if not dims[0].HasField("dim_value"):
        return
    remedy = "; export it as dynamic"
    behind = [axis for axis, dim in enumerate(dims) if not dim.HasField("dim_value")]
    if behind:  # a recurrent state, [layers, batch, width]
        remedy += (
            f"; where its dimension {behind[0]} is the batch, begin the graph with a Transpose of it, "
            "or make it a constant of the file"
        )
    else:
        remedy += (
            "; in a file of others name it yourself: of each input and output of onnx.load(FILE).graph "
            'set type.tensor_type.shape.dim[0].dim_param = "batch", and onnx.save it'
        )
    raise InvalidGraph(f"{what}, and is fixed at {dims[0].dim_value}{remedy}")


def infer_outputs(model: ModelProto, place: str) -> dict[str, TensorSpec]:
    """Infer the outputs' shapes, declare them in `model` and return them."""
    try:
        inferred = bind_batch(model, _PROBE)
    except shape_inference.InferenceError as error:
        raise InvalidGraph(
            f"{place}: the shapes do not hold for every batch size: {first_line(error)}"
        ) from error
    outputs = {}
    for declared, found in zip(model.graph.output, inferred.graph.output, strict=True):
        kind = found.type.tensor_type
        if not found.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise InvalidGraph(f"{place}: the shape of output '{found.name}' is unknown; declare it")
        for dim in kind.shape.dim:
            if dim.dim_value == _PROBE:
                dim.dim_param = BATCH
        declared.CopyFrom(found)
        outputs[found.name] = spec_of(found)
    return outputs


def foreign_kinds(graph: GraphProto) -> list[str]:
    """The operators of others' domains, as `ai.onnx.ml.LinearClassifier`."""
    return sorted({f"{n.domain}.{n.op_type}" for n in all_nodes(graph) if n.domain not in ("", "ai.onnx")})


def strip(model: ModelProto) -> None:
    """Drop what exporters leave behind (stack traces, paths): it is large and tells about the machine."""
    graph = model.graph
    for field in ("doc_string", "metadata_props", "producer_name", "producer_version"):
        model.ClearField(field)
    for field in ("doc_string", "metadata_props", "value_info"):
        graph.ClearField(field)
    for item in (*all_nodes(graph), *tensors_in(graph), *graph.input, *graph.output):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


def keep(field: Any, names: set[str]) -> None:
    kept = [item for item in field if item.name in names]
    del field[:]
    field.extend(kept)


def first_line(error: Exception) -> str:
    """What a library says first; with what follows, where that line only leads to it."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return (" ".join(lines[:3]) if lines[0].endswith(":") else lines[0])[:RUNTIME_WORDS]


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in graphs_in(node):
            yield from all_nodes(inner)


def tensors_in(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
        for inner in graphs_in(node):
            yield from tensors_in(inner)


def values_of(graph: GraphProto) -> set[str]:
    """Every name of a value in the graph and in the graphs inside it."""
    names = {name for node in all_nodes(graph) for name in (*node.input, *node.output)}
    names |= {value.name for value in (*graph.input, *graph.output)}
    names |= {tensor.name for tensor in graph.initializer}
    return names - {""}


def ints(name: str, values: Sequence[int]) -> TensorProto:
    """An initializer: an int64 vector."""
    return numpy_helper.from_array(np.array(values, np.int64).reshape(len(values)), name)


def made_in(graph: GraphProto) -> list[str]:
    """Names of all that a graph, or one inside it, has of its own: inputs, constants and what nodes make."""
    found = dict.fromkeys(value.name for value in graph.input)
    found |= dict.fromkeys(tensor.name for tensor in graph.initializer)
    for node in graph.node:
        for inner in graphs_in(node):
            found |= dict.fromkeys(made_in(inner))
        found |= dict.fromkeys(name for name in node.output if name)
    return list(found)


def rename_values(graph: GraphProto, renamed: Mapping[str, str]) -> None:
    """Rename values in place, everywhere in the graph and in the graphs inside it."""
    for node in all_nodes(graph):
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = renamed.get(name, name)
        for inner in graphs_in(node):
            _rename_declared(inner, renamed)
    _rename_declared(graph, renamed)


def _rename_declared(graph: GraphProto, renamed: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = renamed.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
