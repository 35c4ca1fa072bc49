"""What answers say of nodes and links, for the next plan: segments' seconds by what their work should take.

Kept up by every request, and written down (measures_file.py) for the next life of the aggregator, too.
Nodes of which no answer has said anything for long are measured before an automatic plan (measuring.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.inference.cut_request import HubTold, NodeTold
from edge_attention.core.placement.cuts.boxes import BoxLink, BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.costs import LayerWork
from edge_attention.core.placement.cuts.measured_bins import HALF_LIFE
from edge_attention.core.placement.cuts.measures import FleetMeasures
from edge_attention.core.placement.cuts.trips import StepErrand, trip_seconds, unshared_seconds

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
SHORTEST_WAY = 50e-6
"""Seconds of a call and its answer: no link is quicker."""
SHARED_BYTE = 2e-9
"""Seconds that a byte of one link makes another wait from which they share one that is slower than the
aggregator."""
ALIKE, LONG_ENOUGH = 0.5, 1e-3
"""Boxes of one machine say how many it computes for at a time where the shortest takes such a part of the
longest, and that so many seconds."""
PRODUCTS_AT_ONCE = 0.8
"""Of as many boxes of a machine as it computes products for at a time it computes models for: those pass on
more than products do, and the aggregator may be there as well."""
TOGETHER = 1.25
"""Nodes that take so many times as long together as alone disturb each other; what is less is chance."""
NO_LINKS = BoxLinks()

SegmentsWork = Mapping[tuple[int, int], LayerWork]
"""By step and part."""


def stated_box(name: str, threads: int) -> ComputeBox:
    """A node as it is taken for before it was measured."""
    return ComputeBox(name, FLOPS_A_THREAD * max(threads, 1))


def boxes_at_once(alone: Sequence[float], together: float) -> float:
    """For how many boxes alike its machine computes at a time, if what takes each so long takes all so long.

    While all are at work each takes as many times as long as there are more of them than that.
    """
    first, last = min(alone), max(alone)
    slowed = max(together - (last - first), 1e-9)
    return min(max(len(alone) * first / slowed, 1.0), float(len(alone)))


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
        took: float = 0.0,
    ) -> None:
        """A request was answered by these segments of the schedule in `folder`.

        A node that has several calls at once takes as many times as long for each, which says nothing of how
        quick it is: such steps are left out, and links and requests of which one is are, too.

        Args:
            threads: of each node.
            links: whether their time on the way says something; not where nodes were sent programs as well.
            took: seconds of all of it; 0: they say nothing, as of one that had to wait.
        """
        path = folder / WORK_FILE
        if path not in self._work:
            self._work[path] = await asyncio.to_thread(_read, path)
            while len(self._work) > MOST_SHAPES:
                self._work.popitem(last=False)
        self._work.move_to_end(path)
        self.ran(self._work[path], segments, threads, time.monotonic(), links=links, took=took)

    def ran(
        self,
        work: SegmentsWork,
        segments: Sequence[SegmentRun],
        threads: Mapping[str, int],
        now: float,
        *,
        links: bool = True,
        took: float = 0.0,
    ) -> None:
        """As `answered`, at `now`."""
        steps: dict[int, list[SegmentRun]] = {}
        for one in segments:
            steps.setdefault(one.step, []).append(one)
        if not all(one.alone for one in segments):
            # Nor is the aggregator at work for this request alone: neither calls nor requests take what they
            # are predicted to. Of its steps, those say how quick nodes are that did nothing else meanwhile.
            steps = {step: asked for step, asked in steps.items() if all(one.alone for one in asked)}
            links = False
        computed: dict[str, list[tuple[float, float]]] = {}
        beside: dict[tuple[int, str], list[tuple[int, float]]] = {}
        called: dict[str, list[tuple[float, float, float, float]]] = {}
        for asked in steps.values():
            for machine in self._by_machine(work, asked, threads):
                self._computed(machine, computed, beside)
            if links:
                self._called(asked, called)
        for node, times in computed.items():
            self._measures.computed(node, times, now)
        for like, shared in beside.items():
            at_once = sum(count for count, _ in shared) / sum(each for _, each in shared)
            # That is so of the machine: of its nodes that have not run together, too.
            for node in [name for name, other in self._like.items() if other == like]:
                self._measures.beside(node, at_once, now)
        for node in {one.node for one in segments} & set(threads) if links else ():
            self._measures.called(node, called.get(node, ()), now)
            self._known[node] = now
        longest = sum(max(one.seconds for one in asked) for asked in steps.values())
        if links and took > longest:
            self._measures.requested(took - longest, len(steps), now)
        self.changes += 1

    def _by_machine(
        self, work: SegmentsWork, asked: Sequence[SegmentRun], threads: Mapping[str, int]
    ) -> Iterable[list[tuple[SegmentRun, float]]]:
        """Segments of one step, with what each should take."""
        found: dict[tuple[str, str], list[tuple[SegmentRun, float]]] = {}
        for one in asked:
            known = work.get((one.step, one.part))
            if known is not None and one.node in threads:
                expected = stated_box(one.node, threads[one.node]).seconds(known, inf)
                machine = self._like.get(one.node, (0, ""))[1]
                # Of a machine that is not known only the node itself; a machine is called what its node says.
                found.setdefault((machine, "" if machine else one.node), []).append((one, expected))
        return found.values()

    def _computed(
        self,
        beside: Sequence[tuple[SegmentRun, float]],
        computed: dict[str, list[tuple[float, float]]],
        shared: dict[tuple[int, str], list[tuple[int, float]]],
    ) -> None:
        """What segments that boxes of one machine did at once say.

        `computed`, `shared`: get by node what a segment should take and took, as if it had been alone; and by
        threads and machine of boxes alike how many there were, and how many times as long each took.
        """
        if len(beside) == 1:
            ((one, expected),) = beside
            computed.setdefault(one.node, []).append((expected, one.run))
            return
        if len({one.node for one, _ in beside}) < len(beside):
            return  # a box did several: which of them waited is not known
        alone = [self._measures.segment_seconds(one.node, expected) for one, expected in beside]
        longest = max(alone)
        # Which of them were at work at a time: they are asked one after another, and short ones have ended
        # before the last begins.
        # None has computed for longer than it was waited for, whatever it says.
        spans = [(max(one.seconds - one.run, 0.0), one.seconds) for one, _ in beside]
        all_at_once = min(end for _, end in spans) - max(begin for begin, _ in spans)
        met = all_at_once >= ALIKE * max(one.run for one, _ in beside)
        if met and min(alone) >= ALIKE * longest >= ALIKE * LONG_ENOUGH:
            at_once = boxes_at_once(alone, max(one.run for one, _ in beside))
            for like in {self._like[one.node] for one, _ in beside}:
                shared.setdefault(like, []).append((len(beside), len(beside) / at_once))
        unshared = unshared_seconds(spans, self._measures.at_once(beside[0][0].node) or inf)
        for (one, expected), own, took in zip(beside, alone, unshared, strict=True):
            if own >= ALIKE * longest > 0:  # of less, others take its time while it computes
                computed.setdefault(one.node, []).append((expected, took))

    def _called(
        self, asked: Sequence[SegmentRun], called: dict[str, list[tuple[float, float, float, float]]]
    ) -> None:
        """What a step took beside computing: its last call, without what the others made it wait.

        That is what the step would take if all links were nothing, by the very rule that it is predicted by.
        """
        last = max(asked, key=lambda one: one.seconds)
        longest = max(one.run for one in asked)
        # Of parts alike it is chance who computed longest; one that did little was late by its link.
        most = longest if last.run >= ALIKE * longest else last.run
        errands = [
            StepErrand(ComputeBox(one.node, 1.0), min(one.run, most), one.sent, one.received) for one in asked
        ]
        way = max(last.seconds - trip_seconds(errands, self._no_links()), SHORTEST_WAY)
        called.setdefault(last.node, []).append((last.sent, last.received, last.run, way))

    def _no_links(self) -> BoxLinks:
        """The aggregator with links that take no time."""
        each = self._measures.shared_byte
        hub = BoxLink(0.0, 1 / each, 1 / each) if each else BoxLink()
        return replace(NO_LINKS, hub=hub, trip_seconds=0.0)

    def _links(self) -> BoxLinks:
        return self._measures.links(NO_LINKS)

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
        byte, call = NO_LINKS.byte_seconds, NO_LINKS.call_seconds
        if len(times) > 1:
            self._shared(list(times.values()), size, now)
        shared = self._measures.shared_byte
        for node, one in times.items():
            beside = [other for other in times if machines[node] and machines[other] == machines[node]]
            seconds = one.alone.compute
            if len(beside) > 1:
                at_once = boxes_at_once(
                    [times[other].alone.compute for other in beside],
                    max(times[other].together.compute for other in beside),
                )
                self._measures.beside(node, PRODUCTS_AT_ONCE * at_once, now)
            elif one.together.compute > TOGETHER * seconds:
                seconds = one.together.compute  # machines that are none of their own, and do not say so
            stated = stated_box(node, threads[node])
            self._measures.computed(node, [(stated.seconds(work, inf), seconds)], now)
            # Of what takes less than a trip of nothing chance says which way is slower.
            down, up = (
                max(far - near, one.alone.empty, SHORTEST_WAY)
                for near, far in pairwise((one.alone.empty, one.alone.down, one.alone.echo))
            )
            self._measures.skewed(node, up / down, now)
            for took, to, back, run in (
                (one.alone.way, 0, 0, one.alone.compute),
                (one.alone.empty, 0, 0, 0.0),
                (one.alone.down, size, 0, 0.0),
                (one.alone.echo, size, size, 0.0),
            ):
                # What is stated of the aggregator's processor is more than a quick one takes.
                here = min(call + (to + back) * byte, took / 2)
                way = took - here - (to + back) * shared
                self._measures.called(node, [(to, back, run, max(way, SHORTEST_WAY))], now)
            self._known[node] = now
        self.changes += 1

    def _shared(self, times: Sequence[NodeTimes], size: int, now: float) -> None:
        """What all links share, by how much longer `size` bytes took to all than to each: to the last of all,
        as to the first the others' made no difference."""
        count = len(times)
        last = max(times, key=lambda one: one.together.down - one.alone.down)
        longer = (last.together.down - last.alone.down) / ((count - 1) * size)
        if longer - NO_LINKS.byte_seconds < SHARED_BYTE:
            self._measures.not_shared()
            return
        each = max(longer, (last.together.down - last.together.empty) / (count * size))
        # One way at a time has all bytes there and back one after another; both ways at once answers only
        # wait for each other: `count` + 1 times as long as one way.
        there_and_back = max(one.together.echo - one.together.empty for one in times) / (each * size)
        both = there_and_back > (3 * count + 1) / 2
        self._measures.shared(each - NO_LINKS.byte_seconds, both, now)

    def unknown(self, nodes: Sequence[str], now: float) -> tuple[str, ...]:
        """Those of `nodes` that were not measured for HALF_LIFE, or whose links never were.

        Answers tell of the link of a step's last node alone: one that never is the last would be taken for
        next door.
        """
        return tuple(
            node
            for node in nodes
            if now - self._known.get(node, -inf) > HALF_LIFE or not self._measures.reached(node)
        )

    def told(self, node: NodeTold) -> NodeTold:
        """The node with what was measured of it: nothing, if it is another box than was measured."""
        like = node.threads, node.machine
        if self._like.setdefault(node.name, like) != like:
            self._forget(node.name)
            self._like[node.name] = like
        link = self._measures.link(node.name, NO_LINKS)
        box = self._measures.box(stated_box(node.name, node.threads))
        return replace(
            node,
            slowness=box.slowness,
            call_seconds=box.call_seconds,
            latency=link.latency,
            cold=link.cold,
            down=0.0 if link.down == inf else link.down,
            up=0.0 if link.up == inf else link.up,
            at_once=self._measures.at_once(node.name),
            measured=not self.unknown([node.name], time.monotonic()),
        )

    def hub(self) -> HubTold:
        """How all nodes are reached together."""
        links = self._links()
        hub = links.hub
        bandwidth = 0.0 if hub.down == inf else hub.down
        return HubTold(links.request_seconds, links.trip_seconds, bandwidth, hub.both > 0)

    def tidy(self, now: float) -> None:
        """Forget nodes that were not measured for long, and of more than MOST_NODES those of longest ago."""
        old = [name for name, at in self._known.items() if now - at > FORGOTTEN_SECONDS]
        last_first = sorted(self._known, key=lambda name: -self._known[name])
        for name in {*old, *last_first[MOST_NODES:]}:
            self._forget(name)
        self._measures.keep(self._known)  # nodes may have gone before they answered anything
        # Those that were only asked about.
        self._like = {name: like for name, like in self._like.items() if name in self._known}

    def _forget(self, name: str) -> None:
        self._measures.forget(name)
        self._known.pop(name, None)
        self._like.pop(name, None)

    def saved(self, now: float) -> dict[str, Any]:
        """What is known, as JSON; times are ages."""
        self.tidy(now)
        nodes = {
            name: {
                "age": max(now - at, 0.0),
                "like": list(self._like.get(name, ())),
                "lines": self._measures.saved_box(name, now),
            }
            for name, at in self._known.items()
        }
        return {"nodes": nodes, "fleet": self._measures.saved(now)}

    def restore(self, data: Mapping[str, Any], aged: float, now: float) -> None:
        """What `saved` said `aged` seconds ago. What is no such thing is left out: it is measured anew.

        Of an earlier version there are means in place of lines, and nothing of the fleet.
        """
        for name, one in data["nodes"].items():
            try:
                known = now - float(one["age"]) - aged
                like = one["like"]
                if not isfinite(known) or known > now:
                    continue
                if "lines" in one:
                    self._measures.restore_box(name, one["lines"], aged, now)
                else:
                    self._measures.restore_means(name, one["means"], aged, now)
                if like:
                    self._like[name] = int(like[0]), str(like[1])
            except _UNSOUND:
                continue
            self._known[name] = known
        if aged <= FORGOTTEN_SECONDS:
            with suppress(*_UNSOUND):
                self._measures.restore(data["fleet"], aged, now)
        self.tidy(now)


_UNSOUND = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What reading raises of what is no measure."""


def _read(path: Path) -> SegmentsWork:
    """Nothing where it is not there, or is damaged: then segments are not measured by it."""
    try:
        data = json.loads(path.read_text())
        return {(int(step), int(part)): LayerWork(*map(float, rest)) for step, part, *rest in data}
    except (OSError, ValueError, TypeError):
        return {}
