"""Makes inputs of a graph its constants, which ONNX Runtime packs for the operators that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.tensors import Array, DataType
from edge_attention.graphs.reading.fields import new_model
from edge_attention.graphs.reading.reader import CheckedGraph, read_graph

__all__ = ["with_constants"]

_TYPES = {
    DataType.FLOAT32: 1, DataType.UINT8: 2, DataType.INT8: 3, DataType.INT32: 6, DataType.INT64: 7,
    DataType.BOOL: 9, DataType.FLOAT16: 10, DataType.FLOAT64: 11,
}  # fmt: skip
_FIRST = 4
"""The ir_version from which a constant need not be an input, too, which a caller may give otherwise."""


def with_constants(data: bytes, constants: Mapping[str, Array], where: str) -> CheckedGraph:
    """The graph in `data` without the inputs that `constants` gives, read again as a file of its own.

    Args:
        data: an ONNX file as `read_graph` writes it, or one of ours.
        constants: input name -> what it is from now on.

    Raises:
        InvalidGraph: it has no such input, or the file would be larger than one may be.
        InvalidTensor: a constant's dtype is none that travels.
    """
    model = new_model()
    model.ParseFromString(data)
    graph = model.graph
    known = {value.name for value in graph.input}
    if unknown := sorted(set(constants) - known):
        raise InvalidGraph(f"{where} has no input {', '.join(unknown)[:200]} that could be frozen")
    model.ir_version = max(model.ir_version, _FIRST)
    for field in (graph.input, graph.initializer):
        _keep(field, lambda item: item.name not in constants)
    for name, array in constants.items():
        little = np.ascontiguousarray(array)
        graph.initializer.add(
            dims=array.shape,
            data_type=_TYPES[DataType.of(array.dtype, f"constant {name!r}")],
            name=name,
            raw_data=little.tobytes(),
        )
    return read_graph(model.SerializeToString(deterministic=True), where)


def _keep(field: Any, wanted: Any) -> None:
    """Of a repeated field what is wanted."""
    kept = [item for item in field if wanted(item)]
    if len(kept) < len(field):
        del field[:]
        field.extend(kept)
