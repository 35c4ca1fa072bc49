"""The attend recipe: queries down, (out, lse) up, merged in shard order; what is missing is labelled."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from aggregator.attention.activity import AttendActivity
from aggregator.attention.attend_plan import (
    LSE,
    QUERIES,
    Plan,
    PlanPart,
    Plans,
    deadline_of,
    is_large,
    make_plan,
    require_answer,
)
from aggregator.attention.contexts import Contexts, StoredContext
from aggregator.attention.metrics import AttendMetrics
from aggregator.bounds.turns import Turns
from aggregator.engine.outcome import MissingKind, Outcome
from aggregator.engine.returned import Returned
from aggregator.engine.trip import AT_ONCE, Errand, Trips
from edge_attention.core.bounds import error_bound, lse_upper_bound
from edge_attention.core.errors import EdgeAttentionError, InvalidTensor, PermissionDenied
from edge_attention.core.fold import Fold
from edge_attention.core.messages.attention import AttendRequest, AttendResponse, Bound, Missing, ShardMass
from edge_attention.core.partial import Partial, identity, mass, merge
from edge_attention.core.positions import joined
from edge_attention.core.tensors import Encoded, Encoding, Float32, require
from edge_attention.graphs.attention import library

_LARGE = 65_536
"""Elements of an answer beyond which what is missing of it is bounded in a thread."""

QUEUED_SECONDS = 0.03
"""So long a task may lie at a node beside others before that counts as a queue."""

MIN_SECONDS = 0.05
"""What the weights' own trip gets at least, where the first has used up the deadline."""


_FLOAT32 = np.dtype(np.float32)

_BELIEVED = (PermissionDenied,)
"""The program and the queries are checked here, so that a node that finds them wrong is wrong; what its
operator allows only the node knows."""


