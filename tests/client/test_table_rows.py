"""`edge-attention predict --rows`: files of tables, by the job that a run was trained by."""

from __future__ import annotations

import click
import pytest

from edge_attention.cli.table_rows import RowFiles
from edge_attention.core.errors import InvalidArgument

PART = """
[[encoders]]
node = "{0}"
dataset = "patients"
model = "{0}.onnx"
inputs = {{ x = ["u", "v"] }}
"""
FUSION = f"""
name = "patients"
rounds = 1
batch = 1
queries = {{ count = 1, heads = 1, dim = 4, seed = 1 }}
optimizer = {{ name = "adam" }}
{PART.format("a")}{PART.format("b")}
[head]
node = "a"
dataset = "patients"
model = "h.onnx"
inputs = {{ y = "ill" }}
"""
FEDERATED = """
name = "rows"
rounds = 1
dataset = "rows"
strategy = "fedavg"
model = { file = "m.onnx", loss = "cross_entropy", inputs = { x = ["u", "v"], labels = "ill" } }
local = { optimizer = { name = "sgd" }, batch = 1 }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "abhm":
        (tmp_path / f"{name}.onnx").write_bytes(b"")
    (tmp_path / "fusion.toml").write_text(FUSION)
    (tmp_path / "rows.toml").write_text(FEDERATED)
    (tmp_path / "a.csv").write_text("id,v,u\nP1,1,2\nP2,3,4\n")
    (tmp_path / "b.csv").write_text("u,v,who\n7,8,P2\n5,6,P1\n")
    return tmp_path


def test_rows_of_two_nodes_are_matched_by_their_ids(folder):
    rows = RowFiles(folder / "fusion.toml", ("a=a.csv", "b=b.csv?id=who"))
    assert rows.ids == ("P1", "P2")
    found = rows.arrays(("a/x", "b/x", "b/present"))
    assert {name: array.tolist() for name, array in found.items()} == {
        "a/x": [[2, 1], [4, 3]],
        "b/x": [[5, 6], [7, 8]],
    }
    assert list(RowFiles(folder / "fusion.toml", ("b=b.csv",)).arrays(("a/x", "b/x"))) == ["b/x"]


def test_labels_are_not_looked_for_and_what_the_job_does_not_name_is_a_column(folder):
    rows = RowFiles(folder / "rows.toml", ("a.csv",))
    found = rows.arrays(("x", "v"))
    assert found["x"].tolist() == [[2, 1], [4, 3]]
    assert found["v"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("job", "files", "error", "said"),
    [
        ("fusion.toml", ("a.csv",), click.BadParameter, "NODE=FILE, NODE of a, b"),
        ("fusion.toml", ("a=a.csv", "a=b.csv"), click.BadParameter, "a node is given two files"),
        ("rows.toml", ("a.csv", "b.csv"), click.BadParameter, "give one file"),
        ("fusion.toml", ("a=a.csv", "b=b.csv"), InvalidArgument, "not both have ids to match them by"),
        ("fusion.toml", ("a=a.csv", "b=c.csv"), InvalidArgument, "and not 'P2'; give each the same samples"),
        ("fusion.toml", ("a=a.csv", "b=none.csv"), InvalidArgument, "none.csv cannot be read"),
    ],
)
def test_files_that_do_not_fit(folder, job, files, error, said):
    (folder / "c.csv").write_text("id,u,v\nP1,5,6\nP3,7,8\n")
    with pytest.raises(error, match=said):
        RowFiles(folder / job, files)
