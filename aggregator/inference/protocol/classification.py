"""The classification extension: of an output the largest elements of each row, as `value:index`."""

from __future__ import annotations

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array

__all__ = ["MAX_CLASSES", "MAX_CLASSIFIED", "classified", "classified_bytes"]

MAX_CLASSES = 10_000
"""Classes that are asked for."""
MAX_CLASSIFIED = 256 * 1024
"""Objects of one output: its rows times the classes of each."""
MAX_SORTED = 1 << 25
"""Elements of one output that are put in order: a few seconds of a thread."""
_OBJECT_BYTES = 128
"""What one takes, with what it is made of meanwhile."""


def classified_bytes(array: Array, classes: object, name: str, *, batched: bool) -> int:
    """Bytes that `classified` takes for what it makes.

    Raises:
        InvalidArgument: as `classified`.
    """
    rows, most = _asked(array, classes, name, batched=batched)
    return int(rows.shape[0] * min(most, rows.shape[1]) * _OBJECT_BYTES + rows.size * 8)


def classified(array: Array, classes: object, name: str, *, batched: bool) -> Array:
    """The `classes` largest elements of `array`, of each row where it is `batched`, as objects `bytes`.

    Shape [rows, k] or [k]; equal elements in the order they have; labels are not known here.

    Raises:
        InvalidArgument: `classes` is no number, they are too many of all rows, or elements have no order.
    """
    rows, most = _asked(array, classes, name, batched=batched)
    # A stable sort of what is largest first, NaN last.
    keys = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    order = np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :most]
    order = rows.shape[1] - 1 - order
    found = np.empty(order.shape, object)
    form = "f" if rows.dtype.kind == "f" else "d"  # as Triton writes them, of all digits
    for row, indices in enumerate(order):
        values = rows[row, indices].tolist()
        found[row] = [
            f"{value:{form}}:{i}".encode() for value, i in zip(values, indices.tolist(), strict=True)
        ]
    return found if batched and array.ndim else found[0]


def _asked(array: Array, classes: object, name: str, *, batched: bool) -> tuple[Array, int]:
    """The rows, and how many classes of each are asked for. Raises as `classified`."""
    if isinstance(classes, bool) or not isinstance(classes, int) or not 0 < classes <= MAX_CLASSES:
        raise InvalidArgument(
            f"parameter 'classification' of output '{name}' must be 1 to {MAX_CLASSES:,}, not "
            f"{str(classes)[:80]!r}"
        )
    if array.dtype.kind not in "iuf":
        raise InvalidArgument(f"output '{name}' is {array.dtype}, which cannot be classified")
    if array.size > MAX_SORTED:
        raise InvalidArgument(
            f"bound classified: output '{name}' has {array.size:,} elements, and {MAX_SORTED:,} are put in "
            "order at most; send fewer rows at a time, or ask for the output itself"
        )
    rows = array.reshape(array.shape[0], -1) if batched and array.ndim else array.reshape(1, -1)
    made = rows.shape[0] * min(classes, rows.shape[1])
    if made > MAX_CLASSIFIED:
        raise InvalidArgument(
            f"bound classified: output '{name}' would have {made:,} classes of {rows.shape[0]:,} rows, and "
            f"may have {MAX_CLASSIFIED:,}; ask for fewer classes, or send fewer rows at a time"
        )
    return rows, classes
