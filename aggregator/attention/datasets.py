"""How a node's dataset becomes the inputs of the graph that encodes it."""

from __future__ import annotations

from collections.abc import Sequence

from aggregator.fleet.columns import TableView, WantedInput, resolve, row_shapes
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.attention import AppendDatasetRequest
from edge_attention.core.messages.link import Dataset
from edge_attention.core.messages.table import MissingRule
from edge_attention.graphs.reading import Declared

_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64",
}  # fmt: skip
"""Of ONNX's element types those that travel."""


def view_of(request: AppendDatasetRequest, declared: Declared, datasets: Sequence[Dataset]) -> TableView:
    """How the node of the request, which has `datasets`, reads the inputs of its graph.

    Raises:
        NotFound: there is no such dataset or column.
        InvalidArgument: a column is not what the graph takes.
    """
    rules = (request.table.missing, *(column.missing for column in request.table.columns.values()))
    if any(rule is not None and rule.rule in (MissingRule.DROP, MissingRule.MEAN) for rule in rules):
        raise InvalidArgument(
            "a row that lacks a value is a token all the same: name the value that is read instead, or take "
            "such rows out of the file"
        )
    shapes = row_shapes(request.dataset, request.inputs, request.table, datasets)
    wanted: list[WantedInput] = []
    for name in dict.fromkeys((*request.inputs, *request.table.inputs)):
        code, shape = declared.get(name, (1, None))
        row = shapes.get(name, ()) if shape is None else shape[1:]
        wanted.append(WantedInput(name, _TYPES.get(code, "float32"), row))
    return resolve(request.dataset, wanted, request.inputs, request.table, {request.node: datasets})
