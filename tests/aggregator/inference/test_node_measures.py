"""What answers say of nodes is what the next plan is made with."""

from __future__ import annotations

import asyncio

import pytest

from aggregator.inference import measured
from aggregator.inference.cut_request import NodeTold
from aggregator.inference.measured import WORK_FILE, NodeMeasures, stated_box, work_text
from aggregator.inference.runner import SegmentRun
from edge_attention.core.placement.cuts.costs import LayerWork

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
    assert a.latency == pytest.approx(0.002)
    assert b.down == b.up == pytest.approx(1e7)
    measures.keep(["a"])
    assert measures.told(NODES[1]) == NODES[1]


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
