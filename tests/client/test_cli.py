"""The command line, in process against the fake aggregator; interruption in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from edge_attention.cli import main as cli_main
from edge_attention.cli import output
from edge_attention.core.jobs import RunState

JOB = """
rounds = 5
batch = 8
optimizer = { name = "adam", lr = 0.01 }
queries = { count = 2, heads = 4, dim = 8 }
[[encoders]]
node = "a"
dataset = "d"
model = "m.onnx"
inputs = { x = "f" }
[head]
node = "a"
dataset = "d"
model = "m.onnx"
inputs = { label = "y" }
"""


@pytest.fixture
def run(address, capsys, monkeypatch):
    """Runs the command line; (exit code, stdout, stderr)."""

    def invoke(*args, aggregator=address):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["edge-attention", "--aggregator", aggregator, *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli_main.main()
        return end.value.code, *capsys.readouterr()

    return invoke


@pytest.fixture
def job(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"model")
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


@pytest.fixture
def memory(run, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "tokens.npz",
        keys=rng.standard_normal((100, 2, 8), np.float32),
        values=rng.standard_normal((100, 2, 8), np.float32),
    )
    create = ("create", "memory", "--query-heads", 4, "--key-heads", 2, "--key-dim", 8)
    assert run("contexts", *create)[0] == 0
    code, out, _ = run("contexts", "append", "memory", tmp_path / "tokens.npz", "--node", "a")
    assert (code, "100 tokens to memory, positions 0-99, on a" in out) == (0, True)


def test_nodes(run):
    code, out, err = run("nodes")
    assert code == 0
    assert "CPU" in out
    assert not err
    assert json.loads(run("nodes", "--json")[1])[0]["state"] == "ready"


def test_contexts(run, memory):
    assert "memory" in run("contexts")[1]
    assert run("contexts", "list")[1] == run("contexts")[1]
    listed = json.loads(run("contexts", "--json")[1])
    assert listed[0]["spec"]["value_dim"] == 8
    assert listed == json.loads(run("contexts", "list", "--json")[1])
    described = json.loads(run("contexts", "describe", "memory", "--json")[1])
    assert described["tokens"] == 100
    assert described["segments"][0]["tokens"] == [0, 100]
    assert "100 tokens" in run("contexts", "describe", "memory")[1]
    assert run("contexts", "drop", "memory")[0] == 0
    assert "no contexts" in run("contexts")[1]


def test_append_dataset(run, memory, fake, job):
    args = ("contexts", "append-dataset", "memory", "a", "d", job.parent / "m.onnx", "--input", "x=f")
    assert json.loads(run(*args, "--rows", "0:3", "--json")[1])["ranges"] == [[0, 3]]
    assert fake.calls[-1][1].rows == range(3)
    assert run(*args, "--rows", "3")[0] == 2


def test_attend(run, memory, fake, tmp_path):
    code, out, _ = run("attend", "memory", "--random", 3, "--causal", "--weights")
    assert code == 0
    assert out.startswith("exact: 3 queries over memory, 100 tokens, standing on positions 0-99")
    file = tmp_path / "answer.npz"
    code, out, _ = run("attend", "memory", "--random", 3, "--output", file, "--json")
    told = json.loads(out)
    assert told["exact"] is True
    assert sum(told["mass"].values()) == pytest.approx(1, abs=1e-5)
    with np.load(file) as arrays:
        assert arrays["out"].shape == (3, 4, 8)
        assert set(arrays) == {"out", "lse", "mass.a", "mass.b"}
    fake.missing = range(60, 70)
    code, out, _ = run("attend", "memory", "--random", 3, "--deadline", 1)
    assert code == 0
    assert out.startswith("NOT EXACT")
    assert "missing: positions 60-69 on b: node 'b' is lost" in out
    assert "off by more than 1 (tight)" in out


def test_train(run, job, tmp_path, fake):
    fake.cut = [3]  # the aggregator goes away once in the middle
    code, out, err = run("train", job, "--record", tmp_path / "record.jsonl")
    assert (code, err) == (0, "")
    assert "waiting for node 'b', until 12:00:00" in out
    assert "waiting for the aggregator at" in out
    assert "run r1 finished after round 5" in out
    records = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [record["number"] for record in records] == [1, 2, 3, 4, 5]
    code, out, _ = run("train", "--watch", "job", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["number"] for line in lines[:-1]] == [1, 2, 3, 4, 5]
    assert lines[-1]["state"] == "finished"
    assert "r1" in run("train", "--list")[1]
    assert "run r1 is stopped" in run("train", "--stop", "job")[1]


def test_a_failed_run_is_an_error(run, fake):
    fake.end = replace(fake.end, state=RunState.FAILED, detail="node 'b' stayed away")
    code, _, err = run("train", "--watch", "r1")
    assert (code, err) == (1, "edge-attention: run r1 failed after round 5: node 'b' stayed away\n")


def test_plan(run, job):
    code, out, _ = run("train", job, "--plan")
    assert code == 0
    assert "edge-node --name a --allow-release fusion ..." in out
    assert "edge-node --name b --allow-release sha256:d3 ..." in out
    assert json.loads(run("train", job, "--plan", "--json")[1])["allow_release"] == {
        "a": ["fusion"],
        "b": ["sha256:d3"],
    }


def test_parameters(run, tmp_path, fake):
    code, out, _ = run("parameters", "r1")
    assert code == 0
    assert "version 5: 2 tensors, 7 numbers" in out
    told = json.loads(run("parameters", "r1", "--version", 2, "--json")[1])
    assert told["version"] == 2
    assert told["parameters"][0]["norm"] == pytest.approx(55**0.5)
    assert run("parameters", "r1", "--output", tmp_path / "p.safetensors")[0] == 0
    assert (tmp_path / "p.safetensors").stat().st_size > 28


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["attend", "nope", "--random", "1"], 1, "no context 'nope'"),
        (["attend", "memory"], 2, "give either"),
        (["attend", "memory", "--queries", "missing.npy"], 2, "does not exist"),
        (["attend", "memory", "--random", "1", "--deadline", "-1"], 1, "deadline is -1.0"),
        (["attend", "memory", "--queries", "JOB"], 1, "not an .npy file"),
        (["contexts", "append", "memory", "JOB"], 1, "JOB"),
        (["contexts", "append", "memory", "QUERIES"], 1, "keys"),
        (["attend", "memory", "--queries", "QUERIES"], 1, "queries has dtype float64"),
        (["train"], 2, "give one of"),
        (["train", "--list", "--stop", "r1"], 2, "give one of"),
        (["train", "--watch", "other"], 1, "no run 'other'"),
        (["train", "--list", "--aggregator"], 2, "No such option"),
        (["parameters", "r1", "--output", "/no/such/folder/p"], 1, "cannot be written"),
        (["up", "--nodes", "0"], 2, "--nodes"),
        (["up", "--data", "x"], 2, "NAME=FILE"),
        (["nothing"], 2, "No such command"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(run, memory, job, tmp_path, args, code, said):
    np.save(tmp_path / "q.npy", np.zeros((1, 4, 8)))
    args = [{"JOB": job, "QUERIES": tmp_path / "q.npy"}.get(arg, arg) for arg in args]
    got, _, err = run(*args)
    assert got == code
    assert said.replace("JOB", str(job)) in err
    assert "Traceback" not in err
    if code == 1:
        assert err.count("\n") == 1


def test_nobody_listens(run):
    code, _, err = run("nodes", aggregator="127.0.0.1:1")
    assert code == 1
    assert "127.0.0.1:1 cannot be reached" in err


def test_without_rich_tables_are_refused_and_json_is_not(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert run("nodes", "--json")[0] == 0
    code, _, err = run("nodes")
    assert (code, "pip install 'edge-attention[cli]'" in err) == (1, True)


def test_the_demo_without_its_extra_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(cli_main._COMMANDS, "demo", "edge_attention.no_such_module:demo")
    code, _, err = run("demo", "--json", "x")
    assert (code, "pip install 'edge-attention[demo]'" in err) == (1, True)
    assert run("--help")[0] == 0


def test_a_defect_is_one_line_too(run, monkeypatch):
    def broken(self):
        raise KeyError("oh")

    monkeypatch.setattr("edge_attention.client.Client.nodes", broken)
    code, _, err = run("nodes")
    assert (code, err.count("\n"), "a defect: KeyError" in err) == (1, 1, True)


def test_ctrl_c_ends_the_watching_only(address, fake):
    fake.end = replace(fake.end, state=RunState.RUNNING)  # so that the stream ends and is asked for again
    command = [sys.executable, "-m", "edge_attention.cli.main", "--aggregator", address]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    watching = subprocess.Popen(
        [*command, "train", "--watch", "r1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert json.loads(watching.stdout.readline())["number"] == 1
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "run r1 goes on" in err
    assert "edge-attention train --stop r1" in err
    assert "Traceback" not in err


def test_plain_holds_no_number_json_lacks():
    assert output.plain({"a": np.float32("nan"), "b": (range(2, 5), np.arange(2)), "c": RunState.FAILED}) == {
        "a": None,
        "b": [[2, 5], [0, 1]],
        "c": "failed",
    }
