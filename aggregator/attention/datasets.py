"""How a node's dataset becomes the inputs of the graph that encodes it."""

from __future__ import annotations

from collections.abc import Sequence

from aggregator.fleet.columns import TableView, WantedInput, refuse_rules, resolve, row_shapes
from edge_attention.core.messages.attention import AppendDatasetRequest
from edge_attention.core.messages.link import Dataset
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
    refuse_rules(request.table)
    shapes = row_shapes(request.dataset, request.inputs, request.table, datasets)
    wanted: list[WantedInput] = []
    for name in dict.fromkeys((*request.inputs, *request.table.inputs)):
        code, shape = declared.get(name, (1, None))
        row = shapes.get(name, ()) if shape is None else shape[1:]
        wanted.append(WantedInput(name, _TYPES.get(code, "float32"), row))
    return resolve(request.dataset, wanted, request.inputs, request.table, {request.node: datasets})
