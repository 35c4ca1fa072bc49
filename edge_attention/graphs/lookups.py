"""The row of an embedding that stands for padding: PyTorch's `padding_idx`, which lookups do not train.

What a lookup of that row returns is its value, and no gradient comes back to it: no operator says so. A node
that looks up has the row in its name, which stays with it through all that is done to a graph before it is
differentiated (gradients/padding.py). What else reads the table, as an output projection that shares it,
trains the row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from onnx import GraphProto, NodeProto

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.onnx_file import all_nodes

__all__ = ["mark_padding", "padding_mark", "padding_row", "padding_rows"]

_MARK = re.compile(r"@padding_idx=([0-9]{1,18})$")


def mark_padding(graph: GraphProto, rows: Mapping[str, int], place: str) -> None:
    """Note, in place, in the lookups in tables of these names which row is padding.

    Raises InvalidGraph: a table has no such row.
    """
    sizes = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    for node in all_nodes(graph):
        row = rows.get(node.input[0]) if _looks_up(node) else None
        if row is not None and not padding_mark(node):
            node.name += f"@padding_idx={row}"
        # The file says both the name of a node and the row.
        noted, size = padding_row(node), sizes.get(node.input[0]) if node.input else None
        if noted is not None and size is not None and noted >= size:
            raise InvalidGraph(
                f"{place}: row {noted} of '{node.input[0]}' is noted as padding, and it has {size} rows; "
                "export the module again"
            )


def padding_mark(node: NodeProto) -> str:
    """What is noted in a node's name; empty: nothing is."""
    mark = _MARK.search(node.name)
    return mark[0] if mark and _looks_up(node) else ""


def padding_row(node: NodeProto) -> int | None:
    """The row that a node's lookups do not train."""
    mark = padding_mark(node)
    return int(mark.rpartition("=")[2]) if mark else None


def padding_rows(graph: GraphProto) -> dict[str, int]:
    """Tables of which lookups do not train a row, and which: their gradient is not that of the values."""
    found = ((node.input[0], padding_row(node)) for node in graph.node if node.input)
    return {table: row for table, row in found if row is not None}


def _looks_up(node: NodeProto) -> bool:
    return node.op_type == "Gather" and not any(a.name == "axis" and a.i for a in node.attribute)
