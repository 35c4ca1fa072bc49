"""`edge-attention predict --rows`: files of tables, read by the job that the run keeps."""

from __future__ import annotations

import json
import sys

import click
import pytest
from full_fake import small_model

from edge_attention.cli import main as cli_main
from edge_attention.cli.table_rows import RowFiles
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.table import InputColumns, TableSpec
from edge_attention.core.messages.training import RowsRead
from edge_attention.jobs.job_file import read_job
from edge_attention.jobs.row_reads import differences, reads_of

MANY = tuple(f"c{number}" for number in range(300))
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


def kept(job):
    """How a run of the job says that rows are read."""
    return reads_of(read_job(job))


def test_rows_of_two_nodes_are_matched_by_their_ids(folder):
    rows = RowFiles(("a=a.csv", "b=b.csv?id=who"), kept(folder / "fusion.toml"))
    assert rows.ids == ("P1", "P2")
    found = rows.arrays(("a/x", "b/x", "b/present"))
    assert {name: array.tolist() for name, array in found.items()} == {
        "a/x": [[2, 1], [4, 3]],
        "b/x": [[5, 6], [7, 8]],
    }
    assert list(RowFiles(("b=b.csv",), kept(folder / "fusion.toml")).arrays(("a/x", "b/x"))) == ["b/x"]


def test_labels_are_not_looked_for_and_what_the_job_does_not_name_is_a_column(folder):
    rows = RowFiles(("a.csv",), kept(folder / "rows.toml"))
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
        RowFiles(files, kept(folder / job))


CATEGORIES = """
name = "rows"
rounds = 1
dataset = "rows"
strategy = "fedavg"
model = { file = "m.onnx", loss = "cross_entropy", inputs = { x = ["age", "sex"], labels = "ill" } }
local = { optimizer = { name = "sgd" }, batch = 1 }
[columns.sex]
categories = ["female", "male"]
one_hot = true
missing = "female"
[columns.ill]
categories = ["no", "yes"]
"""
SWAPPED = CATEGORIES.replace('["female", "male"]', '["male", "female"]')


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (
            '["female", "male"]',
            '["male", "female"]',
            ["column sex has its categories in another order: male, female, in the run female, male"],
        ),
        (
            '["no", "yes"]',
            '["no", "yes", "?"]',
            ["column ill has categories no, yes, ?, in the run no, yes"],
        ),
        ('["age", "sex"]', '["sex", "age"]', ["input x is made of sex, age, in the run age, sex"]),
        ('labels = "ill"', 'labels = ["ill"]', ["input labels is a list of columns, in the run one column"]),
        ("one_hot = true", "one_hot = false", ["column sex is not one_hot, in the run one_hot"]),
        ('missing = "female"', 'missing = "male"', ["column sex: missing is male, in the run female"]),
        ('missing = "female"\n', "", ["column sex: missing is as for all columns, in the run female"]),
        ("rounds = 1", "rounds = 1\nmissing_values = 7", ["missing_values is 7.0, in the run refuse"]),
        # Said in another way, and the same.
        ("rounds = 1", "rounds = 20\nmissing_values = 'refuse'", []),
        ('labels = "ill"', 'ill = "ill", labels = "ill"', []),
    ],
)
def test_in_what_a_file_reads_rows_otherwise_than_a_run(folder, was, now, said):
    assert was in CATEGORIES
    (folder / "run.toml").write_text(CATEGORIES)
    (folder / "here.toml").write_text(CATEGORIES.replace(was, now))
    assert differences(kept(folder / "here.toml"), kept(folder / "run.toml")) == said


@pytest.mark.parametrize(
    ("row", "found"), [("40,", [40, 1, 0]), ("NA,male", [7, 0, 1]), ("NA,NA", [7, 1, 0])]
)
def test_of_a_row_alone_what_it_lacks_is_what_the_job_says(folder, row, found):
    """A column without any value is set aside where a table is read, as nothing says what it holds."""
    (folder / "run.toml").write_text(CATEGORIES.replace("rounds = 1", "rounds = 1\nmissing_values = 7"))
    (folder / "one.csv").write_text(f"name,age,sex\nx,{row}\n")
    assert RowFiles(("one.csv",), kept(folder / "run.toml")).arrays(("x",))["x"].tolist() == [found]


