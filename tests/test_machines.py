"""State machines are watched in every test, and none is left out."""

from __future__ import annotations

import ast
from enum import Enum
from pathlib import Path

import pytest
from machines import MACHINES, watch

from edge_attention.core.transitions import KEPT, recent, told

ROOT = Path(__file__).resolve().parent.parent


class Door(Enum):
    OPEN = "open"
    SHUT = "shut"


class Turnstile:
    """Counts who has passed; two of its methods leave it wrong."""

    def __init__(self):
        self.passed = 0
        self.counted = 0

    def passes(self):
        self.passed += 1
        self.count()

    def count(self):
        self.counted += 1

    def jumped(self):
        self.passed += 1

    def jumped_and_fell(self):
        self.passed += 1
        raise ValueError

    def check(self):
        assert self.passed == self.counted


def test_a_machine_is_checked_after_each_event_and_not_in_the_middle_of_one():
    watch(Turnstile)
    watch(Turnstile)
    Turnstile().passes()
    with pytest.raises(AssertionError):
        Turnstile().jumped()
    with pytest.raises(AssertionError):
        Turnstile().jumped_and_fell()


def test_every_class_with_a_check_for_tests_is_watched():
    """Such a method says so: its docstring begins `Raises AssertionError`."""
    found = set()
    for top in ("aggregator", "edge_attention", "edge_node"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    checks = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "check"]
                    if any((ast.get_docstring(m) or "").startswith("Raises AssertionError") for m in checks):
                        found.add(node.name)
    assert found == {machine.__name__ for machine in MACHINES}


@pytest.mark.parametrize("machine", MACHINES)
def test_it_is_watched(machine):
    assert "_watched" in vars(machine)


def test_transitions_are_told_in_one_line_and_only_the_last_are_kept():
    kept = recent()
    assert told(kept) == ""
    for second in range(100):
        kept.append((float(second), (f"door {second}", "\x1b[2J"), Door.OPEN, Door.SHUT))
    assert len(kept) == KEPT
    line = told(kept)
    assert line.startswith(f"0.000 s: door {100 - KEPT} \\x1b[2J: open -> shut; 1.000 s: ")
    assert line.isprintable()
