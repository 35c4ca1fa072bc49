"""What a step takes, by its parts' links and computing."""

from __future__ import annotations

import pytest

from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.trips import StepErrand, trip_seconds


def test_an_answer_over_a_slow_link_holds_up_no_other() -> None:
    """It is begun first, and its bytes come all along: the aggregator takes others' meanwhile."""
    boxes = [ComputeBox("near", 1e9), ComputeBox("far", 1e9)]
    links = BoxLinks(
        {"near": BoxLink(0.0, 1e7, 1e7), "far": BoxLink(0.0, 1e6, 1e6)},
        BoxLink(0.0, 1e7, 1e7),
        byte_seconds=0.0,
        call_seconds=0.0,
        trip_seconds=0.0,
    )
    far = StepErrand(boxes[1], 0.1, 0.0, 100_000)
    for first in (0.0999, 0.1001):  # whichever ends first
        took = trip_seconds([StepErrand(boxes[0], first, 0.0, 100_000), far], links)
        assert took == pytest.approx(0.2, abs=1e-3)
