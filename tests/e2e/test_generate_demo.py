"""`edge-attention demo generate`, shortened: 300 tokens over three nodes by three plans are one machine's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.demo.decoder import decoder_model
from edge_attention.demo.generate import GenerateDemo

pytestmark = pytest.mark.e2e

TOKENS = 300
"""Each of three parts has stored a block of them, and the first two another one."""


def test_three_nodes_write_what_one_machine_writes_also_with_one_killed(tmp_path: Path) -> None:
    plans = {3: ("heads", "layers", "tokens")}
    kills = ("heads",)  # the demo also kills one by tokens
    with LocalFleet(state=tmp_path / "state") as fleet:
        figures = GenerateDemo(
            fleet, tmp_path, decoder_model(), time.perf_counter(), plans, kills, TOKENS
        ).run()
    assert [one.asked for one in figures.written] == list(plans[3])
    assert figures.failures() == []
    # The likeliest tokens repeat themselves, and were guessed: how many goes by what trips take here.
    assert all(one.accepted > 0 for one in figures.written), [one.accepted for one in figures.written]
    assert [one.asked for one in figures.interrupted] == list(kills)
    assert all(100 <= one.after < 200 for one in figures.interrupted)
    assert figures.to_json()["written"][0]["greedy"]
