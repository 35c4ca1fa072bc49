"""Tables: how a program reads columns of a node's datasets, and how a job says so. One class a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.tensors import DataType


@dataclass(frozen=True)
class ColumnRead:
    """One column, and how its values are read.

    Attributes:
        name: of the column.
        dataset: the node's dataset that has it; "": the one that is read, whose rows it is matched with.
        categories: not empty: each value is one of them, and read as its place among them.
        one_hot: as so many numbers as there are categories, 1 at its place.
        constant: what is read where a value is missing (of categories a place); None: that is refused.
        of_all: one of those that the job calls `*`, as releases do: a column of numbers of the same dataset.
    """

    name: str
    dataset: str = ""
    categories: tuple[str, ...] = ()
    one_hot: bool = False
    constant: float | None = None
    of_all: bool = False


@dataclass(frozen=True)
class TensorRead:
    """A tensor of a table's rows, stored as `stored`.

    Attributes:
        side_by_side: the columns are [rows, n]; otherwise there is one, which keeps its shape.
        presence: instead of values 1 where there is one and 0 where it is missing, side by side.
    """

    stored: str
    data_type: DataType
    columns: tuple[ColumnRead, ...]
    side_by_side: bool = False
    presence: bool = False


@dataclass(frozen=True)
class InputColumns:
    """The columns that an input is made of, side by side: `name`, `other:name`, or `*`."""

    columns: tuple[str, ...]


class MissingRule(Enum):
    """What is done about rows that lack a value."""

    REFUSE = "refuse"
    DROP = "drop"
    MEAN = "mean"
    CONSTANT = "constant"


@dataclass(frozen=True)
class MissingValues:
    """A rule; of CONSTANT the `number`, or of categories the `category`, that is read instead."""

    rule: MissingRule
    number: float = 0.0
    category: str = ""


@dataclass(frozen=True)
class ColumnSpec:
    """How a column is read wherever a job names it. `missing` None: as the job says for all."""

    categories: tuple[str, ...] = ()
    one_hot: bool = False
    missing: MissingValues | None = None


@dataclass(frozen=True)
class TableSpec:
    """What a job says of a table besides one column an input.

    Attributes:
        inputs: input -> its columns, where it is more than one.
        columns: column -> how it is read.
        missing: of columns that say nothing of it; None: refuse.
    """

    inputs: Mapping[str, InputColumns] = field(default_factory=dict)
    columns: Mapping[str, ColumnSpec] = field(default_factory=dict)
    missing: MissingValues | None = None