class Attender:
    """Answers attends: plans them, asks the nodes, merges what comes, and labels what does not."""

    def __init__(
        self,
        contexts: Contexts,
        trips: Trips,
        metrics: AttendMetrics,
        activity: AttendActivity,
        turns: Turns | None = None,
    ) -> None:
        self._contexts = contexts
        self._trips = trips
        self._metrics = metrics
        self._activity = activity
        self._plans = Plans()
        self._turns = turns or Turns()

    async def attend(
        self, request: AttendRequest, caller: str = "", seconds: float = math.inf
    ) -> AttendResponse:
        """Exact attention over the context, or over what answered, labelled and bounded.

        `seconds`: until `caller` has given up.

        Raises:
            NotFound, EmptyContext, InvalidTensor, InvalidArgument: nothing was asked of a node.
            ResourceExhausted, MessageTooLarge: the same; the answer would be too large.
            Overloaded: the same; it could not have been answered in time.
        """
        try:
            response, outcome = await self._attend(request, caller, seconds)
        except Exception as error:
            self._metrics.failed()
            if isinstance(error, EdgeAttentionError):
                self._activity.failed(request, error.message, time.time())
            raise
        # After the answer is on its way: nobody waits for these.
        loop = asyncio.get_running_loop()
        if self._metrics.attended(response, outcome):
            loop.call_soon(self._metrics.count)
        loop.call_soon(self._activity.answered, request, response, time.time())
        return response

    async def _attend(
        self, request: AttendRequest, caller: str, seconds: float
    ) -> tuple[AttendResponse, Outcome]:
        started = time.perf_counter()
        context = self._contexts.get(request.context)
        plan = await self._plan(context, request, caller, seconds)
        size, work = require_answer(context, request, plan), plan.work
        planned = time.perf_counter()
        given = deadline_of(request)
        deadline = max(min(given, seconds) - (planned - started), 0.0)
        async with self._turns.attend(work, len(plan.parts)).turn(caller, size, deadline) as turn:
            response, outcome = await self._ask(context, request, plan, given, started, planned, turn.waited)
            if outcome.missing and not _names(context, outcome.missing):
                # Trimmed since it was planned: of what is left there is an exact answer.
                plan = await self._plan(context, request, caller, seconds)
                require_answer(context, request, plan)
                waited = time.perf_counter() - planned
                response, outcome = await self._ask(context, request, plan, given, started, planned, waited)
            turn.congested = _congested(outcome)
        self._turns.learn(work, _busiest(outcome))
        return response, outcome

    async def _plan(
        self, context: StoredContext, request: AttendRequest, caller: str, seconds: float
    ) -> Plan:
        plan = self._plans.known(context, request)
        if plan is None and not is_large(context, request):
            plan = self._plans.get(context, request)
        elif plan is None:
            # As it is now: segments that come meanwhile are not in it.
            frozen = replace(context, segments=list(context.segments))
            deadline = min(deadline_of(request), seconds)
            async with self._turns.plans.turn(caller, 0, deadline):
                made = await asyncio.to_thread(make_plan, frozen, request)
            plan = self._plans.keep(frozen, request, made)
        return plan

    async def _ask(
        self,
        context: StoredContext,
        request: AttendRequest,
        plan: Plan,
        given: float,
        started: float,
        planned: float,
        waited: float,
    ) -> tuple[AttendResponse, Outcome]:
        """Ask the nodes, `waited` of the `given` seconds after the request came.

        Times are of `time.perf_counter`.
        """
        parts, shape = plan.parts, plan.shape
        deadline = max(given - (planned - started) - waited, MIN_SECONDS)
        asked = time.perf_counter()
        fold: Fold[Partial] = Fold(plan.leaves, merge)
        lses: dict[str, Float32] = {}
        merging = 0.0

        def early(returned: Returned) -> None:
            """The lse before the out: it certifies the error, should the out not come."""
            if returned.final:
                return
            if "lse" not in returned.tensors or "out" in returned.tensors:
                raise InvalidTensor("it returned something else than an lse before its last word")
            lse = returned.array("lse")
            Partial(np.zeros(shape, np.float32), lse).check(shape, f"shard {returned.shard!r}")
            lses[returned.shard] = lse

        def take(answer: Returned) -> None:
            nonlocal merging
            begun = time.perf_counter()
            shard = answer.shard
            lses.pop(shard, None)
            partial = Partial(answer.array("out"), answer.array("lse")).check(shape, f"shard {shard!r}")
            fold.add(shard, answer.coverage, partial)
            lses[shard] = partial.lse
            merging += time.perf_counter() - begun

        holders: list[tuple[str, ...]] = []
        for part in parts.values():
            if holders and len(holders) % AT_ONCE == 0:
                await asyncio.sleep(0)
            holders.append(self._contexts.serving(context, part.segment))
        outcome = await self._trips.make(
            plan.errands(holders),
            deadline,
            take,
            each=early,
            tensors={QUERIES: request.queries},
            believed=_BELIEVED,
        )
        answered = time.perf_counter()
        merged = fold.result() or identity(shape)
        seconds: dict[str, float] = {}
        if (outcome.missing and merged.out.size > _LARGE) or len(parts) > AT_ONCE:
            # To certify the error of a large answer takes longer than others may wait for the loop, and so do
            # the masses of many parts.
            response = await asyncio.to_thread(self._response, request, plan, outcome, lses, merged, seconds)
        else:
            response = self._response(request, plan, outcome, lses, merged, seconds)
        merging += time.perf_counter() - answered
        if request.weights:
            left = max(given - (time.perf_counter() - started), MIN_SECONDS)
            weights = await self._weights(request, plan, outcome, merged.lse, left)
            response = replace(response, weights=weights)
        ended = time.perf_counter()
        wait, tasks = answered - asked, outcome.task_seconds
        slowest = max(tasks, key=lambda shard: tasks[shard], default="")
        task = tasks.get(slowest, 0.0)
        seconds |= {
            "plan": planned - started,
            "turn": waited,
            "wait": wait,
            "merge": merging,
            "node_run": max(outcome.run_seconds.values(), default=0.0),
            "queue": max(task - outcome.run_seconds.get(slowest, 0.0), 0.0),
            "network": max(wait - task, 0.0),
            "all": ended - started,
        }
        return response, outcome

    def _response(
        self,
        request: AttendRequest,
        plan: Plan,
        outcome: Outcome,
        lses: Mapping[str, Float32],
        merged: Partial,
        seconds: Mapping[str, float],
    ) -> AttendResponse:
        """The answer but for its weights. `seconds` may be filled in later."""
        parts = plan.parts
        masses = tuple(
            ShardMass(id, node, at.hull, mass(lses[id], merged.lse, merged.full), at.count)
            for id, node in outcome.answered.items()
            for at in (parts[id].segment.positions,)
        )
        missing = tuple(_missing(parts[id], why.text) for id, why in outcome.missing.items())
        bound = None
        if missing:
            bounds = [
                (
                    lses[m.shard] if m.shard in lses else _lse_bound(request, plan, parts[m.shard]),
                    parts[m.shard].segment.summary,
                )
                for m in missing
            ]
            error = error_bound(merged, bounds)
            if plan.encoding is not Encoding.RAW:
                error = error + self._rounding(parts, outcome, plan.encoding)
            bound = Bound(error, all(m.shard in lses for m in missing))
        return AttendResponse(
            out=Encoded(merged.out, plan.encoding),
            lse=merged.lse,
            exact=not missing,
            coverage=joined([parts[id].seen for id in outcome.answered]) if missing else plan.coverage,
            mass=masses,
            tokens=plan.tokens,
            bound=bound,
            missing=missing,
            seconds=seconds,
        )

    def _rounding(self, parts: Mapping[str, PlanPart], outcome: Outcome, encoding: Encoding) -> np.float32:
        """What half precision may add to an error: half a unit of the largest value, at the node and here."""
        unit = 2.0**-10 if encoding is Encoding.FLOAT16 else 2.0**-7
        summaries = [parts[id].segment.summary for id in outcome.answered]
        largest = max((np.maximum(-s.value_min, s.value_max).max() for s in summaries), default=0.0)
        return np.float32(largest * unit + 2.0**-24)

    async def _weights(
        self,
        request: AttendRequest,
        plan: Plan,
        outcome: Outcome,
        lse: Float32,
        seconds: float,
    ) -> Float32:
        """Every token's global attention weight, computed where the token is from the merged lse."""
        parts = plan.parts
        weights = np.zeros((*plan.shape[:2], plan.tokens), np.float32)

        def take(answer: Returned) -> None:
            part, returned = parts[answer.shard], answer.array("weights")
            require(returned, "weights", shape=returned.shape)
            first = part.view.tiles.start * library.TILE
            stop = min(first + returned.shape[2], part.segment.positions.count)
            at = part.segment.positions.at(range(first, stop))
            weights[:, :, at] = returned[:, :, : stop - first]

        tensors = {QUERIES: request.queries, LSE: lse}
        errands = []
        for id, node in outcome.answered.items():
            part = parts[id]
            columns = len(part.view.tiles) * library.TILE
            errands.append(
                Errand(
                    shard=id,
                    holders=(node, *(n for n in part.segment.holders if n != node)),
                    coverage=part.cover,
                    instructions=part.weigh,
                    wanted={"weights": (_FLOAT32, (*weights.shape[:2], columns))},
                )
            )
        second = await self._trips.make(errands, seconds, take, tensors=tensors, believed=_BELIEVED)
        for id in (*second.missing, *outcome.missing):
            # Not known is not zero.
            positions = parts[id].segment.positions
            weights[:, :, positions.at(range(positions.count))] = np.nan
        return weights


