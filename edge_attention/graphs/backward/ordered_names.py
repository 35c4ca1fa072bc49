"""Names within a segment, by order alone: layers alike give the same bytes, and so the same digest."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from edge_attention.graphs.onnx_file import made_in, rename_values
from edge_attention.graphs.reading.needed import graphs_in

__all__ = ["name_in_order"]


def name_in_order(model: ModelProto, letters: Mapping[str, str]) -> dict[str, str]:
    """Rename a graph's values in place: outputs `y0`, `y1`, ..., initializers `l0`, ..., all else `t0`, ....

    Args:
        letters: by input, that it is called by: `x` for what a request brings, `w`, `c`.

    Returns old name -> new name.
    """
    graph = model.graph
    renamed: dict[str, str] = {}
    counts: dict[str, int] = {}

    def call(name: str, letter: str) -> None:
        if name and name not in renamed:
            number = counts.get(letter, 0)
            renamed[name] = f"{letter}{number}"
            counts[letter] = number + 1

    for value in graph.input:
        call(value.name, letters[value.name])
    for value in graph.output:
        call(value.name, "y")
    for node in graph.node:
        node.ClearField("name")
        for name in (*node.output, *(own for inner in graphs_in(node) for own in made_in(inner))):
            call(name, "t")
    for tensor in graph.initializer:
        call(tensor.name, "l")
    rename_values(graph, renamed)
    return renamed
