"""Every command of the three programs that click knows: its help, its JSON, and one wrong use of it.

A command that has no example here fails: `EXAMPLES` is compared with what the programs have.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from click.testing import CliRunner
from full_fake import FullFake, small_model

from aggregator.main import main as aggregator
from aggregator.store.state import State
from aggregator.trust.authority import Authority, folder_of
from aggregator.trust.registry import CertificateRow, Registry
from edge_attention.cli import main as cli_main
from edge_attention.client.sync import Context
from edge_attention.core.messages.attention import Segment
from edge_attention.core.messages.training import RunState
from edge_attention.demo.show import conclude
from edge_node.main import main as node

ROOT = Path(__file__).parents[2]
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
BOXES = '[aggregator]\nlink = "1gbe"\n[[box]]\nname = "b"\ngflops = 1\nmemory_mb = 100\nlink = "1gbe"\n'
SIZES = ("--query-heads", "4", "--key-heads", "2", "--key-dim", "8")


@dataclass(frozen=True)
class Example:
    """What is seen of a command.

    Attributes:
        wrong: arguments that are none for it; "": there are none.
        says: what is then printed on stderr, or a part of it.
        code: with which it ends; 2 for what click itself finds, 1 for an error of the catalogue.
        json: arguments with which it prints JSON; or, of what needs more than is here, the test in which that
            is seen. None: it prints nothing that a program would read, and has no such option.
    """

    wrong: str
    says: str
    code: int = 2
    json: str | Path | None = None


def seen(path: str) -> Path:
    return ROOT / "tests" / path


HERE = seen("client/test_every_command.py")
MORE = "Got unexpected extra argument (more)"
EXAMPLES = {
    "edge-attention": Example("nothing", "No such command 'nothing'"),
    "edge-attention attend": Example(
        "memory", "give either --queries FILE.npy or --random N", json="memory --random 2"
    ),
    "edge-attention contexts": Example("nothing", "No such command 'nothing'", json=""),
    "edge-attention contexts append": Example(
        "memory m.onnx", "m.onnx cannot be read: it is not an .npz file", 1, "memory tokens.npz --node a"
    ),
    "edge-attention contexts append-dataset": Example(
        "memory a d m.onnx --input x", "'x' is not INPUT=COLUMN", json="memory a d m.onnx --input x=f"
    ),
    "edge-attention contexts create": Example(
        "c --query-heads 4 --key-heads 3 --key-dim 8",
        "3 key heads do not divide 4 query heads",
        1,
        " ".join(("other", *SIZES)),
    ),
    "edge-attention contexts describe": Example("none", "no context 'none'", 1, "memory"),
    "edge-attention contexts drop": Example("none", "no context 'none'", 1, "memory"),
    "edge-attention contexts export": Example(
        "memory /no/such/folder/file",
        "/no/such/folder/file cannot be written: No such file",
        1,
        "memory kept.safetensors",
    ),
    "edge-attention contexts import": Example(
        "m.onnx", "m.onnx is no safetensors file", 1, "exported.safetensors again"
    ),
    "edge-attention contexts list": Example("more", MORE, json=""),
    "edge-attention contexts repair": Example(
        "memory --timeout 0", "'--timeout': 0.0 is not in", json="memory"
    ),
    "edge-attention contexts trim": Example(
        "memory 5", "'5' is not START:STOP, as 0:1000", json="memory 0:5"
    ),
    "edge-attention data": Example("nothing", "No such command 'nothing'"),
    "edge-attention data check": Example("rows.csv --job job.toml", "--part is one of a", json="rows.csv"),
    "edge-attention demo": Example("--nothing", "No such option", json=seen("test_readme.py")),
    "edge-attention demo federated": Example("more", MORE, json=HERE),
    "edge-attention demo generate": Example("more", MORE, json=HERE),
    "edge-attention demo infer": Example("--weights none.whl", "File 'none.whl' does not exist", json=HERE),
    "edge-attention deploy": Example(
        "m.onnx --name x --dimensions batch",
        "'batch' is not NAME=SIZE, as sequence=128",
        json="m.onnx --name new",
    ),
    "edge-attention doctor": Example("--queries 0", "'--queries': 0 is not in the range", json="--idle 0"),
    "edge-attention enrol": Example(
        "", "give the join token: --token eaj_..., or --token-file FILE", json="--token TOKEN --identity kept"
    ),
    "edge-attention ensemble": Example("nothing", "No such command 'nothing'"),
    "edge-attention ensemble deploy": Example(
        "none.toml --name e", "File 'none.toml' does not exist", json="job.toml --name e"
    ),
    "edge-attention ensemble infer": Example(
        "e --input x", "'x' is neither INPUT=FILE.npy nor FILE.npz", json="e --input x=x.npy"
    ),
    "edge-attention ensemble list": Example("more", MORE, json=""),
    "edge-attention ensemble undeploy": Example("none", "there is no ensemble 'none'; there are: e", 1, "e"),
    "edge-attention generate": Example("m", "give a PROMPT, or --ids; one of both", json="m text"),
    "edge-attention infer": Example(
        "m --input x", "'x' is neither INPUT=FILE.npy nor FILE.npz", json="m --input x=x.npy"
    ),
    "edge-attention models": Example("none", "no model 'none' is deployed; deployed here: m", 1, ""),
    "edge-attention nodes": Example("nothing", "No such command 'nothing'", json=""),
    "edge-attention nodes forget": Example("b", "no node 'b'; nodes seen: a", 1, "a"),
    "edge-attention nodes list": Example("more", MORE, json=""),
    "edge-attention parameters": Example(
        "r1 --best --version 2", "give --version or --best, not both", json="r1"
    ),
    "edge-attention plan": Example(
        "m.onnx", "say which boxes there are: --boxes boxes.toml", json=seen("client/test_plan_command.py")
    ),
    "edge-attention predict": Example(
        "r1", "give rows with --input or --rows, or samples with --id or --ids", json="r1 --input x=x.npy"
    ),
    "edge-attention runs": Example("nothing", "No such command 'nothing'", json=""),
    "edge-attention runs delete": Example("none", "there is no run 'none'", 1, "r1"),
    "edge-attention runs list": Example("more", MORE, json=""),
    "edge-attention simulate": Example(
        "job.toml --data rows.csv", "job.toml is no federated job", 1, seen("e2e/test_simulation.py")
    ),
    "edge-attention train": Example("", "give one of: JOB.toml, JOB.toml --plan", json="job.toml"),
    "edge-attention train delete": Example("none", "there is no run 'none'", 1, "r1"),
    "edge-attention train export": Example(
        "r1", "give --onnx FILE, --parameters FILE, or both", json="r1 --onnx trained.onnx"
    ),
    "edge-attention train list": Example("more", MORE, json=""),
    "edge-attention train resume": Example(
        "r1 --detach --watch", "--detach and following (--watch, --record) exclude each other", json="r1"
    ),
    "edge-attention train stop": Example("none", "there is no run 'none'", 1, "r1"),
    "edge-attention train watch": Example("none", "there is no run 'none'", 1, "r1"),
    "edge-attention undeploy": Example("none", "no model 'none' is deployed; deployed here: m", 1, "m"),
    "edge-attention up": Example("--data x", "'x' is not NAME=FILE", json=seen("client/test_local_fleet.py")),
    "edge-aggregator": Example("--lease 0", "'--lease': 0.0 is not in the range"),
    "edge-aggregator backup": Example(
        "copy", "give the aggregator's state folder: --state DIR", json="copy --state state"
    ),
    "edge-aggregator certificate": Example("nothing", "No such command 'nothing'"),
    "edge-aggregator certificate list": Example(
        "--state none", "is not the state folder of an aggregator with TLS", 1, "--state state"
    ),
    "edge-aggregator certificate revoke": Example(
        "none --state state", "no certificate was issued for 'none'", 1, "clinic --state state"
    ),
    "edge-aggregator restore": Example("none", "Directory 'none' does not exist", json="saved --state new"),
    "edge-aggregator token": Example("nothing", "No such command 'nothing'"),
    "edge-aggregator token create": Example(
        "--uses 2 --unlimited", "--uses and --unlimited exclude each other", json="--state state"
    ),
    "edge-aggregator token list": Example(
        "", "give the aggregator's state folder: --state DIR", json="--state state"
    ),
    "edge-aggregator token revoke": Example(
        "none --state state", "there is no token 'none'", 1, "TOKEN --state state"
    ),
    "edge-node": Example("--memory-limit lots", "'lots' is not a size: write bytes, or a number with kB"),
}
PROGRAMS = {"edge-attention": cli_main.cli, "edge-aggregator": aggregator, "edge-node": node}


def commands():
    """Every command by its words: the programs, what they list, and what that has of its own."""

    def walk(words, command):
        yield words, command
        below = getattr(command, "commands", {})
        if isinstance(command, click.Group):
            context = click.Context(command)
            below = {name: command.get_command(context, name) for name in command.list_commands(context)}
        for name, sub in below.items():
            yield from walk(f"{words} {name}", sub)

    for program, command in PROGRAMS.items():
        yield from walk(program, command)


COMMANDS = dict(commands())
JSON = [words for words, example in EXAMPLES.items() if isinstance(example.json, str)]


@pytest.fixture
def fake():
    return FullFake()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with what the examples name."""
    monkeypatch.chdir(tmp_path)
    for name in [
        name for name in os.environ if name.startswith(("EDGE_ATTENTION_", "EDGE_AGGREGATOR_", "EDGE_NODE_"))
    ]:
        monkeypatch.delenv(name)
    Path("m.onnx").write_bytes(small_model())
    Path("job.toml").write_text(JOB)
    Path("rows.csv").write_text("id,f,y\n1,0.5,0\n2,1.5,1\n")
    tokens = np.ones((10, 2, 8), np.float32)
    np.savez("tokens.npz", keys=tokens, values=tokens)
    np.save("x.npy", np.ones((1, 8), np.float32))
    return tmp_path


