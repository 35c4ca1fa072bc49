"""Plans as TOML: what is written reads back, and what is wrong is said with its place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import PlanWanted
from edge_attention.core.placement.cuts.choosing import choose
from edge_attention.core.placement.cuts.costs import ModelCosts
from edge_attention.core.placement.cuts.plan_toml import dumps_toml, loads_toml
from tests.core.placement.models_made import fleets, small_models


@given(small_models(), fleets())
@settings(max_examples=30, deadline=None)
def test_every_plan_reads_back(model: ModelCosts, fleet: tuple[list[ComputeBox], BoxLinks]) -> None:
    choice = choose(model, *fleet, PlanWanted(in_flight=2, halves=True))
    for plan in (choice.chosen, *choice.rejected):
        if plan is not None:
            read, holders = loads_toml(dumps_toml(plan), len(model.layers))
            assert read == plan.plan
            assert holders == plan.boxes


GOOD = '[[stage]]\nlayers = [0, 3]\ncut = "heads"\nboxes = ["a", ["b", "c"]]\nshares = [2, 1]\n'


def test_a_person_writes_one() -> None:
    plan, holders = loads_toml(GOOD)
    assert plan.stages[0].shares == (2.0, 1.0)
    assert holders == {0: ("a",), 1: ("b", "c")}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "at least one table [[stage]]"),
        ("[[stage]", "not TOML"),
        ("what = 1\n" + GOOD, "has no what"),
        (GOOD + "also = 1\n", "[[stage]] 0 has no also"),
        ("[[stage]]\nlayers = [0, 3]\n", "boxes is a list of names"),
        ("[[stage]]\nlayers = [0, 3]\nboxes = [1]\n", "it holds names"),
        ("[[stage]]\nlayers = [0, 3]\nboxes = [[]]\n", "it holds names"),
        ("[[stage]]\nlayers = [1, 3]\nboxes = ['a']\n", "begin at 1"),
        ("halves = 2020-01-01\n" + GOOD, "a date"),
        ("halves = 1\n" + GOOD, "true or false"),
        (GOOD.replace('"heads"', '"tail"'), "heads, not tail"),
        ("# " + "x" * (1 << 20), "the most"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        loads_toml(text)
    assert says in str(error.value)
