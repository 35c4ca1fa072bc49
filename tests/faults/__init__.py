"""`make test-faults`: every fault, in the middle of every operation, at every victim."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent

# For the helpers that the tests share: fleets, labs, schools, trusted; reference.
sys.path[:0] = [str(TESTS), str(TESTS / "e2e")]
