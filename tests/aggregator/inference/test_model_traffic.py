"""What goes on with models, a second."""

from __future__ import annotations

import itertools

import pytest

from aggregator.inference import traffic
from aggregator.inference.traffic import SECONDS, ModelTraffic


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_rates_are_of_the_last_whole_seconds(clock):
    told = ModelTraffic(clock)
    assert told.rates("m") == {}
    for _ in range(2 * SECONDS):
        told.add("m", "requests", 3)
        told.add("m", "tokens")
        clock.now += 0.5
    assert told.rates("m") == {"requests": 6.0, "failures": 0.0, "tokens": 2.0}
    told.add("m", "requests", 1000)  # of a second that goes on
    assert told.rates("m")["requests"] == 6.0
    clock.now += SECONDS + 1
    assert told.rates("m") == {"requests": 0.0, "failures": 0.0, "tokens": 0.0}


def test_it_does_not_grow(clock, monkeypatch):
    monkeypatch.setattr(traffic, "MODELS", 2)
    told = ModelTraffic(clock)
    for name, _ in itertools.product(("a", "b", "c"), range(100)):
        told.add(name, "requests")
        clock.now += 1
    assert told.rates("c") == {}
    assert max(len(one) for kinds in told._of.values() for one in kinds.values()) <= SECONDS + 1
    told.forget("a")
    told.add("c", "failures")
    clock.now += 1
    assert told.rates("c")["failures"] == 1 / SECONDS
