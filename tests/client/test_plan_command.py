"""`edge-attention plan` on a model's file: a table, JSON, a file, and errors that say what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest

from edge_attention.cli import main as cli_main
from edge_attention.core.placement.cuts.plan_toml import loads_toml
from edge_attention.core.schedule.saved_plan import loads_plan
from edge_attention.graphs.axes.annotation import read_annotation
from edge_attention.graphs.axes.cut import analyse
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.jobs.boxes_file import read_boxes

MODEL = Path(__file__).parents[1] / "graphs" / "axes" / "exports" / "bert.onnx"
BOXES = """
[aggregator]
link = "1gbe"
[[box]]
name = "b"
gflops = 0.005
memory_mb = 100
link = "1gbe"
count = 3
"""


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs `edge-attention plan`, nobody at the aggregator's address; (exit code, stdout, stderr)."""
    (tmp_path / "boxes.toml").write_text(BOXES)
    monkeypatch.chdir(tmp_path)

    def invoke(*args):
        monkeypatch.setattr(sys, "argv", ["edge-attention", "plan", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli_main.main()
        return end.value.code, *capsys.readouterr()

    return invoke


def test_a_table_and_the_reason(run):
    code, out, err = run(MODEL, "--boxes", "boxes.toml", "--length", 16)
    assert code == 0, err
    assert "bert.onnx over 3 boxes (batch 1, sequence 16)" in out
    assert "one box would take" in out
    assert "part 0" in out


def test_json_has_the_chosen_one_and_the_rejected(run):
    code, out, _ = run(MODEL, "--boxes", "boxes.toml", "--length", 16, "--in-flight", 3, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["dimensions"] == {"batch": 1, "sequence": 16}
    assert found["chosen"]["requests_a_second"] >= max(p["requests_a_second"] for p in found["rejected"])
    assert found["one_box"]["trips"] == 1
    assert len(found["rejected"]) > 5


@pytest.mark.parametrize("family", ["tokens", "heads", "layers", "replicate"])
def test_a_family_and_a_file_of_the_plan(run, family, tmp_path):
    args = (MODEL, "--boxes", "boxes.toml", "--length", 16, "--plan", family)
    code, out, err = run(*args, "--out", "plan.toml")
    assert code == 0, err
    assert "written to plan.toml" in out
    plan, holders = loads_toml((tmp_path / "plan.toml").read_text())
    assert {name for names in holders.values() for name in names} <= {"b-1", "b-2", "b-3"}
    assert run(*args, "--out", "plan.json")[0] == 0
    assert loads_plan((tmp_path / "plan.json").read_text()) == plan
    assert run(*args, "--out", "plan.onnx")[0] == 0
    annotated = onnx.load(tmp_path / "plan.onnx")
    axes = analyse(open_model(MODEL), {"batch": 1, "sequence": 16})
    assert read_annotation(annotated, axes) == plan


def test_the_template_is_printed(run, tmp_path):
    code, out, _ = run("--template")
    assert code == 0
    (tmp_path / "t.toml").write_text(out)
    assert read_boxes(tmp_path / "t.toml")[0]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "--template"),
        ((MODEL,), 2, "--boxes boxes.toml"),
        ((MODEL, "--boxes", "boxes.toml", "--dimensions", "width=3"), 1, "it has batch, sequence"),
        ((MODEL, "--boxes", "boxes.toml", "--dimensions", "width"), 2, "NAME=SIZE"),
        ((MODEL, "--boxes", "boxes.toml", "--length", 16, "--out", "plan.yaml"), 2, ".toml"),
        ((MODEL, "--boxes", "small.toml", "--length", 16), 1, "nothing fits"),
        ((MODEL, "--boxes", "wrong.toml"), 1, "wrong.toml, line 3: "),
        (("wrong.onnx", "--boxes", "boxes.toml"), 1, "wrong.onnx"),
    ],
)
def test_what_is_wrong_is_said(run, tmp_path, args, code, says):
    (tmp_path / "small.toml").write_text(BOXES.replace("memory_mb = 100", "memory_mb = 0.001"))
    (tmp_path / "wrong.toml").write_text("[[box]]\nname = 'a'\nkind = 'pi0'\n")
    (tmp_path / "wrong.onnx").write_bytes(b"no model")
    found, _, err = run(*args)
    assert found == code, err
    assert says in err


def test_a_job_is_planned_by_the_aggregator(run, tmp_path):
    (tmp_path / "job.toml").write_text("rounds = 1\n")
    code, _, err = run("job.toml")
    assert code == 1
    assert "job.toml" in err
