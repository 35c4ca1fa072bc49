"""What `make` is given, and what it says where it is given something wrong or nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
OPTIONAL = {"REF", "ONLY"}
"""What a target does without, by its own choice."""


def test_a_variable_has_a_default_or_is_asked_for():
    own = set(re.findall(r"^(\w+) [:?]?= ", MAKEFILE, re.MULTILINE)) | {"MAKEFILE_LIST"}  # make's own
    found = 0
    for target, recipe in re.findall(r"^([\w-]+):[^\n]*\n((?:\t[^\n]*\n)+)", MAKEFILE, re.MULTILINE):
        chosen = set(re.findall(r"\$\((?:or|if) \$\((\w+)\)", recipe))
        asked = set(re.findall(r'test -n "\$\((\w+)\)"', recipe))
        used = set(re.findall(r"\$\((\w+)\)", recipe))
        assert used <= own | chosen | asked | OPTIONAL, target
        found += len(used - own)
    assert found > 10


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("module", "given", "said"),
    [
        ("tests.models", ["/no/such/folder", "--write"], "/no/such/folder has no .onnx file"),
        ("tests.compat", ["no-such-commit"], "there is no commit 'no-such-commit'"),
        ("tests.faults", ["no such cell"], "no cell has such a name"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(module, given, said):
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    done = run(sys.executable, "-m", module, *given)
    assert done.returncode
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == page


def test_models_are_asked_for():
    # -o: as if its environment were there; none is made for this.
    done = run("make", "-o", ".venv/dev", "test-models")
    assert done.returncode
    assert "make test-models FOLDER=models" in done.stderr