@pytest.fixture
def run(here, address, capsys, monkeypatch):
    """Runs a command; (exit code, stdout, stderr)."""

    def invoke(words, *arguments):
        program, *names = words.split()
        if program != "edge-attention":
            done = CliRunner().invoke(PROGRAMS[program], [*names, *arguments])
            return done.exit_code, done.stdout, done.stderr
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["edge-attention", "--aggregator", address, *names, *arguments])
        with pytest.raises(SystemExit) as end:
            cli_main.main()
        return end.value.code, *capsys.readouterr()

    return invoke


@pytest.fixture
def memory(run):
    """A context of ten tokens, and an exported one."""
    assert run("edge-attention contexts create", "memory", *SIZES)[0] == 0
    assert run("edge-attention contexts append", "memory", "tokens.npz", "--node", "a")[0] == 0
    assert run("edge-attention contexts export", "memory", "exported.safetensors")[0] == 0


@pytest.fixture
def kept(here):
    """A state folder with trust, its backup, and the id of a token."""
    State(here / "state").close()
    folder = folder_of(here / "state")
    Authority.open(folder)
    registry = Registry(folder)
    token = registry.create_token("join", "node", "pin", 1.0, name="clinic", uses=1, expires=None)
    registry.close()
    runner = CliRunner()
    assert runner.invoke(aggregator, ["backup", "saved", "--state", "state"]).exit_code == 0
    return token.id


