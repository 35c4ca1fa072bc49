from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from edge_attention.core.errors import InvalidArgument, ResourceExhausted
from edge_attention.tables.options import TableOptions
from edge_attention.tables.reading import read_table


def read(tmp_path, **arrays):
    np.savez(tmp_path / "d.npz", **arrays)
    return read_table(tmp_path / "d.npz")


def test_arrays_keep_their_dtype_or_get_one_that_travels(tmp_path):
    kept = ("bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64")
    arrays = {
        dtype: np.array([[0, 1], [1, 0]], dtype) for dtype in (*kept, "int16", "uint16", "uint32", "uint64")
    }
    arrays["big"] = np.array([1, 2], ">f4")
    table = read(tmp_path, **arrays)
    found = {name: column.values.dtype.name for name, column in table.columns.items()}
    wider = {"int16": "int32", "uint16": "int32", "uint32": "int64", "uint64": "int64", "big": "float32"}
    assert found == {dtype: dtype for dtype in kept} | wider
    for name, array in arrays.items():
        np.testing.assert_array_equal(table.columns[name].values, array)


def test_gaps_and_words(tmp_path):
    table = read(
        tmp_path,
        x=np.array([1.5, np.nan]),
        v=np.array([[1, 2], [np.nan, 4]], np.float32),
        t=np.array(["b", ""]),
        s=np.array([b"b", b"a"]),
    )
    assert table.columns["x"].missing.tolist() == [False, True]
    assert table.columns["x"].values.tolist() == [1.5, 0]
    assert table.columns["v"].values.tolist() == [[1, 2], [0, 0]]
    assert table.columns["t"].words == ("b",)
    assert table.columns["t"].values.tolist() == [0, -1]
    assert table.columns["t"].missing.tolist() == [False, True]
    assert table.columns["s"].words == ("b", "a")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([None, 1]), "objects of Python's"),
        (np.array(["2020-01-01"] * 2, "M8[D]"), "dates and times"),
        (np.array([1j, 2]), "complex"),
        (np.float32(1), "one value, not a column of rows"),
        (np.array([1, np.inf]), "infinite (row 1)"),
        (np.array([np.nan, np.nan]), "has no values"),
        (np.array([["a"], ["b"]]), "text of more than one value a row"),
        (np.array(["x" * 300, "y"]), "text with a value of over 256 characters"),
        (np.array([b"\xff", b"a"]), "bytes that are no UTF-8"),
        (np.array([1, 2], np.longdouble), "no number that travels"),
    ],
)
def test_set_aside(tmp_path, array, said):
    table = read(tmp_path, y=np.arange(2), x=array)
    assert list(table.columns) == ["y"]
    assert said in table.set_aside["x"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array([b"P1", b"P2"]), [b"P1", b"P2"]),
        (np.array(["P1 ", "P2"]), [b"P1", b"P2"]),
        (np.array([1.0, 2.0]), [b"1", b"2"]),
        (np.array([1, 2], np.uint64), [b"1", b"2"]),
        (np.array([1.5, -2.0], np.float32), [b"1.5", b"-2"]),
        (np.array(["2020-01-01", "2020-01-02"], "M8[D]"), [b"2020-01-01", b"2020-01-02"]),
    ],
)
def test_ids(tmp_path, ids, expected):
    if ids.dtype.kind == "M":
        ids = ids.astype(str)
    assert list(read(tmp_path, id=ids, x=np.arange(2)).ids) == expected


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.array([1.0, np.nan]), "row 1, column 'id': the id is missing"),
        (np.array(["a", ""]), "row 1, column 'id': the id is missing"),
        (np.array(["None", "a"]), "row 0, column 'id': the id is missing"),
        (np.array(["nan", "a"]), "row 0"),
        (np.array([1, np.inf]), "row 1, column 'id': an infinite number is no id"),
        (
            np.array([1, 1e17]),
            "row 1, column 'id': an id over 9,007,199,254,740,992 as float64 has lost digits",
        ),
        (np.array([1, 2**25], np.float32), "row 1, column 'id': an id over 16,777,216 as float32"),
        (np.array([True, False]), "truth are no ids"),
        (np.array([[1], [2]]), "an id is one value a row"),
        (np.array([b"\xff", b"a"]), "row 0, column 'id': an id of bytes that are no UTF-8"),
        (np.array(["a", "a"]), "id 'a' is in row 0 and again in row 1; ?id="),
        (np.array([1.0, 1.0]), "id '1' is in row 0 and again in row 1; ?id="),
    ],
)
def test_ids_that_are_none(tmp_path, ids, said):
    with pytest.raises(InvalidArgument) as caught:
        read(tmp_path, id=ids, x=np.arange(2))
    assert said in caught.value.message


def test_tokens_called_ids_are_a_column(tmp_path):
    tokens = np.array([[4, 7, 0], [5, 0, 0]])
    table = read(tmp_path, ids=tokens, label=np.array([1, 0]))
    assert table.ids is None
    np.testing.assert_array_equal(table.columns["ids"].values, tokens)
    table = read(tmp_path, ids=tokens, id=np.array(["a", "b"]))  # and the ids of rows are those that are
    assert list(table.ids) == [b"a", b"b"]
    assert "ids" in table.columns
    with pytest.raises(InvalidArgument, match="column 'ids': an id is one value a row"):
        read_table(tmp_path / "d.npz", TableOptions(id_column="ids"))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3), "y": np.zeros(2)}, "one length"),
        ({"x": np.array([None])}, "no column of numbers or categories: 'x': objects of Python's"),
        ({"x": np.array([1, np.inf])}, "'x': has a number that is infinite (row 1)"),
        ({"x": np.zeros((0, 2))}, "column 'x' has no rows"),
        (
            {"x": np.array([1, 2**63], np.uint64)},
            "row 1, column 'x': a number over 2^63 - 1 does not fit int64",
        ),
        ({"id": np.array([1, 2])}, "it has ids alone"),
    ],
)
def test_refused(tmp_path, arrays, said):
    with pytest.raises(InvalidArgument) as caught:
        read(tmp_path, **arrays)
    assert said in caught.value.message


def test_a_file_that_holds_more_than_there_is_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr("edge_attention.tables.size.usable_memory", lambda: 1 << 20)
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros(1 << 20))
    assert (tmp_path / "d.npz").stat().st_size < 20_000
    with pytest.raises(
        ResourceExhausted, match=r"d\.npz holds 8,388,608 bytes, unpacked, in a file of .* 524,288"
    ):
        read_table(tmp_path / "d.npz")


def test_a_header_that_says_more_than_there_is(tmp_path):
    whole = io.BytesIO()
    np.lib.format.write_array_header_1_0(whole, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", whole.getvalue() + b"12345678")
    with pytest.raises(InvalidArgument, match="numbers, or is damaged"):
        read_table(tmp_path / "d.npz")


def test_ids_by_place(tmp_path):
    np.savez(tmp_path / "d.npz", who=np.array([7, 8]), x=np.arange(2))
    table = read_table(tmp_path / "d.npz", TableOptions(id_column="#1"))
    assert list(table.ids) == [b"7", b"8"]
    assert list(table.columns) == ["x"]
