"""The command line, in process against the fake aggregator; interruption in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

from edge_attention import failing
from edge_attention.cli import main as cli_main
from edge_attention.cli import output
from edge_attention.cli.output import print_list
from edge_attention.cli.plan import print_plan
from edge_attention.client.plans import JobPlan
from edge_attention.client.sync import Context
from edge_attention.core.errors import Unavailable
from edge_attention.core.messages import fleet
from edge_attention.core.messages.training import PlannedGraph, PlanRunResponse, RunState

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
    code, _, err = run("attend", "memory", "--random", 3, "--require-exact")
    assert (code, err.count("\n"), "not exact" in err) == (3, 1, True)
    fake.missing = range(0)
    assert run("attend", "memory", "--random", 3, "--require-exact")[0] == 0


def test_times_of_a_divided_call_are_means(run, memory):
    told = json.loads(run("attend", "memory", "--random", 20_000, "--json")[1])
    assert told["calls"] > 1
    assert told["seconds"]["all"] == pytest.approx(0.5)
    assert f"mean of {told['calls']} calls: all 500.0" in run("attend", "memory", "--random", 20_000)[1]


def test_a_port_that_never_answers_is_given_up_at_the_deadline(run):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, _, err = run("attend", "memory", "--random", 1, "--deadline", 0.1, aggregator=address)
    assert (code, "did not answer in time" in err) == (1, True)


def test_loopback_is_not_behind_a_proxy(run, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert run("nodes", "--json")[0] == 0


def test_train(run, job, tmp_path, fake):
    fake.cut = [3]  # the aggregator goes away once in the middle
    code, out, err = run("train", job, "--record", tmp_path / "record.jsonl")
    assert (code, err) == (0, "")
    assert "waiting for node 'b', until 12:00:00" in out
    assert "waiting for the aggregator at" in out
    assert "run r1 finished after round 5" in out
    records = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [(record["run"], record["number"]) for record in records] == [("r1", n) for n in range(1, 6)]
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


def test_a_record_that_cannot_be_written_does_not_hide_the_run(run, job, tmp_path, fake):
    code, _, err = run("train", job, "--record", "/dev/full")
    assert (code, err.count("\n")) == (1, 1)
    assert "--record /dev/full cannot be written: No space" in err
    assert "run r1 goes on, watch it with: edge-attention train watch r1" in err
    fake.calls.clear()
    assert run("train", job, "--record", tmp_path / "no" / "file")[0] == 1
    assert not fake.calls  # nothing was started


def test_list_tells_waiting_from_detail(run, fake):
    fake.end = replace(fake.end, state=RunState.FAILED, detail="node 'b' stayed away")
    lines = run("train", "--list")[1].splitlines()
    assert lines[0].split("\t") == [
        "run", "state", "round", "version", "best", "what it waits for, or how it ended"
    ]  # fmt: skip
    assert lines[1].split("\t") == ["r1", "failed", "5 of 5", "5", "-", "node 'b' stayed away"]
    long = "round 3 waits for " + ", ".join(f"node-{n}" for n in range(200)) + "\nand more"
    fake.end = replace(fake.end, state=RunState.RUNNING, detail="", waiting=long, best_version=3)
    line = run("train", "--list")[1].splitlines()[1].split("\t")
    assert (len(line), line[4]) == (6, "3"), "a line a run, whatever is in it"


def test_a_list_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    print_list(("run", "what"), [("a-run-0001", "waits " * 40), ("b", "\x1b[2J")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run         what"
    assert len(lines[1]) == 60
    assert lines[1].startswith("a-run-0001  waits waits")
    assert lines[1].endswith("…")
    assert "\x1b" not in lines[2]


def test_every_option_is_an_environment_variable(run, memory, monkeypatch, tmp_path):
    def walk(command, prefix):
        for option in command.params:
            if isinstance(option, click.Option) and option.expose_value:
                flag = max(option.opts, key=len)
                yield option.envvar, f"{prefix}{flag[1:]}".upper().replace("-", "_")
        for name, sub in getattr(command, "commands", {}).items():
            yield from walk(sub, f"{prefix}_{name}")

    context = click.Context(cli_main.cli)
    found = list(walk(cli_main.cli, "EDGE_ATTENTION"))
    for name in cli_main._COMMANDS:
        found += walk(cli_main.cli.get_command(context, name), f"EDGE_ATTENTION_{name}")
    assert [have for have, _ in found] == [want for _, want in found]
    names = {have for have, _ in found}
    assert {
        "EDGE_ATTENTION_AGGREGATOR",
        "EDGE_ATTENTION_NODES_JSON",
        "EDGE_ATTENTION_DEMO_JSON",
        "EDGE_ATTENTION_CONTEXTS_APPEND_DATASET_INPUT",
    } <= names
    monkeypatch.setenv("EDGE_ATTENTION_NODES_JSON", "1")
    monkeypatch.setenv("EDGE_ATTENTION_ATTEND_RANDOM", "2")
    assert json.loads(run("nodes")[1])
    assert "exact: 2 queries" in run("attend", "memory")[1]


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
        (
            ["attend", "memory", "--random", "1", "--deadline", "-1"],
            2,
            "'--deadline': -1.0 is not in the range",
        ),
        (["attend", "memory", "--random", "1", "--deadline", "1e300"], 2, "'--deadline': 1e+300 is not in"),
        (["attend", "memory", "--random", "1", "--window", "9" * 23], 2, "'--window'"),
        (["attend", "memory", "--random", "1" + "0" * 11], 1, "--random 100000000000 is too many"),
        (["attend", "memory", "--queries", "EMPTY.npy"], 1, "not an .npy file"),
        (["contexts", "append", "memory", "EMPTY.npy"], 1, "cannot be read"),
        (["contexts", "append", "memory", "NOKEYS"], 1, "nokeys.npz has no array 'keys'; it has: a"),
        (["contexts", "append", "memory", "NAN"], 1, "nan.npz, for context 'memory': keys holds nan"),
        (
            [
                "contexts",
                "create",
                "c",
                *("--query-heads", "1", "--key-heads", "1", "--key-dim", "1"),
                "--replicas",
                "0",
            ],
            2,
            "'--replicas': 0 is not in the range",
        ),
        (["train", "BADJOB"], 1, "bad.toml: rounds is -1; it must be a whole number from 1"),
        (["train", "NOMODEL"], 1, "nomodel.toml: the model"),
        (["attend", "memory", "--queries", "JOB"], 1, "not an .npy file"),
        (["contexts", "append", "memory", "JOB"], 1, "JOB"),
        (["contexts", "append", "memory", "QUERIES"], 1, "keys"),
        (["attend", "memory", "--queries", "QUERIES"], 1, "queries: ndarray holds no plain numbers"),
        (["--token", "t", "--token-file", "JOB", "nodes"], 2, "give --token or --token-file, not both"),
        (["--token", "t", "--identity", ".", "nodes"], 2, "give --token or --identity, not both"),
        (["enrol", "--token", "t"], 2, "give a folder for the key and the certificate: --identity DIR"),
        (["train"], 2, "give one of"),
        (["train", "--list", "--stop", "r1"], 2, "give one of"),
        (["train", "--watch", "other"], 1, "no run 'other'"),
        (["train", "--list", "--aggregator"], 2, "No such option"),
        (["parameters", "r1", "--output", "/no/such/folder/p"], 1, "cannot be written"),
        (["up", "--nodes", "0"], 2, "--nodes"),
        (["up", "--data", "x"], 2, "NAME=FILE"),
        (["nothing"], 2, "No such command 'nothing'."),
        (["node"], 2, "No such command 'node' (did you mean 'nodes'?)."),
    ],
)
def test_errors_are_one_line_and_an_exit_code(run, memory, job, tmp_path, args, code, said):
    np.save(tmp_path / "q.npy", np.zeros((1, 4, 8), complex))
    np.savez(tmp_path / "nokeys.npz", a=np.zeros(1))
    tokens = np.zeros((1, 2, 8), np.float32)
    np.savez(tmp_path / "nan.npz", keys=tokens * np.nan, values=tokens)
    (tmp_path / "empty.npy").touch()
    (tmp_path / "bad.toml").write_text(JOB.replace("rounds = 5", "rounds = -1"))
    (tmp_path / "nomodel.toml").write_text(JOB.replace("m.onnx", "none.onnx"))
    files = {
        "JOB": job,
        "QUERIES": tmp_path / "q.npy",
        "EMPTY.npy": tmp_path / "empty.npy",
        "NOKEYS": tmp_path / "nokeys.npz",
        "NAN": tmp_path / "nan.npz",
        "BADJOB": tmp_path / "bad.toml",
        "NOMODEL": tmp_path / "nomodel.toml",
    }
    args = [files.get(arg, arg) for arg in args]
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


def test_an_option_that_belongs_before_the_command_is_said_to(run):
    code, _, err = run("train", "--aggregator", "x:1")
    assert code == 2
    assert "put it before the command, as in edge-attention --aggregator ... train\n" in err
    assert "before the command" not in run("train", "--nothing")[2]


def test_a_defect_is_one_line_too(run, monkeypatch):
    def broken(self):
        raise KeyError("oh")

    monkeypatch.setattr("edge_attention.client.sync.Client.nodes", broken)
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
    _, err = watching.communicate(timeout=120)
    assert watching.returncode == 130
    assert "run r1 goes on" in err
    assert "edge-attention train stop r1" in err
    assert "Traceback" not in err


def test_ctrl_c_amid_an_import_is_no_traceback():
    code = """
