"""Whether a file fits a job, said before any node has it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.jobs.columns import JobColumn, prepared
from edge_attention.tables.fit import fit
from edge_attention.tables.reading import read_table

TEXT = """species,island,bill,mass,sex,year
Adelie,Biscoe,39.1,3750,male,2007
Adelie,Dream,,,,2007
Gentoo,Biscoe,46.1,4500,female,2008
Chinstrap,Dream,50,3700,male,2009
"""
SPECIES = JobColumn(categories=("Adelie", "Chinstrap", "Gentoo"))


def fits(tmp_path, inputs, columns=(), missing=None, text=TEXT):
    (tmp_path / "d.csv").write_text(text)
    found = fit(read_table(tmp_path / "d.csv"), *prepared(inputs, dict(columns), missing, "inputs"))
    return {one.name: (list(one.columns), list(one.refused)) for one in found}


def test_a_job_that_fits(tmp_path):
    sex = JobColumn(categories=("female", "male"), one_hot=True, missing="male")
    inputs = {"x": ["bill", "mass", "sex"], "labels": "species"}
    assert fits(tmp_path, inputs, {"species": SPECIES, "sex": sex}, 0) == {
        "x": (
            ["bill (numbers; 1 missing, read as what the job says)",
             "mass (numbers; 1 missing, read as what the job says)",
             "sex (2 categories, one-hot; 1 missing, read as what the job says)"],
            [],
        ),
        "labels": (["species (3 categories)"], []),
    }  # fmt: skip


def test_all_is_every_column_of_numbers_that_no_input_names(tmp_path):
    found = fits(tmp_path, {"x": "*", "labels": "species", "w": "year"}, {"species": SPECIES}, 0)
    assert [one.split()[0] for one in found["x"][0]] == ["bill", "mass"]
    assert fits(tmp_path, {"x": "*"}, text="a\nu\nv\n")["x"][1] == ["no column of numbers is left for '*'"]


@pytest.mark.parametrize(
    ("inputs", "columns", "said"),
    [
        ({"x": "weight"}, {}, "column 'weight' is not there"),
        ({"x": "species"}, {}, "column 'species' holds words: list the categories that they are read as"),
        ({"x": "bill"}, {}, "column 'bill' lacks 1 values, the first in line 3: say what is read instead"),
        ({"x": "species"}, {"species": JobColumn(categories=("Adelie", "Gentoo"))},
         "column 'species': 1 row has a value that is none of the job's categories, the first in line 5"),
        ({"x": "year"}, {"year": JobColumn(categories=(2007, 2008))},
         "column 'year': 1 row has a value that is none of the job's categories, the first in line 5"),
        ({"x": "sex"}, {"sex": JobColumn(categories=("female", "male"))}, "column 'sex' lacks 1 values"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tmp_path, inputs, columns, said):
    (_, refused) = fits(tmp_path, inputs, columns)["x"]
    assert [why for why in refused if why.startswith(said)], refused


def test_what_is_set_aside_and_what_turns_into_words(tmp_path):
    text = "a,b\n" + "".join(f"{i},{'x' * 300 if i == 8000 else i}\n" for i in range(9_000))
    assert fits(tmp_path, {"x": "b"}, text=text)["x"][1] == [
        "column 'b' is set aside: text with over 1,000 distinct values (the first that is no number is in "
        "line 8002)"
    ]
    text = "a,b\n1,2\n3,high\n"
    assert "(line 3 is the first that is no number)" in fits(tmp_path, {"x": "b"}, text=text)["x"][1][0]


def test_what_rules_for_missing_values_come_to(tmp_path):
    inputs = {"x": ["bill", "mass"], "labels": "year"}
    assert fits(tmp_path, inputs, missing="drop")["x"] == (
        [
            "bill (numbers; 1 missing, their rows are left out)",
            "mass (numbers; 1 missing, their rows are left out)",
        ],
        [],
    )
    assert fits(tmp_path, inputs, missing="mean")["x"] == (
        ["bill (numbers; 1 missing, read as the mean of all nodes)",
         "mass (numbers; 1 missing, read as the mean of all nodes)"],
        [],
    )  # fmt: skip
    (tmp_path / "d.csv").write_text("a,b,c\n1,,1\n,2,\n3,4,5\n6,7,\n")
    table = read_table(tmp_path / "d.csv")
    some = prepared({"x": ["a", "b"], "labels": "c"}, {}, "drop", "inputs")
    assert [one.left_out for one in fit(table, *some)] == [3, 3], "a row that lacks two is one row"
    (tmp_path / "d.csv").write_text("a,b\n1,\n,2\n")
    table = read_table(tmp_path / "d.csv")
    for_all = prepared({"x": ["a", "b"]}, {}, "drop", "inputs")
    assert "no row is left" in fit(table, *for_all)[0].refused[0]
    # Classes have no mean: by a rule for all columns they are as if it were not there.
    found = fit(table, *prepared({"labels": "a"}, {}, "mean", "inputs"), whole={"labels"})
    assert "lacks 1 values" in found[0].refused[0]
    columns = {"a": JobColumn(missing="mean")}
    found = fit(table, *prepared({"labels": "a"}, columns, None, "inputs"), whole={"labels"})
    assert "whole numbers, which a mean seldom is" in found[0].refused[0]


def test_what_a_run_would_refuse_of_the_job_alone_a_check_refuses_too(tmp_path):
    """As the aggregator does: a rule for a column that is not there is a slip."""
    found = fits(tmp_path, {"x": "mass"}, {"weight": JobColumn(missing=3)}, missing=0)["x"]
    assert found[1] == ["columns.weight says how a column is read that is not there"]
    assert fits(tmp_path, {"x": "mass"}, {"o:weight": JobColumn(missing=3)}, missing=0)["x"][1] == []
    for column, said in (
        (JobColumn(categories=("a", "b", "b ")), "are no words, each there once"),
        (JobColumn(one_hot=True), "is one_hot; list its categories"),
        (JobColumn(categories=("a", "b"), missing=3), "is none of its categories"),
        (JobColumn(categories=("a", "b"), missing="mean"), "which have no mean"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            prepared({"x": "sex"}, {"sex": column}, None, "inputs")


def test_numbers_and_truth_are_categories_however_written(tmp_path):
    text = "a,t\n1.0,True\n0,False\n"
    columns = {"a": JobColumn(categories=(0, 1)), "t": JobColumn(categories=("False", "True"))}
    assert fits(tmp_path, {"x": ["a", "t"]}, columns, text=text)["x"][1] == []


def test_on_the_command_line(tmp_path):
    (tmp_path / "good.csv").write_text("u,v,label\n1,2,no\n3,4,yes\n")
    (tmp_path / "bad.csv").write_text("u,w,label\n1,2,perhaps\n3,4,yes\n")
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "job.toml").write_text(
        'kind = "federated"\nname = "j"\ndataset = "d"\nstrategy = "fedavg"\nrounds = 1\n'
        '[model]\nfile = "m.onnx"\ninputs = { x = ["u", "v"], labels = "label" }\n'
        '[columns.label]\ncategories = ["no", "yes"]\n[local]\nbatch = 2\nsteps = 1\noptimizer = "sgd"\n'
    )

    def check(*files):
        code = "from edge_attention.cli.entry import main; main()"
        command = [sys.executable, "-c", code, "data", "check", *(str(tmp_path / f) for f in files)]
        command += ["--job", str(tmp_path / "job.toml"), "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = check("good.csv")
    assert done.returncode == 0, done.stderr
    done = check("good.csv", "bad.csv")
    assert done.returncode == 1, done.stderr
    good, bad = json.loads(done.stdout)["job"]
    assert not [why for one in good for why in one["refused"]]
    assert [why for one in bad for why in one["refused"]] == [
        "column 'v' is not there",
        "column 'label': 1 row has a value that is none of the job's categories, the first in line 2",
    ]
    assert "perhaps" not in done.stdout
