"""Work for others gives way, where the system shares processors out by sessions, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")


def niceness_of_the_session(text: str) -> str:
    """The last word of `/autogroup-12 nice 0`; empty for a process of the session the system started with."""
    return text.strip().rpartition(" ")[2]


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this system has no groups of sessions")
@pytest.mark.parametrize("leads", [True, False])
def test_the_niceness_is_the_sessions_where_the_process_leads_it(leads):
    code = """
import os
from edge_attention.priority import give_way
give_way(7)
print(os.nice(0))
print(open("/proc/self/autogroup").read())
"""
    before, own = niceness_of_the_session(AUTOGROUP.read_text()), os.nice(0)
    done = subprocess.run(
        [sys.executable, "-c", code], start_new_session=leads, capture_output=True, text=True, timeout=60
    )
    niceness, _, group = done.stdout.partition("\n")
    assert int(niceness) == min(own + 7, 19)
    assert niceness_of_the_session(group) == ("7" if leads else before)
