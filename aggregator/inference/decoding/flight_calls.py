"""Calls of a flight: what one node is asked in one step, and which of its slots brings what.

A call is usually one part's step. It is of several **shares** where one node has several parts, which are one
message then and one run of a task; and where a part goes on with the token after this one (ahead.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from aggregator.engine.prepared import PreparedData
from aggregator.engine.trip import Wanted
from aggregator.inference.decoding.flights import Flight, part_places
from edge_attention.core.messages.program import Instruction
from edge_attention.core.schedule.extents import take
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.pieces import DecoderForm
from edge_attention.core.schedule.schedule import Delivery, ModelInput
from edge_attention.core.tensors import Array

__all__ = ["INSTRUCTION_BYTES", "CallShare", "FlightCall", "KnownPlaces"]

INSTRUCTION_BYTES = 2048
"""What an instruction takes here, about, beside what is sent of it."""

KnownPlaces = dict[tuple[int | None, int], dict[str, Array]]
"""By part and window, where a flight's rows are; by None, where they are the same for all parts."""


@dataclass(frozen=True, eq=False)
class CallShare:
    """What one part does of a call in one step.

    Attributes:
        sent: slot -> what of the model's inputs or of boundaries it brings.
        places: slot -> which of `part_places` it brings; of `lo` and `hi` with the window that they are for.
        windows: of the attentions in it.
        returned: name of what comes back -> the segment's output.
        ahead: it is of the token after, and `token` the name under which comes which one that is.
    """

    part: int
    step: int
    sent: Mapping[str, ModelInput | Delivery]
    places: Mapping[str, str]
    windows: tuple[int, ...]
    returned: Mapping[str, str]
    ahead: bool = False
    token: str = ""

    def inline(
        self,
        flight: Flight,
        form: DecoderForm,
        feeds: Mapping[str, Array],
        meetings: Meetings,
        known: KnownPlaces,
    ) -> dict[str, Array]:
        """What is in its slots. `known`: gets where the flight's rows are."""
        found: dict[str, Array] = {}
        for slot, source in self.sent.items():
            if isinstance(source, ModelInput):
                found[slot] = take(feeds[source.name], source.extent)
            else:
                found[slot] = meetings.take(source)
        return found | self.where(flight, form, known)

    def where(self, flight: Flight, form: DecoderForm, known: KnownPlaces) -> dict[str, Array]:
        """What is in those of its slots that say where rows are."""
        found: dict[str, Array] = {}
        part = self.part if form.by_tokens else None
        for window, slots in self._places_by_window:
            places = known.get((part, window))
            if places is None:
                places = known[part, window] = part_places(flight, form, self.part, window)
            for slot, name in slots:
                found[slot] = places[name]
        return found

    @cached_property
    def _places_by_window(self) -> list[tuple[int, list[tuple[str, str]]]]:
        """By window the slots, and what each brings of `part_places`: found once, not at each trip."""
        return [
            (
                window,
                [
                    (slot, name.removesuffix(f"/{window}"))
                    for slot, name in self.places.items()
                    if "/" not in name or name.endswith(f"/{window}")
                ],
            )
            for window in self.windows
        ]


@dataclass(frozen=True, eq=False)
class FlightCall:
    """What one node is asked in a step.

    Attributes:
        wanted: what comes back, of all shares.
        empty: of what the shares are sent, zeros.
    """

    prepared: PreparedData
    instructions: tuple[Instruction, ...]
    shares: tuple[CallShare, ...]
    wanted: Mapping[str, Wanted]
    empty: Mapping[str, Array] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """What it takes to keep it, about."""
        return len(self.prepared.data) + INSTRUCTION_BYTES * len(self.instructions)

    def zeros(self, flight: Flight, form: DecoderForm) -> dict[str, Array]:
        """What is in its slots before there are sessions: zeros, and where the flight's rows are."""
        found = dict(self.empty)
        for share in self.shares:
            found |= share.where(flight, form, {})
        return found
