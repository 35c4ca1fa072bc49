"""docs/metrics.md says what the daemons expose, and its queries are queries."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| `((?:edge_attention|nv_inference)_\w+)` \| (\w+) \| (.*?) \| (.+?) \| `(.+)` \|$",
    PAGE,
    flags=re.MULTILINE,
)


def test_the_tables_are_fresh():
    done = subprocess.run(
        [sys.executable, "-m", "tools.metrics_page", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_row_says_something():
    assert len(ROWS) >= 49
    for name, kind, _, text, query in ROWS:
        assert kind in ("counter", "gauge", "histogram")
        assert (kind == "counter") == name.endswith("_total")
        assert text.endswith(".")
        assert name in query


def test_the_queries_can_be_asked(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here: it comes with Prometheus (Debian: apt-get install prometheus)")
    rules = "".join(f"  - record: q:{n}\n    expr: '{query}'\n" for n, (*_, query) in enumerate(ROWS))
    file = tmp_path / "rules.yml"
    file.write_text(f"groups:\n- name: page\n  rules:\n{rules}")
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ROWS)} rules found" in done.stdout
