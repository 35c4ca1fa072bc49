"""What flights that are alike ask, step by step: found once, and not anew for each token."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aggregator.engine.trip import Errand, Errands
from aggregator.inference.decoding.flight_calls import FlightCall
from aggregator.inference.decoding.flights import Flight
from aggregator.inference.decoding.programs import AskedSegment, FlightPrograms, RowsCut, slot_scope
from edge_attention.core.errors import ResourceExhausted

__all__ = ["FlightRoute", "FlightRoutes", "RouteStep"]

ROUTES = 256
"""Of one decoder that are kept; those used longest ago are made again."""
ROUTES_BYTES = 64 * 1024 * 1024
"""Of them together."""


@dataclass(frozen=True, eq=False)
class RouteStep:
    """A step of a flight: who is asked what, but for what calls bring."""

    errands: Errands
    calls: tuple[FlightCall, ...]


@dataclass(frozen=True, eq=False)
class FlightRoute:
    """All that is alike of flights of the same sessions, with so many rows, over the same nodes.

    Attributes:
        calls: shard that is asked for -> its call.
    """

    steps: tuple[RouteStep, ...]
    calls: Mapping[str, FlightCall]

    @property
    def nbytes(self) -> int:
        """What it takes to keep it, about: its calls, which others may have, too."""
        return sum(call.nbytes for call in self.calls.values())


_Key = tuple[int, tuple[int, ...], int, tuple[str, ...], bool, bool]


class FlightRoutes:
    """The routes of one decoder.

    Attributes:
        ends: by part the output that has the logits, where those that end a token may begin the next one.
    """

    def __init__(self, programs: FlightPrograms, ids: str) -> None:
        """`ids`: the model's input that takes tokens."""
        self.ends: Mapping[int, str] = {}
        self._programs = programs
        self._ids = ids
        self._made: OrderedDict[_Key, FlightRoute] = OrderedDict()
        self._bytes = 0

    def route(self, cut: RowsCut, flight: Flight) -> FlightRoute:
        """What `flight` asks; of one like it before, the same."""
        key = flight.rows, flight.slots, flight.lane, flight.place, flight.memory, flight.ahead
        found = self._made.get(key)
        if found is not None:
            self._made.move_to_end(key)
            return found
        found = self._made[key] = self._make(cut, flight)
        self._bytes += found.nbytes
        while len(self._made) > 1 and (len(self._made) > ROUTES or self._bytes > ROUTES_BYTES):
            self._bytes -= self._made.popitem(last=False)[1].nbytes
        return found

    def _make(self, cut: RowsCut, flight: Flight) -> FlightRoute:
        steps: list[RouteStep] = []
        calls: dict[str, FlightCall] = {}
        for number in range(len(cut.course.schedule.steps)):
            own: dict[str, FlightCall] = {}
            errands: list[Errand] = []
            for node, asked in self._asked(cut, flight, number).items():
                for call in self._calls(cut, flight, asked):
                    parts = dict.fromkeys(share.part for share in call.shares)
                    shard = f"part{'+'.join(map(str, parts))}.step{number}"
                    own[shard] = call
                    errands.append(
                        Errand(
                            shard=shard,
                            holders=(node,),
                            coverage=range(min(parts), min(parts) + 1),
                            instructions=call.instructions,
                            wanted=call.wanted,
                            prepared=call.prepared,
                        )
                    )
            if errands:
                steps.append(RouteStep(Errands(errands), tuple(own.values())))
                calls |= own
        return FlightRoute(tuple(steps), calls)

    def _asked(self, cut: RowsCut, flight: Flight, number: int) -> dict[str, list[list[AskedSegment]]]:
        """By node what its parts do in a step, those of each part together."""
        programs, found = self._programs, dict[str, list[list[AskedSegment]]]()
        last = number == len(cut.course.schedule.steps) - 1
        for segment in cut.course.schedule.steps[number].segments:
            own = cut.course.parts[segment.part]
            one = next(one for one in own if one.step == number)
            if flight.memory and not programs.remembers(cut, one):
                continue
            asked = [AskedSegment(one)]
            if last and flight.ahead:
                asked.append(AskedSegment(own[0], (self.ends[segment.part], self._ids)))
            elif last and not one.contributes:
                continue  # it is for going ahead
            found.setdefault(flight.place[segment.part], []).append(asked)
        return found

    def _calls(
        self, cut: RowsCut, flight: Flight, parts: Sequence[Sequence[AskedSegment]]
    ) -> list[FlightCall]:
        """One call of all that a node does in a step; of each part its own, where that brings too much."""
        programs = self._programs
        slots = tuple(slot_scope(programs.deployment, programs.life, slot) for slot in flight.slots)
        if len(parts) > 1:
            try:
                together = [asks for asked in parts for asks in asked]
                return [programs.call(cut, together, slots, flight.lane, flight.memory)]
            except ResourceExhausted:
                pass
        return [programs.call(cut, asked, slots, flight.lane, flight.memory) for asked in parts]
