"""Tensors of a dataset's rows as programs read them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument, InvalidProgram
from edge_attention.core.messages.table import ColumnRead, TensorRead
from edge_attention.core.tensors import DataType
from edge_attention.tables.column import TableColumn
from edge_attention.tables.ids import Ids
from edge_attention.tables.table import Table
from edge_node.data.datasets import LocalDataset
from edge_node.data.views import MANY

GAPS = np.array([False, True, False, False])


def dataset(**more):
    columns = {
        "age": TableColumn(np.array([30, 0, 50, 60], np.int8), GAPS),
        "dose": TableColumn(np.array([0.5, 1, 2, 4], np.float32)),
        "sex": TableColumn(
            np.array([0, 1, 0, -1], np.int32), np.array([False, False, False, True]), ("f", "m")
        ),
        "grade": TableColumn(np.array([1.0, 2.0, 1.0, 3.0], np.float32)),
        "spectrum": TableColumn(np.arange(8, dtype=np.float32).reshape(4, 2)),
        "large": TableColumn(np.array([1, 2, 3, 2**24 + 1], np.int32)),
        **more,
    }
    return LocalDataset("d", Table(columns, Ids.of("abcd")))


def read(tensor, rows=None, complete=(), of=None, datasets=None):
    of = of or dataset()
    view = of.views.view(tensor, complete, datasets or {"d": of})
    if view.unsure:
        view.check()
    assert not view.unsure
    return view.read(None if rows is None else np.array(rows, np.int64))


def tensor(*columns, dtype=DataType.FLOAT32, beside=True, presence=False):
    return TensorRead("task/x", dtype, columns, beside, presence)


def test_columns_side_by_side_in_the_order_asked_for():
    found = read(tensor(ColumnRead("dose"), ColumnRead("spectrum"), ColumnRead("grade")), [3, 0])
    np.testing.assert_array_equal(found, np.array([[4, 6, 7, 3], [0.5, 0, 1, 1]], np.float32))
    assert found.dtype == np.float32


def test_one_column_keeps_its_shape_and_is_converted():
    found = read(tensor(ColumnRead("grade"), dtype=DataType.INT64, beside=False), [3, 3, 1])
    assert (found.dtype, found.tolist()) == (np.int64, [3, 3, 2])
    assert read(tensor(ColumnRead("spectrum"), beside=False)).shape == (4, 2)


def test_what_is_missing_is_what_stands_for_it():
    assert read(tensor(ColumnRead("age", constant=46.5))).ravel().tolist() == [30, 46.5, 50, 60]
    assert read(tensor(ColumnRead("age"), presence=True)).ravel().tolist() == [1, 0, 1, 1]


def test_categories_are_the_programs():
    coded = ColumnRead("sex", categories=("x", "m", "f"), constant=0)
    assert read(tensor(coded, dtype=DataType.INT64, beside=False)).tolist() == [2, 1, 2, 0]
    hot = read(tensor(ColumnRead("sex", categories=("m", "f"), one_hot=True, constant=1), ColumnRead("dose")))
    assert hot.tolist() == [[0, 1, 0.5], [1, 0, 1], [0, 1, 2], [0, 1, 4]]
    numbers = ColumnRead("grade", categories=("3", "2.0", "True"))
    assert read(tensor(numbers, dtype=DataType.INT64, beside=False)).tolist() == [2, 1, 2, 0]


def test_rows_are_numbered_among_those_that_are_complete():
    complete = (ColumnRead("age"), ColumnRead("sex"))
    of = dataset()
    assert of.views.rows(complete, {"d": of}) == 2
    assert read(tensor(ColumnRead("age"), ColumnRead("dose")), [1, 0], complete, of).tolist() == [
        [50, 2],
        [30, 0.5],
    ]
    many = tensor(*[ColumnRead("dose"), ColumnRead("age")] * MANY)
    assert read(many, [1], complete, of)[0, :2].tolist() == [2, 50]


def test_rows_of_another_dataset_are_found_by_their_ids():
    other = LocalDataset("o", Table.of({"y": np.array([7.0, 8, 9])}, ["d", "x", "a"]))
    of = dataset()
    both = {"d": of, "o": other}
    assert read(tensor(ColumnRead("y", "o", constant=0)), of=of, datasets=both).ravel().tolist() == [
        9,
        0,
        0,
        7,
    ]
    with pytest.raises(InvalidArgument, match="2 rows lack a value, the first is row 1"):
        read(tensor(ColumnRead("y", "o")), of=of, datasets=both)
    complete = (ColumnRead("y", "o"),)
    assert read(tensor(ColumnRead("y", "o")), [0, 1], complete, of, both).ravel().tolist() == [9, 7]


def test_rows_without_ids_anywhere_are_matched_by_number():
    of = LocalDataset("d", Table.of({"x": np.arange(3.0)}))
    other = LocalDataset("o", Table.of({"y": np.arange(3.0) * 2}))
    assert read(tensor(ColumnRead("y", "o")), [2], of=of, datasets={"o": other}).tolist() == [[4]]
    shorter = LocalDataset("s", Table.of({"y": np.arange(2.0)}))
    with pytest.raises(InvalidArgument, match="matched by ids"):
        read(tensor(ColumnRead("y", "s")), of=of, datasets={"s": shorter})


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (tensor(ColumnRead("nobody")), InvalidArgument, "no column 'nobody'"),
        (tensor(ColumnRead("age", "other")), InvalidArgument, "no dataset 'other'"),
        (tensor(ColumnRead("sex")), InvalidArgument, "'sex' of dataset 'd' holds words"),
        (tensor(ColumnRead("age")), InvalidArgument, "'age' of dataset 'd' lacks values"),
        (tensor(ColumnRead("large")), InvalidArgument, "'large' of dataset 'd' cannot be read as float32"),
        (tensor(ColumnRead("dose"), dtype=DataType.INT64), InvalidArgument, "cannot be read as int64"),
        (tensor(ColumnRead("dose", one_hot=True)), InvalidProgram, "only categories"),
        (tensor(ColumnRead("sex", categories=("f",), constant=1)), InvalidProgram, "place of no category"),
        (tensor(ColumnRead("sex", of_all=True)), InvalidProgram, "no column of numbers"),
        (tensor(ColumnRead("dose"), ColumnRead("grade"), beside=False), InvalidProgram, "side by side"),
        (tensor(), InvalidProgram, "1 to 4,096 columns"),
        (tensor(ColumnRead("age", constant=0.5), dtype=DataType.INT64), InvalidProgram, "0.5 is not a int64"),
    ],
)  # fmt: skip
def test_what_is_registered_is_refused_as_it_is(asked, error, said):
    of = dataset()
    with pytest.raises(error, match=said):
        of.views.view(asked, (), {"d": of})


def test_which_value_is_no_category_is_for_the_log():
    of = dataset()
    view = of.views.view(tensor(ColumnRead("sex", categories=("f",), constant=0)), (), {"d": of})
    assert view.unsure
    with pytest.raises(InvalidArgument, match="'sex' of dataset 'd', row 1: 'm' is none of the categories"):
        view.check()
    assert view.unsure, "it is looked at again"


@given(st.lists(st.integers(0, 3), max_size=9), st.integers(MANY - 2, MANY + 2))
def test_many_columns_are_what_few_are(rows, count):
    """Laid together once, or gathered each."""
    of = dataset()
    names = ["dose", "grade", "age"]
    many = tensor(*(ColumnRead(names[n % 3], constant=1.5) for n in range(count)))
    found = read(many, rows, of=of)
    for n in range(count):
        one = read(tensor(ColumnRead(names[n % 3], constant=1.5)), rows, of=of)
        np.testing.assert_array_equal(found[:, n : n + 1], one)


def test_a_column_is_described_by_what_it_can_be_read_as():
    found = {c.name: (c.float32, c.int64, c.words, c.gaps) for c in dataset().describe().columns}
    assert found == {
        "age": (True, True, False, True),
        "dose": (True, False, False, False),
        "sex": (False, False, True, True),
        "grade": (True, True, False, False),
        "spectrum": (True, True, False, False),
        "large": (False, True, False, False),
    }
