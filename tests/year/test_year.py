"""A week of the year that `make test-year` lets pass, over real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from edge_attention.cli.local_fleet import LocalFleet
from tests.year.life import Year, live, restarted, settled, works


@pytest.mark.e2e
def test_what_is_left_of_a_week(tmp_path):
    year = Year(runs=4, rounds=12, contexts=6, kept=2)
    with LocalFleet(tmp_path / "state") as fleet:
        fleet.start_aggregator()
        live(fleet, tmp_path, year, print)
        whole = restarted(fleet, tmp_path)
        assert whole.runs == 4
        restarted(fleet, tmp_path, "--keep-runs", "2")
        settled(fleet, year, 60.0)
        less = restarted(fleet, tmp_path, "--keep-runs", "2")
        assert less.runs == 2
        assert less.by_kind["runs"] < whole.by_kind["runs"]
        works(fleet)
