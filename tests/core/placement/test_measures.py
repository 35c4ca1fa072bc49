"""Estimates follow what is measured, forget what is old, and stay bounded."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attention.core.placement.cuts import measures
from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.measures import HALF_LIFE, DecayedMean, FleetMeasures


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1e4)), min_size=1, max_size=20))
def test_a_mean_stays_between_its_values(given: list[tuple[float, float]]) -> None:
    mean = DecayedMean(given[0][0], 1.0, given[0][1])
    for value, at in given[1:]:
        mean = mean.plus(value, at)
    assert min(v for v, _ in given) - 1e-9 <= mean.value <= max(v for v, _ in given) + 1e-9


def test_after_a_half_life_the_old_weighs_half() -> None:
    mean = DecayedMean(0.0, 1.0, 0.0).plus(3.0, HALF_LIFE)
    assert mean.value == pytest.approx(2.0)
    # A clock that is read out of order weighs the value as one of now.
    assert DecayedMean(0.0, 1.0, 50.0).plus(2.0, 20.0) == DecayedMean(1.0, 2.0, 50.0)


def test_a_slow_box_is_found_and_a_box_that_left_is_forgotten() -> None:
    fleet = FleetMeasures()
    stated = ComputeBox("a", 1e9)
    assert fleet.box(stated) == stated
    for now in range(4):
        fleet.computed("a", 0.3, 0.1, float(now))
        fleet.segment("a", "digest", 0.02, float(now))
    assert fleet.box(stated).slowness == pytest.approx(3.0)
    assert fleet.box(ComputeBox("b", 1e9)).slowness == 1.0
    assert fleet.segments == {("a", "digest"): pytest.approx(0.02)}
    fleet.forget("a")
    assert fleet.box(stated) == stated
    assert not fleet.segments


def test_measured_links_take_the_place_of_stated_ones() -> None:
    fleet = FleetMeasures()
    stated = BoxLinks({"a": BoxLink(0.1, 1e3, 1e3, medium="air")}, BoxLink(0.0, 1e9, 1e9))
    assert fleet.links(stated) == stated
    fleet.round_trip("a", 0.004, 0.0)
    fleet.moved("a", 10_000_000, 1.002, 0.0, down=True)
    fleet.moved("a", 100, 1.0, 0.0, down=False)  # too few to say anything
    link = fleet.links(stated).to("a")
    assert link.latency == pytest.approx(0.002)
    assert link.down == pytest.approx(1e7)
    assert (link.up, link.medium) == (1e3, "air")


def test_nonsense_changes_nothing() -> None:
    fleet = FleetMeasures()
    fleet.computed("a", 0.0, 1.0, 0.0)
    fleet.computed("a", 1.0, 0.0, 0.0)
    fleet.segment("a", "g", -1.0, 0.0)
    fleet.round_trip("a", -1.0, 0.0)
    fleet.moved("a", 1 << 20, 0.0, 0.0, down=True)
    assert fleet.box(ComputeBox("a", 1.0)).slowness == 1.0
    assert not fleet.segments
    assert math.isinf(fleet.links(BoxLinks()).to("a").down)


def test_segments_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MOST_SEGMENTS", 3)
    fleet = FleetMeasures()
    for number in range(3):
        fleet.segment("a", f"g{number}", 1.0, 0.0)
    fleet.segment("a", "g0", 1.0, 1.0)
    fleet.segment("a", "g3", 1.0, 1.0)
    assert {graph for _, graph in fleet.segments} == {"g0", "g2", "g3"}
