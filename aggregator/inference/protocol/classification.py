"""The classification extension: of an output the largest elements of each row, as `value:index`."""

from __future__ import annotations

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array

__all__ = ["MAX_CLASSES", "classified"]

MAX_CLASSES = 10_000
"""Classes that are asked for."""


def classified(array: Array, classes: object, name: str, *, batched: bool) -> Array:
    """The `classes` largest elements of `array`, of each row where it is `batched`, as objects `bytes`.

    Shape [rows, k] or [k]; equal elements in the order they have; labels are not known here.

    Raises:
        InvalidArgument: `classes` is no number, or elements have no order.
    """
    if isinstance(classes, bool) or not isinstance(classes, int) or not 0 < classes <= MAX_CLASSES:
        raise InvalidArgument(
            f"parameter 'classification' of output '{name}' must be 1 to {MAX_CLASSES:,}, not "
            f"{str(classes)[:80]!r}"
        )
    if array.dtype.kind not in "iuf":
        raise InvalidArgument(f"output '{name}' is {array.dtype}, which cannot be classified")
    rows = array.reshape(array.shape[0], -1) if batched and array.ndim else array.reshape(1, -1)
    # A stable sort of what is largest first, NaN last.
    keys = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    order = np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :classes]
    order = rows.shape[1] - 1 - order
    found = np.empty(order.shape, object)
    for row, indices in enumerate(order):
        found[row] = [f"{float(rows[row, i]):f}:{i}".encode() for i in indices]
    return found if batched and array.ndim else found[0]
