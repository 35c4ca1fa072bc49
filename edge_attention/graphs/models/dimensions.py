"""Which sizes a model's symbolic dimensions have: those that the job says, or those of the nodes' columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, TensorShapeProto, ValueInfoProto

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.onnx_file import check_batch_first

__all__ = ["RowShapes", "bind_dimensions"]

RowShapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Node to data input to the shape of one row of the columns that it reads there."""


def bind_dimensions(
    graph: GraphProto, given: Mapping[str, int], rows: RowShapes, place: str
) -> dict[str, int]:
    """Fix, in place, every dimension of the data inputs but the first; returns the sizes by name.

    A dimension without a name of its own is called `<input>.<axis>`. What `given` says counts; `rows` are
    what is left to go by.

    Raises InvalidGraph where nodes' columns disagree, where nothing tells a size, and for a name in `given`
    that no dimension has.
    """
    bound: dict[str, int] = {}
    places: dict[str, list[tuple[str, int]]] = {}
    for name, axis, symbol, _ in _symbolic(graph):
        places.setdefault(symbol, []).append((name, axis))
    if unknown := sorted(set(given) - set(places)):
        have = ", ".join(places) or "none that is not fixed"
        raise InvalidGraph(f"{place}: no dimension '{unknown[0]}' to be given a size; it has {have}")
    for symbol, where in places.items():
        bound[symbol] = given[symbol] if symbol in given else _of_rows(graph, symbol, where, rows, place)
        if not 0 < bound[symbol] < 2**31:
            raise InvalidGraph(
                f"{place}: dimension '{symbol}' is to be {bound[symbol]:,}; a size is 1 to {2**31 - 1:,}"
            )
    for _, _, symbol, dim in _symbolic(graph):
        dim.dim_value = bound[symbol]
    return bound


def _symbolic(graph: GraphProto) -> Iterator[tuple[str, int, str, TensorShapeProto.Dimension]]:
    """Input, axis, name and dimension of each that is not fixed, the batch's left out."""
    batch = {value.type.tensor_type.shape.dim[0].dim_param for value in graph.input if _rank(value)}
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis and not dim.HasField("dim_value"):
                own = dim.dim_param and dim.dim_param not in batch
                yield value.name, axis, dim.dim_param if own else f"{value.name}.{axis}", dim


def _rank(value: ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _of_rows(
    graph: GraphProto, symbol: str, where: list[tuple[str, int]], rows: RowShapes, place: str
) -> int:
    ranks = {value.name: _rank(value) for value in graph.input}
    found: dict[int, str] = {}
    for node, shapes in rows.items():
        for name, axis in where:
            shape = shapes.get(name)
            if shape is not None and len(shape) == ranks[name] - 1:
                found.setdefault(shape[axis - 1], f"of input '{name}' on node '{node}'")
    if len(found) == 1:
        return next(iter(found))
    name, axis = where[0]
    if found:
        said = " and ".join(f"{size} in the columns {place_}" for size, place_ in list(found.items())[:2])
        raise InvalidGraph(
            f"{place}: dimension '{symbol}' is {said}; it is one size for the whole fleet: cut or pad the "
            "rows to one length"
        )
    check_batch_first(next(value for value in graph.input if value.name == name), place)
    key = symbol if symbol.replace("_", "").replace("-", "").isalnum() and symbol.isascii() else f'"{symbol}"'
    raise InvalidGraph(
        f"{place}: dimension {axis} of input '{name}' ({symbol}) has no fixed size, and no node that is here "
        f"has a column for it to tell it; say it in the job: dimensions = {{ {key} = 64 }}, beside the "
        "model's file, or start the nodes first"
    )
