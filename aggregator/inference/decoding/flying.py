"""Takes a flight through a cut decoder: a trip for each step, and what comes back folds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aggregator.engine.outcome import MissingKind, Outcome
from aggregator.engine.returned import Returned
from aggregator.engine.trip import Errand, Trips
from aggregator.inference.decoding.flights import Flight, row_inputs
from aggregator.inference.decoding.programs import FlightPrograms, RowsCut, slot_scope
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


async def fly(
    trips: Trips, programs: FlightPrograms, form: DecoderForm, cut: RowsCut, flight: Flight
) -> Array:
    """The logits of a flight's rows, float32 [rows, vocabulary].

    Raises:
        FlightLost: says why, and whether to try again.
    """
    schedule = cut.course.schedule
    feeds = row_inputs(flight, form, {name: spec.dtype for name, spec in schedule.feeds.items()})
    meetings = Meetings(cut.course.folds)
    slots = tuple(slot_scope(programs.deployment, programs.life, slot) for slot in flight.slots)
    places: dict[tuple[int, int], dict[str, Array]] = {}
    for number, step in enumerate(schedule.steps):
        errands: list[Errand] = []
        parts: dict[str, int] = {}
        for segment in step.segments:
            one = next(one for one in cut.course.parts[segment.part] if one.step == number)
            call = programs.call(cut, one, slots, flight.lane)
            shard = f"part{segment.part}.step{number}"
            parts[shard] = segment.part
            errands.append(
                Errand(
                    shard=shard,
                    holders=(flight.place[segment.part],),
                    coverage=range(segment.part, segment.part + 1),
                    instructions=call.instructions,
                    wanted=call.wanted,
                    inline=call.inline(flight, form, segment.part, feeds, meetings, places),
                    prepared=call.prepared,
                )
            )

        def take(answer: Returned, number: int = number, parts: Mapping[str, int] = parts) -> None:
            outputs = {name: answer.array(name) for name in answer.tensors}
            if outputs:
                meetings.add(number, parts[answer.shard], outputs)

        try:
            outcome = await trips.make(errands, FLIGHT_SECONDS, take, believed=(), patient=False)
        except EdgeAttentionError as error:
            raise FlightLost(error, False, False) from None
        _require_whole(outcome, parts, flight)
    logits = np.array(meetings.whole(schedule.results[form.logits]))
    return logits.reshape(flight.rows, -1)


def _require_whole(outcome: Outcome, parts: Mapping[str, int], flight: Flight) -> None:
    clean = all(missing.said for missing in outcome.missing.values())
    for shard, missing in outcome.missing.items():
        part = parts[shard]
        error = missing.error or missing.cause(missing.text)
        if missing.kind is MissingKind.LOST:
            raise FlightLost(error, True, clean)
        if missing.kind is MissingKind.LATE:
            raise FlightLost(DeadlineExceeded(f"part {part}: {missing.text}"), True, clean)
        if isinstance(missing.error, NotFound):
            raise FlightLost(error, True, clean, (part, flight.place[part]))
        # Unavailable: it drains, say. Another one is asked.
        raise FlightLost(error, isinstance(missing.error, Unavailable), clean)
