"""The tables of docs/reliability.md, from tests/faults/promises.py."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.promises import tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
PLACE = re.compile(r"(<!-- table: tests/faults/promises.py -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def write(check: bool) -> int:
    """Put the tables in their place; with `check` only say whether they are there. The exit code."""
    kept = PAGE.read_text(encoding="utf-8")
    page, count = PLACE.subn(lambda match: f"{match[1]}{tables()}\n{match[2]}", kept)
    if count != 1:
        raise SystemExit(f"{PAGE} has {count} places for the table; it needs one")
    if check:
        if page != kept:
            print(f"stale tables in {PAGE}; run python -m tests.faults --page")
        return int(page != kept)
    PAGE.write_text(page, encoding="utf-8")
    return 0
