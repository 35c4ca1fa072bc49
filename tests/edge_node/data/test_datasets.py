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
    }
    np.testing.assert_array_equal(dataset.column("b"), [2, 0.5])
    assert dataset.column("n").tolist() == [1, 7]


def test_csv_with_ids_elsewhere_and_none(tmp_path):
    spec = csv(tmp_path, "who,a\n7,1.5\n8,2\n")
    assert not read(spec).describe().identified
    dataset = read(f"{spec}?id=who")
    assert list(columns(dataset)) == ["a"]
    assert dataset.hashes(np.array([1]), b"k").shape == (1, 16)
    with pytest.raises(InvalidArgument, match="no column 'nobody'"):
        read(f"{spec}?id=nobody")


def test_numbers_that_no_int64_holds(tmp_path):
    assert columns(read(csv(tmp_path, "id,a\nx,99999999999999999999\n")))["a"][0] is DataType.FLOAT32


def test_what_is_wrong_names_the_dataset(tmp_path):
    with pytest.raises(InvalidArgument, match=r"^--data d: d\.csv, line 3: 3 values under 2 columns"):
        read(csv(tmp_path, "id,a\nx,1\ny,2,3\n"))


def test_options_of_a_file(tmp_path):
    (tmp_path / "why?.csv").write_text("who;a;b\nx;1;2,5\n")
    dataset = read(f"d={tmp_path}/why?.csv?id=who&decimal=comma")
    assert dataset.describe().identified
    np.testing.assert_array_equal(dataset.column("b"), [2.5])
    with pytest.raises(InvalidArgument, match="--data d: 'colour=red' is none of"):
        read(f"d={tmp_path}/why?.csv?colour=red")


def test_one_warning_names_what_is_set_aside(tmp_path, caplog):
    rows = "".join(f"{i},n{i},{'x' * 300}\n" for i in range(1_100))
    read(csv(tmp_path, f"a,name,note\n{rows}"))
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == (
        "d: set aside are 'name' (text with over 1,000 distinct values); 'note' (text with a value of over "
        "256 characters)"
    )


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


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InvalidArgument, match=r"edge-attention\[parquet\]"):
        read(f"d={tmp_path}/d.parquet")


@pytest.mark.parametrize("spec", ["d", "=x.csv", "d=", "d=x.txt", "d=/nowhere.csv", "a b=x.npz"])
def test_a_spec_that_is_none(spec):
    with pytest.raises(InvalidArgument, match="--data"):
        read(spec)
