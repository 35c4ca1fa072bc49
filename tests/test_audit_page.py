"""The table of docs/security.md has every event that is written to the audit log, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = re.compile(
    r"""AuditLine\(\s*"([a-z_]+)"|"operator",\s*"([a-z_]+)"\)|\.write\(\s*"([a-z_]+)"|how = "([a-z_]+)" if"""
)
"""Of calls, over gRPC and over HTTP; of tokens and certificates; of nodes."""


def test_every_event_of_the_audit_log_is_in_its_table():
    written = {
        name
        for file in (ROOT / "aggregator").rglob("*.py")
        for found in WRITTEN.findall(file.read_text(encoding="utf-8"))
        for name in found
        if name
    }
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = page.split("| event | when |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+)`", table.replace("`edge-aggregator backup` and `restore`", "")))
    assert written | {"registered"} == named
    assert len(written) > 25
