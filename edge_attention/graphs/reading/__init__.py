"""The one reader of ONNX files that somebody sent, for nodes, the aggregator and the client.

reader.py     the entry: parse, check, write out again
fields.py     the fields that are known
scan.py       how much a file holds, before it is parsed
walk.py       nodes, functions, graphs within graphs
tensors.py    constants and types
names.py      names
needed.py     cuts off what the wanted values do not need
operators.py  the operators a graph may have, and why others are left out
folding.py    what constants would become when a graph is loaded
constants.py  makes inputs of a graph its constants
bounds.py     how large a graph may be
"""

from edge_attention.graphs.reading.reader import (
    CheckedGraph,
    Declared,
    Wanted,
    check_graph,
    read_graph,
    read_needed,
    read_older,
    read_with_notes,
)

__all__ = [
    "CheckedGraph",
    "Declared",
    "Wanted",
    "check_graph",
    "read_graph",
    "read_needed",
    "read_older",
    "read_with_notes",
]