def _names(context: StoredContext, segments: Collection[str]) -> bool:
    """Whether these are segments of the context as it is now."""
    return {segment.id for segment in context.segments}.issuperset(segments)


def _missing(part: PlanPart, why: str) -> Missing:
    at, segment = part.seen, part.segment
    return Missing(segment.id, at.hull, segment.holders, why, at.count, at.bounds if at.number > 1 else ())


def _congested(outcome: Outcome) -> bool:
    """Whether tasks queued at a node, or none was answered in time. One slow node is no queue."""
    if not outcome.answered:
        # By this side's clock: what nodes say of themselves must not make the others' turns fewer.
        return any(missing.kind is MissingKind.LATE for missing in outcome.missing.values())
    run, task = outcome.run_seconds, outcome.task_seconds
    return any(task[s] - run.get(s, 0.0) > max(QUEUED_SECONDS, run.get(s, 0.0)) for s in task)


def _busiest(outcome: Outcome) -> float:
    """Seconds in graphs at the node that had most to do."""
    of: dict[str, float] = {}
    for shard, node in outcome.answered.items():
        of[node] = of.get(node, 0.0) + outcome.run_seconds.get(shard, 0.0)
    return max(of.values(), default=0.0)


def _lse_bound(request: AttendRequest, plan: Plan, part: PlanPart) -> Float32:
    seen = (part.view.hi - part.view.lo).astype(np.float32)
    return lse_upper_bound(request.queries, part.segment.summary, plan.scale, seen)
