from __future__ import annotations

import datetime
import decimal

import numpy as np
import pytest

from edge_attention.core.errors import InvalidArgument, ResourceExhausted
from edge_attention.tables.reading import read_table

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def read(tmp_path, columns, **options):
    table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    parquet.write_table(table, tmp_path / "d.parquet", **options)
    return read_table(tmp_path / "d.parquet")


def column(tmp_path, values, type_=None, **options):
    """The column that these values become, in batches of a few rows as well as in one."""
    array = pyarrow.array(values, type_)
    found = read(tmp_path, {"x": array, "z": list(range(len(array)))}, **options)
    return found.columns.get("x"), found.set_aside.get("x", "")


@pytest.mark.parametrize(
    ("values", "type_", "expected", "dtype"),
    [
        ([1, 2], "int64", [1, 2], np.int8),
        ([1, 300], "uint16", [1, 300], np.int16),
        ([1, 2**63 - 1], "uint64", [1, 2**63 - 1], np.int64),
        ([1.5, 2], "float64", [1.5, 2], np.float32),
        ([1.0, 2.0], "float64", [1, 2], np.int8),
        ([np.float16(1.5)], "float16", [1.5], np.float32),
        ([True, False], "bool", [1, 0], np.int8),
        ([decimal.Decimal("1.25"), decimal.Decimal("3.50")], None, [1.25, 3.5], np.float32),
        ([[1, 2], [3, 4]], None, [[1, 2], [3, 4]], np.int8),
        ([[1.5, 2], [3, 4]], pyarrow.list_(pyarrow.float32(), 2), [[1.5, 2], [3, 4]], np.float32),
        ([[[1, 2]], [[3, 4]]], None, [[[1, 2]], [[3, 4]]], np.int8),
        ([[1, 2]], pyarrow.large_list(pyarrow.int16()), [[1, 2]], np.int8),
    ],
)
def test_numbers(tmp_path, values, type_, expected, dtype):
    found, _ = column(tmp_path, values, type_)
    assert found.values.tolist() == expected
    assert found.values.dtype == dtype
    assert found.missing is None


@pytest.mark.parametrize(
    ("values", "type_", "expected", "missing"),
    [
        ([1, None, 3], "int64", [1, 0, 3], [1]),
        ([1.5, None, float("nan")], "float64", [1.5, 0, 0], [1, 2]),
        ([True, None], "bool", [1, 0], [1]),
        ([None, [1, 2], [3, None]], None, [[0, 0], [1, 2], [0, 0]], [0, 2]),
        ([None, [1, 2]], pyarrow.list_(pyarrow.int32(), 2), [[0, 0], [1, 2]], [0]),
    ],
)
def test_gaps(tmp_path, values, type_, expected, missing):
    found, _ = column(tmp_path, values, type_)
    assert found.values.tolist() == expected
    assert np.flatnonzero(found.missing).tolist() == missing


def test_gaps_over_whole_batches(tmp_path):
    """Lists whose length is known after 20,000 rows that have none."""
    found, _ = column(tmp_path, [None] * 20_000 + [[1, 2]], pyarrow.list_(pyarrow.int32()))
    assert found.values.shape == (20_001, 2)
    assert found.values[-1].tolist() == [1, 2]
    assert found.missing.sum() == 20_000


@pytest.mark.parametrize("type_", [pyarrow.string(), pyarrow.large_string(),
                                   pyarrow.dictionary(pyarrow.int8(), pyarrow.string())])  # fmt: skip
def test_words(tmp_path, type_):
    array = pyarrow.array(["b", None, "a", "b", "NA"], pyarrow.string()).cast(type_)
    found, _ = column(tmp_path, array)
    assert found.words == ("b", "a")
    assert found.values.tolist() == [0, -1, 1, 0, -1]
    assert found.missing.tolist() == [False, True, False, False, True]


def test_words_over_row_groups_have_one_code(tmp_path):
    words = [f"w{i % 7}" for i in range(30_000)]
    found, _ = column(tmp_path, words, row_group_size=1_000)
    assert [found.words[code] for code in found.values] == words


