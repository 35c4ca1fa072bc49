"""What of the models that serve is on one node alone: who forgets it is told."""

from __future__ import annotations

from types import SimpleNamespace

from aggregator.inference.deployed import PlannedParts
from aggregator.inference.recipe import only_on


def serving(name: str, holders: dict[int, tuple[str, ...]]) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        planned=PlannedParts((), (), {}, plan="", text="", parts=(), holders=holders, node_bytes={}),
    )


def test_parts_that_only_this_node_holds():
    cut = serving("cut", {0: ("a",), 1: ("a", "b"), 2: ("b",), 3: ("a",)})
    whole = serving("whole", {0: ("a", "b")})
    planned = SimpleNamespace(name="coming", planned=None)
    assert only_on("a", [cut, whole, planned]) == ("2 of 4 parts of model 'cut'",)
    assert only_on("b", [cut, whole, planned]) == ("1 of 4 parts of model 'cut'",)
    assert only_on("c", [cut, whole, planned]) == ()
