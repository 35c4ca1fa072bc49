"""Estimates follow what is measured, and stay bounded."""

from __future__ import annotations

import math

import pytest

from edge_attention.core.placement.cuts import measures
from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.measures import FleetMeasures


def test_a_slow_box_is_found_and_a_box_that_left_is_forgotten() -> None:
    fleet = FleetMeasures()
    stated = ComputeBox("a", 1e9)
    assert fleet.box(stated) == stated
    for now in range(40):
        fleet.computed("a", [(0.1, 0.302), (0.001, 0.005)], float(now))
        fleet.segment("a", "digest", 0.02, float(now))
        fleet.beside("a", 1.5, float(now))
    found = fleet.box(stated)
    assert found.slowness == pytest.approx(3.0, rel=0.01)
    assert found.call_seconds == pytest.approx(0.002, rel=0.03)
    assert fleet.segment_seconds("a", 0.1) == pytest.approx(0.302, rel=0.01)
    assert fleet.at_once("a") == pytest.approx(1.5)
    assert fleet.box(ComputeBox("b", 1e9)).slowness == 1.0
    assert fleet.segments == {("a", "digest"): pytest.approx(0.02)}
    fleet.forget("a")
    assert fleet.box(stated) == stated
    assert not fleet.segments
    assert fleet.at_once("a") == 0.0


def test_measured_links_take_the_place_of_stated_ones() -> None:
    fleet = FleetMeasures()
    stated = BoxLinks({"a": BoxLink(0.1, 1e3, 1e3, medium="air")}, BoxLink(0.0, 1e9, 1e9))
    assert fleet.links(stated) == stated
    fleet.requested(0.001, 2, 0.0)
    fleet.shared(1e-8, False, 0.0)
    assert fleet.links(stated) == stated, "no link of which anything is known"
    fleet.skewed("a", 4.0, 0.0)
    for _ in range(40):
        fleet.called(
            "a", [(0, 0, 0, 0.004), (10**6, 0, 0, 0.104), (10**6, 10**6, 0, 0.504), (0, 0, 1, 0.0045)], 0.0
        )
        fleet.requested(0.001 + 0.0005, 1, 0.0)
        fleet.requested(0.001 + 8 * 0.0005, 8, 0.0)
    links = fleet.links(stated)
    link = links.to("a")
    assert link.latency == pytest.approx(0.002, rel=0.02)
    assert link.down == pytest.approx(1e7, rel=0.02)
    assert link.up == pytest.approx(2.5e6, rel=0.02)
    assert link.cold == pytest.approx(0.0005, rel=0.1)
    assert link.medium == "air"
    assert links.request_seconds == pytest.approx(0.001, rel=0.1)
    assert links.trip_seconds == pytest.approx(0.0005, rel=0.1)
    assert (links.hub.down, links.hub.up, links.hub.both) == (pytest.approx(1e8), pytest.approx(1e8), 0.0)
    fleet.shared(1e-8, True, 0.0)
    assert fleet.links(stated).hub.both == pytest.approx(1e8)
    fleet.not_shared()
    assert fleet.links(stated).hub == stated.hub


def test_nonsense_changes_nothing() -> None:
    fleet = FleetMeasures()
    fleet.computed("a", [(1.0, 0.0), (0.0, 1.0)], 0.0)
    fleet.segment("a", "g", -1.0, 0.0)
    fleet.called("a", [(0, 0, 0, 0.0), (-1, 0, 0, 1.0), (0, -1, 0, 1.0), (0, 0, -1, 1.0)], 0.0)
    fleet.requested(0.0, 1, 0.0)
    fleet.requested(1.0, 0, 0.0)
    fleet.shared(0.0, True, 0.0)
    fleet.skewed("b", 0.0, 0.0)
    assert fleet.box(ComputeBox("a", 1.0)).slowness == 1.0
    assert not fleet.segments
    assert fleet.links(BoxLinks()) == BoxLinks()
    assert math.isinf(fleet.links(BoxLinks()).to("a").down)


def test_segments_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MOST_SEGMENTS", 3)
    fleet = FleetMeasures()
    for number in range(3):
        fleet.segment("a", f"g{number}", 1.0, 0.0)
    fleet.segment("a", "g0", 1.0, 1.0)
    fleet.segment("a", "g3", 1.0, 1.0)
    assert {graph for _, graph in fleet.segments} == {"g0", "g2", "g3"}
