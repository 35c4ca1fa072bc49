"""The user's ONNX file with trained values in it, ready to serve."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.models.file_parameters import find_parameters
from edge_attention.graphs.onnx_file import parse, serialize

__all__ = ["trained_onnx"]


def trained_onnx(file: bytes, values: Mapping[str, NDArray[np.generic]], place: str = "model") -> bytes:
    """`file` with its parameters' values replaced; inputs, outputs and everything else as they were.

    `values`: by the names that `load_model` gives, float32, finite, of the initializers' shapes; a parameter
    left out keeps the file's value. Parameters that the exporter had merged get initializers of their own.

    Raises InvalidGraph for a file that cannot be read and for values that are not its parameters'.
    """
    model = parse(file, place)
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
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(given), tensor.name))
    model.graph.ClearField("value_info")  # of tensors that may have other names now
    return serialize(model)
