"""What answers say of nodes is what the next plan is made with."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import astuple, replace
from math import inf

import pytest
from onnx import ModelProto

from aggregator.inference import measured
from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.cutting import choice_of_nodes
from aggregator.inference.gained import box_of, links_of
from aggregator.inference.measured import WORK_FILE, NodeMeasures, stated_box, work_text
from aggregator.inference.measures_file import MeasuresFile
from aggregator.inference.measuring import MOVED, NodeTimes, TripTimes
from aggregator.inference.model_answer import SegmentRun
from edge_attention.core.placement.cuts.boxes import BoxLinks, forgotten
from edge_attention.core.placement.cuts.costs import LayerWork
from edge_attention.core.placement.cuts.measured_bins import HALF_LIFE
from edge_attention.core.placement.cuts.trips import StepErrand, trip_seconds
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.meter import PRODUCTS_WORK, products_graph
from edge_attention.graphs.axes.work import graph_work
from tests.core.placement.models_made import encoder

WORK = {(0, 0): LayerWork(4e9, 1e6, 10), (0, 1): LayerWork(4e9, 1e6, 10)}
NODES = [NodeTold("a", 1 << 30, 0, 2), NodeTold("b", 1 << 30, 0, 2)]


def segments(slow: float = 3.0) -> list[SegmentRun]:
    """Of one step, on boxes that share no machine: `b` is slow, and what reaches it is."""
    base = stated_box("a", 2).seconds(WORK[0, 0], inf)
    late = slow * base + 0.1 if slow > 1 else base + 0.001
    return [
        SegmentRun(0, 0, "a", base, base + 0.004, 100, 100),
        SegmentRun(0, 1, "b", slow * base, late, 500_000, 500_000),
    ]


def alone(node: str, step: int = 0) -> SegmentRun:
    base = stated_box(node, 2).seconds(WORK[0, 0], inf)
    return SegmentRun(step, 0, node, base, base + 0.004, 100, 100)


def test_a_slow_node_and_a_slow_link_are_told():
    measures = NodeMeasures()
    assert [measures.told(node) for node in NODES] == NODES
    base = stated_box("a", 2).seconds(WORK[0, 0], inf)
    for now in range(30):
        measures.ran(WORK, segments(), {"a": 2, "b": 2}, float(now))
        measures.ran(WORK, [alone("a")], {"a": 2, "b": 2}, float(now), took=base + 0.004 + 0.0007)
    a, b = map(measures.told, NODES)
    expected = LayerWork(4e9, 1e6, 10)
    for node, slow in ((a, 1.0), (b, 3.0)):
        took = box_of(node).call_seconds + box_of(node).seconds(expected, inf)
        assert took == pytest.approx(slow * base, rel=0.01)
    # What a plan counts of each trip anyway is no latency, and no bandwidth what it counts of each byte.
    counted = BoxLinks()
    call = counted.call_seconds + 200 * counted.byte_seconds
    assert a.latency == pytest.approx((0.004 - call) / 2, rel=0.01)
    way = 0.1 - 2 * counted.call_seconds - 1_000_200 * counted.byte_seconds
    assert 2 * b.latency + 5e5 / b.down + 5e5 / b.up == pytest.approx(way, rel=0.01)
    assert b.down == b.up == pytest.approx(1e6 / way, rel=0.02)
    hub = measures.hub()
    assert hub.request_seconds + hub.trip_seconds == pytest.approx(0.0007)
    assert hub.bandwidth == 0.0
    assert links_of([a, b], hub).trip_seconds == hub.trip_seconds
    # By another number of threads it is another box.
    other = replace(NODES[1], threads=4)
    assert measures.told(other) == other
    assert measures.told(NODES[1]) == NODES[1]


def test_a_call_of_little_work_does_not_make_the_box_slow():
    """What it takes beside is what calls take, however small they are."""
    little = LayerWork(4e7, 1e4, 2)
    work = {(0, 0): LayerWork(4e9, 1e6, 10), (1, 0): little, (2, 0): little, (3, 0): little}
    measures, box = NodeMeasures(), stated_box("a", 2)
    for now in range(50):
        runs = [
            SegmentRun(step, 0, "a", took, took + 0.001, 100, 100)
            for step in range(4)
            if (took := 0.0005 + 0.8 * box.seconds(work[step, 0], inf))
        ]
        measures.ran(work, runs, {"a": 2}, float(now))
    a = measures.told(NODES[0])
    assert a.slowness == pytest.approx(0.8, rel=0.02)
    assert a.call_seconds == pytest.approx(0.0005, rel=0.05)


def test_what_a_node_took_for_several_at_once_says_nothing_of_how_quick_it_is():
    """A node that others ask, too, takes as many times as long for each, and is no slower box for it."""
    measures, threads = NodeMeasures(), {"a": 2, "b": 2}
    base = stated_box("a", 2).seconds(WORK[0, 0], inf)
    work = {**WORK, (1, 0): WORK[0, 0]}
    for now in range(30):
        measures.ran(work, [alone("a")], threads, float(now), took=base + 0.005)
        measures.ran(work, [alone("b")], threads, float(now), took=base + 0.005)
    before = [measures.told(node) for node in NODES], measures.hub()
    for now in range(30, 100):
        busy = replace(alone("a"), run=5 * base, seconds=5 * base + 0.05, alone=False)
        # Of a request that met others at one step, the other steps say how quick their nodes are.
        measures.ran(work, [busy, alone("b", 1)], threads, float(now), took=5 * base + 1.0)
    a, b = map(measures.told, NODES)
    assert (a, measures.hub()) == (before[0][0], before[1])
    assert b.slowness == pytest.approx(before[0][1].slowness)
    for now in range(100, 200):
        slower = replace(alone("b", 1), run=2 * base, seconds=2 * base + 0.05)
        measures.ran(work, [busy, slower], threads, float(now), took=5 * base + 1.0)
    a, b = map(measures.told, NODES)
    assert (a, b.latency) == (before[0][0], before[0][1].latency)
    assert b.slowness > 1.05 * before[0][1].slowness


def test_a_machine_that_is_called_as_a_node_without_one_might_be_is_not_that_node_s():
    measures, base = NodeMeasures(), stated_box("a", 2).seconds(WORK[0, 0], inf)
    measures.told(replace(NODES[0], machine="node b"))  # of `b` nothing is known
    both = [SegmentRun(0, part, "ab"[part], base, base + 0.004, 9, 9) for part in (0, 1)]
    for now in range(10):
        measures.ran(WORK, both, {"a": 2, "b": 2}, float(now))
    assert {measures.told(node).at_once for node in (replace(NODES[0], machine="node b"), NODES[1])} == {0.0}


def test_two_of_one_machine_are_slow_together_and_not_each():
    nodes = [NodeTold(name, 1 << 30, 0, 2, machine="m", cores=4.0) for name in "ab"]
    measures, base = NodeMeasures(), stated_box("a", 2).seconds(WORK[0, 0], inf)
    for node in nodes:
        measures.told(node)
    for now in range(100):
        measures.ran(WORK, [alone("a")], {"a": 2, "b": 2}, float(now))
        measures.ran(WORK, [alone("b")], {"a": 2, "b": 2}, float(now))
        both = [SegmentRun(0, part, "ab"[part], 1.25 * base, 1.25 * base + 0.004, 9, 9) for part in (0, 1)]
        measures.ran(WORK, both, {"a": 2, "b": 2}, float(now))
    for node in map(measures.told, nodes):
        assert box_of(node).call_seconds + box_of(node).seconds(WORK[0, 0], inf) == pytest.approx(
            base, rel=0.03
        )
        assert node.at_once == pytest.approx(2 / 1.25, rel=0.05)
        assert box_of(node).cores == node.at_once


def test_what_a_machine_computes_at_once_is_known_of_its_other_nodes_too():
    """Nodes that have not run together yet were predicted by what five at once said before any request."""
    nodes = [NodeTold(name, 1 << 30, 0, 2, machine="m", cores=16.0) for name in "abc"]
    others = [replace(nodes[0], name="d", threads=4), replace(nodes[0], name="e", machine="n")]
    measures, base = NodeMeasures(), stated_box("a", 2).seconds(WORK[0, 0], inf)
    for node in (*nodes, *others):
        measures.told(node)
        measures._measures.beside(node.name, 1.1, 0.0)
    for now in range(100):
        for name in "ab":
            measures.ran(WORK, [alone(name)], {"a": 2, "b": 2}, float(now))
        both = [SegmentRun(0, part, "ab"[part], 1.25 * base, 1.25 * base + 0.004, 9, 9) for part in (0, 1)]
        measures.ran(WORK, both, {"a": 2, "b": 2}, float(now))
    for node in map(measures.told, nodes):
        assert node.at_once == pytest.approx(2 / 1.25, rel=0.1)
    for node in map(measures.told, others):
        assert node.at_once == pytest.approx(1.1), "a box of other threads, or another machine"


def test_parts_of_one_machine_that_ran_one_after_another_did_not_slow_each_other():
    nodes = [NodeTold(name, 1 << 30, 0, 2, machine="m", cores=1.0) for name in "ab"]
    measures, base = NodeMeasures(), stated_box("a", 2).seconds(WORK[0, 0], inf)
    for node in nodes:
        measures.told(node)
        measures._measures.beside(node.name, 1.0, 0.0)
    for now in range(100):
        later = [SegmentRun(0, part, "ab"[part], base, (1 + part) * base, 9, 9) for part in (0, 1)]
        measures.ran(WORK, later, {"a": 2, "b": 2}, float(now))
    for node in map(measures.told, nodes):
        took = box_of(node).call_seconds + box_of(node).seconds(WORK[0, 0], inf)
        assert took == pytest.approx(base, rel=0.03)
        assert node.at_once == pytest.approx(1.0)


def test_segments_without_work_and_times_that_are_none_do_no_harm():
    work = {(step, part): LayerWork() for step in (0, 1) for part in (0, 1)}
    measures, nodes = NodeMeasures(), [replace(node, machine="m") for node in NODES]
    for node in nodes:
        measures.told(node)
    measures._measures.computed("a", [(1e-3, 1e-4), (1.0, 1.0)], 0.0)  # a call that costs nothing
    measures._measures.computed("b", [(1e-3, 1e-4), (1.0, 1.0)], 0.0)
    runs = [SegmentRun(0, part, "ab"[part], 0.0, 0.0, 0, 0) for part in (0, 1)]
    measures.ran(work, runs, {"a": 2, "b": 2}, 1.0, took=1.0)
    measures.ran({}, runs, {"a": 2, "b": 2}, 2.0)
    measures.ran(work, [], {"a": 2}, 3.0, took=1.0)
    assert 0 < measures.told(nodes[0]).slowness < 2


def test_what_was_measured_before_any_answer_is_told():
    measures = NodeMeasures()
    nodes = [NodeTold(name, 1 << 30, 0, 2, cores=2.0) for name in "abcd"]
    assert measures.unknown("abcd", 1.0) == tuple("abcd")
    base = stated_box("a", 2).seconds(PRODUCTS_WORK, inf)
    counted = BoxLinks()
    call, byte = counted.call_seconds, counted.byte_seconds * MOVED
    here = TripTimes(base, call + 0.004, call + 0.004, call + 0.104 + byte, call + 0.304 + 2 * byte)
    beside = replace(here, compute=2 * base)
    times = dict.fromkeys("abc", NodeTimes(here, beside))
    machines = {"a": "m", "b": "m", "c": "", "d": "m"}
    now = time.monotonic()
    measures.probed(times, dict.fromkeys("abcd", 2), machines, PRODUCTS_WORK, MOVED, now)
    a, _, c, d = map(measures.told, nodes)
    # Two of one machine took twice as long together: it computes for one at a time.
    assert box_of(a).call_seconds + box_of(a).seconds(PRODUCTS_WORK, inf) == pytest.approx(base)
    assert a.at_once == pytest.approx(1.0)
    # One that says nothing of a machine is taken as it was with the others.
    assert box_of(c).call_seconds + box_of(c).seconds(PRODUCTS_WORK, inf) == pytest.approx(2 * base)
    assert c.at_once == 0.0
    assert 2 * a.latency == pytest.approx(0.004, rel=0.2)
    assert a.down == pytest.approx(MOVED / 0.1, rel=0.1)
    assert a.up == pytest.approx(MOVED / 0.2, rel=0.1)
    assert (a.measured, d.measured) == (True, False)
    assert measures.unknown("abcd", now) == ("d",)
    assert measures.unknown("abcd", now + HALF_LIFE + 1) == tuple("abcd")
    assert measures.hub().bandwidth == 0.0, "no link was longer busy for the others"


@pytest.mark.parametrize(("down", "echo"), [(1.9, 1.9), (1.2, 2.6), (1.5, 1.5004), (1.05, 3.0)])
def test_where_bytes_take_less_than_a_trip_of_none_no_way_is_taken_for_slower(down, echo):
    """Milliseconds on loopback: what chance adds to one of the two would count as hundreds of times."""
    call, empty = BoxLinks().call_seconds, 1.1e-3
    times = TripTimes(0.01, empty, empty, 1e-3 * down, 1e-3 * echo)
    measures = NodeMeasures()
    measures.probed({"a": NodeTimes(times, times)}, {"a": 2}, {"a": ""}, PRODUCTS_WORK, MOVED, 0.0)
    for now in range(30):
        run = SegmentRun(0, 0, "a", 0.01, 0.01 + call + 1.3e-3, 50_000, 100_000)
        measures.ran(WORK, [run], {"a": 2}, float(now))
    told = measures.told(NODES[0])
    way = 2 * told.latency + told.cold * forgotten(0.01)
    way += sum(size / speed for size, speed in ((5e4, told.down), (1e5, told.up)) if speed)
    assert way == pytest.approx(1.3e-3 - 1.5e5 * BoxLinks().byte_seconds, rel=0.25)
    assert told.up == told.down or 0.3 < told.up / told.down < 3


@pytest.mark.parametrize("both", [False, True])
def test_links_that_share_one_are_found_as_such(both):
    byte = 1e-7
    alone = TripTimes(0.01, 0.001, 0.001, 0.001 + MOVED * byte, 0.001 + 2 * MOVED * byte)
    there_and_back = 0.001 + (6 if both else 4) * MOVED * byte
    together = replace(alone, down=0.001 + 3 * MOVED * byte, echo=there_and_back)
    measures = NodeMeasures()
    times, nobodys = dict.fromkeys("abc", NodeTimes(alone, together)), dict.fromkeys("abc", "")
    measures.probed(times, dict.fromkeys("abc", 1), nobodys, PRODUCTS_WORK, MOVED, 0.0)
    hub = measures.hub()
    assert hub.bandwidth == pytest.approx(1 / byte, rel=0.02)
    assert hub.both is both
    told = [measures.told(replace(NODES[0], name=name)) for name in "abc"]
    links = links_of(told, hub)
    # Of three all bytes pass one after another, and none is counted of its own link as well.
    errands = [StepErrand(box_of(node), 0.0, 1e6, 0.0) for node in told]
    assert trip_seconds(errands, links) == pytest.approx(0.3, rel=0.05)


def test_what_was_measured_outlives_the_aggregator_and_ages(tmp_path):
    measures, clock = NodeMeasures(), [1000.0]
    file = MeasuresFile(tmp_path, lambda: clock[0])
    for node in NODES:
        measures.told(node)
    measures.ran(WORK, segments(), {"a": 2, "b": 2}, time.monotonic())
    measures.ran(WORK, [alone("a")], {"a": 2, "b": 2}, time.monotonic(), took=0.3)
    measures._measures.shared(1e-7, True, time.monotonic())
    text = file.text(measures)
    assert text is not None
    assert file.text(measures) is None, "nothing is new"
    file.write(text)

    def later(seconds, nodes=NODES):
        clock[0] = 1000.0 + seconds
        found = NodeMeasures()
        MeasuresFile(tmp_path, lambda: clock[0]).read(found)
        return found, [found.told(node) for node in nodes]

    known = [measures.told(node) for node in NODES]
    assert [close(one, other) for one, other in zip(later(1)[1], known, strict=True)] == [True, True]
    assert astuple(later(1)[0].hub()) == pytest.approx(astuple(measures.hub()))
    # After a while they are what is known, and are measured again before an automatic plan.
    again = later(2 * HALF_LIFE)[1]
    assert [close(replace(one, measured=True), other) for one, other in zip(again, known, strict=True)]
    assert not any(node.measured for node in again)
    assert later(8 * 86_400)[1] == NODES
    assert later(-1)[1] == NODES, "of the future"
    assert later(1, [replace(node, machine="other") for node in NODES])[1][1].slowness == 1.0
    # A new measure weighs against the old one by how long ago that was.
    found, _ = later(2 * HALF_LIFE)
    for _ in range(20):
        found.ran(WORK, [replace(alone("b"), part=1)], {"a": 2, "b": 2}, time.monotonic())
    assert found.told(NODES[1]).slowness < 1.7


def close(one: NodeTold, other: NodeTold) -> bool:
    return all(
        left == (pytest.approx(right, rel=1e-3) if isinstance(right, float) else right)
        for left, right in zip(astuple(one), astuple(other), strict=True)
    )


def test_what_an_earlier_version_kept_is_read(tmp_path):
    means = {"slowness": [1.0986, 5, 1], "latency": [0.002, 3, 1], "down": [1e-7, 4, 1], "up": [2e-7, 4, 1]}
    (tmp_path / "measures.json").write_text(one_node(json.dumps(means)))
    measures = NodeMeasures()
    MeasuresFile(tmp_path, lambda: 2.0).read(measures)
    a = measures.told(NODES[0])
    work = LayerWork(1.2e9)
    assert box_of(a).seconds(work, inf) == pytest.approx(3 * stated_box("a", 2).seconds(work, inf), rel=0.05)
    assert a.down == pytest.approx(1e7, rel=0.1)
    assert a.up == pytest.approx(5e6, rel=0.1)
    assert 2 * a.latency == pytest.approx(0.005, rel=0.2), "what a plan counted of a trip is in it now"


def one_node(means):
    return f'{{"written": 1, "nodes": {{"a": {{"age": 1, "like": [], "at_once": 0, "means": {means}}}}}}}'


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
        one_node("{}").replace('"means": {}', '"lines": {"segments": [[1, 1, 0, 1]]}'),
        '{"version": 3, "written": 1, "nodes": {}}',
        '{"version": "x", "written": 1, "nodes": {}}',
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
    assert set(measures.saved(3.0)["nodes"]) == {"b", "c"}


def test_warming_says_nothing_of_links():
    measures = NodeMeasures()
    measures.ran(WORK, segments(), {"a": 2, "b": 2}, 1.0, links=False)
    b = measures.told(NODES[1])
    assert (b.slowness, b.latency, b.down) == (pytest.approx(3.0, rel=0.01), 0.0, 0.0)
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
    assert measures.told(NODES[1]).slowness == pytest.approx(3.0, rel=0.01)


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


def test_a_node_that_is_never_the_last_of_a_step_is_measured_before_a_plan():
    """Answers say nothing of its link, which would be taken for one that costs nothing."""
    measures, now = NodeMeasures(), time.monotonic()
    measures.ran(WORK, segments(), {"a": 2, "b": 2}, now)
    a, b = map(measures.told, NODES)
    assert measures.unknown("ab", now) == ("a",)
    assert (a.measured, a.latency) == (False, 0.0)
    assert b.measured
    assert b.latency > 0
    measures.ran(WORK, [alone("a")], {"a": 2, "b": 2}, now)
    assert measures.unknown("ab", now) == ()
    assert measures.told(NODES[0]).measured


def test_nodes_that_were_only_warmed_are_not_kept_for_ever():
    measures = NodeMeasures()
    for number in range(50):
        one = replace(alone("a"), node=f"n{number}")
        measures.ran(WORK, [one], {f"n{number}": 2}, float(number), links=False)
    measures.ran(WORK, [alone("a")], {"a": 2}, 50.0)
    measures.tidy(51.0)
    assert set(measures._measures._boxes) == {"a"}
