"""docs/files.md: a line for every file, and each line says something."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import files_page

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")


def test_the_page_is_fresh():
    done = subprocess.run(
        [sys.executable, "tools/files_page.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_module_is_on_it_once():
    listed = []
    for section in PAGE.split("\n## ")[1:]:
        folder, _, text = section.partition("\n")
        listed += [folder + name for name in re.findall(r"^- `([\w.]+)`: ", text, re.MULTILINE)]
    there = {
        str(path.relative_to(ROOT))
        for room in ("edge_attention", "edge_node", "aggregator")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert len(there) > 300
    assert there <= set(listed)
    assert len(set(listed)) == len(listed)


def test_each_says_what_it_is_and_no_two_the_same():
    lines = [files_page.saying(path) for path in files_page.files()]
    assert not [line for line in lines if len(line) < 20 or line[-1] not in ".]"]
    assert len(set(lines)) == len(lines), sorted(line for line in lines if lines.count(line) > 1)


def test_a_file_that_does_not_say_what_it_is_is_refused(tmp_path, monkeypatch):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "x.py").write_text("import os\n")
    monkeypatch.setattr(files_page, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["files_page.py"])
    with pytest.raises(SystemExit, match=r"tools/x\.py does not say what it is"):
        files_page.main()
