"""A file with both steps of a decoder: what is cut of it, what it says of that, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.cutting import cut_as_asked
from aggregator.inference.deployed import PlannedParts

MERGED = Path(__file__).parents[3] / "graphs/decoding/exports/optimum_llama_merged.onnx"
NODES = tuple(NodeTold(name, 1 << 30, 0, 1) for name in "abc")


def asked(into: Path, word: str) -> CutRequest:
    return CutRequest(str(MERGED), str(into), word, nodes=NODES)


@pytest.mark.parametrize("word", ["heads", "layers", "tokens"])
def test_it_is_cut_with_sessions_and_says_which_step_is_served(word: str, tmp_path: Path) -> None:
    made = cut_as_asked(asked(tmp_path, word))
    assert made.decoder, made.sessions
    assert len(made.parts) == 3
    assert made.given == {"use_cache_branch": True}
    assert any("use_cache_branch is always true" in note for note in made.notes)
    assert PlannedParts.from_json(made.to_json()) == made


def test_where_it_is_not_cut_it_serves_both_steps(tmp_path: Path) -> None:
    made = cut_as_asked(asked(tmp_path, "replicate"))
    assert made.decoder
    assert made.whole
    assert made.given == {}
    assert not any("use_cache_branch" in note for note in made.notes)


def test_what_serves_both_steps_does_so_by_another_plan_too(tmp_path: Path) -> None:
    """A plan made anew takes nothing away from who asks: of what was not cut before, the input is data."""
    before = cut_as_asked(asked(tmp_path / "before", "replicate"))
    again = replace(asked(tmp_path / "again", "auto"), before=before.plan, shapes={})
    made = cut_as_asked(again)
    assert made.given == {}
    assert made.whole or not made.plan  # it gains nothing, or is whole again


def test_of_what_was_cut_other_sizes_are_cut_so_too(tmp_path: Path) -> None:
    made = cut_as_asked(asked(tmp_path / "first", "layers"))
    again = CutRequest(
        str(MERGED), str(tmp_path / "again"), plan=made.plan, holders=made.holders,
        shapes={**made.shapes, "input_ids": (1, 3), "position_ids": (1, 3), "attention_mask": (1, 3 + 32)}
        | {name: (1, 3, 32, 4) for name in made.shapes if name.startswith("past")}, given=made.given,
    )  # fmt: skip
    assert cut_as_asked(again).given == {"use_cache_branch": True}
    assert not any(b"then_branch" in one.read_bytes() for one in (tmp_path / "again" / "graphs").iterdir())
