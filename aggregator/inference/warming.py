"""Has nodes load a part's graphs, with its weights in them, before anybody waits for that."""

from __future__ import annotations

import logging
from collections.abc import Callable

from aggregator.engine.bulk import Bulk
from aggregator.engine.trip import Errand, Trips
from aggregator.inference.calls import WARM, SegmentCalls
from aggregator.inference.course import Course
from aggregator.inference.known_graphs import SessionOfNode
from aggregator.inference.lending import lend
from aggregator.inference.model_answer import SegmentRun
from edge_attention.core.errors import InvalidGraph, OutOfMemory
from edge_attention.core.messages.program import Drop

__all__ = ["warm_part"]

log = logging.getLogger(__name__)

WARM_SECONDS = 600.0
"""Loading one segment with its weights takes no longer."""
WARM_AGAIN = 0.1
"""A segment that took less seconds to compute is called again, for how long it takes once loaded."""


async def warm_part(
    trips: Trips,
    bulk: Bulk,
    course: Course,
    calls: SegmentCalls,
    node: str,
    part: int,
    warmed: Callable[[SegmentRun], None],
    loaded: Callable[[SessionOfNode], bool],
) -> set[SessionOfNode]:
    """Have the node load the part's graphs, with its weights in them, before anybody waits for that; those
    that it has loaded now.

    Each segment is called once, with zeros; what comes of zeros, and whether it can be computed, says
    nothing of what is to come. One whose session is `loaded` already is not called.

    Raises:
        OutOfMemory, InvalidGraph: the node cannot hold it.
    """
    found: set[SessionOfNode] = set()
    try:
        for one in course.parts[part]:
            call = calls.call(one, WARM, False)
            if loaded(call.session):
                continue
            zeros = {name: tensor.zeros() for name, tensor in call.slots.items()}
            loans: list[str] = []
            try:
                errand = Errand(
                    shard=f"warm.part{part}.step{one.step}",
                    holders=(node,),
                    coverage=range(part, part + 1),
                    instructions=call.instructions,
                    wanted=call.wanted,
                    inline=zeros,
                    lent=await lend(bulk, {n: (t, t.zeros()) for n, t in call.lent.items()}, loans),
                    prepared=call.prepared,
                    releases=call.releases,
                )
                outcome = await trips.make([errand], WARM_SECONDS, believed=())
                if outcome.run_seconds.get(errand.shard, WARM_AGAIN) < WARM_AGAIN:
                    # The first time tells of loading, the second of what is to come.
                    outcome = await trips.make([errand], WARM_SECONDS, believed=())
                for shard, at in outcome.answered.items():
                    run, took = outcome.run_seconds.get(shard, 0.0), outcome.seconds.get(shard, 0.0)
                    alone = shard in outcome.alone
                    warmed(SegmentRun(one.step, part, at, run, took, call.down, call.up, alone))
            finally:
                for digest in loans:
                    bulk.take_back(digest)
            for missing in outcome.missing.values():
                log.info("node %s, part %d, step %d: %s", node, part, one.step, missing.text)
                if isinstance(missing.error, OutOfMemory | InvalidGraph) or not missing.said:
                    raise (missing.error or missing.cause(missing.text))
            if not outcome.missing:
                found.add(call.session)
    finally:
        if found:
            trips.post(node, (Drop((f"{calls.warm_scope}p{part}/",)),))
    return found
