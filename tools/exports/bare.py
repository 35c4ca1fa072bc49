"""Takes out of a file what exporters say about nodes, which is most of a small one."""

from __future__ import annotations

from pathlib import Path

import onnx

__all__ = ["bare"]


def bare(path: Path) -> None:
    """Rewrite the file without metadata, docstrings and shapes of values inside."""
    model = onnx.load(path)
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    graph.doc_string = model.doc_string = ""
    for thing in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del thing.metadata_props[:]
        thing.doc_string = ""
    onnx.save(model, path)
