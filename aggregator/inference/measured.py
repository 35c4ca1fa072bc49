"""What answers say of nodes and links, for the next plan: segments' seconds by what their work should take.

Kept up by every request, and written down (measures_file.py) for the next life of the aggregator, too.
Nodes of which no answer has said anything for long are measured before an automatic plan (measuring.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.inference.cut_request import NodeTold
from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.costs import LayerWork
from edge_attention.core.placement.cuts.measures import HALF_LIFE, FleetMeasures

if TYPE_CHECKING:  # the process apart, which writes WORK_FILE, needs no engine
    from aggregator.inference.measuring import NodeTimes
    from aggregator.inference.model_answer import SegmentRun

__all__ = ["MOST_SHAPES", "WORK_FILE", "NodeMeasures", "stated_box", "work_text"]

WORK_FILE = "work.json"
"""Beside a schedule: the work of its segments."""
FLOPS_A_THREAD = 4e10
"""What a node is taken for of which nothing was measured."""
MOST_SHAPES = 256
"""Of which the segments' work is kept in memory; of more the one not asked for longest is read again."""
MOST_NODES = 1024
"""Of which measures are kept."""
FORGOTTEN_SECONDS = 7 * 86_400.0
"""A node that was not measured for so long is not known any more."""
SMALL_CALL = 16 * 1024
"""Bytes up to which a call tells of latency."""