def test_a_row_alone_that_lacks_what_the_job_has_nothing_for_is_named(folder):
    (folder / "run.toml").write_text(CATEGORIES)
    (folder / "one.csv").write_text("name,age,sex\nx,NA,male\n")
    with pytest.raises(InvalidArgument, match=r"column 'age' .*line 2"):
        RowFiles(("one.csv",), kept(folder / "run.toml")).arrays(("x",))


def test_a_file_of_a_job_of_other_nodes(folder):
    (folder / "other.toml").write_text(FUSION.replace('node = "b"', 'node = "c"'))
    assert differences(kept(folder / "other.toml"), kept(folder / "fusion.toml")) == [
        "its rows are on a, c, the run's on a, b"
    ]
    (folder / "other.toml").write_text(FUSION.replace('x = ["u", "v"]', 'x = ["v", "u"]'))
    assert differences(kept(folder / "other.toml"), kept(folder / "fusion.toml")) == [
        f"node {node}: input x is made of v, u, in the run u, v" for node in "ab"
    ]


def test_long_lists_that_differ_are_said_from_there(folder):
    one, two = (
        [RowsRead(table=TableSpec({"x": InputColumns(names)}))] for names in (MANY, (*MANY[:-1], "z"))
    )
    assert differences(one, two) == [f"input x is made of ... {MANY[-1]}, in the run ... z"]


@pytest.fixture
def predict(address, fake, folder, capsys, monkeypatch):
    """Runs `predict r1` of a run that was trained by CATEGORIES; (exit code, stdout, stderr)."""
    (folder / "run.toml").write_text(CATEGORIES)
    (folder / "swapped.toml").write_text(SWAPPED)
    (folder / "new.csv").write_text("sex,age\nmale,40\nfemale,50\n,60\n")
    fake.trained = small_model(3)
    fake.reads = kept(folder / "run.toml")

    def invoke(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["edge-attention", "--aggregator", address, "predict", "r1", *args])
        with pytest.raises(SystemExit) as end:
            cli_main.main()
        return end.value.code, *capsys.readouterr()

    return invoke


def outputs(said):
    code, out, _ = said
    assert code == 0
    return json.loads(out)["outputs"]["y"]


def test_rows_are_read_as_the_run_says_whatever_file_is_at_hand(predict):
    rows = [[40, 0, 1], [50, 1, 0], [60, 1, 0]]
    assert outputs(predict("--rows", "new.csv", "--json")) == rows
    assert outputs(predict("--rows", "new.csv", "--job", "run.toml", "--json")) == rows
    code, out, err = predict("--rows", "new.csv", "--job", "swapped.toml", "--json")
    assert code == 1
    told = (
        "swapped.toml is not the job that run r1 was trained by: column sex has its categories in another "
        "order: male, female, in the run female, male. Leave it out: rows are read as the run's own job says"
    )
    assert err == f"edge-attention: {told}\n"
    assert json.loads(out)["error"]["message"] == told


def test_an_aggregator_that_does_not_say_how_rows_are_read(predict, fake):
    fake.reads = ()
    code, _, err = predict("--rows", "new.csv")
    assert code == 1
    assert "does not say how run r1 reads columns; give --job, the file that it was trained by" in err
    code, _, err = said = predict("--rows", "new.csv", "--job", "run.toml", "--json")
    assert outputs(said)[0] == [40, 0, 1]
    assert err.startswith("run.toml was not held against run r1: the aggregator is of an earlier release")


def test_a_job_is_for_rows(predict):
    code, _, err = predict("--job", "run.toml", "--id", "P1")
    assert code == 2
    assert "--job says how --rows are read; give --rows, too" in err


def test_a_job_whose_telling_key_is_misspelt_is_told_which(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('name = "x"\nstratgy = "fedavg"\n')
    with pytest.raises(
        InvalidArgument, match=r"nor split; it has 'stratgy' \(did you mean 'strategy'\?\); docs"
    ):
        read_job(file)


def test_columns_of_what_a_model_can_do_without_need_not_be_there(folder):
    """As labels of a loss that is in the model; where they are there they are read."""
    reads = reads_of(read_job(folder / "rows.toml"))
    rows = RowFiles(("a.csv",), reads)
    assert list(rows.arrays(("x", "labels"), spare=("labels",))) == ["x"]
    with pytest.raises(InvalidArgument, match="'ill'"):
        rows.arrays(("x", "labels"))
    (folder / "c.csv").write_text("id,v,u,ill\nP1,1,2,0\nP2,3,4,1\n")
    found = RowFiles(("c.csv",), reads).arrays(("x", "labels"), spare=("labels",))
    assert found["labels"].tolist() == [0, 1]
