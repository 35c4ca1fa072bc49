"""What a node tells of itself: taken as it is meant, or refused; whatever comes, it ends and is bounded."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from aggregator.observe import node_metrics
from aggregator.observe.node_metrics import FAMILIES, FRAMES, LABELS, SERIES, checked
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.program import Contribution, Fault
from edge_attention.metrics.node import REPORT_LIMIT, NodeMetrics


class Store:
    limit = 1 << 30

    def used_in(self, scope):
        return len(scope)


class Session:
    registered, reconnects, tasks = True, 2, 1


def report():
    """A real one, with something in it."""
    metrics = NodeMetrics(Store(), Session(), "CPUExecutionProvider", 2)
    error = Fault("PrivateTensor", "no")
    for n, fault in enumerate((None, error)):
        metrics.ended(
            Contribution("t", "s", range(1), 0, n, final=True, run_seconds=0.1, task_seconds=1.0, error=fault)
        )
    return generate_latest(metrics.registry)


REPORT = report()


def gauge(samples, name="process_x"):
    return f"# HELP {name} y\n# TYPE {name} gauge\n{samples}\n".encode()


def samples(text):
    """(name, labels, value) of every series, as Prometheus' own client reads it."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def test_a_nodes_report_is_shown_as_it_is():
    assert checked(REPORT) == REPORT
    assert checked(b"") == b""


def test_what_is_said_another_way_is_said_ours():
    said = checked(gauge('process_x{b="2",a="1 \\"é\\" \\\\ \\n"} 1e3\n\nprocess_x -7'))
    assert said == gauge('process_x{a="1 \\"é\\" \\\\ \\n",b="2"} 1000.0\nprocess_x -7.0')
    assert checked(gauge("process_x NaN")) == gauge("process_x NaN")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"x" * (REPORT_LIMIT + 1), "65,537 bytes; the limit is 65,536"),
        (b"\xff", "UTF-8"),
        (gauge("process_x 1", name="edge_attention_aggregator_nodes"), "speak of edge_attention_aggregator"),
        (gauge("up 1", name="up"), "speak of up"),
        (b"process_x 1", "line 1 .* follows no TYPE"),
        (gauge("process_y 1"), "line 3 .* process_y follows no TYPE"),
        (gauge("process_x_total 1"), "follows no TYPE"),
        (gauge("process_x_bucket 1"), "follows no TYPE"),
        (b"# TYPE process_x gauge\n", "has no HELP"),
        (b"# HELP process_x y\n", "end with the HELP"),
        (b"# HELP process_x y\n# HELP process_z y\n# TYPE process_z gauge\n", "line 2 .* cannot be read"),
        (gauge("process_x 1") + gauge("process_x 2"), "two TYPEs"),
        (gauge("process_x 1\nprocess_x 2"), "line 4 .* repeats the series"),
        (gauge('process_x{a="1",b="2"} 1\nprocess_x{b="2",a="1"} 1'), "repeats the series"),
        (gauge('process_x{a="1",a="2"} 1'), "labels that cannot be"),
        (gauge('process_x{a="1" b="2"} 1'), "labels that cannot be"),
        (gauge('process_x{a="1",} 1'), "labels that cannot be"),
        (gauge('process_x{a=1} 1'), "labels that cannot be"),
        (gauge('process_x{node="other"} 1'), "labels that cannot be"),
        (gauge('process_x{__name__="up"} 1'), "labels that cannot be"),
        (gauge(f'process_x{{a="{"y" * 129}"}} 1'), "labels that cannot be"),
        (gauge("process_x{" + ",".join(f'l{n}="1"' for n in range(LABELS + 1)) + "} 1"), "over 8 labels"),
        (gauge("process_x 1 1700000000"), "cannot be read"),
        (gauge("process_x 1_0"), "cannot be read"),
        (gauge("process_x 0x10"), "cannot be read"),
        (gauge("process_x " + "9" * 60), "cannot be read"),
        (gauge('process_x{a="\x1b[2J"} 1'), "cannot be shown"),
        (gauge('process_x{a="\x9b2J"} 1'), "cannot be shown"),
        (gauge('process_x{a="\u202eevil"} 1'), "cannot be shown"),
        (b"# HELP process_x y\n# TYPE process_x stateset\n", "cannot be read"),
        (b"# EOF\n", "cannot be read"),
        (gauge("".join(f'process_x{{a="{n}"}} 1\n' for n in range(SERIES + 1))), "over 1,000 series"),
        (b"".join(gauge("", name=f"process_{n}") for n in range(FAMILIES + 1)), "over 200 names"),
    ],
)  # fmt: skip
def test_what_a_node_may_not_tell_is_refused(text, why):
    with pytest.raises(InvalidArgument, match=why):
        checked(text)


