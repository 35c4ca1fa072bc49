"""What a node tells of itself without prometheus_client is, byte for byte, what that would tell."""

from __future__ import annotations

import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.utils import floatToGoString

from edge_attention import box
from edge_attention.metrics import families
from edge_attention.metrics.batched import Batched
from edge_attention.metrics.process import Process
from edge_attention.metrics.tally import Tallies
from edge_attention.version import VERSION

disable_created_metrics()

NUMBERS = st.floats() | st.integers(-(2**60), 2**60).map(float)
TEXTS = st.text(st.sampled_from('ab \\"\n=,{}é'), max_size=5)


@given(NUMBERS)
@example(1234567.0)
@example(1e16)
@example(123456789.5)
def test_numbers_are_written_as_go_does(value):
    assert families.number(value) == floatToGoString(value)


@given(TEXTS, st.dictionaries(TEXTS, NUMBERS, max_size=3), st.lists(st.integers(0, 20), max_size=9))
def test_the_text_is_what_prometheus_client_writes(text, values, observed):
    theirs, ours = CollectorRegistry(), families.FamilyRegistry()
    gauge, own = Gauge("g_bytes", text, ["of"], registry=theirs), families.Gauge("g_bytes", text, ours)
    for label, value in values.items():
        gauge.labels(label).set(value)
        own.set(value, of=label)
    counter = Counter("c_total", text, ["b", "a"], registry=theirs)
    tallies = Tallies("c_total", text, ("b", "a"), ours)
    for label in values:
        counter.labels(label, "x").inc(2)
        tallies.labels(label, "x").inc(2)
    histogram = Histogram("h_seconds", text, buckets=(1.0, 5.0), registry=theirs)
    batched = Batched("h_seconds", text, None, (1.0, 5.0), ours)
    for value in observed:
        histogram.observe(value)
        batched.observe(value)
    assert ours.text() == generate_latest(theirs) == generate_latest(ours)


def test_a_gauge_that_follows_is_looked_up():
    ours, now = families.FamilyRegistry(), [1.0]
    families.Gauge("g", "Some.", ours).follow(lambda: now[0])
    assert ours.text().endswith(b"\ng 1.0\n")
    now[0] = 2.0
    assert ours.text().endswith(b"\ng 2.0\n")


def test_a_process_tells_what_prometheus_client_does():
    theirs = CollectorRegistry()
    ProcessCollector(registry=theirs)
    ours = families.FamilyRegistry()
    ours.register(Process())
    lines = [text.decode().splitlines() for text in (generate_latest(theirs), ours.text())]
    words = [[line for line in text if line[0] == "#" and "start_time" not in line] for text in lines]
    assert words[0] == words[1]
    told = [{line.split()[0]: float(line.split()[1]) for line in text if line[0] != "#"} for text in lines]
    assert told[0].keys() == told[1].keys()
    for name, value in told[0].items():
        assert abs(told[1][name] - value) <= 0.1 * value + 3, name


def test_versions_are_those_that_are_installed():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == VERSION == box.software()
    for module in box._MODULES.values():
        import_module(module)
    for package in box.PACKAGES:
        assert box._loaded(package) == version(package) == box._installed(package)
