"""The user's ONNX file with trained values in it, ready to serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import NewHead
from edge_attention.graphs.models.decided import decide
from edge_attention.graphs.models.file_parameters import find_parameters
from edge_attention.graphs.models.model_file import read_model
from edge_attention.graphs.models.new_head import add_head, values_for
from edge_attention.graphs.onnx_file import opset_of, parse_needed, raise_opset, serialize, values_of
from edge_attention.graphs.reading.bounds import MIN_OPSET

__all__ = ["trained_onnx"]


def trained_onnx(
    file: bytes,
    values: Mapping[str, NDArray[np.generic]],
    place: str = "model",
    *,
    output: str = "",
    head: NewHead | None = None,
    dimensions: Mapping[str, int] | None = None,
) -> bytes:
    """`file` with its parameters' values replaced; inputs, outputs and everything else as they were.

    `values`: by the names that `load_model` gives, float32, finite, of the initializers' shapes; a parameter
    left out keeps the file's value. Parameters that the exporter had merged get initializers of their own.
    `output`: the one that was trained; where the file has others with what no graph here may have, they are
    left out. With `head`, the only output is its `logits`, and the `dimensions` that it was trained with are
    fixed. A file in float16 stays so.

    Raises InvalidGraph for a file that cannot be read and for values that are not its parameters'.
    """
    if head is None:
        model = _whole(file, output, place)
        decide(model)
        if values.keys() - {t.name for t in model.graph.initializer} - values_of(model.graph):
            # In a branch that the sizes have decided for.
            model = read_model(file, place, lambda outputs: [output] if output else outputs, dimensions).model
    else:
        of = head.of
        model = read_model(file, place, lambda outputs: values_for(head, outputs), dimensions).model
        if opset_of(model) < MIN_OPSET:
            model = raise_opset(model, place)
        add_head(model, replace(head, of=of or model.graph.output[0].name), 0, place)
    find_parameters(model, values.keys(), place)
    for tensor in model.graph.initializer:
        if tensor.name not in values:
            continue
        given = np.asarray(values[tensor.name])
        if given.dtype != np.float32 or given.shape != tuple(tensor.dims):
            raise InvalidGraph(
                f"{place}: the value of '{tensor.name}' is {given.dtype} {list(given.shape)}; it must be "
                f"float32 {list(tensor.dims)}"
            )
        if not np.isfinite(given).all():
            raise InvalidGraph(f"{place}: the value of '{tensor.name}' has NaN or Inf; it cannot be served")
        kept = np.asarray(given, order="C")  # ascontiguousarray makes a scalar a vector
        if tensor.data_type != TensorProto.FLOAT:
            with np.errstate(over="ignore"):
                kept = kept.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
            if not np.isfinite(kept.astype(np.float32)).all():
                raise InvalidGraph(
                    f"{place}: the value of '{tensor.name}' is larger than the file's type holds; take the "
                    "parameters as safetensors"
                )
        tensor.CopyFrom(numpy_helper.from_array(kept, tensor.name))
    model.graph.ClearField("value_info")  # of tensors that may have other names now
    return serialize(model)


def _whole(file: bytes, output: str, place: str) -> ModelProto:
    """All of the file, or what `output` needs where the rest cannot be read."""
    try:
        return parse_needed(file, place, lambda outputs: outputs)[0]
    except InvalidGraph:
        if not output:
            raise
        return parse_needed(file, place, lambda outputs: [output])[0]
