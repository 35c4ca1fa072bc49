"""What flights that are alike ask, step by step: found once, and not anew for each token."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from aggregator.engine.trip import Errand, Errands
from aggregator.inference.decoding.flights import Flight
from aggregator.inference.decoding.programs import FlightCall, FlightPrograms, RowsCut, slot_scope

__all__ = ["FlightRoute", "FlightRoutes", "RouteStep"]

ROUTES = 256
"""Of one decoder that are kept; those used longest ago are made again."""
ROUTES_BYTES = 64 * 1024 * 1024
"""Of them together."""


@dataclass(frozen=True, eq=False)
class RouteStep:
    """A step of a flight: who is asked what, but for what calls bring. `calls`: by part."""

    errands: Errands
    calls: tuple[tuple[int, FlightCall], ...]


@dataclass(frozen=True, eq=False)
class FlightRoute:
    """All that is alike of flights of the same sessions, with so many rows, over the same nodes.

    Attributes:
        parts: shard that is asked for -> the number of the step, and the part.
    """

    steps: tuple[RouteStep, ...]
    parts: Mapping[str, tuple[int, int]]

    @property
    def nbytes(self) -> int:
        """What it takes to keep it, about: its calls, which others may have, too."""
        return sum(call.nbytes for step in self.steps for _, call in step.calls)


class FlightRoutes:
    """The routes of one decoder."""

    def __init__(self, programs: FlightPrograms) -> None:
        self._programs = programs
        self._made: OrderedDict[tuple[int, tuple[int, ...], int, tuple[str, ...], bool], FlightRoute] = (
            OrderedDict()
        )
        self._bytes = 0

    def route(self, cut: RowsCut, flight: Flight) -> FlightRoute:
        """What `flight` asks; of one like it before, the same."""
        key = flight.rows, flight.slots, flight.lane, flight.place, flight.memory
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
        programs = self._programs
        slots = tuple(slot_scope(programs.deployment, programs.life, slot) for slot in flight.slots)
        steps: list[RouteStep] = []
        parts: dict[str, tuple[int, int]] = {}
        for number, step in enumerate(cut.course.schedule.steps):
            errands: list[Errand] = []
            calls: list[tuple[int, FlightCall]] = []
            for segment in step.segments:
                part = segment.part
                one = next(one for one in cut.course.parts[part] if one.step == number)
                if flight.memory and not programs.remembers(cut, one):
                    continue
                call = programs.call(cut, one, slots, flight.lane, flight.memory)
                shard = f"part{part}.step{number}"
                parts[shard] = number, part
                calls.append((part, call))
                errands.append(
                    Errand(
                        shard=shard,
                        holders=(flight.place[part],),
                        coverage=range(part, part + 1),
                        instructions=call.instructions,
                        wanted=call.wanted,
                        prepared=call.prepared,
                    )
                )
            if errands:
                steps.append(RouteStep(Errands(errands), tuple(calls)))
        return FlightRoute(tuple(steps), parts)
