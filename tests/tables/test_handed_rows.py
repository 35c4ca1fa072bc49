"""Rows handed to a trained model are what a node reads of the same file, or refused by their line."""

from __future__ import annotations

import numpy as np
import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.table import ColumnRead, TensorRead
from edge_attention.core.tensors import DataType
from edge_attention.jobs.columns import JobColumn, prepared
from edge_attention.tables.arrays import arrays_of
from edge_attention.tables.reading import read_table
from edge_node.data.datasets import LocalDataset

TEXT = """bill,mass,sex,year,species
39.1,3750,male,2007,Adelie
,,,2007,Adelie
46.1,4500,female,2008,Gentoo
"""
SEX, YEARS = ("female", "male"), (2008, 2007)
COLUMNS = {
    "sex": JobColumn(categories=SEX, one_hot=True, missing="male"),
    "year": JobColumn(categories=YEARS),
    "bill": JobColumn(missing=40.5),
    "mass": JobColumn(missing=4000),
    "species": JobColumn(categories=("Adelie", "Gentoo")),
}


def table(tmp_path, text=TEXT):
    (tmp_path / "d.csv").write_text(text)
    return read_table(tmp_path / "d.csv")


def arrays(held, inputs, columns=None, missing=None):
    _, spec = prepared(inputs, COLUMNS if columns is None else columns, missing, "inputs")
    named = {name: (text,) if isinstance(text, str) else tuple(text) for name, text in inputs.items()}
    return arrays_of(held, named, spec, "d.csv")


def test_they_are_what_a_node_reads(tmp_path):
    held = table(tmp_path)
    found = arrays(held, {"x": ["bill", "sex", "mass", "year"], "one": ["mass"], "alone": "year"})
    reads = (
        ColumnRead("bill", constant=40.5),
        ColumnRead("sex", categories=SEX, one_hot=True, constant=1.0),
        ColumnRead("mass", constant=4000.0),
        ColumnRead("year", categories=tuple(map(str, YEARS))),
    )
    dataset = LocalDataset("d", held)
    wanted = TensorRead("x", DataType.FLOAT32, reads, side_by_side=True)
    np.testing.assert_array_equal(found["x"], dataset.views.view(wanted, (), {}).read(None))
    assert found["x"].tolist()[1] == [40.5, 0, 1, 4000, 1]
    assert found["one"].shape == (3, 1)
    assert found["alone"].tolist() == [1, 1, 0]


@pytest.mark.parametrize("fill", [0, -1, 999, 0.1, 70_000, 2**40, 1e30])
def test_what_stands_for_a_missing_value_need_not_fit_the_files_own_type(tmp_path, fill):
    held = table(tmp_path, "few,some\n1,1.5\n,\n3,2.5\n")
    assert held.columns["few"].values.dtype == np.int8
    found = arrays(held, {"x": ["few", "some"]}, {}, fill)["x"]
    reads = tuple(ColumnRead(name, constant=float(fill)) for name in ("few", "some"))
    wanted = TensorRead("x", DataType.FLOAT32, reads, side_by_side=True)
    read = LocalDataset("d", held).views.view(wanted, (), {}).read(None)
    np.testing.assert_array_equal(found.astype(np.float32), read)


@pytest.mark.parametrize(
    ("inputs", "columns", "missing", "said"),
    [
        (
            {"x": "weight"},
            {},
            None,
            "d.csv: input x: column 'weight' is not there; its columns are bill, mass",
        ),
        ({"x": "bill"}, {}, None, "column 'bill' lacks 1 values, the first in line 3"),
        (
            {"x": "bill"},
            {},
            "mean",
            "'bill' lacks a value in line 3; the job reads the mean of its nodes there, which the run does "
            "not tell",
        ),
        ({"x": ["year", "bill"]}, {}, "drop", "lacks a value in line 3; the job leaves such rows out"),
        ({"x": "sex"}, {}, None, "column 'sex' holds words"),
        ({"x": "species"}, {"species": JobColumn(categories=("Adelie", "x"))}, None, "the first in line 4"),
        ({"x": ["bill", "*"]}, {}, 0, r"made of '\*', which only a node's datasets say"),
        ({"x": ["other:bill"]}, {}, 0, "made of 'other:bill', which only"),
    ],
)
def test_what_is_refused(tmp_path, inputs, columns, missing, said):
    with pytest.raises(InvalidArgument, match=said):
        arrays(table(tmp_path), inputs, columns, missing)


def test_categories_of_several_numbers_a_row_are_refused_as_a_node_does(tmp_path):
    np.savez(tmp_path / "d.npz", pair=np.zeros((2, 2)))
    with pytest.raises(InvalidArgument, match="'pair' has several numbers a row; categories have one"):
        arrays(read_table(tmp_path / "d.npz"), {"x": "pair"}, {"pair": JobColumn(categories=(0, 1))})
