"""Takes a flight through a cut decoder: a trip for each step, and what comes back folds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aggregator.engine.outcome import MissingKind, Outcome
from aggregator.engine.returned import Returned
from aggregator.engine.trip import Trips
from aggregator.inference.decoding.ahead import Beginning, Begun
from aggregator.inference.decoding.flight_calls import KnownPlaces
from aggregator.inference.decoding.flights import Flight, row_inputs
from aggregator.inference.decoding.programs import RowsCut
from aggregator.inference.decoding.routes import FlightRoute, FlightRoutes
from edge_attention.core.errors import DeadlineExceeded, EdgeAttentionError, NotFound, Unavailable
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.pieces import DecoderForm
from edge_attention.core.tensors import Array

__all__ = ["FlightLost", "Flown", "fly"]

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


@dataclass(frozen=True, eq=False)
class Flown:
    """What came of a flight.

    Attributes:
        logits: of its rows, float32 [rows, vocabulary]; of rows of memories, which are stored, none.
        begun: the token after, where it went ahead.
    """

    logits: Array
    begun: Begun | None = None


async def fly(
    trips: Trips,
    routes: FlightRoutes,
    form: DecoderForm,
    cut: RowsCut,
    flight: Flight,
    begun: Begun | None = None,
) -> Flown:
    """Take the flight. `begun`: what the one before in its lane went ahead with.

    Raises:
        FlightLost: says why, and whether to try again.
    """
    schedule = cut.course.schedule
    dtypes = {name: spec.dtype for name, spec in schedule.feeds.items()}
    feeds = row_inputs(flight, form, dtypes)
    route = routes.route(cut, flight)
    steps, places = route.steps, KnownPlaces()
    if begun is not None and begun.is_of(flight):
        steps, meetings, places = steps[1:], begun.meetings, begun.places
    else:
        meetings = Meetings(cut.course.folds)
    beginning = Beginning(cut, flight) if flight.ahead else None

    def take(answer: Returned) -> None:
        call = route.calls[answer.shard]
        for share in call.shares:
            if share.returned and not share.ahead:
                outputs = {output: answer.array(name) for name, output in share.returned.items()}
                meetings.add(share.step, share.part, outputs)
        if beginning is not None:
            beginning.take(call, answer)

    for step in steps:
        tensors: dict[str, Array] = {}
        for call in step.calls:
            for share in call.shares:
                if share.ahead:
                    assert beginning is not None
                    tensors |= beginning.inline(share, form, dtypes)
                else:
                    tensors |= share.inline(flight, form, feeds, meetings, places)
        try:
            outcome = await trips.make(
                step.errands, FLIGHT_SECONDS, take, tensors=tensors, believed=(), patient=False
            )
        except EdgeAttentionError as error:
            raise FlightLost(error, False, False) from None
        if outcome.missing:
            _require_whole(outcome, route, flight)
    if flight.memory:
        return Flown(np.zeros((flight.rows, 0), np.float32))
    logits = np.array(meetings.whole(schedule.results[form.logits]))
    return Flown(logits.reshape(flight.rows, -1), beginning.begun() if beginning is not None else None)


def _require_whole(outcome: Outcome, route: FlightRoute, flight: Flight) -> None:
    clean = all(missing.said for missing in outcome.missing.values())
    for shard, missing in outcome.missing.items():
        part = route.calls[shard].shares[0].part
        error = missing.error or missing.cause(missing.text)
        if missing.kind is MissingKind.LOST:
            raise FlightLost(error, True, clean)
        if missing.kind is MissingKind.LATE:
            raise FlightLost(DeadlineExceeded(f"part {part}: {missing.text}"), True, clean)
        if isinstance(missing.error, NotFound):
            raise FlightLost(error, True, clean, (part, flight.place[part]))
        # Unavailable: it drains, say. Another one is asked.
        raise FlightLost(error, isinstance(missing.error, Unavailable), clean)