TOGETHER = 1.25
"""Nodes that take so many times as long together as alone disturb each other; what is less is chance."""
NO_LINKS = BoxLinks()

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
        self._known: dict[str, float] = {}
        """Node -> when it was measured last."""
        self._at_once: dict[str, float] = {}
        """Node -> how many of its machine's nodes that one computes for at its full speed."""
        self._like: dict[str, tuple[int, str]] = {}
        """Node -> its threads and its machine when it was measured: with others it is another box."""
        self.changes = 0
        """Grows with whatever is measured."""

    async def answered(
        self,
        folder: Path,
        segments: Sequence[SegmentRun],
        threads: Mapping[str, int],
        *,
        links: bool = True,
    ) -> None:
        """A request was answered by these segments of the schedule in `folder`.

        Args:
            threads: of each node.
            links: whether their time on the way says something; not where nodes were sent programs as well.
        """
        path = folder / WORK_FILE
        if path not in self._work:
            self._work[path] = await asyncio.to_thread(_read, path)
            while len(self._work) > MOST_SHAPES:
                self._work.popitem(last=False)
        self._work.move_to_end(path)
        self.ran(self._work[path], segments, threads, time.monotonic(), links=links)

    def ran(
        self,
        work: SegmentsWork,
        segments: Sequence[SegmentRun],
        threads: Mapping[str, int],
        now: float,
        *,
        links: bool = True,
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
            if not links:
                continue
            size, way = one.sent + one.received, max(one.seconds - one.run - _PREDICTED, 0.0)
            if size <= SMALL_CALL:
                self._measures.round_trip(one.node, way, now)
            else:
                # Which way took how long is not known: as quick the one as the other.
                self._measures.moved(one.node, size, way, now, down=True)
                self._measures.moved(one.node, size, way, now, down=False)
            self._known[one.node] = now
        for node, (took, expected) in sums.items():
            self._measures.computed(node, took, expected, now)
        self.changes += 1

    def probed(
        self,
        times: Mapping[str, NodeTimes],
        threads: Mapping[str, int],
        machines: Mapping[str, str],
        work: LayerWork,
        size: int,
        now: float,
    ) -> None:
        """Nodes were measured, alone and together, by a graph of `work` and trips of `size` bytes.

        `machines`: by node, the one it shares with those of the same; "" is nobody's.
        """
        for node, one in times.items():
            beside = [other for other in times if machines[node] and machines[other] == machines[node]]
            seconds = one.alone.compute
            if len(beside) > 1:
                longest = max(times[other].together.compute for other in beside)
                at_once = sum(times[other].alone.compute for other in beside) / max(longest, 1e-9)
                self._at_once[node] = min(max(at_once, 1.0), len(beside))
            else:
                self._at_once.pop(node, None)
                if one.together.compute > TOGETHER * seconds:
                    seconds = one.together.compute  # machines that are none of their own, and do not say so
            stated = stated_box(node, threads[node])
            self._measures.computed(node, seconds, stated.seconds(work, inf), now)
            trip = max((one.alone, one.together), key=lambda trip: trip.echo)
            self._measures.round_trip(node, max(trip.empty - _PREDICTED, 0.0), now)
            # Its latency is not in what is left, so it is put back: `moved` takes it off.
            late = self._measures.links(NO_LINKS).to(node).latency
            self._measures.moved(node, size, max(trip.down - trip.empty, 1e-6) + late, now, down=True)
            self._measures.moved(node, size, max(trip.echo - trip.down, 1e-6) + late, now, down=False)
            self._known[node] = now
        self.changes += 1

    def unknown(self, nodes: Sequence[str], now: float) -> tuple[str, ...]:
        """Those of `nodes` that were not measured for HALF_LIFE."""
        return tuple(node for node in nodes if now - self._known.get(node, -inf) > HALF_LIFE)

    def told(self, node: NodeTold) -> NodeTold:
        """The node with what was measured of it: nothing, if it is another box than was measured."""
        like = node.threads, node.machine
        if self._like.setdefault(node.name, like) != like:
            self._forget(node.name)
            self._like[node.name] = like
        link = self._measures.links(NO_LINKS).to(node.name)
        return replace(
            node,
            slowness=self._measures.box(stated_box(node.name, node.threads)).slowness,
            latency=link.latency,
            down=0.0 if link.down == inf else link.down,
            up=0.0 if link.up == inf else link.up,
            at_once=self._at_once.get(node.name, 0.0),
            measured=not self.unknown([node.name], time.monotonic()),
        )

    def tidy(self, now: float) -> None:
        """Forget nodes that were not measured for long, and of more than MOST_NODES those of longest ago."""
        old = [name for name, at in self._known.items() if now - at > FORGOTTEN_SECONDS]
        last_first = sorted(self._known, key=lambda name: -self._known[name])
        for name in {*old, *last_first[MOST_NODES:]}:
            self._forget(name)
        # Those that were only asked about.
        self._like = {name: like for name, like in self._like.items() if name in self._known}

    def _forget(self, name: str) -> None:
        self._measures.forget(name)
        self._known.pop(name, None)
        self._at_once.pop(name, None)
        self._like.pop(name, None)

    def saved(self, now: float) -> dict[str, Any]:
        """What is known, as JSON; times are ages."""
        self.tidy(now)
        means = self._measures.saved(now)
        return {
            name: {
                "age": max(now - at, 0.0),
                "like": list(self._like.get(name, ())),
                "at_once": self._at_once.get(name, 0.0),
                "means": means.get(name, {}),
            }
            for name, at in self._known.items()
        }

    def restore(self, data: Mapping[str, Any], aged: float, now: float) -> None:
        """What `saved` said `aged` seconds ago. What is no such thing is left out: it is measured anew."""
        for name, one in data.items():
            try:
                known = now - float(one["age"]) - aged
                means = {what: (v, weight, age + aged) for what, (v, weight, age) in one["means"].items()}
                at_once, like = float(one["at_once"]), one["like"]
                if not (isfinite(known) and 0 <= at_once < inf) or known > now:
                    continue
                self._measures.restore(name, means, now)
                if like:
                    self._like[name] = int(like[0]), str(like[1])
            except (KeyError, TypeError, ValueError, AttributeError, IndexError):
                continue
            self._known[name] = known
            if at_once:
                self._at_once[name] = at_once
        self.tidy(now)


_PREDICTED = NO_LINKS.trip_seconds + NO_LINKS.call_seconds
"""Of a trip to one node, what a plan counts beside its link: it is not counted again as latency."""


def _read(path: Path) -> SegmentsWork:
    """Nothing where it is not there, or is damaged: then segments are not measured by it."""
    try:
        data = json.loads(path.read_text())
        return {(int(step), int(part)): LayerWork(*map(float, rest)) for step, part, *rest in data}
    except (OSError, ValueError, TypeError):
        return {}
