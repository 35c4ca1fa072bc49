"""Takes a flight through a cut decoder: a trip for each step, and what comes back folds."""

from __future__ import annotations

import numpy as np

from aggregator.engine.outcome import MissingKind, Outcome
from aggregator.engine.returned import Returned
from aggregator.engine.trip import Trips
from aggregator.inference.decoding.flights import Flight, row_inputs
from aggregator.inference.decoding.programs import RowsCut
from aggregator.inference.decoding.routes import FlightRoute, FlightRoutes
from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError, NotFound, Unavailable
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.pieces import DecoderForm
from edge_attention.core.tensors import Array

__all__ = ["FlightLost", "fly"]

FLIGHT_SECONDS = 120.0
"""One step of a flight takes no longer, whatever its sessions' deadlines: a trip is of many."""


class FlightLost(Exception):
    """A flight did not come to its end.

    Attributes:
        again: a node went; else what was asked cannot be done.
        clean: all nodes have said that what they were asked has ended.
        lacks: the part, and its node, that lacks what it was given or stored.
    """

    def __init__(
        self, error: EdgeAttentionError, again: bool, clean: bool, lacks: tuple[int, str] | None = None
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.again = again
        self.clean = clean
        self.lacks = lacks


async def fly(trips: Trips, routes: FlightRoutes, form: DecoderForm, cut: RowsCut, flight: Flight) -> Array:
    """The logits of a flight's rows, float32 [rows, vocabulary]; of rows of memories, which are stored, none.

    Raises:
        FlightLost: says why, and whether to try again.
    """
    schedule = cut.course.schedule
    feeds = row_inputs(flight, form, {name: spec.dtype for name, spec in schedule.feeds.items()})
    meetings = Meetings(cut.course.folds)
    route = routes.route(cut, flight)
    places: dict[tuple[int, int], dict[str, Array]] = {}

    def take(answer: Returned) -> None:
        if answer.tensors:
            step, part = route.parts[answer.shard]
            meetings.add(step, part, {name: answer.array(name) for name in answer.tensors})

    for step in route.steps:
        tensors: dict[str, Array] = {}
        for part, call in step.calls:
            tensors |= call.inline(flight, form, part, feeds, meetings, places)
        try:
            outcome = await trips.make(
                step.errands, FLIGHT_SECONDS, take, tensors=tensors, believed=(), patient=False
            )
        except EdgeAttentionError as error:
            raise FlightLost(error, False, False) from None
        if outcome.missing:
            _require_whole(outcome, route, flight)
    if flight.memory:
        return np.zeros((flight.rows, 0), np.float32)
    logits = np.array(meetings.whole(schedule.results[form.logits]))
    return logits.reshape(flight.rows, -1)


def _require_whole(outcome: Outcome, route: FlightRoute, flight: Flight) -> None:
    clean = all(missing.said for missing in outcome.missing.values())
    for shard, missing in outcome.missing.items():
        _, part = route.parts[shard]
        error = missing.error or missing.cause(missing.text)
        if missing.kind is MissingKind.LOST:
            raise FlightLost(error, True, clean)
        if missing.kind is MissingKind.LATE:
            raise FlightLost(DeadlineExceeded(f"part {part}: {missing.text}"), True, clean)
        if isinstance(missing.error, NotFound):
            raise FlightLost(error, True, clean, (part, flight.place[part]))
        # Unavailable: it drains, say. Another one is asked.
        raise FlightLost(error, isinstance(missing.error, Unavailable), clean)
