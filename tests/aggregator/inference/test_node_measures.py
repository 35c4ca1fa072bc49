"""What answers say of nodes is what the next plan is made with."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from onnx import ModelProto

from aggregator.inference import measured
from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.cutting import choice_of_nodes
from aggregator.inference.measured import WORK_FILE, NodeMeasures, stated_box, work_text
from aggregator.inference.measures_file import MeasuresFile
from aggregator.inference.measuring import MOVED, NodeTimes, TripTimes
from aggregator.inference.model_answer import SegmentRun
from edge_attention.core.placement.cuts.boxes import BoxLinks
from edge_attention.core.placement.cuts.costs import LayerWork
from edge_attention.core.placement.cuts.measures import HALF_LIFE
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.meter import PRODUCTS_WORK, products_graph
from edge_attention.graphs.axes.work import graph_work
from tests.core.placement.models_made import encoder

WORK = {(0, 0): LayerWork(4e9, 1e6, 10), (0, 1): LayerWork(4e9, 1e6, 10)}
NODES = [NodeTold("a", 1 << 30, 0, 2), NodeTold("b", 1 << 30, 0, 2)]


def segments(slow: float = 3.0) -> list[SegmentRun]:
    base = stated_box("a", 2).seconds(WORK[0, 0], float("inf"))
    return [
        SegmentRun(0, 0, "a", base, base + 0.004, 100, 100),
        SegmentRun(0, 1, "b", slow * base, slow * base + 0.1, 500_000, 500_000),
    ]


def test_a_slow_node_and_a_slow_link_are_told():
    measures = NodeMeasures()
    assert [measures.told(node) for node in NODES] == NODES
    measures.ran(WORK, segments(), {"a": 2, "b": 2}, 1.0)
    a, b = map(measures.told, NODES)
    assert a.slowness == pytest.approx(1.0)
    assert b.slowness == pytest.approx(3.0)
    # What a plan counts of each trip anyway is no latency.
    counted = BoxLinks().trip_seconds + BoxLinks().call_seconds
    assert a.latency == pytest.approx((0.004 - counted) / 2)
    assert b.down == b.up == pytest.approx(1e6 / (0.1 - counted))
    # By another number of threads it is another box.
    other = replace(NODES[1], threads=4)
    assert measures.told(other) == other
    assert measures.told(NODES[1]) == NODES[1]


def test_what_was_measured_before_any_answer_is_told():
    measures = NodeMeasures()
    nodes = [NodeTold(name, 1 << 30, 0, 2, cores=2.0) for name in "abcd"]
    assert measures.unknown("abcd", 1.0) == tuple("abcd")
    base = stated_box("a", 2).seconds(PRODUCTS_WORK, float("inf"))
    counted = BoxLinks().trip_seconds + BoxLinks().call_seconds
    alone = TripTimes(base, counted + 0.002, counted + 0.012, counted + 0.032)
    slowed = TripTimes(2 * base, counted + 0.004, counted + 0.054, counted + 0.154)
    times = {"a": NodeTimes(alone, slowed), "b": NodeTimes(alone, slowed), "c": NodeTimes(alone, slowed)}
    machines = {"a": "m", "b": "m", "c": "", "d": "m"}
    now = time.monotonic()
    measures.probed(times, dict.fromkeys("abcd", 2), machines, PRODUCTS_WORK, MOVED, now)
    a, _, c, d = map(measures.told, nodes)
    # Two of one machine took twice as long together: it computes for one at a time.
    assert (a.slowness, a.at_once) == (pytest.approx(1.0), pytest.approx(1.0))
    # One that says nothing of a machine is taken as it was with the others.
    assert (c.slowness, c.at_once) == (pytest.approx(2.0), 0.0)
    assert a.latency == pytest.approx(0.002)
    assert a.down == pytest.approx(MOVED / 0.05)
    assert a.up == pytest.approx(MOVED / 0.1)
    assert (a.measured, d.measured) == (True, False)
    assert measures.unknown("abcd", now) == ("d",)
    assert measures.unknown("abcd", now + HALF_LIFE + 1) == tuple("abcd")


def test_what_was_measured_outlives_the_aggregator_and_ages(tmp_path):
    measures, clock = NodeMeasures(), [1000.0]
    file = MeasuresFile(tmp_path, lambda: clock[0])
    for node in NODES:
        measures.told(node)
    measures.ran(WORK, segments(), {"a": 2, "b": 2}, time.monotonic())
    text = file.text(measures)
    assert text is not None
    assert file.text(measures) is None, "nothing is new"
    file.write(text)

    def later(seconds, nodes=NODES):
        clock[0] = 1000.0 + seconds
        found = NodeMeasures()
        MeasuresFile(tmp_path, lambda: clock[0]).read(found)
        return found, [found.told(node) for node in nodes]

    known = [replace(measures.told(node)) for node in NODES]
    assert later(1)[1] == known
    # After a while they are what is known, and are measured again before an automatic plan.
    assert later(2 * HALF_LIFE)[1] == [replace(node, measured=False) for node in known]
    assert later(8 * 86_400)[1] == NODES
    assert later(-1)[1] == NODES, "of the future"
    assert later(1, [replace(node, machine="other") for node in NODES])[1][1].slowness == 1.0
    # A new measure weighs against the old one by how long ago that was.
    found, _ = later(2 * HALF_LIFE)
    found.ran(WORK, segments(slow=1.0), {"a": 2, "b": 2}, time.monotonic())
    assert found.told(NODES[1]).slowness == pytest.approx(3.0 ** (0.25 / 1.25), rel=0.01)


def one_node(means):
    return f'{{"written": 1, "nodes": {{"a": {{"age": 1, "like": [], "at_once": 0, "means": {means}}}}}}}}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"written": 1}',
        '{"written": "x", "nodes": {}}',
        '{"written": 1, "nodes": {"a": 7}}',
        one_node("{}").replace('"age": 1', '"age": NaN'),
        one_node('{"up": [1, 0, 1]}'),
        one_node('{"up": [-1, 1, 1]}'),
        one_node('{"x": [1, 1, 1]}'),
        one_node('{"slowness": [1e9, 1, 1]}'),
    ],
)
def test_a_damaged_file_of_measures_is_as_none(tmp_path, text):
    (tmp_path / "measures.json").write_text(text)
    measures = NodeMeasures()
    MeasuresFile(tmp_path, lambda: 2.0).read(measures)
    assert [measures.told(node) for node in NODES] == NODES


def test_of_many_nodes_those_measured_last_are_known(monkeypatch):
    monkeypatch.setattr(measured, "MOST_NODES", 2)
    measures = NodeMeasures()
    for number, name in enumerate("abc"):
        measures.ran(WORK, [replace(segments()[0], node=name)], {name: 2}, float(number))
    assert set(measures.saved(3.0)) == {"b", "c"}


def test_warming_says_nothing_of_links():
    measures = NodeMeasures()
    measures.ran(WORK, segments(), {"a": 2, "b": 2}, 1.0, links=False)
    b = measures.told(NODES[1])
    assert (b.slowness, b.latency, b.down) == (pytest.approx(3.0), 0.0, 0.0)
    assert measures.unknown(["b"], 1.0) == ("b",)


def test_the_work_of_what_is_measured_is_counted_as_of_segments():
    graph = ModelProto.FromString(products_graph())
    counted, _ = graph_work(graph, {"x": TensorForm("float32", (1,))})
    assert counted.flops == PRODUCTS_WORK.flops
    # The weights it makes are there once it is loaded.
    assert 0 < PRODUCTS_WORK.moved < counted.moved


def test_the_work_is_read_from_beside_the_schedule_and_lacking_it_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "MOST_SHAPES", 1)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / WORK_FILE).write_text(work_text(WORK))
    (tmp_path / "two" / WORK_FILE).write_text("[[1]")
    measures = NodeMeasures()

    async def scenario():
        for name in ("two", "three"):
            await measures.answered(tmp_path / name, segments(), {"a": 2, "b": 2})
            assert measures.told(NODES[1]).slowness == 1.0
        await measures.answered(tmp_path / "one", segments(), {"a": 2, "b": 2})

    asyncio.run(scenario())
    assert measures.told(NODES[1]).slowness == pytest.approx(3.0)


def test_a_node_that_is_gone_is_not_measured():
    measures = NodeMeasures()
    measures.ran(WORK, segments(), {"a": 2}, 1.0)
    assert measures.told(NODES[1]) == NODES[1]


def test_a_node_that_was_not_measured_is_in_no_plan_of_several():
    costs = encoder(tokens=512)
    told = [NodeTold(name, 1 << 30, 0, 1, measured=True) for name in "abc"]

    def chosen(*nodes):
        choice = choice_of_nodes(costs, CutRequest("model", "into", nodes=nodes))
        assert choice.chosen is not None
        return set(choice.chosen.used), choice.says

    assert chosen(*told)[0] == {"a", "b", "c"}
    used, says = chosen(*told[:2], replace(told[2], measured=False))
    assert used == {"a", "b"}
    assert says.endswith("(not measured: 1)")
    assert len(chosen(*[replace(node, measured=False) for node in told])[0]) == 1
    # Three that share one processor are no quicker than one, and three with a processor each are.
    shared = [replace(node, machine="m", cores=2.0, threads=2) for node in told]
    assert len(chosen(*shared)[0]) == 1
    assert len(chosen(*[replace(node, cores=6.0) for node in shared])[0]) == 3
    assert len(chosen(*[replace(node, cores=6.0, at_once=1.0) for node in shared])[0]) == 1
    # What fits no other way is taken.
    small = [replace(node, memory_limit=int(0.6 * costs.weights), measured=False) for node in told]
    assert len(chosen(*small)[0]) > 1
