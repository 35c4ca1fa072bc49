"""What answers say of nodes and links, for the next plan: segments' seconds by what their work should take.

Kept up by every request, forgotten with the aggregator: after a restart the first answers say it again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from aggregator.inference.cut_request import NodeTold
from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.costs import LayerWork
from edge_attention.core.placement.cuts.measures import FleetMeasures

if TYPE_CHECKING:  # the process apart, which writes WORK_FILE, needs no engine
    from aggregator.inference.runner import SegmentRun

__all__ = ["MOST_SHAPES", "WORK_FILE", "NodeMeasures", "stated_box", "work_text"]

WORK_FILE = "work.json"
"""Beside a schedule: the work of its segments."""
FLOPS_A_THREAD = 4e10
"""What a node is taken for of which nothing was measured."""
MOST_SHAPES = 256
"""Of which the segments' work is kept in memory; of more the one not asked for longest is read again."""
SMALL_CALL = 16 * 1024
"""Bytes up to which a call tells of latency."""

SegmentsWork = Mapping[tuple[int, int], LayerWork]
"""By step and part."""


def stated_box(name: str, threads: int) -> ComputeBox:
    """A node as it is taken for before it was measured."""
    return ComputeBox(name, FLOPS_A_THREAD * max(threads, 1))


def work_text(work: SegmentsWork) -> str:
    """For WORK_FILE."""
    return json.dumps([[*key, one.flops, one.moved, one.operators] for key, one in work.items()])


class NodeMeasures:
    """Estimates by node, of all models together."""

    def __init__(self) -> None:
        self._measures = FleetMeasures()
        self._work: OrderedDict[Path, SegmentsWork] = OrderedDict()
        self._known: set[str] = set()

    async def answered(
        self, folder: Path, segments: Sequence[SegmentRun], threads: Mapping[str, int]
    ) -> None:
        """A request was answered by these segments of the schedule in `folder`. `threads`: of each node."""
        path = folder / WORK_FILE
        if path not in self._work:
            self._work[path] = await asyncio.to_thread(_read, path)
            while len(self._work) > MOST_SHAPES:
                self._work.popitem(last=False)
        self._work.move_to_end(path)
        self.ran(self._work[path], segments, threads, time.monotonic())

    def ran(
        self, work: SegmentsWork, segments: Sequence[SegmentRun], threads: Mapping[str, int], now: float
    ) -> None:
        """As `answered`, at `now`."""
        sums: dict[str, tuple[float, float]] = {}
        for one in segments:
            if one.node not in threads:
                continue
            known = work.get((one.step, one.part))
            if known is not None:
                took, expected = sums.get(one.node, (0.0, 0.0))
                predicted = stated_box(one.node, threads[one.node]).seconds(known, inf)
                sums[one.node] = took + one.run, expected + predicted
            size, way = one.sent + one.received, max(one.seconds - one.run, 0.0)
            if size <= SMALL_CALL:
                self._measures.round_trip(one.node, way, now)
            else:
                # Which way took how long is not known: as quick the one as the other.
                self._measures.moved(one.node, size, way, now, down=True)
                self._measures.moved(one.node, size, way, now, down=False)
            self._known.add(one.node)
        for node, (took, expected) in sums.items():
            self._measures.computed(node, took, expected, now)

    def told(self, node: NodeTold) -> NodeTold:
        """The node with what was measured of it."""
        link = self._measures.links(BoxLinks()).to(node.name)
        return replace(
            node,
            slowness=self._measures.box(stated_box(node.name, node.threads)).slowness,
            latency=link.latency,
            down=0.0 if link.down == inf else link.down,
            up=0.0 if link.up == inf else link.up,
        )

    def keep(self, nodes: Collection[str]) -> None:
        """Forget all but these nodes."""
        for name in self._known - set(nodes):
            self._measures.forget(name)
        self._known &= set(nodes)


def _read(path: Path) -> SegmentsWork:
    """Nothing where it is not there, or is damaged: then segments are not measured by it."""
    try:
        data = json.loads(path.read_text())
        return {(int(step), int(part)): LayerWork(*map(float, rest)) for step, part, *rest in data}
    except (OSError, ValueError, TypeError):
        return {}
