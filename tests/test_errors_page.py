"""docs/errors.md: wrong calls of the client, and sentences that say what is wrong and what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import edge_attention
from tools import errors_page

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+?)` \| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
REMEDY = re.compile(
    r"; |: |, as |\b(give|use|make|must be|start|another|did you mean|again|set|append|has|have|here|with)\b"
)
"""After what is wrong comes what there is, what it must be, or what to do."""


@pytest.mark.e2e
def test_the_page_is_what_a_fleet_answers():
    done = subprocess.run(
        [sys.executable, "-m", "tools.errors_page", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_call_is_on_it_and_there_are_sixty_and_more():
    listed = [call.replace("\\|", "|") for call, _, _ in ROWS]
    assert listed == [call for calls in errors_page.CALLS.values() for call in calls]
    assert len(set(listed)) == len(listed) >= 60


def test_each_has_a_sentence_for_a_person():
    for call, kind, said in ROWS:
        assert issubclass(getattr(edge_attention, kind), edge_attention.EdgeAttentionError)
        assert 20 < len(said) < 400, call
        assert REMEDY.search(said), call
        assert not re.search(r"object at 0x|Traceback|cannot be sent|a defect|Error\(", said), call
        assert kind not in ("Internal", "Unimplemented", "EdgeAttentionError", "NodeFailed"), call