def holds(text):
    """Refused, or text that Prometheus' client reads the same, and that is checked already."""
    try:
        found = checked(text)
    except InvalidArgument:
        return False
    assert len(found) <= REPORT_LIMIT
    assert checked(found) == found
    before, after = samples(text), samples(found)
    assert before.keys() == after.keys()
    assert len(after) <= SERIES
    for key, value in after.items():
        assert value == before[key] or (math.isnan(value) and math.isnan(before[key]))
        assert key[0].startswith(("edge_attention_node_", "process_", "python_"))
        assert not {name for name, _ in key[1]} & {"node", "instance", "job", "__name__"}
        assert all(len(text) <= 128 for _, text in key[1])
    return True


@given(st.binary(max_size=500) | st.text(max_size=500).map(str.encode))
def test_whatever_comes(text):
    holds(text)


LINES = REPORT.splitlines(keepends=True)
PIECES = st.sampled_from(
    [*LINES, b"\n", b"{", b"}", b'"', b"\\", b"\\n", b",", b"=", b" ", b"#", b"e", b"_", b"1"]
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, len(REPORT)), st.integers(0, 40), PIECES), max_size=3),
    st.lists(st.integers(0, len(LINES) - 1), max_size=3),
)
def test_a_report_that_was_tampered_with(cuts, gone):
    text = b"".join(line for n, line in enumerate(LINES) if n not in gone)
    for at, length, piece in cuts:
        text = text[:at] + piece + text[at + length :]
    holds(text)


_LABELS = st.dictionaries(
    st.sampled_from(["a", "b_c", "le"]),
    st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=20),
    max_size=3,
)
_VALUES = st.floats() | st.integers(-(10**15), 10**15)


@given(st.lists(st.tuples(_LABELS, _VALUES), max_size=10, unique_by=lambda one: frozenset(one[0].items())))
def test_any_labels_and_values_of_a_node_arrive(series):
    class Some:
        def collect(self):
            family = GaugeMetricFamily("process_x", 'said "so" \\ \n and on')
            for labels, value in series:
                family.add_sample("process_x", labels, value)
            yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Some())
    text = generate_latest(registry)
    assert holds(text)
    assert len(samples(text)) == len(series)


@given(
    st.lists(st.sampled_from([line for line in REPORT.decode().split("\n") if line[:1] != "#"]), max_size=3),
    st.sampled_from(["1", "0.0", "NaN", "+Inf", "1e400", "one", "", "1 2", '{a="b"} 1', "٣"]),
)
def test_a_report_like_one_before_is_looked_at_as_if_it_were_the_first(lines, number):
    """What is kept of a report is its text without numbers: with others it is refused, or shown, the same."""
    text = REPORT.decode()
    for line in lines:
        text = text.replace(f"\n{line}\n", f"\n{line.rpartition(' ')[0]} {number}\n")

    def outcome():
        try:
            return checked(text.encode())
        except InvalidArgument as error:
            return error.message

    node_metrics._known.clear()
    first = outcome()
    checked(REPORT)
    assert outcome() == first


def test_a_line_that_is_a_number_alone_does_not_pass_for_an_empty_one():
    checked(gauge("\nprocess_x 1"))
    with pytest.raises(InvalidArgument, match="cannot be read"):
        checked(gauge("5\nprocess_x 1"))


def test_what_is_kept_of_reports_is_bounded():
    for number in range(2 * FRAMES):
        checked(gauge(f'process_x{{a="{number}"}} 1'))
    assert len(node_metrics._known) == FRAMES
