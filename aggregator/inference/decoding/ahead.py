"""Ahead: the nodes that end a token begin the next one by themselves, with what the logits say is likeliest.

    step 0 -> ... -> last step -> logits                          a token, as it is
    step 1 -> ... -> last step, likeliest, step 0 -> logits       and what step 0 of the next gives

The last step is usually one part's. Where its weights are few (graphs/decoding/cutting.py) all parts that
begin a token do it, so that each knows the token without being told, and goes on: one trip of a token less.
It says which token it took. Where the session is extended by another, or parts took several, nobody looks at
what came; what was appended lies where the next token's keys and values will be, and is written over.

It is for a session that is alone, of one row, and takes the likeliest token; others have what they had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from aggregator.engine.returned import Returned
from aggregator.inference.decoding.flight_calls import CallShare, FlightCall, KnownPlaces
from aggregator.inference.decoding.flights import Flight, row_inputs
from aggregator.inference.decoding.programs import RowsCut
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.pieces import DecoderForm
from edge_attention.core.schedule.schedule import ending_output
from edge_attention.core.tensors import Array

__all__ = ["Beginning", "Begun", "ends_and_begins", "next_flight"]


def ends_and_begins(cut: RowsCut, form: DecoderForm) -> dict[int, str]:
    """By part the output of its last segment that has the logits, where those that begin a token end it."""
    schedule = cut.course.schedule
    first, last = schedule.steps[0].segments, schedule.steps[-1].segments
    if cut.rows != 1 or form.by_tokens or len(schedule.steps) < 2:
        return {}
    if {one.part for one in first} != {one.part for one in last}:
        return {}
    if schedule.feeds[form.ids].dtype != "int64":
        return {}  # it is what the likeliest token comes as
    found: dict[int, str] = {}
    for one in last:
        output = ending_output(one, schedule.results[form.logits])
        if not output:
            return {}
        found[one.part] = output
    return found


def next_flight(flight: Flight) -> Flight:
    """The flight after one of a single row, whose token is not known yet."""
    (chunk,) = flight.chunks
    return replace(flight, ahead=False, chunks=(replace(chunk, start=chunk.stop, ids=(0,)),))


@dataclass(frozen=True, eq=False)
class Begun:
    """A token whose first step is done.

    Attributes:
        flight: that would begin so, but for its token.
        meetings: what came of the step.
        places: where its rows are.
    """

    flight: Flight
    token: int
    meetings: Meetings
    places: KnownPlaces

    def is_of(self, flight: Flight) -> bool:
        """Whether `flight`, the next one in the same lane, begins so."""
        mine, theirs = self.flight, flight
        return (
            (theirs.rows, theirs.place, theirs.lane) == (mine.rows, mine.place, mine.lane)
            and len(theirs.chunks) == 1
            and replace(mine.chunks[0], ids=(self.token,)) == theirs.chunks[0]
            and not theirs.memory
        )


class Beginning:
    """What comes of a step that is done ahead, while the flight before is in its last one."""

    def __init__(self, cut: RowsCut, flight: Flight) -> None:
        self._flight = next_flight(flight)
        self._meetings = Meetings(cut.course.folds)
        self._tokens: set[int] = set()
        self._wrong = False
        self._places: KnownPlaces = {}
        self._feeds: Mapping[str, Array] | None = None

    def inline(self, share: CallShare, form: DecoderForm, dtypes: Mapping[str, str]) -> dict[str, Array]:
        """What is in the slots of a share that is ahead."""
        if self._feeds is None:
            self._feeds = row_inputs(self._flight, form, dtypes)
        return share.inline(self._flight, form, self._feeds, self._meetings, self._places)

    def take(self, call: FlightCall, answer: Returned) -> None:
        """What a node has returned. If it is wrong nothing is begun: that shows in its own turn."""
        for share in call.shares:
            if not share.ahead:
                continue
            try:
                outputs: Mapping[str, Array] = {
                    output: answer.array(name) for name, output in share.returned.items()
                }
                if outputs:
                    self._meetings.add(share.step, share.part, outputs)
                self._tokens.add(int(np.reshape(answer.array(share.token), -1)[0]))
            except EdgeAttentionError:
                self._wrong = True

    def begun(self) -> Begun | None:
        """What was begun, if all parts took one token."""
        if self._wrong or len(self._tokens) != 1:
            return None
        return Begun(self._flight, next(iter(self._tokens)), self._meetings, self._places)
