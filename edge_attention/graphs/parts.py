"""The model parts users bring: ONNX encoders and heads, checked and made ready for training.

A part is an ONNX file whose float32 initializers are its trainable parameters. `load_part` checks it
and turns the parameters into graph inputs, because ONNX Runtime prepacks an initializer and silently
ignores an in-place update of it.

Trap: some exporters merge initializers of equal value (two all-zero biases become one), which ties two
parameters for good; nothing in the file tells. Give such parameters different values before exporting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
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
)
from onnx.inliner import inline_local_functions

from edge_attention.core.errors import InvalidGraph

__all__ = ["BATCH", "Part", "TensorSpec", "bind_batch", "load_part", "prune", "serialize", "spec_of"]

Kind = Literal["encoder", "head"]
TensorSpec = tuple[np.dtype[Any], tuple[int | None, ...]]
"""dtype and shape of a tensor; None is a dimension that is not fixed (dimension 0: the batch)."""

BATCH = "batch"  # the one symbolic dimension of a part
MIN_OPSET, MAX_OPSET = 13, 26  # below 13, `axes` are attributes; above 26, ONNX Runtime does not read it
MAX_IR_VERSION = 13
MAX_PART_BYTES = 256 << 20

# A gradient graph computes the encoder's forward pass again: a random operator would answer otherwise.
_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
_RESERVED = ("grad/", "adjoint/")
_RESERVED_NAMES = {"dkeys", "dvalues", "dfused"}
# Stands for the batch while shapes are inferred: prime and large, so no fixed dimension is mistaken for it.
_PROBE = 10_007


@dataclass(frozen=True, eq=False)
class Part:
    """A checked part. `forward` is its graph with parameters as inputs and dimension 0 of data symbolic.

    `parameters` are the initial values (float32, read-only), in the file's order. `inputs` are the data
    inputs (of a head: `fused` and the labels), `outputs` what the graph returns.
    """

    kind: Kind
    place: str
    forward: bytes
    parameters: dict[str, NDArray[np.float32]]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    @property
    def labels(self) -> dict[str, TensorSpec]:
        """The inputs that a node's data must provide: all of an encoder's, all but `fused` of a head's."""
        return {name: spec for name, spec in self.inputs.items() if (self.kind, name) != ("head", "fused")}


def load_part(data: bytes, kind: Kind, trainable: Sequence[str] | None = None, where: str = "") -> Part:
    """Check the ONNX file `data` and lift its parameters to inputs.

    An encoder turns data columns (dimension 0 = batch, symbolic) into `keys` [B, T, Hk, dk] and `values`
    [B, T, Hk, dv], float32; further outputs are dropped. A head turns `fused` [B, N, Hq, dv] float32 and
    labels into `loss`, a float32 scalar that is the mean over the batch, and whatever else it reports.
    `trainable` names the float32 initializers that train; by default all that reach an output do.
    `where` (a file name, a node's name) goes into messages. The same arguments give the same bytes.

    Raises InvalidGraph for a file that cannot be used, saying what to change.
    """
    if kind not in get_args(Kind):
        raise InvalidGraph(f"a part is an encoder or a head, not {kind!r}")
    place = f"{kind} '{where}'" if where else kind
    try:
        return _load(data, kind, trainable, place)
    except InvalidGraph:
        raise
    except Exception as error:  # onnx and protobuf raise a dozen classes on damaged bytes
        raise InvalidGraph(f"{place}: not a usable ONNX file: {_first_line(error)}") from error


def bind_batch(model: ModelProto, batch: int) -> ModelProto:
    """A copy with dimension 0 of every data input fixed to `batch` and all shapes inferred.

    Raises onnx's own InferenceError where the shapes contradict each other.
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
    return shape_inference.infer_shapes(bound, check_type=True, strict_mode=True, data_prop=True)


def prune(graph: GraphProto) -> None:
    """Drop, in place, every node, initializer and input that no graph output depends on."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _reads(node)
    needed.discard("")
    del graph.node[:]
    graph.node.extend(reversed(kept))
    _keep(graph.initializer, needed)
    _keep(graph.input, needed)


