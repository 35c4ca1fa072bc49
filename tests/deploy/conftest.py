from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "deploy"), str(TESTS / "e2e"), str(TESTS)]  # for the helpers there


def program(name: str) -> str:
    """The path of a program a newcomer may lack; skips the test without it."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed: `apt-get install prometheus` brings it")
    return found


@pytest.fixture(scope="session")
def promtool() -> str:
    return program("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return program("prometheus")
