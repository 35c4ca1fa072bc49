"""What is said of a file: enough to know what a job will find, and no value of any row."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from edge_attention.tables.check import MIN_ROWS, check_file, differences, lines_of

SECRETS = ("Zebedee", "4711", "0815", "quagga")
ROWS = "".join(
    f"P{i},{i * 1.25},{'quagga' if i % 2 else 'zorilla'},Zebedee {i},{i % 2}\n" for i in range(1_100)
)
TEXT = f"id,dose,species,name,label\n{ROWS}"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(TEXT + "P4711,,quagga,Zebedee,0815\n")
    return path


def test_the_facts(file):
    check, table = check_file(str(file))
    assert (check.rows, check.ids, check.refused) == (1101, True, "")
    assert len(table.ids) == 1101
    dose, species, label = check.columns
    assert (dose.kind, dose.exactly, dose.missing, dose.row_shape) == ("numbers", ("float32",), 1, ())
    assert (dose.mean, dose.deviation) == (700, 400)  # 686.9 and 396.9
    assert (species.kind, species.words, species.mean) == ("words", 2, None)
    assert (label.kind, label.exactly) == ("whole numbers", ("float32", "int64"))
    assert check.set_aside == {"name": "text with over 1,000 distinct values"}
    assert check.decided["separator"] == "comma, by the first lines"


def test_no_value_is_said(file):
    check, _ = check_file(str(file))
    said = "\n".join(lines_of(check)) + repr(check)
    assert not [secret for secret in (*SECRETS, "zorilla", "P1") if secret in said]


@pytest.mark.parametrize(
    "text",
    [
        "id,a\nquagga,1\nquagga,2\n",
        "a,b\n4711,2\n4711,2,quagga\n",
        "id,a\nquagga,1\n,4711\n",
        'a,b\n1,2\n"quagga,4\n',
        "a\nquagga 1%\n".replace("quagga ", ""),
        "a,b\n4711,Inf\n",
    ],
)
def test_no_value_is_said_of_what_is_refused_or_set_aside(tmp_path, text):
    (tmp_path / "d.csv").write_text(text)
    said = "\n".join(lines_of(check_file(str(tmp_path / "d.csv"))[0]))
    assert not [secret for secret in (*SECRETS, "Inf") if secret in said]


def test_figures_need_many_rows_that_differ(tmp_path):
    few = "".join(f"{i},5\n" for i in range(MIN_ROWS))
    (tmp_path / "d.csv").write_text(f"a,b\n{few}")
    a, b = check_file(str(tmp_path / "d.csv"))[0].columns
    assert (a.mean, a.deviation) == (10, 6)  # 9.5 and 5.77
    assert (b.mean, b.deviation) == (None, None)  # they would tell the value of every row
    (tmp_path / "d.csv").write_text(f"a,b\n{few[: few.rindex(chr(10), 0, -1)]}\n")
    assert [c.mean for c in check_file(str(tmp_path / "d.csv"))[0].columns] == [None, None]


def test_one_row_more_or_less_is_not_to_be_told(tmp_path):
    """Of 20 rows of which 19 are known, the mean and the deviation leave the last one wide open."""
    known = np.random.default_rng(0).normal(100, 10, 19)
    told = []
    for last in np.arange(70, 130, 1.0):
        (tmp_path / "d.csv").write_text("a\n" + "".join(f"{one:.3f}\n" for one in [*known, last]))
        (column,) = check_file(str(tmp_path / "d.csv"))[0].columns
        told.append((column.mean, column.deviation))
    runs = [len(list(group)) for _, group in itertools.groupby(told)]
    assert max(runs) >= 10
    assert len(runs) <= 12


def test_whole_numbers_that_float32_does_not_hold(tmp_path):
    (tmp_path / "d.csv").write_text("a,b\n16777216,1\n-16777216,16777217\n")
    a, b = check_file(str(tmp_path / "d.csv"))[0].columns
    assert a.exactly == ("float32", "int64")
    assert b.exactly == ("int64",)


def test_what_differs(tmp_path):
    texts = {"a": "id,x,y,kind\n1,1,2,u\n", "b": "id,y,x,kind\n1,1,2,v\n", "c": "x,Y,kind\n1,2,3\n"}
    checks = []
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
        check, _ = check_file(str(tmp_path / f"{name}.csv"))
        checks.append(type(check)(**{**vars(check), "file": name}))
    assert differences(checks) == [
        "the columns are in another order in b than in a: put right by name",
        "only in a, not in c: 'y'",
        "only in c, not in a: 'Y'",
        "'kind' is words in a, whole numbers in c",
        "a is with ids, c is not",
    ]
    assert differences(checks[:1]) == []


def command(*arguments):
    code = f"from {arguments[0]} import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments[1:]], capture_output=True, text=True, timeout=60, check=False
    )


def test_on_the_command_line(file, tmp_path):
    (tmp_path / "other.csv").write_text("dose;name\n1,5;x\n")
    done = command("edge_attention.cli.entry", "data", "check", str(file), str(tmp_path / "other.csv"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  dose +numbers, 1 missing, mean about 700, deviation about 400$", done.stdout, re.M)
    assert "separator: semicolon, by the first lines" in done.stdout
    assert "between the files:" in done.stdout
    assert not [secret for secret in SECRETS if secret in done.stdout]
    done = command("edge_attention.cli.entry", "data", "check", str(file), "/nowhere.csv", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["files"][0]["columns"][0]["missing"] == 1
    assert "/nowhere.csv cannot be read" in found["files"][1]["refused"]


def test_on_the_node(file):
    done = command("edge_node.main", "--data", f"d={file}?id=", "--check-data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"d:\n{file}?id=: 1,101 rows, without ids\n")
    done = command("edge_node.main", "--data", "d=/nowhere.csv", "--check-data")
    assert done.returncode == 2
    assert "refused" in done.stdout
    assert command("edge_node.main", "--check-data").returncode == 2