def serialize(model: ModelProto) -> bytes:
    """The model's bytes; the same model gives the same bytes in every process."""
    return model.SerializeToString(deterministic=True)


def spec_of(value: ValueInfoProto) -> TensorSpec:
    """dtype and shape that a graph's input or output declares."""
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return helper.tensor_dtype_to_np_dtype(kind.elem_type), shape


def _load(data: bytes, kind: Kind, trainable: Sequence[str] | None, place: str) -> Part:
    model = _parse(data, place)
    graph = model.graph
    _check_names(graph, place)
    _strip(model)

    outputs = [value.name for value in graph.output]
    required = ["keys", "values"] if kind == "encoder" else ["loss"]
    for name in required:
        if name not in outputs:
            raise InvalidGraph(f"{place}: no output '{name}' among {outputs}; rename the graph's outputs")
    if kind == "encoder":
        _keep(graph.output, {"keys", "values"})
        graph.output.sort(key=lambda value: value.name)

    floats = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    for name in trainable or ():
        if name not in floats:
            raise InvalidGraph(f"{place}: trainable '{name}' is no float32 initializer; there are {floats}")
    chosen = set(floats if trainable is None else trainable)
    # An initializer may also be listed as an input (its default value); here it is one or the other.
    initialized = {tensor.name for tensor in graph.initializer}
    _keep(graph.input, {value.name for value in graph.input} - initialized)
    prune(graph)
    lost = chosen - {tensor.name for tensor in graph.initializer}
    if trainable is not None and lost:
        raise InvalidGraph(f"{place}: trainable {sorted(lost)} reach no output; leave them out")
    parameters = _lift(graph, chosen, place)
    if not parameters:
        raise InvalidGraph(f"{place}: no trainable parameters; a parameter is a float32 initializer")

    inputs = {}
    for value in graph.input:
        if value.name not in parameters:
            _make_batch_symbolic(value, place)
            inputs[value.name] = spec_of(value)
    if kind == "head" and "fused" not in inputs:
        raise InvalidGraph(f"{place}: no input 'fused' that reaches an output; inputs are {list(inputs)}")
    outputs_ = _infer_outputs(model, place)
    _check_shapes(kind, inputs, outputs_, place)
    return Part(kind, place, serialize(model), parameters, inputs, outputs_)


def _parse(data: bytes, place: str) -> ModelProto:
    if len(data) > MAX_PART_BYTES:
        raise InvalidGraph(
            f"{place}: {len(data)} bytes, more than the limit of {MAX_PART_BYTES}; bring a smaller part"
        )
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise InvalidGraph(f"{place}: not an ONNX file; export it again") from error
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise InvalidGraph(
            f"{place}: opset {opset} is not supported; export with opset {MIN_OPSET} to {MAX_OPSET}"
        )
    if model.ir_version > MAX_IR_VERSION:
        raise InvalidGraph(
            f"{place}: ir_version {model.ir_version} is not supported; save with {MAX_IR_VERSION} or less"
        )
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise InvalidGraph(f"{place}: its weights are in another file; save it with external_data=False")
    if model.graph.sparse_initializer:
        raise InvalidGraph(f"{place}: sparse initializers are not supported; make them dense")
    try:
        onnx.checker.check_model(model)
        return inline_local_functions(model) if model.functions else model
    except (onnx.checker.ValidationError, RuntimeError) as error:
        raise InvalidGraph(f"{place}: not a valid ONNX graph: {_first_line(error)}") from error


def _check_names(graph: GraphProto, place: str) -> None:
    for node in _nodes(graph):
        label = f"operator {node.op_type} (node '{node.name or node.output[0]}')"
        if node.domain not in ("", "ai.onnx"):
            raise InvalidGraph(
                f"{place}: {label} is of domain '{node.domain}'; only standard ONNX can be differentiated"
            )
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.input) > 2):
            raise InvalidGraph(f"{place}: {label} is random, so its gradient is not defined; remove it")
    names = {name for node in _nodes(graph) for name in (*node.input, *node.output)}
    names |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for name in sorted(names):
        if name.startswith(_RESERVED) or name in _RESERVED_NAMES:
            raise InvalidGraph(f"{place}: the name '{name}' is reserved for gradients; rename the tensor")


