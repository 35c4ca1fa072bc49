"""What a planner answers: the plan it picks, the ones it does not, and what each would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage

__all__ = ["FAMILIES", "Choice", "PlanWanted", "PredictedPlan", "family_of"]

FAMILIES = ("replicate", "batch", "layers", "heads", "tokens")
"""What `--plan` may name, beside `auto` and a file."""


@dataclass(frozen=True)
class PlanWanted:
    """What a plan is to be good at.

    Attributes:
        in_flight: requests at a time: with one its seconds count, with many how many a second are answered.
        family: one of FAMILIES, or empty: whatever is best.
        crossing: of tokens; None: whichever is best.
        halves: activations travel in float16.
        gain: a plan over several boxes is predicted to be so many times as quick as one box, or not picked.
        boxes_at_least: a plan over fewer boxes is no candidate, one box included; for who must have several.
    """

    in_flight: int = 1
    family: str = ""
    crossing: Crossing | None = None
    halves: bool = False
    boxes_at_least: int = 1
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.gain < 1:
            raise ValueError(f"{self}: a gain below 1 would pick what is slower than one box")
        if self.in_flight < 1 or self.boxes_at_least < 1 or self.family not in ("", *FAMILIES):
            raise ValueError(f"{self}: one request and one box at least, and a family of {FAMILIES}")


@dataclass(frozen=True)
class PredictedPlan:
    """A plan, who takes which part, and what is expected of it.

    Attributes:
        boxes: part -> the boxes that hold it; several are replicas.
        seconds: of one request that is alone.
        each: seconds a request with as many in flight as were wanted: one by the requests a second.
        trips: steps of a request.
        busy: box -> seconds its processor works for a request.
        down, up: box -> bytes of a request.
        weights: box -> bytes it has to hold.
        problem: why it cannot be; empty: it can.
    """

    plan: CutPlan
    boxes: Mapping[int, tuple[str, ...]]
    seconds: float
    each: float
    trips: int
    busy: Mapping[str, float]
    down: Mapping[str, float]
    up: Mapping[str, float]
    weights: Mapping[str, float]
    problem: str = ""

    @property
    def used(self) -> tuple[str, ...]:
        """The boxes, each once, in the parts' order."""
        return tuple(dict.fromkeys(name for part in sorted(self.boxes) for name in self.boxes[part]))

    @property
    def name(self) -> str:
        """As a person would call it: `tokens (gather) over a 60%, b 40%`."""
        if len(self.plan.stages) == 1:
            return self._stage(self.plan.stages[0])
        return " > ".join(
            f"layers {stage.layers.start}-{stage.layers.stop - 1} {self._stage(stage)}"
            for stage in self.plan.stages
        )

    def _stage(self, stage: Stage) -> str:
        if stage.cut is Cut.NONE:
            held = self.boxes[stage.parts[0]]
            return f"on {held[0]}" if len(held) == 1 else f"replicate on {', '.join(held)}"
        total = sum(stage.shares) or len(stage.parts)
        shares = stage.shares or (1.0,) * len(stage.parts)
        said = ", ".join(
            f"{'/'.join(self.boxes[part])} {100 * share / total:.0f}%"
            for part, share in zip(stage.parts, shares, strict=True)
        )
        cut = f"tokens ({stage.crossing.value})" if stage.cut is Cut.TOKENS else stage.cut.value
        return f"{cut} over {said}"


def family_of(plan: CutPlan, replicas: bool = False) -> str:
    """The family it belongs to: `one box`, one of FAMILIES, or `layers` of several boxes: `mixed`."""
    if len(plan.stages) == 1:
        cut = plan.stages[0].cut
        return ("replicate" if replicas else "one box") if cut is Cut.NONE else cut.value
    return "layers" if all(stage.cut is Cut.NONE for stage in plan.stages) else "mixed"


@dataclass(frozen=True)
class Choice:
    """What was picked, and why.

    Attributes:
        chosen: None where nothing fits; `says` has the reason.
        one_box: the best plan of one box, if the model fits any.
        rejected: the best of every other kind of plan and number of boxes, best first.
        says: one sentence for a person.
    """

    chosen: PredictedPlan | None
    one_box: PredictedPlan | None
    rejected: tuple[PredictedPlan, ...]
    says: str
    refused: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, float, float, int, float, float]]:
        """For a table, the chosen one first: plan, kind, ms, requests a second, trips, MB each request passes
        through the aggregator, MB of weights on the box that has most."""
        found: Sequence[PredictedPlan] = [p for p in (self.chosen, *self.rejected) if p is not None]
        return [
            (
                plan.name,
                plan.problem,
                1e3 * plan.seconds,
                1 / plan.each,
                plan.trips,
                (sum(plan.down.values()) + sum(plan.up.values())) / 1e6,
                max(plan.weights.values(), default=0.0) / 1e6,
            )
            for plan in found
        ]
