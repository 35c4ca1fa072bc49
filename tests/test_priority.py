"""Work for others gives way, where the system shares processors out by sessions, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this system has no groups of sessions")
@pytest.mark.parametrize("leads", [True, False])
def test_the_niceness_is_the_sessions_where_the_process_leads_it(leads):
    code = """
import os
from edge_attention.priority import give_way
give_way(7)
print(os.nice(0), open("/proc/self/autogroup").read().rsplit(" ", 1)[1])
"""
    before = AUTOGROUP.read_text().rsplit(" ", 1)[1].strip()
    done = subprocess.run(
        [sys.executable, "-c", code], start_new_session=leads, capture_output=True, text=True, timeout=60
    )
    niceness, group = map(int, done.stdout.split())
    assert niceness >= 7
    assert group == (7 if leads else int(before))
