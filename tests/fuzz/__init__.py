"""A fuzzer of the wire: messages of real sessions, changed, against real processes."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent

# For the helpers that the tests share: fleets, labs, schools, trusted; reference.
sys.path[:0] = [str(TESTS), str(TESTS / "e2e"), str(TESTS / "edge_node")]
