"""What is read of a dataset to learn what it lacks, for the rules `drop` and `mean`."""

from __future__ import annotations

from dataclasses import replace

from aggregator.fleet.columns import TableView
from edge_attention.core.messages.table import TensorRead
from edge_attention.core.tensors import DataType

__all__ = ["COMPLETE", "MEANS", "PRESENCE", "reads"]

COMPLETE, MEANS, PRESENCE = "complete", "means", "presence"
"""Roles of graphs/models/gap_graphs.py, which brings onnx: how many rows are whole; sums; which rows are."""


def reads(view: TableView, whole: str = COMPLETE) -> dict[str, dict[str, TensorRead]]:
    """Role -> input of its graph -> what a node reads for it; of the roles that the view needs.

    `whole`: which of COMPLETE and PRESENCE rows that are whole are asked by.
    """
    found: dict[str, dict[str, TensorRead]] = {}
    if view.complete:
        present = TensorRead("task/data/whole", DataType.FLOAT32, view.complete, presence=True)
        found[whole] = {"present": present}
    if view.means:
        filled = tuple(replace(each, constant=0.0) for each in view.means)
        found[MEANS] = {
            "values": TensorRead("task/data/values", DataType.FLOAT64, filled, side_by_side=True),
            "present": TensorRead("task/data/present", DataType.FLOAT32, view.means, presence=True),
        }
    return found
