"""Makes inputs of a graph its constants, which ONNX Runtime packs for the operators that read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.tensors import Array, DataType
from edge_attention.graphs.reading.fields import new_model
from edge_attention.graphs.reading.folding import check_folding
from edge_attention.graphs.reading.reader import CheckedGraph, read_graph

__all__ = ["with_constants"]

_TYPES = {
    DataType.FLOAT32: 1, DataType.UINT8: 2, DataType.INT8: 3, DataType.INT32: 6, DataType.INT64: 7,
    DataType.BOOL: 9, DataType.FLOAT16: 10, DataType.FLOAT64: 11,
    DataType.UINT16: 4, DataType.INT16: 5, DataType.UINT32: 12, DataType.UINT64: 13,
}  # fmt: skip
_EXTERNAL = 1
_FIRST = 4
"""The ir_version from which a constant need not be an input, too, which a caller may give otherwise."""


def with_constants(
    data: bytes, constants: Mapping[str, Array], where: str, apart: Collection[str] = ()
) -> CheckedGraph:
    """The graph in `data` without the inputs that `constants` gives, read again as a file of its own.

    Args:
        data: an ONNX file as `read_graph` writes it, or one of ours.
        constants: input name -> what it is from now on.
        apart: those of them that are not in the file: it says that their data lie elsewhere, and who makes a
            session of it gives them (`add_external_initializers`).

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
    inside = {name: array for name, array in constants.items() if name not in apart}
    _without(graph, inside)
    for name, array in inside.items():
        _add(graph, name, array).raw_data = np.ascontiguousarray(array).tobytes()
    checked = read_graph(model.SerializeToString(deterministic=True), where)
    return _with_apart(checked, {name: constants[name] for name in apart}, where) if apart else checked


def _with_apart(checked: CheckedGraph, constants: Mapping[str, Array], where: str) -> CheckedGraph:
    """What was read once more, now that it is known what is constant besides."""
    model = new_model()
    model.ParseFromString(checked.data)
    _without(model.graph, constants)
    for name, array in constants.items():
        tensor = _add(model.graph, name, array)
        tensor.data_location = _EXTERNAL
        tensor.external_data.append(_entry(b"location", b"apart"))
        tensor.external_data.append(_entry(b"length", str(array.nbytes).encode()))
    size = len(checked.data) + sum(array.nbytes for array in constants.values())
    check_folding(model.graph, model.functions, size, where)
    return replace(
        checked,
        data=model.SerializeToString(deterministic=True),
        inputs=tuple(name for name in checked.inputs if name not in constants),
        types={name: kind for name, kind in checked.types.items() if name not in constants},
    )


def _without(graph: Any, names: Collection[str]) -> None:
    for field in (graph.input, graph.initializer):
        _keep(field, lambda item: item.name not in names)


def _add(graph: Any, name: str, array: Array) -> Any:
    """A constant as `array` is, of which the elements are still to be said."""
    kind = _TYPES[DataType.of(array.dtype, f"constant {name!r}")]
    return graph.initializer.add(dims=array.shape, data_type=kind, name=name)


def _entry(key: bytes, value: bytes) -> bytes:
    """A StringStringEntryProto: of such messages `new_model` knows the bytes."""
    return bytes((0x0A, len(key))) + key + bytes((0x12, len(value))) + value


def _keep(field: Any, wanted: Any) -> None:
    """Of a repeated field what is wanted."""
    kept = [item for item in field if wanted(item)]
    if len(kept) < len(field):
        del field[:]
        field.extend(kept)
