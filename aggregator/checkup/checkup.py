"""What `edge-attention doctor` asks of the aggregator: who it is, and how the way to a node is."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.bounds.callers_in_turn import CallersInTurn
from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand, Trips
from aggregator.fleet.membership import Membership
from aggregator.trust.acting import acting_for
from aggregator.trust.endpoint import Endpoint
from edge_attention import box
from edge_attention.core.errors import (
    DataLoss,
    InvalidArgument,
    InvalidTensor,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.messages.fleet import (
    DescribeAggregatorRequest,
    DescribeAggregatorResponse,
    ProbeNodeRequest,
    ProbeNodeResponse,
)
from edge_attention.core.messages.link import PROTOCOL
from edge_attention.core.messages.program import Return
from edge_attention.disk_room import room
from edge_attention.wire import services
from edge_attention.wire.methods import KEEPALIVE_SECONDS, LEAST_PING_SECONDS

MAX_ROUND_TRIPS = 100
MAX_BYTES = 16 * 1024 * 1024
BYTES_A_MINUTE = 16 * MAX_BYTES
"""Bytes a minute of all probes together: a probe must not become a way to fill somebody's line. Of one caller
a half, so that others can probe, too."""
CALLERS = 256
"""Whose bytes are remembered; of more, those of who probed longest ago are forgotten."""
DEADLINE = 30.0
MAX_DEADLINE = 300.0

_UINT8 = np.dtype(np.uint8)
_PING = {"task/ping": np.zeros(1, np.uint8)}
_PROBE = Errand(
    shard="probe",
    holders=(),
    coverage=range(0),
    instructions=(Return("task/ping", "pong"),),
    wanted={"pong": (_UINT8, (1,))},
    inline=_PING,
)
# The second answer has the first one's name, so they travel apart: one when all bytes are there, one back.
_THERE_AND_BACK = (Return("task/ping", "bytes"), Return("task/bytes", "bytes"))


@dataclass
class Allowance:
    """So many bytes a minute, as many at once at most. Times are seconds of any steady clock."""

    bytes_a_minute: int
    left: float
    at: float

    def take(self, size: int, now: float) -> None:
        """Raises ResourceExhausted: not now, and when."""
        self.left = min(self.bytes_a_minute, self.left + (now - self.at) * self.bytes_a_minute / 60)
        self.at = now
        if size > self.left:
            wait = (size - self.left) * 60 / self.bytes_a_minute
            raise ResourceExhausted(
                f"probes may send {self.bytes_a_minute:,} bytes a minute, and have; try again in {wait:.0f} s"
            )
        self.left -= size


class Checkup:
    """Describes this aggregator and probes its nodes.

    Args:
        http_port: where metrics are served; 0: nowhere, or not yet.
        folder: of the state, of whose disk it tells; None: of none.
    """

    def __init__(
        self,
        membership: Membership,
        trips: Trips,
        http_port: Callable[[], int] = int,
        clock: Callable[[], float] = time.monotonic,
        folder: Path | None = None,
    ) -> None:
        self._folder = folder
        self._membership = membership
        self._trips = trips
        self._http_port = http_port
        self._clock = clock
        self._started = clock()
        self._allowance = Allowance(BYTES_A_MINUTE, BYTES_A_MINUTE, self._started)
        self._of: OrderedDict[str, Allowance] = OrderedDict()
        self._turns = CallersInTurn()

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(services.DESCRIBE_AGGREGATOR, self.describe, "viewer"),
            Endpoint(services.PROBE_NODE, self.probe, "user"),
        )

    async def describe(self, request: DescribeAggregatorRequest, call: Any) -> DescribeAggregatorResponse:
        free, size = (0, 0) if self._folder is None else room(self._folder)
        return DescribeAggregatorResponse(
            software=box.software(),
            protocol=PROTOCOL,
            uptime_seconds=self._clock() - self._started,
            lease_seconds=self._membership.pace.lease,
            heartbeat_seconds=self._membership.pace.heartbeat,
            keepalive_seconds=KEEPALIVE_SECONDS,
            least_ping_seconds=LEAST_PING_SECONDS,
            http_port=self._http_port(),
            box=box.describe(),
            disk_free=free,
            disk_size=size,
        )

    async def probe(self, request: ProbeNodeRequest, call: Any) -> ProbeNodeResponse:
        """Time the way to a node and back.

        Raises:
            InvalidArgument: more than a probe may ask.
            NotFound, FailedPrecondition, Unavailable, DeadlineExceeded: the node did not answer.
            ResourceExhausted: too many bytes were probed with a moment ago.
        """
        trips = request.round_trips or 10
        seconds = DEADLINE if request.deadline_seconds is None else request.deadline_seconds
        if trips > MAX_ROUND_TRIPS or request.bytes > MAX_BYTES:
            raise InvalidArgument(
                f"a probe makes at most {MAX_ROUND_TRIPS} round trips and sends {MAX_BYTES:,} bytes; this "
                f"would make {trips} and send {request.bytes:,}"
            )
        if not 0 < seconds <= MAX_DEADLINE:  # NaN neither
            raise InvalidArgument(
                f"deadline is {seconds} s; it must be above 0 and at most {MAX_DEADLINE:.0f}"
            )
        self._membership.require_live(request.node)
        until = self._clock() + seconds
        try:
            # One at a time, or they would measure each other.
            async with asyncio.timeout(seconds):
                await self._turns.enter(acting_for())
        except TimeoutError:
            raise Unavailable(f"another probe was under way for all of {seconds:g} s; try again") from None
        try:
            self._take(2 * request.bytes)
            return await self._probe(request.node, trips, request.bytes, until)
        finally:
            self._turns.leave(acting_for())

    def _take(self, size: int) -> None:
        """Count bytes of a probe. Raises ResourceExhausted."""
        now, caller = self._clock(), acting_for()
        if caller:
            half = BYTES_A_MINUTE // 2
            own = self._of.setdefault(caller, Allowance(half, half, now))
            self._of.move_to_end(caller)
            while len(self._of) > CALLERS:
                self._of.popitem(last=False)
            own.take(size, now)
            try:
                self._allowance.take(size, now)
            except ResourceExhausted:
                own.left += size  # nothing of it is sent
                raise
        else:
            self._allowance.take(size, now)

    async def _probe(self, node: str, trips: int, size: int, until: float) -> ProbeNodeResponse:
        round_trips, tasks = [], []
        pong = replace(_PROBE, holders=(node,))
        for _ in range(trips):
            times, task_seconds, _ = await self._ask(pong, until)
            round_trips.append(times[-1])
            tasks.append(task_seconds)
        if not size:
            return ProbeNodeResponse(tuple(round_trips), tuple(tasks), None, None, 0)
        data = np.frombuffer(os.urandom(size), np.uint8)
        bytes_back = replace(
            pong,
            instructions=_THERE_AND_BACK,
            wanted={"bytes": (_UINT8, ("bytes",))},
            tensors={"task/bytes": data},
        )
        times, _, answer = await self._ask(bytes_back, until)
        if not np.array_equal(answer.array("bytes"), data):
            raise DataLoss(f"node {node!r} gave back other bytes than it was sent")
        if len(times) != 2:
            raise InvalidTensor(
                f"node {node!r} answered a probe in {len(times)} parts where 2 were asked for"
            )
        # The first answer came half a round trip after the last byte had, and the second set out with it.
        way = min(round_trips) / 2
        down, up = max(times[0] - way, 1e-9), times[1] - times[0] + way
        return ProbeNodeResponse(tuple(round_trips), tuple(tasks), down, up, size)

    async def _ask(self, errand: Errand, until: float) -> tuple[list[float], float, Returned]:
        """When each answer came, seconds after it was asked; the task's seconds; all that came."""
        came: list[float] = []
        answers: list[Returned] = []

        def each(returned: Returned) -> None:
            came.append(time.perf_counter())

        left = max(until - self._clock(), 1e-3)
        outcome = await self._trips.make([errand], left, answers.append, each=each)
        if outcome.missing:
            raise outcome.cause(f"{outcome.why}: it was asked to send a tensor back")
        # What is large was lent first: the way begins when the program sets out.
        began = came[-1] - outcome.seconds["probe"]
        return [at - began for at in came], outcome.task_seconds["probe"], answers[0]
