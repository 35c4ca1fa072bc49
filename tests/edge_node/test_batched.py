"""Histograms that are filled many at a time say what prometheus_client's would."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from edge_attention.metrics import batched
from edge_attention.metrics.batched import Batched

BOUNDS = (0.0, 0.25, 1.0, 1e3)
NUMBERS = st.lists(st.sampled_from([*BOUNDS, 5.0, -2.0, 0.3]) | st.integers(-10, 10**6).map(float))


@given(NUMBERS, NUMBERS)
def test_the_text_is_the_same(first, second):
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = Histogram("x_seconds", "Some.", ["stage"], buckets=BOUNDS, registry=theirs)
    histogram = Batched("x_seconds", "Some.", "stage", BOUNDS, ours)
    plain = Histogram("y_seconds", "Some.", buckets=BOUNDS, registry=theirs)
    batch = Batched("y_seconds", "Some.", None, BOUNDS, ours)
    for numbers in (first, second):
        for number in numbers:
            for one in (reference.labels("a"), histogram.labels("a"), plain, batch):
                one.observe(number)
        assert texts(theirs) == texts(ours), "and again, after it was asked once"


def texts(registry):
    """The lines but for the sums, which differ in the last bit."""
    lines = generate_latest(registry).decode().splitlines()
    return {line for line in lines if "_sum" not in line}


def test_the_sum_is_of_all_and_nothing_waits_for_long():
    registry = CollectorRegistry()
    histogram = Batched("x_seconds", "Some.", None, (1.0,), registry)
    for _ in range(3 * batched.WAITING + 7):
        histogram.observe(0.5)
    assert len(histogram.labels("")._values) == 7
    assert registry.get_sample_value("x_seconds_sum") == (3 * batched.WAITING + 7) / 2
    assert registry.get_sample_value("x_seconds_bucket", {"le": "1.0"}) == 3 * batched.WAITING + 7
    assert math.isfinite(registry.get_sample_value("x_seconds_count"))