import os, signal, sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupted())
sys.argv = ["edge-attention", "nodes"]
from edge_attention.cli.entry import main
assert "click" not in sys.modules
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_plain_holds_no_number_json_lacks():
    assert output.plain({"a": np.float32("nan"), "b": (range(2, 5), np.arange(2)), "c": RunState.FAILED}) == {
        "a": None,
        "b": [[2, 5], [0, 1]],
        "c": "failed",
    }


@pytest.mark.parametrize("columns", [40, 200])
def test_a_table_is_paragraphs_where_its_words_do_not_fit(columns, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [(f"node-{number}", "ready", "CPUExecutionProvider", 1024, "") for number in (1, 2)]
    output.print_table(("node", "state", "provider", "threads", "datasets"), rows, title="Nodes")
    out = capsys.readouterr().out
    assert "CPUExecutionProvider" in out  # whole, however narrow
    narrow = out.splitlines() == [
        "Nodes",
        *(
            line
            for number in (1, 2)
            for line in (
                "",
                f"node      node-{number}",
                "state     ready",
                "provider  CPUExecutionProvider",
                "threads   1,024",
            )
        ),
    ]
    assert narrow is (columns == 40)


def test_the_plan_has_one_row_for_nodes_that_run_the_same(capsys):
    def graph(node, digest):
        return PlannedGraph(node, "step", digest, ("loss",), "sha256:r")

    plan = JobPlan(PlanRunResponse((*(graph(f"n{number}", "d") for number in range(6)), graph("other", "e"))))
    assert print_plan(plan, Path("job.toml"), as_json=False)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["n0,", "n1,", "n2", "and", "3", "more", "step", "d", "loss", "-", "sha256:r"] in rows
    assert ["other", "step", "e", "loss", "-", "sha256:r"] in rows
    assert ["each", "of", "n0,", "n1,", "n2,", "n3,", "n4,", "n5,", "other:"] in rows


def test_what_an_encoding_lacks_is_an_escape():
    code = """
import sys
from edge_attention import failing
def call():
    print("fix \u2192 \u00e9")
sys.exit(failing.run(call, "edge-attention", [], traceback=True))
"""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (0, b"fix \\u2192 \\xe9\n")


@pytest.mark.parametrize("command", [("nodes",), ("doctor",)])
def test_what_a_node_says_of_itself_is_not_obeyed_by_the_terminal(run, fake, monkeypatch, command):
    said = "CPU\x1b]0;pwned\x07\x9b2J\nb  ready"
    honest = fleet.Node("a", fleet.NodeState.READY, "CPU", 2, 2**30, 0, (), 0.1, "0.1.0", 0, ())

    def nodes(client):
        return (replace(honest, provider=said, software=said),)

    monkeypatch.setattr("edge_attention.client.sync.Client.nodes", nodes)
    _, out, err = run(*command)
    printed = (out + err).replace("\n", "")
    assert printed.isprintable(), repr(printed)
    assert command != ("nodes",) or "CPU\\x1b]0;pwned\\x07\\x9b2J\\nb  ready" in out


def test_what_a_terminal_would_obey_is_escaped_in_every_way_of_printing(capsys):
    bad = "a\x1b[31m\x00\x7f\x85\r\tb"
    output.say(bad, "second\nline")
    output.say_on(f"{bad}\n")
    output.print_table(("of", "what"), [(bad, 1)], title=bad)
    failing.say_error(f"{bad}\nedge-attention: another")
    out, err = capsys.readouterr()
    assert (out + err).replace("\n", "").isprintable()
    good = r"a\x1b[31m\x00\x7f\x85\r\tb"
    assert out.splitlines()[:3] == [good, r"second\nline", good]
    assert out.count(good) == 4
    assert err == f"{good}\n    edge-attention: another\n"


def test_every_command_prints_through_what_escapes():
    """`click.echo` is for cli/output.py alone."""
    folder = Path(output.__file__).parent
    assert [p.name for p in sorted(folder.glob("*.py")) if "click.echo(" in p.read_text()] == ["output.py"]


def test_ctrl_c_in_an_append_stays_ctrl_c_where_nobody_answers_any_more(run, monkeypatch, tmp_path, client):
    client.create_context("memory", query_heads=4, key_heads=2, key_dim=16, value_dim=8)
    np.savez(tmp_path / "t.npz", keys=np.ones((3, 2, 16), np.float32), values=np.ones((3, 2, 8), np.float32))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def nobody(*_, **__):
        raise Unavailable("nobody answers")

    monkeypatch.setattr(Context, "append", interrupted)
    monkeypatch.setattr(Context, "describe", nobody)
    code, out, err = run("contexts", "append", "memory", tmp_path / "t.npz")
    assert code in (1, 130)
    assert "nobody answers" not in out + err


DAEMON = "import sys; from {0} import main; sys.argv = [{1!r}, '--help']; main()"
TABLE = """
import sys
from edge_attention import failing
from edge_attention.cli.output import print_table
table = lambda: print_table(("node", "state"), [("a", "ready")] * 10_000)
sys.exit(failing.run(table, "edge-attention", [], traceback=True))
"""


@pytest.mark.parametrize(
    "what",
    [
        ["-m", "edge_attention.cli.entry", "--help"],
        ["-c", TABLE],
        ["-c", DAEMON.format("edge_node.main", "edge-node")],
        ["-c", DAEMON.format("aggregator.main", "edge-aggregator")],
    ],
    ids=["help", "table", "edge-node", "edge-aggregator"],
)
def test_nobody_reads_what_is_printed(what):
    """A pipe whose reader has gone, and a stdout that was closed before it began: no error, and no words."""
    for closed in (False, True):
        reads, writes = os.pipe()
        os.close(reads)
        command = [sys.executable, *what]
        begin = (lambda: os.close(1)) if closed else None
        done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, preexec_fn=begin, timeout=120)
        os.close(writes)
        assert (done.returncode, done.stderr) == (0, b""), closed
