"""The graph that says how quick a box is: products as a transformer's, and how much work they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_attention.core.placement.cuts.boxes import HALF_ROWS
from edge_attention.core.placement.cuts.costs import LayerWork

if TYPE_CHECKING:
    from edge_attention.graphs.onnx_builder import Builder

__all__ = ["PRODUCTS_WORK", "products_graph"]

ROWS, HIDDEN, INNER, LAYERS = 128, 384, 1536, 4
_PRODUCTS = LAYERS * 2 * 2.0 * ROWS * HIDDEN * INNER
_MOVED = 4.0 * (LAYERS * 2 * ROWS * INNER + 2 * ROWS * HIDDEN)

PRODUCTS_WORK = LayerWork(_PRODUCTS * (1 + HALF_ROWS / ROWS), _MOVED, 3 * LAYERS + 2)
"""Its flops count what few rows lose, as those of a schedule's segments do."""


def products_graph() -> bytes:
    """The ONNX file: `x` float32 [1] -> `y` float32 [1, 1]; four layers of [128, 384] x [384, 1536] and back.

    It is of a thousand bytes: a node makes the weights when it loads it, so they are constants there.
    """
    from edge_attention.graphs.onnx_builder import FLOAT, Builder

    g = Builder("products")
    value = g("Expand", g.input("x", FLOAT, [1]), g.ints(ROWS, HIDDEN))
    up, down = _filled(g, HIDDEN, INNER), _filled(g, INNER, HIDDEN)
    for _ in range(LAYERS):
        value = g("MatMul", g("Relu", g("MatMul", value, up)), down)
    g.output("y", g("ReduceMean", value, g.ints(0, 1)), FLOAT, [1, 1])
    return g.model().SerializeToString(deterministic=True)


def _filled(g: Builder, rows: int, columns: int) -> str:
    """A matrix that keeps the size of what is multiplied by it: no number is 0, none grows."""
    from onnx import numpy_helper

    value = numpy_helper.from_array(np.array([1 / rows], np.float32))
    return g("ConstantOfShape", g.ints(rows, columns), value=value)