def _lift(graph: GraphProto, chosen: set[str], place: str) -> dict[str, NDArray[np.float32]]:
    parameters = {}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in chosen]:
        array = np.array(numpy_helper.to_array(tensor), dtype=np.float32, order="C")
        if not np.isfinite(array).all():
            raise InvalidGraph(f"{place}: parameter '{tensor.name}' has NaN or Inf; export it again")
        array.flags.writeable = False
        parameters[tensor.name] = array
    _keep(graph.initializer, {tensor.name for tensor in graph.initializer} - set(parameters))
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in parameters.items()
    )
    return parameters


def _make_batch_symbolic(value: ValueInfoProto, place: str) -> None:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type in (0, TensorProto.STRING):
        raise InvalidGraph(f"{place}: input '{value.name}' is no numeric tensor; encode it before the graph")
    dims = kind.shape.dim
    if not dims or dims[0].HasField("dim_value"):
        raise InvalidGraph(
            f"{place}: dimension 0 of input '{value.name}' must be the batch; export it as dynamic"
        )
    if any(not dim.HasField("dim_value") for dim in dims[1:]):
        raise InvalidGraph(
            f"{place}: input '{value.name}' has a dynamic dimension besides the batch; export it fixed"
        )
    dims[0].dim_param = BATCH


def _infer_outputs(model: ModelProto, place: str) -> dict[str, TensorSpec]:
    """Infer the outputs' shapes, declare them in `model` and return them."""
    try:
        inferred = bind_batch(model, _PROBE)
    except shape_inference.InferenceError as error:
        raise InvalidGraph(
            f"{place}: the shapes do not hold for every batch size: {_first_line(error)}"
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


def _check_shapes(
    kind: Kind, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec], place: str
) -> None:
    if kind == "encoder":
        expected = {"keys": "[B, T, Hk, dk]", "values": "[B, T, Hk, dv]"}
        tensors = {f"output '{name}'": (outputs[name], form) for name, form in expected.items()}
    else:
        tensors = {"input 'fused'": (inputs["fused"], "[B, N, Hq, dv]")}
        if outputs["loss"] != (np.dtype(np.float32), ()):
            raise InvalidGraph(f"{place}: output 'loss' must be a float32 scalar of shape []")
    for name, ((dtype, shape), form) in tensors.items():
        batched = len(shape) == 4 and shape[0] is None and all(shape[1:])
        if dtype != np.float32 or not batched:
            raise InvalidGraph(
                f"{place}: {name} is {dtype} {_show(shape)}; it must be float32 {form}, fixed but for B"
            )
    if kind == "encoder" and outputs["keys"][1][1:3] != outputs["values"][1][1:3]:
        keys, values = (_show(outputs[name][1]) for name in ("keys", "values"))
        raise InvalidGraph(f"{place}: keys {keys} and values {values} must agree in tokens and heads")


def _show(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _strip(model: ModelProto) -> None:
    """Drop what exporters leave behind (stack traces, paths): it is large and tells about the machine."""
    graph = model.graph
    for field in ("doc_string", "metadata_props", "producer_name", "producer_version"):
        model.ClearField(field)
    for field in ("doc_string", "metadata_props", "value_info"):
        graph.ClearField(field)
    for item in (*_nodes(graph), *_tensors(graph), *graph.input, *graph.output):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


def _keep(field: Any, names: set[str]) -> None:
    kept = [item for item in field if item.name in names]
    del field[:]
    field.extend(kept)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in _graphs(node):
            yield from _nodes(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
        for inner in _graphs(node):
            yield from _tensors(inner)


def _reads(node: NodeProto) -> set[str]:
    """What a node depends on; for its subgraphs a superset, since a local name may equal an outer one."""
    names = set(node.input)
    for graph in _graphs(node):
        names |= {name for inner in _nodes(graph) for name in inner.input}
        names |= {value.name for value in graph.output}
    return names
