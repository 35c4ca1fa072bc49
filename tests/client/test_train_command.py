"""`edge-attention train` on federated jobs: its commands, its table, its lines."""

import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from edge_attention.cli import main as cli_main
from edge_attention.cli import watch
from edge_attention.cli.run_table import RunTable
from edge_attention.core.messages.training import FederatedJob, RunState

JOB = """
dataset = "d"
rounds = 5
strategy = { name = "fedavg" }
model = { file = "m.onnx" }
local = { optimizer = { name = "sgd", lr = 0.1 }, batch = 8, steps = 2 }
"""


@pytest.fixture
def fake(fake):
    fake.federated = True
    return fake


@pytest.fixture
def run(address, capsys, monkeypatch):
    """Runs `train` with arguments; (exit code, stdout, stderr)."""

    def invoke(*args):
        capsys.readouterr()
        monkeypatch.setattr(
            sys, "argv", ["edge-attention", "--aggregator", address, "train", *map(str, args)]
        )
        with pytest.raises(SystemExit) as end:
            cli_main.main()
        return end.value.code, *capsys.readouterr()

    return invoke


@pytest.fixture
def job(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"model")
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


def test_a_federated_job_is_started_and_followed(run, job, fake):
    code, out, err = run(job)
    assert (code, err) == (0, "")
    assert "waiting for node 'b', until 12:00:00" in out
    assert "round 5: held-out loss 0.2500, correct 43 of 50 (86.0%)" in out
    assert "run r1 finished after round 5" in out
    assert any(isinstance(call[1], FederatedJob) for call in fake.calls if call[0] == "start")


def test_where_stdout_is_no_terminal_the_table_is_lines(run, job, tmp_path):
    for args in ([job, "--watch"], ["watch", "job"], ["--watch", "job"]):
        code, out, _ = run(*args, "--record", tmp_path / "record.jsonl")
        assert code == 0
        lines = out.splitlines()
        assert "round 1 of 5: loss 1.0000, version 1, 0.10 s, 2 nodes" in lines
        assert "waiting for node 'b', until 12:00:00" in lines
        assert "round 5: without b: the deadline of 2 s passed" in lines
    assert len((tmp_path / "record.jsonl").read_text().splitlines()) == 15


def test_a_wait_that_only_counts_on_is_no_news(fake):
    waits = watch._Waits()

    def news(sentence):
        return waits.news(replace(fake.run(), waiting=sentence))

    first = "round 4 waits for edge-3: 12 of 40 chunks, idle 4.2 s, leaves it out in 6 s"
    assert news(first) == [first]
    assert news("round 4 waits for edge-3: 13 of 40 chunks, idle 0.1 s, leaves it out in 5 s") == []
    assert news("round 4 waits for edge-2: 13 of 40 chunks, idle 0.1 s, leaves it out in 5 s") != []
    assert news("") == []
    assert news("node 'b', until 12:00:00") == ["waiting for node 'b', until 12:00:00"]
    assert news("node 'b', until 12:00:00") == []


def test_each_note_is_a_line(fake, capsys):
    """They were one, with line feeds shown as escapes."""
    told = replace(fake.run(), notes=("layers 0-1 on a", "layers 2-3 on b"))
    run = SimpleNamespace(id="r-1", info=told, events=lambda after: iter([told]))
    watch._follow_lines(run, None, 0)
    assert {"note: layers 0-1 on a", "note: layers 2-3 on b"} < set(capsys.readouterr().out.splitlines())


def test_in_a_terminal_it_is_a_table(address):
    command = [
        sys.executable,
        "-m",
        "edge_attention.cli.main",
        "--aggregator",
        address,
        "train",
        "watch",
        "job",
    ]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    shown = b""
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as watching:
        os.close(theirs)
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
            if not data:
                break
            shown += data
    os.close(ours)
    text = shown.decode()
    assert watching.returncode == 0, text
    assert "held out, after round 5: loss 0.2500, correct 43 of 50 (86.0%)" in text
    assert "left out: the deadline of 2 s passed" in text
    assert "run r1 finished after round 5, version 5" in text


def drawn(table):
    console = Console(file=io.StringIO(), width=110)
    console.print(table)
    return console.file.getvalue()