def objects(text):
    """The JSON values that are printed one after the other, and nothing besides."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def test_every_command_has_an_example_and_there_are_no_others():
    assert set(COMMANDS) == set(EXAMPLES)
    assert len(EXAMPLES) > 55


@pytest.mark.parametrize("words", EXAMPLES)
def test_its_help_says_what_it_is_and_each_of_its_options(run, words):
    code, out, _ = run(words, "--help")
    assert code == 0
    assert out.startswith("Usage: ")
    assert (COMMANDS[words].help or "").split("\n")[0].split(". ")[0].split()[0] in out
    listed = set(re.findall(r"--[a-z][a-z-]+", out))
    for option in COMMANDS[words].params:
        if isinstance(option, click.Option):
            assert max(option.opts, key=len) in listed
            assert option.help or option.name in ("query_heads", "key_dim", "log_level", "encoding"), option


@pytest.mark.parametrize("words", EXAMPLES)
def test_a_wrong_use_is_one_error_that_says_what_to_do(run, memory, kept, words):
    example = EXAMPLES[words]
    code, out, err = run(words, *example.wrong.split())
    assert (code, out) == (example.code, "")
    assert example.says in " ".join(err.split())
    assert "Traceback" not in err
    if code == 1:
        assert err.count("\n") == 1
        assert err.startswith(f"{words.split()[0]}: ")


TAKES_JSON = [
    words
    for words, command in COMMANDS.items()
    if any("--json" in one.opts and one.is_flag for one in command.params if isinstance(one, click.Option))
]


@pytest.mark.parametrize("words", TAKES_JSON)
def test_a_wrong_use_is_an_object_for_programs(run, memory, kept, words):
    example = EXAMPLES[words]
    _, _, told = run(words, *example.wrong.split())
    code, out, err = run(words, *example.wrong.split(), "--json")
    assert code == example.code
    assert err == told
    assert out.count("\n") == 1
    error = json.loads(out)["error"]
    assert set(error) == {"name", "status", "message", "retry_after"}
    assert error["message"] in err
    assert (error["name"] == "UsageError") is (code == 2)


def test_what_failed_before_is_not_said_of_the_next_command(run):
    assert run("edge-attention contexts describe", "none", "--json")[1]
    assert run("edge-attention contexts describe", "none")[1] == ""


def test_a_group_s_json_is_its_command_s(run, memory):
    for words in ("contexts", "nodes", "runs"):
        assert run(f"edge-attention {words}", "--json", "list") == run(
            f"edge-attention {words} list", "--json"
        )
    assert run("edge-attention runs", "--json", "delete", "none") == run(
        "edge-attention runs delete", "none", "--json"
    )


def test_the_rest_of_what_fails_is_an_object_too(run, memory, monkeypatch):
    """A defect; and where the variable and not the option says --json."""
    monkeypatch.setenv("EDGE_ATTENTION_CONTEXTS_DESCRIBE_JSON", "1")
    name = json.loads(run("edge-attention contexts describe", "none")[1])["error"]["name"]
    assert name == "NotFound"

    def broken(*_):
        raise ZeroDivisionError("no")

    monkeypatch.setattr("edge_attention.cli.nodes.connect", broken)
    code, out, _ = run("edge-attention nodes", "--json")
    assert (code, json.loads(out)["error"]["status"]) == (1, "INTERNAL")


@pytest.mark.parametrize("words", JSON)
def test_its_json_is_all_that_it_prints(run, memory, kept, fake, monkeypatch, words):
    if words.endswith("train resume"):
        fake.end = replace(fake.end, state=RunState.STOPPED)
    if words.endswith("enrol"):
        made = SimpleNamespace(role="user", name="alice", certificate=None)
        monkeypatch.setattr("edge_attention.cli.enrol.enrol_client", lambda *given: made)
        monkeypatch.setattr("edge_attention.cli.enrol.ends", lambda certificate: 1e9)
    if words.endswith("certificate revoke"):
        enrolled(Path("state"), "clinic")
    arguments = [kept if one == "TOKEN" else one for one in EXAMPLES[words].json.split()]
    code, out, err = run(words, *arguments, "--json")
    # What the doctor thinks of this machine is not asked here.
    assert code == 0 or words.endswith("doctor"), err
    assert objects(out), out
    assert err == "" or words.endswith("doctor")


def test_a_demo_s_figures_are_json(tmp_path):
    figures = SimpleNamespace(to_json=lambda: {"seconds": 1.0}, failures=list, seconds=1.0)
    conclude(figures, tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text()) == {"seconds": 1.0}
    for words in ("", " federated", " generate", " infer"):
        (option,) = (one for one in COMMANDS[f"edge-attention demo{words}"].params if one.name == "json_file")
        assert option.metavar == "FILE"


def enrolled(state, name):
    """Has a certificate of a node in the registry of trust."""
    registry = Registry(folder_of(state))
    row = CertificateRow("1", "node", name, "key", "t", 1.0, 4e9, None, b"")
    with registry._transaction():
        registry._insert(row, 1.0)
    registry.close()


@pytest.mark.parametrize("words", EXAMPLES)
def test_who_has_no_json_prints_nothing_for_programs(words):
    has = any("--json" in parameter.opts for parameter in COMMANDS[words].params)
    shown = EXAMPLES[words].json
    assert has is (shown is not None)
    only_a_name = isinstance(COMMANDS[words], click.Group) and not COMMANDS[words].invoke_without_command
    assert has or only_a_name or words in PROGRAMS
    if isinstance(shown, Path):
        assert "json" in shown.read_text(encoding="utf-8"), "where its JSON is seen"


WRONG = {
    "attend memory --random four": (2, "'--random': 'four' is not a whole number."),
    "attend memory --random 1 --deadline soon": (2, "'--deadline': 'soon' is not a number."),
    "attend memory --random 1 --output no/such/out.npz": (
        1,
        "edge-attention: --output no/such/out.npz cannot be written: No such file or directory",
    ),
    "attend memory --random 1 --output x.npy": (
        2,
        "'x.npy' is to be an .npz file",
    ),
    "infer m --input x=x.npy --output x.npy": (
        2,
        "'x.npy' is to be an .npz file",
    ),
    "infer m --input tokens.npz --output ./tokens.npz": (
        2,
        "'tokens.npz' has an input; give the answer another name",
    ),
    "deploy words.bin --name x": (1, "edge-attention: words.bin: model.onnx: not an ONNX file"),
    "infer m --input x=x.npy --input x=x.npy": (2, "'x' is given twice; give it once"),
    "deploy m.onnx --name x --dimensions a=2 --dimensions a=3": (2, "'a' is given twice; give it one size"),
    "deploy m.onnx --name x --dimensions a=\N{SUPERSCRIPT TWO}": (2, "is not NAME=SIZE, as sequence=128"),
    "deploy m.onnx --name x --nodes=": (2, "it names none; leave it out for all that are here"),
    "up --data r=rows.csv --data r=rows.csv": (2, "is given 'r' twice; give it one file"),
    "contexts trim memory \N{SUPERSCRIPT TWO}:9": (2, "is not START:STOP, as 0:1000"),
    "contexts trim memory 5:0": (2, "'5:0' is not START:STOP, as 0:1000, the lower one first"),
    "train job.toml --record no/such/rounds.jsonl": (
        1,
        "edge-attention: --record no/such/rounds.jsonl cannot be written: No such file or directory",
    ),
    "train folder": (2, "File 'folder' is a directory."),
    "train empty.toml": (
        1,
        "empty.toml is no job: it has neither encoders (a job by fusion), nor strategy (a federated one)",
    ),
    "predict r1 --ids empty.toml": (1, "--ids empty.toml holds no ids; write one a line"),
    "predict r1 --ids bytes": (1, "--ids bytes is no text in UTF-8; write an id a line"),
    "predict r1 --id=": (2, "Invalid value for --id: an id is not empty"),
    "data check rows.csv --part a": (2, "--part is a part of a job; give --job, too"),
    "simulate fed.toml --data rows.csv --scenario fed.toml": (
        1,
        "edge-attention: fed.toml: a scenario has no 'dataset'",
    ),
    "simulate fed.toml --data rows.csv --split column": (1, "need a column: --by COLUMN"),
    "simulate fed.toml --data d=rows.csv": (
        1,
        "d=rows.csv cannot be read: No such file or directory; give the file alone: rows.csv",
    ),
    "help": (2, "No such command 'help'; --help lists them."),
}
FEDERATED = """
dataset = "d"
rounds = 5
strategy = "fedavg"
model = { file = "m.onnx" }
local = { optimizer = { name = "sgd", lr = 0.1 }, batch = 8, steps = 2 }
"""


@pytest.mark.parametrize("words", WRONG)
def test_what_a_new_user_may_do_wrong_is_said_in_plain_words(run, memory, words):
    Path("folder").mkdir()
    Path("empty.toml").write_text("")
    Path("bytes").write_bytes(b"P1\n\xff\n")
    Path("words.bin").write_bytes(b"no model")
    Path("fed.toml").write_text(FEDERATED)
    command, *arguments = words.split()
    code, out, err = run(f"edge-attention {command}", *arguments)
    assert (code, out) == (WRONG[words][0], "")
    assert WRONG[words][1] in " ".join(err.split())
    assert "Traceback" not in err


def test_ctrl_c_in_an_append_counts_no_tokens_that_were_trimmed(run, monkeypatch, memory, fake):
    told = fake.told("memory")
    trimmed = replace(told, segments=(Segment("s0", range(4, 10), ("a",), ("a",)),))
    monkeypatch.setattr(fake, "told", lambda _: trimmed)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Context, "append", interrupted)
    code, _, err = run("edge-attention contexts append", "memory", "tokens.npz")
    assert code in (1, 130)
    assert "context memory has 6 tokens, 0 more than before" in err
