"""The model parts users bring: ONNX encoders and heads, checked and made ready for training.

A part is an ONNX file whose float32 initializers are its trainable parameters. `load_part` checks it
and turns the parameters into graph inputs, because ONNX Runtime prepacks an initializer and silently
ignores an in-place update of it.

Trap: some exporters merge initializers of equal value (two all-zero biases become one), which ties two
parameters for good; nothing in the file tells. Give such parameters different values before exporting, or
export with `edge_attention.torch.export`, which merges nothing and notes what trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.lookups import mark_padding
from edge_attention.graphs.models.constant_weights import lift_constants
from edge_attention.graphs.models.dimensions import RowShapes
from edge_attention.graphs.models.model_file import frozen_weights, read_model
from edge_attention.graphs.models.module_note import module_note
from edge_attention.graphs.models.value_specs import output_specs
from edge_attention.graphs.onnx_file import (
    BATCH,
    TensorSpec,
    bind_batch,
    check_operators,
    first_line,
    keep,
    make_batch_symbolic,
    opset_of,
    prune,
    raise_opset,
    serialize,
    spec_of,
    strip,
    values_of,
)
from edge_attention.graphs.part import GraphPart, PartKind
from edge_attention.graphs.reading.bounds import MIN_OPSET

__all__ = ["BATCH", "GraphPart", "TensorSpec", "bind_batch", "load_part", "prune", "serialize", "spec_of"]

_RESERVED = ("grad/", "adjoint/")
_RESERVED_NAMES = {"dkeys", "dvalues", "dfused"}


def load_part(
    data: bytes,
    kind: PartKind,
    trainable: Sequence[str] | None = None,
    where: str = "",
    *,
    outputs: Sequence[str] = (),
    dimensions: Mapping[str, int] | None = None,
    rows: RowShapes | None = None,
) -> GraphPart:
    """Check the ONNX file `data` and lift its parameters to inputs.

    An encoder turns data columns (dimension 0 = batch, symbolic) into `keys` [B, T, Hk, dk] and `values`
    [B, T, Hk, dv], float32; further outputs are dropped. A head turns `fused` [B, N, Hq, dv] float32 and
    labels into `loss`, a float32 scalar that is the mean over the batch, and whatever else it reports.
    `trainable` names the float32 initializers that train; by default all that reach an output do, or those
    that the file notes to be a module's parameters (module_note.py).
    `outputs`: those of a head that are wanted besides its loss; empty: all. What nothing wanted needs is cut
    off and not looked at. `dimensions`, `rows`: see `bind_dimensions`.
    `where` (a file name, a node's name) goes into messages. The same arguments give the same bytes.

    Raises InvalidGraph for a file that cannot be used, saying what to change.
    """
    if kind not in get_args(PartKind):
        raise InvalidGraph(f"a part is an encoder or a head, not {kind!r}")
    place = f"{kind} '{where}'" if where else kind
    try:
        return _load(data, kind, trainable, place, tuple(outputs), dimensions or {}, rows or {})
    except (InvalidGraph, MemoryError):
        raise
    except Exception as error:  # onnx and protobuf raise a dozen classes on damaged bytes
        raise InvalidGraph(f"{place}: not a usable ONNX file: {first_line(error)}") from error


def _load(
    data: bytes,
    kind: PartKind,
    trainable: Sequence[str] | None,
    place: str,
    besides: tuple[str, ...],
    dimensions: Mapping[str, int],
    rows: RowShapes,
) -> GraphPart:
    def wanted(outputs: tuple[str, ...]) -> tuple[str, ...]:
        required = ("keys", "values") if kind == "encoder" else ("loss",)
        for name in required:
            if name not in outputs:
                raise InvalidGraph(
                    f"{place}: no output '{name}' among {list(outputs)}; rename the graph's outputs"
                )
        if kind == "encoder":
            return required
        return (*required, *besides) if besides else outputs

    ready = read_model(data, place, wanted, dimensions, rows)
    model = ready.model
    graph = model.graph
    if lost := sorted(ready.cut.constants.intersection(trainable or ())):
        raise InvalidGraph(f"{place}: trainable {lost} reach no output; leave them out")
    lift_constants(graph, trainable or (), by_use=trainable is None and model.producer_name != "pytorch")
    _check_names(graph, place)
    own = module_note(graph)
    mark_padding(graph, own.padding if own is not None else {}, place)
    strip(model)
    if kind == "encoder":
        graph.output.sort(key=lambda value: value.name)

    floats = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    for name in trainable or ():
        if name not in floats:
            raise InvalidGraph(f"{place}: trainable '{name}' is no float32 initializer; there are {floats}")
    by_default = floats if own is None else [name for name in floats if name in own.trained]
    chosen = set(by_default if trainable is None else trainable)
    check_operators(graph, place, chosen)
    # An initializer may also be listed as an input (its default value); here it is one or the other.
    initialized = {tensor.name for tensor in graph.initializer}
    keep(graph.input, {value.name for value in graph.input} - initialized)
    prune(graph)
    if opset_of(model) < MIN_OPSET:
        model = raise_opset(model, place)
        graph = model.graph
    unread = chosen - {tensor.name for tensor in graph.initializer}
    if trainable is not None and unread:
        raise InvalidGraph(f"{place}: trainable {sorted(unread)} reach no output; leave them out")
    frozen = frozen_weights(model, chosen, named=trainable is not None)
    parameters = _lift(graph, chosen, place)
    if not parameters:
        raise InvalidGraph(f"{place}: no trainable parameters; a parameter is a float32 initializer")

    inputs = {}
    for value in graph.input:
        if value.name not in parameters:
            make_batch_symbolic(value, place)
            inputs[value.name] = spec_of(value)
    if kind == "head" and "fused" not in inputs:
        raise InvalidGraph(f"{place}: no input 'fused' that reaches an output; inputs are {list(inputs)}")
    outputs_ = output_specs(model, list(parameters), place)
    _check_shapes(kind, inputs, outputs_, place)
    return GraphPart(
        kind,
        place,
        serialize(model),
        parameters,
        inputs,
        outputs_,
        frozen,
        ready.cut.outputs,
        ready.dimensions,
        ready.notes,
    )


def _check_names(graph: GraphProto, place: str) -> None:
    for name in sorted(values_of(graph)):
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
    keep(graph.initializer, {tensor.name for tensor in graph.initializer} - set(parameters))
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in parameters.items()
    )
    return parameters


def _check_shapes(
    kind: PartKind, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec], place: str
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
