"""TOML that people write, and what numbers here cannot hold."""

from __future__ import annotations

import pytest

from edge_attention.core.ensembles.ensemble_file import read_ensemble
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.placement.cuts.plan_toml import loads_toml
from edge_attention.core.toml_text import read_toml_text
from edge_attention.jobs.job_file import read_job
from edge_attention.simulation.scenario import read_scenario

LARGE = "more than 64 bits"
WRONG = {
    "x = ": "x is not TOML: ",
    "x = " + "[" * 5000: "x is not TOML: ",
    "x = 9223372036854775808": LARGE,
    "x = [{ y = -9223372036854775809 }]": LARGE,
    "x = 0x" + "f" * 20_000: LARGE,
    "x = " + "9" * 5000: LARGE,
}


def test_what_it_says():
    text = "x = 9223372036854775807\ny = [-9223372036854775808, true, 2.5]"
    assert read_toml_text(text, "x") == {"x": 2**63 - 1, "y": [-(2**63), True, 2.5]}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:20])
def test_what_cannot_be_is_one_sentence_at_each_door(text, tmp_path):
    with pytest.raises(InvalidArgument, match=WRONG[text]):
        read_toml_text(text, "x is not TOML")
    file = tmp_path / "file.toml"
    file.write_text(text)
    for door in (read_job, read_scenario):
        with pytest.raises(InvalidArgument, match=r"file\.toml"):
            door(file)
    for read in (read_ensemble, loads_toml):
        with pytest.raises(InvalidArgument, match="TOML"):
            read(text)
