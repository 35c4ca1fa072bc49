"""What the nodes of a run's own samples let leave, and from what: a release a part, and one of the whole job.

Of the first part: its activations, and the gradients of its parameters. Of the last: the gradient at its
border, the loss, and the gradients of its parameters. Both are computed from what the node has read itself,
and from what the aggregator sent; what a part keeps between its two ways stays there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aggregator.fleet.columns import TableView
from edge_attention.core.job_release import ALIGNMENT, JobRelease
from edge_attention.core.messages.training import PlannedGraph
from edge_attention.core.release import GraphRule, Release, numbered, output
from edge_attention.core.schedule.schedule import Kept, ModelInput, ModelSegment, Schedule

__all__ = ["WholeRelease", "part_releases", "planned_graphs"]


@dataclass(frozen=True)
class _PartOrigins:
    """What a part's segments are to a release: graph's digest -> what it may read, and what it gives out."""

    inputs: dict[str, dict[str, set[str]]]
    leaves: dict[str, set[str]]


def part_releases(
    schedules: Iterable[Schedule], views: Mapping[str, TableView], sums: Schedule | None = None
) -> dict[int, Release]:
    """By part that reads samples on its node, its release: of all `schedules` of the run.

    Args:
        views: input of the model -> how its node reads it.
        sums: of gradients, which leave instead of these (graphs/backward/summed.py).
    """
    parts: dict[int, _PartOrigins] = {}
    for schedule in schedules:
        reads = {
            segment.part
            for step in schedule.steps
            for segment in step.segments
            for source in segment.inputs.values()
            if isinstance(source, ModelInput) and source.name in views
        }
        for part in reads:
            found = parts.setdefault(part, _PartOrigins({}, {}))
            made = _add(found, schedule, part, views)
            for segment in sums.steps[0].segments if sums is not None else ():
                if segment.part == part and segment.graph in schedule.graphs:
                    _add_sums(found, schedule, segment, made)
    return {
        part: Release(
            {
                graph: GraphRule(
                    {name: frozenset(sources) for name, sources in inputs.items()},
                    frozenset(found.leaves.get(graph, ())),
                )
                for graph, inputs in found.inputs.items()
            }
        )
        for part, found in sorted(parts.items())
    }


def _add(
    found: _PartOrigins, schedule: Schedule, part: int, views: Mapping[str, TableView]
) -> dict[str, str]:
    """The part's segments, of one schedule; by what it keeps the output that makes it."""
    made: dict[str, str] = {}
    """Kept -> the output of the graph that makes it."""
    for _, segment in schedule.of_part(part):
        graph = schedule.graphs[segment.graph]
        inputs = found.inputs.setdefault(graph, {})
        for name, source in segment.inputs.items():
            match source:
                case ModelInput(tensor) if tensor in views:
                    inputs.setdefault(numbered(name), set()).add(views[tensor].source(tensor))
                case Kept(tensor):
                    inputs.setdefault(numbered(name), set()).add(made[tensor])
        leaves = found.leaves.setdefault(graph, set())
        leaves.update(numbered(one.output) for one in segment.contributions)
        made |= {kept: output(graph, name) for name, kept in segment.kept.items()}
    return made


def _add_sums(
    found: _PartOrigins, schedule: Schedule, segment: ModelSegment, made: Mapping[str, str]
) -> None:
    """What adds the part's gradients, and gives out their sums. `segment`: of the schedule of sums."""
    gradients = {made[one.output] for one in segment.contributions}
    if (whole := schedule.graphs.get(f"sum/{segment.part}/all")) is not None:
        found.inputs.setdefault(whole, {}).setdefault(numbered("g/0/0"), set()).update(gradients)
        found.leaves.setdefault(whole, set()).add(numbered("t/0"))
        return
    first, following = (schedule.graphs[f"sum/{segment.part}/{which}"] for which in ("first", "next"))
    for graph in (first, following):
        inputs = found.inputs.setdefault(graph, {})
        inputs.setdefault(numbered("g/0"), set()).update(gradients)
        found.leaves.setdefault(graph, set()).add(numbered("t/0"))
    before = {output(graph, "t/0") for graph in (first, following)}
    found.inputs[following].setdefault(numbered("s/0"), set()).update(before)


class WholeRelease:
    """The list of all releases of a job, which every node is brought: known once each group has told its own.

    A group whose nodes are waited for holds up the others: an operator allows the list of all of them.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._told: dict[int, frozenset[str]] = {}
        self._known = asyncio.Event()

    async def texts(self, group: int, releases: Iterable[Release]) -> tuple[str, ...]:
        """What programs for nodes of `group` bring: the list, and the group's own releases."""
        own = tuple(releases)
        self._told[group] = frozenset(one.digest for one in own)
        if len(self._told) == self._groups:
            self._known.set()
        await self._known.wait()
        whole = JobRelease(frozenset[str]().union(*self._told.values()), alignment=True)
        return (whole.text, *(one.text for one in own))


def planned_graphs(
    schedules: Mapping[str, Schedule],
    holders: Mapping[int, tuple[str, ...]],
    needed: Mapping[int, Release],
    sums: Schedule | None = None,
) -> tuple[PlannedGraph, ...]:
    """What each node runs, and must let leave: a graph once a node.

    Args:
        schedules: by what they are for, as roles say it; empty: steps.
        needed, sums: as of `part_releases`.
    """
    found: dict[tuple[str, str], PlannedGraph] = {}

    def add(part: int, role: str, digest: str, outputs: Iterable[str]) -> None:
        release = needed.get(part)
        leaves = tuple(outputs) if release is not None else ()
        flag, text = (f"sha256:{release.digest}", release.text) if release is not None else ("", "")
        for node in holders.get(part, ("*",)):
            found.setdefault((node, digest), PlannedGraph(node, role, digest, leaves, flag, text))

    for part in needed:
        for node in holders.get(part, ("*",)):
            found[node, ""] = PlannedGraph(node, "ids", "", ("keyed hashes of the ids",), ALIGNMENT)
    for what, schedule in schedules.items():
        for number, step in enumerate(schedule.steps):
            for segment in step.segments:
                role = f"part {segment.part}, {f'{what}, ' if what else ''}step {number}"
                made = (one.output for one in segment.contributions)
                add(segment.part, role, schedule.graphs[segment.graph], made)
        for segment in sums.steps[0].segments if sums is not None else ():
            added = [f"t/{i}" for i in range(len(segment.contributions))]
            for name, digest in schedule.graphs.items():
                if name.startswith(f"sum/{segment.part}/"):
                    add(segment.part, f"part {segment.part}, sums", digest, added)
    return tuple(found.values())
