from __future__ import annotations

import numpy as np
import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import DataType
from edge_node.data.datasets import read


def csv(tmp_path, text):
    (tmp_path / "d.csv").write_text(text)
    return f"d={tmp_path}/d.csv"


def columns(dataset):
    return {c.name: (c.data_type, c.shape) for c in dataset.describe().columns}


def test_csv(tmp_path):
    dataset = read(csv(tmp_path, "id,a,n,b\np1,1.5,1,2\np2,-2e3,7,0.5\n"))
    assert dataset.rows == 2
    assert dataset.describe().identified
    assert columns(dataset) == {
        "a": (DataType.FLOAT32, ()),
        "n": (DataType.INT64, ()),
        "b": (DataType.FLOAT32, ()),
        "*": (DataType.FLOAT32, (3,)),
    }
    np.testing.assert_array_equal(dataset.column("*"), np.array([[1.5, 1, 2], [-2000, 7, 0.5]], np.float32))
    np.testing.assert_array_equal(dataset.column("b"), [2, 0.5])
    assert dataset.column("n").tolist() == [1, 7]


def test_csv_with_ids_elsewhere_and_none(tmp_path):
    spec = csv(tmp_path, "who,a\n7,1.5\n8,2\n")
    assert not read(spec).describe().identified
    dataset = read(f"{spec}?id=who")
    assert list(columns(dataset)) == ["a", "*"]
    assert dataset.hashes(np.array([1]), b"k").shape == (1, 16)
    with pytest.raises(InvalidArgument, match="no column 'nobody'"):
        read(f"{spec}?id=nobody")


def test_all_of_whole_numbers(tmp_path):
    dataset = read(csv(tmp_path, "id,a,b\n1,3,4\n2,5,6\n"))
    np.testing.assert_array_equal(dataset.column("*"), np.array([[3, 4], [5, 6]], np.float32))
    assert dataset.column("*").dtype == np.float32
    assert dataset.column("a").dtype == np.int64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,a,b\n", "d.csv: column 'a' has no rows"),
        ("id,a\nx,1.0\ny,\n", "line 3, column 'a': '' is not a number"),
        ("id,a\nx,1.0\ny,high\n", "line 3, column 'a': 'high'"),
        ("id,a\nx,1.0\ny,nan\n", "d.csv, line 3, column 'a': a number is missing"),
        ("id,a\nx,1.0\ny,1e300\n", "line 3, column 'a'"),
        ("id,a\nx,1\ny,2\nx,3\n", "d.csv: id 'x' is in line 2 and again in line 4"),
        ("id,a\nx,1\ny,2,3\n", "line 3: 3 values under 2 columns"),
        ("id,id\n1,2\n", "line 1"),
        ("", "line 1"),
        ("id\nx\n", "columns of one length"),
        ("id,a\nx,99999999999999999999\n", ""),
    ],
)
def test_csv_says_where_it_is_wrong(tmp_path, text, said):
    if not said:
        assert columns(read(csv(tmp_path, text)))["a"][0] is DataType.FLOAT32  # no int64 holds it
        return
    with pytest.raises(InvalidArgument) as caught:
        read(csv(tmp_path, text))
    assert said in str(caught.value)


def test_latin_1_is_told_apart(tmp_path):
    text = "id,a\n" + "x,1\n" * 5000 + "caf\xe9,2\n"  # beyond the piece a reader decodes at a time
    (tmp_path / "d.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        InvalidArgument, match=r"d\.csv, line 5002, byte 20008: 0xe9 .* save the file as UTF-8"
    ):
        read(f"d={tmp_path}/d.csv")


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\3\4garbage"])
def test_a_damaged_npz_is_one_line_of_ours(tmp_path, data):
    (tmp_path / "d.npz").write_bytes(data)
    with pytest.raises(InvalidArgument, match=r"d\.npz cannot be read: it is not an \.npz") as refused:
        read(f"d={tmp_path}/d.npz")
    assert "pickle" not in refused.value.message


def test_npz(tmp_path):
    images = np.zeros((3, 2, 2), np.uint8)
    np.savez(tmp_path / "d.npz", images=images, y=np.arange(3), ids=np.array([5, 6, 7]))
    dataset = read(f"d={tmp_path}/d.npz")
    assert columns(dataset) == {"images": (DataType.UINT8, (2, 2)), "y": (DataType.INT64, ())}
    assert dataset.describe().identified
    np.testing.assert_array_equal(dataset.column("images"), images)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3), "y": np.zeros(2)}, "one length"),
        ({"x": np.array(["a"])}, "dtype"),
        ({"x": np.array([None])}, "cannot be read"),
        ({"x": np.array([1, np.inf])}, "row 1, column 'x'"),
        ({"x": np.zeros((0, 2))}, "no rows"),
        ({"x": np.zeros(2), "id": np.array(["a", "a"])}, "id 'a' is in row 0 and again in row 1"),
    ],
)
def test_npz_says_what_is_wrong(tmp_path, arrays, said):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InvalidArgument, match=said):
        read(f"d={tmp_path}/d.npz")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2], "a": [0.5, 1.5], "n": [3, 4]}), path)
    dataset = read(f"d={path}")
    assert columns(dataset) == {
        "a": (DataType.FLOAT32, ()),
        "n": (DataType.INT64, ()),
        "*": (DataType.FLOAT32, (2,)),
    }
    for cells, said in (({"a": [1.0, None]}, "row 1, column 'a'"), ({"a": ["x", "y"]}, "not numbers")):
        parquet.write_table(pyarrow.table(cells), path)
        with pytest.raises(InvalidArgument, match=said):
            read(f"d={path}")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidArgument, match="not a Parquet file"):
        read(f"d={path}")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InvalidArgument, match=r"edge-attention\[parquet\]"):
        read(f"d={tmp_path}/d.parquet")


@pytest.mark.parametrize("spec", ["d", "=x.csv", "d=", "d=x.txt", "d=/nowhere.csv", "a b=x.npz"])
def test_a_spec_that_is_none(spec):
    with pytest.raises(InvalidArgument, match="--data"):
        read(spec)