@pytest.mark.parametrize(
    ("values", "type_", "said"),
    [
        ([datetime.datetime(2020, 1, 1)] * 2, None, "dates and times"),
        ([{"a": 1}, {"a": 2}], None, "struct<a: int64>, no column"),
        ([b"x", b"y"], None, "binary, no column"),
        ([None, None], pyarrow.null(), "has no values"),
        ([None, None], "int64", "has no values"),
        ([1.0, float("inf")], None, "infinite, or too large for float32 (row 1)"),
        ([1.0, 1e300], None, "infinite, or too large for float32 (row 1)"),
        (["x" * 300, "y"], None, "text with a value of over 256"),
        ([["a"], ["b"]], None, "no column of numbers or words"),
    ],
)
def test_set_aside(tmp_path, values, type_, said):
    found, reason = column(tmp_path, values, type_)
    assert found is None
    assert said in reason


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": [[1, 2], [3]]}, "row 1, column 'x': a list of 1 where the first is of 2"),
        ({"x": [None, [1, 2], [1, 2, 3]]}, "row 2, column 'x': a list of 3 where the first is of 2"),
        ({"x": [[[1, 2]], [[3]]]}, "row 1, column 'x': a list of 1"),
        ({"x": pyarrow.array([[], []], pyarrow.list_(pyarrow.int8()))}, "row 0, column 'x': an empty list"),
        ({"x": pyarrow.array([1, 2**63], "uint64")}, "row 1, column 'x': a number over 2^63 - 1"),
        (
            {"x": pyarrow.array([[1], [2**63]], pyarrow.list_(pyarrow.uint64()))},
            "row 1, column 'x': a number over 2^63 - 1",
        ),
        ({"id": [1, None], "x": [1, 2]}, "row 1, column 'id': the id is missing"),
        ({"id": [1.0, float("nan")], "x": [1, 2]}, "row 1, column 'id': the id is missing"),
        ({"id": ["a", "a"], "x": [1, 2]}, "id 'a' is in row 0 and again in row 1; ?id="),
        ({"id": [True, False], "x": [1, 2]}, "bool is no id"),
        ({"x": pyarrow.array([], "int64")}, "no rows"),
    ],
)
def test_refused_by_row(tmp_path, columns, said):
    with pytest.raises(InvalidArgument) as caught:
        read(tmp_path, columns)
    assert said in caught.value.message


def test_a_row_that_is_refused_is_counted_over_batches(tmp_path):
    with pytest.raises(InvalidArgument, match="row 20000, column 'x': a list of 1"):
        read(tmp_path, {"x": [[1, 2]] * 20_000 + [[1]]})
    with pytest.raises(InvalidArgument, match="row 20000, column 'id': the id is missing"):
        read(tmp_path, {"id": [*range(20_000), None], "x": [1] * 20_001})


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([b"P1", b"P2"], [b"P1", b"P2"]),
        ([1.0, 2.0], [b"1", b"2"]),
        ([1, 2], [b"1", b"2"]),
        (["P1", "P2"], [b"P1", b"P2"]),
        (pyarrow.array(["P1", "P2"]).dictionary_encode(), [b"P1", b"P2"]),
        ([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)], [b"2020-01-01", b"2020-01-02"]),
    ],
)
def test_ids(tmp_path, ids, expected):
    assert list(read(tmp_path, {"id": ids, "x": [1, 2]}).ids) == expected


def test_columns_of_one_name(tmp_path):
    table = pyarrow.Table.from_arrays(
        [pyarrow.array([1]), pyarrow.array([2]), pyarrow.array([3])], ["x", "x", "y"]
    )
    found = read(tmp_path, table)
    assert list(found.columns) == ["y"]
    assert "more than one column is called so" in found.set_aside["x"]


def test_a_file_that_holds_more_than_there_is_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr("edge_attention.tables.size.usable_memory", lambda: 1 << 20)
    with pytest.raises(ResourceExhausted, match=r"d\.parquet holds [\d,]+ bytes, unpacked, in a file of"):
        read(tmp_path, {"x": np.zeros(1 << 20)})


def test_no_parquet_file(tmp_path):
    (tmp_path / "d.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidArgument, match="not a Parquet file"):
        read_table(tmp_path / "d.parquet")


def test_tokens_called_ids_are_a_column(tmp_path):
    table = read(tmp_path, {"ids": [[4, 7], [5, 0]], "label": [1, 0]})
    assert table.ids is None
    np.testing.assert_array_equal(table.columns["ids"].values, [[4, 7], [5, 0]])
