"""How the doctor prints, and what it needs installed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from edge_attention.cli import doctor
from edge_attention.doctor.finding import failed, ok, skipped, warning

ROOT = Path(__file__).resolve().parents[2]

FINDINGS = [
    ok("threads", "this box", "2 threads on 4 processors"),
    skipped("clock source", "this box", "the kernel does not say"),
    warning("store", "node a", "95% full", "drop a context"),
    failed("state", "node b", "lost", "start it again"),
]


def printed(capsys, findings, problems=False):
    doctor._print(findings, problems)
    return capsys.readouterr().out


def checks():
    """The first argument of every `ok(...)`, `warning(...)`, ... there is."""
    found = set()
    for path in (ROOT / "edge_attention").rglob("*.py"):
        if "doctor" not in str(path.relative_to(ROOT)):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            makes = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if makes and node.func.id in ("ok", "warning", "failed", "skipped", "_refused") and node.args:
                assert isinstance(node.args[0], ast.Constant | ast.Name), ast.dump(node)
                if isinstance(node.args[0], ast.Constant):
                    found.add(node.args[0].value)
    return found


def test_the_page_explains_every_check_and_no_other():
    page = (ROOT / "docs" / "doctor.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`([a-z ]+)`", row)} - {"ok"}
    assert explained == checks()


def test_warnings_and_failures_are_named_last(capsys):
    out = printed(capsys, FINDINGS)
    assert out.splitlines()[-2:] == ["1 failed: state of node b", "1 warning: store of node a"]
    for word in (
        "ok",
        "WARNING",
        "FAILED",
        "2 threads on 4 processors",
        "→ drop a context",
        "the kernel does not say",
    ):
        assert word in out


def test_problems_alone(capsys):
    out = printed(capsys, FINDINGS, problems=True)
    assert "threads" not in out
    assert "→ start it again" in out
    assert printed(capsys, FINDINGS[:2], problems=True) == "all 1 checks are ok\n"


def test_without_the_package_that_draws_tables(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_rich", lambda: False)
    out = printed(capsys, FINDINGS)
    assert "WARNING node a, store: 95% full\n        -> drop a context\n" in out
    assert out.splitlines()[-2] == "1 failed: state of node b"


def test_a_box_that_is_only_a_node_can_be_examined():
    """Without what only the aggregator or a person at a terminal needs: in an edge image."""
    code = (
        "import sys\n"
        "for name in ('rich', 'onnx', 'onnx_ad', 'aiohttp', 'safetensors'): sys.modules[name] = None\n"
        "from importlib import util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'rich' else found(name, *rest)\n"
        "sys.argv = ['edge-attention', '--aggregator', '127.0.0.1:1', 'doctor']\n"
        "from edge_attention.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    assert done.returncode == 1
    assert "ok      this box, runtime: a tiny graph is right" in done.stdout
    assert "FAILED  aggregator, port: 127.0.0.1:1 cannot be reached" in done.stdout
