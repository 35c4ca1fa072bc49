"""What a request may go on without: what boundaries lack then, and whether the rest says something.

What a part that is left out would have contributed is a hole. `next`: by part, which of its segments is to
contribute next.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from aggregator.inference.course import Course
from edge_attention.core.schedule.extents import Extent
from edge_attention.core.schedule.fold_plan import overlap
from edge_attention.core.schedule.schedule import Collective, Delivery

__all__ = ["holes_without", "may_leave_out"]


def holes_without(course: Course, parts: Collection[int], next: Sequence[int]) -> dict[str, list[Extent]]:
    """What of the boundaries is not there without what `parts` have still to contribute.

    Of a MERGE that is what these parts would have been sent of it: the rows of their own queries.
    """
    found: dict[str, list[Extent]] = {}
    boundaries = course.schedule.boundaries
    for part in parts:
        for one in course.parts[part][next[part] :]:
            for made in one.segment.contributions:
                if boundaries[made.boundary].collective is not Collective.MERGE:
                    found.setdefault(made.boundary, []).append(made.extent)
            for source in one.segment.inputs.values():
                if isinstance(source, Delivery):
                    boundary = boundaries[source.boundary]
                    if boundary.collective is Collective.MERGE:
                        found.setdefault(source.boundary, []).append(source.extent)
    return found


def may_leave_out(course: Course, parts: Collection[int], next: Sequence[int]) -> bool:
    """Whether what comes without these parts still says something of the whole.

    A segment that makes partials of attention and nothing else may be sent queries that are not there: what
    comes of them nobody is sent. Nothing else may be sent what is not there.
    """
    if len(parts) == len(course.parts):
        return False
    schedule, holes = course.schedule, holes_without(course, parts, next)
    for part, own in enumerate(course.parts):
        if part in parts:
            continue
        for one in own[next[part] :]:
            for name, source in one.segment.inputs.items():
                if not isinstance(source, Delivery) or source.boundary not in holes:
                    continue
                boundary = schedule.boundaries[source.boundary]
                shape = boundary.spec.shape
                whole = boundary.collective not in (Collective.GATHER, Collective.MERGE)
                met = whole or any(overlap(shape, h, source.extent) for h in holes[source.boundary])
                free = boundary.collective is Collective.GATHER and course.only_merges(one, name)
                if met and not free:
                    return False
    for name in schedule.results.values():
        boundary = schedule.boundaries[name]
        if name in holes and (
            boundary.collective is not Collective.GATHER or np.dtype(boundary.spec.dtype).kind != "f"
        ):
            return False
    return True
