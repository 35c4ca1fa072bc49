"""Rows shared over simulated nodes: each row once, each node some, uneven as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.simulation.partition import LEAST_ROWS, RowSharing, partition
from edge_attention.tables.table import Table


def table(rows, values=10):
    random = np.random.default_rng(0)
    label = random.integers(values, size=rows)
    return Table.of({"label": label, "x": random.standard_normal(rows).astype(np.float32)})


@given(
    st.integers(1, 40),
    st.integers(0, 200),
    st.sampled_from(["iid", "dirichlet"]),
    st.floats(0.01, 100),
    st.integers(0, 5),
)
def test_each_row_is_one_nodes_and_each_node_has_some(nodes, more, kind, alpha, seed):
    rows = LEAST_ROWS * nodes + more
    sharing = RowSharing(kind, "label", alpha)
    found = partition(table(rows), sharing, nodes, seed)
    assert len(found) == nodes
    assert sorted(np.concatenate(found).tolist()) == list(range(rows))
    assert min(map(len, found)) >= LEAST_ROWS
    assert all((np.diff(part) > 0).all() for part in found)
    again = partition(table(rows), sharing, nodes, seed)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_small_alpha_leaves_nodes_few_labels_and_a_large_one_all():
    rows = table(5_000)
    labels = rows.columns["label"].values

    def distinct(alpha):
        parts = partition(rows, RowSharing("dirichlet", "label", alpha), 20, 0)
        return np.mean([len(np.unique(labels[part])) for part in parts])

    assert distinct(100) > 9.5
    assert distinct(0.05) < 4


def test_a_node_a_value():
    rows = table(300, values=6)
    labels = rows.columns["label"].values
    for node, part in enumerate(partition(rows, RowSharing("column", "label"), 6, 0)):
        assert set(labels[part]) == {node}
    two = partition(rows, RowSharing("column", "label"), 2, 0)
    assert set(labels[two[0]]) == {0, 2, 4}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RowSharing("dirichlet"), "rows shared by dirichlet need a column"),
        (lambda: RowSharing("dirichlet", "label", 0.0), "alpha is 0; it must be above 0"),
        (lambda: partition(table(9), RowSharing(), 5, 0), "9 rows are too few for 5 nodes.*at most 4"),
        (lambda: partition(table(90), RowSharing("column", "y"), 5, 0), "no column 'y'; it has label, x"),
        (lambda: partition(table(90), RowSharing("column", "x"), 5, 0), "column 'x' is float32"),
        (
            lambda: partition(table(90, 3), RowSharing("column", "label"), 5, 0),
            "has 3 values, and there are 5",
        ),
    ],
)
def test_what_cannot_be_shared_is_said(make, said):
    with pytest.raises(InvalidArgument, match=said):
        make()


def test_rows_taken_of_a_text_file_keep_their_types_words_ids_and_lines(tmp_path):
    from edge_attention.tables.reading import read_table

    file = tmp_path / "a.csv"
    file.write_text("id,n,word,x\na,1,low,0.5\nb,2,,1.5\nc,3,high,2.5\nd,4,low,3.5\n")
    whole = read_table(file)
    some = whole.take(np.array([1, 3]))
    assert [id.decode() for id in some.ids] == ["b", "d"]
    assert some.columns["n"].values.tolist() == [2, 4]
    assert some.columns["word"].words == whole.columns["word"].words
    assert some.columns["word"].values.tolist() == whole.columns["word"].values[[1, 3]].tolist()
    assert some.columns["word"].missing.tolist() == [True, False]
    assert [some.place(row) for row in (0, 1)] == ["line 3", "line 5"]