def test_the_table_shows_what_nodes_do_and_did(fake):
    table = RunTable(fake.run())
    assert "run r1 (job): running, round 0 of 5" in drawn(table)
    table.hear(fake.round(1))
    head, *rows = [line for line in drawn(table).splitlines() if line.split()[0] in ("node", "a", "b")]
    assert head.split() == ["node", "state", "samples", "steps", "loss", "seconds", "behind", "up"]
    assert rows[0].split() == ["a", "done", "64", "2", "1.0000", "0.05", "0", "4.0", "KiB"]
    table.hear(replace(fake.run(), waiting="node 'c'", nodes={"a": "done", "c": "12 of 40 [chunks]"}))
    text = drawn(table)
    assert "waiting for node 'c'" in text
    assert "12 of 40 [chunks]" in text
    assert "consensus: global 0.125" in text
    table.hear(replace(fake.run(RunState.STOPPED), round=5))
    table.hear(fake.round(5))
    text = drawn(table)
    assert "stopped, round 5 of 5, version 5" in text
    assert "left out: the deadline of 2 s passed" in text
    assert "12 of 40" not in text


def test_the_table_shows_the_latest_notes(fake):
    table = RunTable(replace(fake.run(), notes=("first",)))
    assert "note: first" in drawn(table)
    table.hear(replace(fake.run(), notes=tuple(f"note {number} of five" for number in range(5))))
    text = drawn(table)
    assert "note: note 4 of five" in text
    assert "note 1 of five" not in text
    assert "and 2 earlier notes: edge-attention train list --json" in text


def test_the_table_of_a_fusion_run_shows_masses(fake):
    fake.federated = False
    table = RunTable(fake.run())
    table.hear(fake.round(1))
    head, row = [line.split() for line in drawn(table).splitlines() if line.split()[0] in ("node", "a")]
    assert (head, row) == (["node", "state", "mass"], ["a", "done", "100.0%"])


def test_detach_starts_without_following(run, job, fake):
    code, out, _ = run(job, "--detach")
    assert code == 0
    assert "edge-attention train watch r1" in out
    assert "edge-attention train stop r1" in out
    assert not any(call[0] == "watch" for call in fake.calls)
    assert json.loads(run(job, "--detach", "--json")[1])["id"] == "r1"


def test_stop_list_and_resume(run, fake):
    code, out, _ = run("stop", "job")
    assert (code, "run r1 is stopped" in out, "train resume r1" in out) == (0, True, True)
    assert json.loads(run("stop", "job", "--json")[1])["state"] == "stopped"
    assert json.loads(run("list", "--json")[1])[0]["id"] == "r1"
    assert "r1" in run("list")[1]
    assert run("resume", "job")[0] == 1
    fake.end = replace(fake.end, state=RunState.STOPPED)
    code, out, _ = run("resume", "job", "--watch")
    assert code == 0
    assert ("round 3 of 5" in out, "round 4 of 5" in out) == (False, True)
    assert ("watch", 3) in fake.calls


def test_export(run, fake, tmp_path):
    code, out, _ = run("export", "job", "--onnx", tmp_path / "m.onnx", "--version", "2")
    assert (code, out) == (0, f"wrote version 2 of run r1 to {tmp_path}/m.onnx\n")
    assert (tmp_path / "m.onnx").read_bytes() == fake.trained
    files = ["--onnx", tmp_path / "m.onnx", "--parameters", tmp_path / "p.safetensors"]
    assert json.loads(run("export", "job", *files, "--json")[1]) == {
        "run": "r1",
        "version": 5,
        "files": [str(tmp_path / "m.onnx"), str(tmp_path / "p.safetensors")],
    }
    assert (tmp_path / "p.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["stop"], 2, "Missing argument 'RUN'"),
        (["stop", "other"], 1, "no run 'other'"),
        (["export", "job"], 2, "give --onnx FILE, --parameters FILE, or both"),
        (["export", "job", "--onnx", "m", "--parameters", "m"], 2, "give each a file of its own"),
        (["export", "job", "--onnx", "/no/such/folder/m"], 1, "cannot be written"),
        (["none.toml"], 2, "File 'none.toml' does not exist"),
        (["none.toml", "--watch"], 2, "File 'none.toml' does not exist"),
        (["JOB", "--watch", "--detach"], 2, "exclude each other"),
        (["resume", "job", "--detach", "--watch"], 2, "exclude each other"),
        (["BAD"], 1, "bad.toml: local.batch is 0; it must be a whole number from 1"),
    ],
)
def test_errors(run, job, args, code, said):
    bad = job.with_name("bad.toml")
    bad.write_text(JOB.replace("batch = 8", "batch = 0"))
    got, _, err = run(*({"JOB": job, "BAD": bad}.get(arg, arg) for arg in args))
    assert got == code
    assert said in err


def test_help_tells_of_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    for said in ("--detach", "Commands:", "resume", "export"):
        assert said in out
    assert "Usage: edge-attention train stop [OPTIONS] RUN" in run("stop", "--help")[1]
