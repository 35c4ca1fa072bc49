"""Graphs that a node runs before a run where rows lack values: how many are whole, or which, and means."""

from __future__ import annotations

from onnx import TensorProto

from edge_attention.graphs.onnx_builder import FLOAT, Builder
from edge_attention.graphs.onnx_file import BATCH, serialize

__all__ = ["complete_graph", "means_graph", "presence_graph"]

_DOUBLE, _UINT8 = int(TensorProto.DOUBLE), int(TensorProto.UINT8)


def complete_graph() -> bytes:
    """Input `present` float32 [rows, columns], 1 where there is a value; output `rows` float64 []: how many
    rows have one in every column."""
    b = Builder("complete")
    present = b.input("present", FLOAT, [BATCH, "columns"])
    whole = b("ReduceMin", present, b.ints(1), keepdims=0)
    b.output("rows", b("ReduceSum", b("Cast", whole, to=_DOUBLE), keepdims=0), _DOUBLE, [])
    return serialize(b.model())


def presence_graph() -> bytes:
    """Input `present` as above; output `complete` uint8 [rows]: 1 where a row has a value in every column."""
    b = Builder("presence")
    whole = b("ReduceMin", b.input("present", FLOAT, [BATCH, "columns"]), b.ints(1), keepdims=0)
    b.output("complete", b("Cast", whole, to=_UINT8), _UINT8, [BATCH])
    return serialize(b.model())


def means_graph() -> bytes:
    """Inputs `values` float64 [rows, columns], 0 where there is none, and `present` float32 of that shape.

    Outputs `sums` and `counts`, float64 [columns]: of the values there are, and how many.
    """
    b = Builder("means")
    values = b.input("values", _DOUBLE, [BATCH, "columns"])
    present = b.input("present", FLOAT, [BATCH, "columns"])
    b.output("sums", b("ReduceSum", values, b.ints(0), keepdims=0), _DOUBLE, ["columns"])
    counted = b("ReduceSum", b("Cast", present, to=_DOUBLE), b.ints(0), keepdims=0)
    b.output("counts", counted, _DOUBLE, ["columns"])
    return serialize(b.model())
