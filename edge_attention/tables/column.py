"""A column of a table: numbers or words, and which rows lack one."""

from __future__ import annotations

from dataclasses import dataclass

from edge_attention.core.tensors import Array

__all__ = ["NO_VALUES", "TableColumn"]

NO_VALUES = "has no values"
"""Why a column is set aside in which every row lacks one: whether of numbers or words nothing says."""


@dataclass(frozen=True, eq=False, slots=True)
class TableColumn:
    """One column of `rows` rows.

    Attributes:
        values: numbers [rows, ...]. Of a text file and of Parquet whole ones are of the narrowest signed
            integer that holds them all and the rest float32; .npz files keep their own dtype. Of words, int32
            [rows]: places in `words`. Where a value is missing there is 0, and -1 for words.
        missing: bool [rows]; None: nothing is missing.
        words: the distinct values, in the order in which they first appear; None: these are numbers.
    """

    values: Array
    missing: Array | None = None
    words: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)
