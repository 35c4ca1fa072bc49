"""The search: which boxes, in which stages, sharing how. `choose` is all a caller needs.

    done[S][j] = least seconds in which the boxes S do the layers before j
               = min over G of S and i < j:  done[S - G][i] + (what the group G takes for layers i to j)

That is exact over stages, their order and their groups; a group of one is a stage as in a pipeline, a group
of all is a model cut by tokens, heads or batch alone. Boxes alike are counted, so 20 of a kind are 231 pairs
of S and G. Where there are more than MOST_PAIRS, boxes are put in order of speed and a group is a run of that
order, which is a heuristic. With several requests in flight what counts is the busiest box as well: the
search is repeated with groups left out that are busy longer than a bound, and the bound is halved in on.

The shares within a group are all tried where they are few (groups.ALL_SHARES), else made level, step by step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_attention.core.placement.cuts.boxes import BoxLinks, ComputeBox
from edge_attention.core.placement.cuts.choice import Choice, PlanWanted, PredictedPlan, family_of
from edge_attention.core.placement.cuts.costs import ModelCosts
from edge_attention.core.placement.cuts.groups import BoxKinds, GroupOption, KindCounts, group_options
from edge_attention.core.placement.cuts.predicting import StagePlanned, predict_replicas, predict_stages
from edge_attention.core.schedule.plan import Cut

__all__ = ["MOST_BOXES", "MOST_PAIRS", "choose", "chosen_among"]

MOST_PAIRS = 1_000
"""Pairs of a choice of boxes and a group of it that the search looks at: six boxes, no two alike, or 40 of a
kind. It then takes a second or two."""
MOST_BOXES = 64
"""Boxes that a model is cut over; of more, the quickest are taken. A cut over more gains nothing: everything
passes the aggregator."""


def choose(
    model: ModelCosts,
    boxes: Sequence[ComputeBox],
    links: BoxLinks,
    wanted: PlanWanted = PlanWanted(),  # noqa: B008
) -> Choice:
    """The best plan over `boxes`, for requests of the shape that `model` is for.

    Args:
        model: what its layers cost.
        boxes: those that may be used, names all different; none is an error of the caller.
        links: how they are reached.
        wanted: what counts, and a family if only that is asked for.

    Returns:
        The choice. Without a family one box is among the candidates, so nothing slower than it is picked;
        with one that needs several boxes the sentence says what one box would take.
    """
    if not boxes or len({box.name for box in boxes}) < len(boxes):
        raise ValueError("give at least one box, and each a name of its own")
    return chosen_among(model, boxes, wanted, _Search(model, boxes, links, wanted).candidates())


def chosen_among(
    model: ModelCosts, boxes: Sequence[ComputeBox], wanted: PlanWanted, plans: Sequence[PredictedPlan]
) -> Choice:
    """The choice among plans that were predicted; one with a problem is not picked."""
    found = [plan for plan in plans if not plan.problem]
    one_box = min((p for p in found if _is_one(p)), key=_order, default=None)
    eligible = [
        plan
        for plan in found
        if len(plan.used) >= wanted.boxes_at_least and wanted.family in ("", _family(plan))
    ]
    chosen = min(eligible, key=_order, default=None)
    if one_box is not None and one_box in eligible and chosen is not None:
        # What is predicted is not so exact that a little would count.
        chosen = chosen if one_box.each >= wanted.gain * chosen.each else one_box
    rejected = sorted((plan for plan in found if plan is not chosen), key=_order)
    says = _sentence(model, boxes, wanted, chosen, one_box, rejected)
    rejected += [plan for plan in plans if plan.problem]
    return Choice(
        chosen, one_box, tuple(rejected), says, {cut.value: why for cut, why in model.refused.items()}
    )


def _family(plan: PredictedPlan) -> str:
    return family_of(plan.plan, replicas=any(len(names) > 1 for names in plan.boxes.values()))


def _is_one(plan: PredictedPlan) -> bool:
    return len(plan.used) == 1


def _order(plan: PredictedPlan) -> tuple[float, int, float]:
    """Of plans that are equal to ten digits the one of fewer boxes."""
    return float(f"{plan.each:.10e}"), len(plan.used), plan.seconds


def _sentence(
    model: ModelCosts,
    boxes: Sequence[ComputeBox],
    wanted: PlanWanted,
    chosen: PredictedPlan | None,
    one_box: PredictedPlan | None,
    rejected: Sequence[PredictedPlan],
) -> str:
    def each(plan: PredictedPlan) -> str:
        alone = wanted.in_flight == 1
        return f"{1e3 * plan.seconds:.3g} ms" if alone else f"{1 / plan.each:.3g} requests a second"

    if chosen is None:
        held = max(box.memory for box in boxes)
        if wanted.family in ("batch", "tokens", "heads") and Cut(wanted.family) in model.refused:
            return f"this model is not cut by {wanted.family}: {model.refused[Cut(wanted.family)]}"
        if wanted.family and len(boxes) < 2:
            return f"{wanted.family} needs two boxes or more, and there is one"
        return (
            f"nothing fits: the model has {model.weights / 1e6:,.0f} MB of weights, the boxes together have "
            f"room for {sum(box.memory for box in boxes) / 1e6:,.0f} MB, the largest for {held / 1e6:,.0f} "
            "MB; add boxes, or raise their memory limits"
        )
    if one_box is None:
        return f"the model fits no box alone; {chosen.name}: {each(chosen)}"
    if _is_one(chosen):
        other = next((plan for plan in rejected if not _is_one(plan)), None)
        if other is None:
            return f"one box: {each(chosen)}; there is no other way"
        said = f"one box: {each(chosen)}; {_counted(len(other.used))} would {_verb(wanted)} {each(other)}"
        if other.each < chosen.each:
            said += f", too little for several boxes: {wanted.gain:.3g} times as quick is the least"
        return said
    quick = one_box.each / chosen.each
    if quick < 1:
        return f"{chosen.name}: {each(chosen)}, which is slower than one box: {each(one_box)}"
    return f"{chosen.name}: {each(chosen)}; one box would {_verb(wanted)} {each(one_box)}, {quick:.2g} times"


def _verb(wanted: PlanWanted) -> str:
    return "take" if wanted.in_flight == 1 else "answer"


def _counted(number: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if number < len(words) else str(number)


@dataclass(frozen=True)
class _Move:
    """The boxes `before` and a group make up the boxes `after`."""

    before: KindCounts
    after: KindCounts
    group: KindCounts


class _Search:
    def __init__(
        self, model: ModelCosts, boxes: Sequence[ComputeBox], links: BoxLinks, wanted: PlanWanted
    ) -> None:
        self._model, self._links, self._wanted = model, links, wanted
        self._scale = 0.5 if wanted.halves else 1.0
        everything = BoxKinds.of(boxes, links, model)
        quickest = [box for kind in everything.kinds for box in kind][:MOST_BOXES]
        kinds = BoxKinds.of(quickest, links, model)
        self._exact = kinds.pairs <= MOST_PAIRS
        # In order of speed, each for itself: a group is a run of it.
        self._kinds = kinds if self._exact else BoxKinds(tuple((box,) for box in quickest))
        self._options: dict[KindCounts, list[GroupOption]] = {}
        for group in self._groups():
            found = group_options(
                model, self._kinds.boxes(group), links, replace(wanted, family=""), self._scale
            )
            self._options[group] = found

    def candidates(self) -> list[PredictedPlan]:
        """The best of each kind of plan, by number of boxes."""
        last = len(self._model.layers)
        found: dict[tuple[str, int], PredictedPlan] = {}

        def keep(kind: str, plan: PredictedPlan) -> None:
            key = kind, len(plan.used)
            if not plan.problem and (key not in found or _order(plan) < _order(found[key])):
                found[key] = plan

        for options in self._options.values():
            for option in options:
                if math.isfinite(option.seconds[0, last]):
                    keep(str(option.manner), self._planned([(option, range(last))]))
        alone = sorted(
            (
                option
                for group, options in self._options.items()
                if sum(group) == 1
                for option in options
                if math.isfinite(option.seconds[0, last])
            ),
            key=lambda option: float(option.seconds[0, last]),
        )
        holders = [
            box for option in alone for kind in self._kinds.kinds if option.boxes[0] in kind for box in kind
        ]
        # Replicas are of no use to a request that is alone.
        useful = self._wanted.in_flight > 1 or self._wanted.family == "replicate"
        for count in range(2, len(holders) + 1 if useful else 2):
            keep("replicate", predict_replicas(self._model, holders[:count], self._links, self._wanted))
        if last > 1 and self._wanted.family in ("", "layers"):
            for kind, single in (("layers", True), ("mixed", False)):
                if kind == "mixed" and self._wanted.family:
                    continue
                for stages in self._staged(single):
                    plan = self._planned(stages)
                    if family_of(plan.plan) == kind:
                        keep(kind, plan)
        return list(found.values())

    def _planned(self, stages: Sequence[tuple[GroupOption, range]]) -> PredictedPlan:
        """With boxes of their own for each stage."""
        free = [list(kind) for kind in self._kinds.kinds]
        planned = []
        for option, layers in stages:
            taken = []
            for box in option.boxes:
                kind = next(n for n, alike in enumerate(self._kinds.kinds) if box in alike)
                taken.append(free[kind].pop(0))
            planned.append(StagePlanned(layers, option.manner, tuple(taken), option.units))
        return predict_stages(self._model, planned, self._links, self._wanted)

    def _groups(self) -> Iterable[KindCounts]:
        if self._exact:
            yield from (group for group in self._kinds.subsets() if any(group))
            return
        count = len(self._kinds.kinds)
        for start in range(count):
            for stop in range(start + 1, count + 1):
                yield tuple(int(start <= n < stop) for n in range(count))

    def _moves(self) -> Iterable[_Move]:
        """In an order in which what a move starts from is done before."""
        if self._exact:
            for after in sorted(self._kinds.subsets(), key=sum):
                for group in self._kinds.subsets(after):
                    if any(group):
                        yield _Move(tuple(a - g for a, g in zip(after, group, strict=True)), after, group)
            return
        count = len(self._kinds.kinds)
        for stop in range(1, count + 1):
            for start in range(stop):
                before, after = (tuple(int(n < at) for n in range(count)) for at in (start, stop))
                yield _Move(before, after, tuple(int(start <= n < stop) for n in range(count)))

    def _staged(self, single: bool) -> list[list[tuple[GroupOption, range]]]:
        """The best plans in stages, one for each number of boxes; `single`: a box a stage."""
        if self._wanted.in_flight == 1:
            return self._least(math.inf, single)
        bounds = sorted(
            {
                float(busy)
                for group, options in self._options.items()
                if not single or sum(group) == 1
                for option in options
                for busy in np.unique(option.busy[np.isfinite(option.busy)])
            }
        )
        best: dict[int, tuple[float, list[tuple[GroupOption, range]]]] = {}
        low, high = 0, len(bounds) - 1
        while low <= high:
            middle = (low + high) // 2
            plans = self._least(bounds[middle], single)
            quickest = math.inf
            for stages in plans:
                plan = self._planned(stages)
                quickest = min(quickest, plan.seconds)
                if len(plan.used) not in best or plan.each < best[len(plan.used)][0]:
                    best[len(plan.used)] = plan.each, stages
            # A wider bound is only of use while a request's own time is what counts.
            if quickest / self._wanted.in_flight > bounds[middle]:
                low = middle + 1
            else:
                high = middle - 1
        return [stages for _, stages in best.values()]

    def _least(self, bound: float, single: bool) -> list[list[tuple[GroupOption, range]]]:
        """For each number of boxes the stages of least seconds, none of them busy longer than `bound`."""
        last = len(self._model.layers)
        none = tuple(0 for _ in self._kinds.kinds)
        start = np.full(last + 1, np.inf)
        start[0] = 0.0
        done: dict[KindCounts, NDArray[np.float64]] = {none: start}
        came: dict[tuple[KindCounts, int], tuple[KindCounts, int, GroupOption]] = {}
        costs: dict[KindCounts, tuple[NDArray[np.float64], NDArray[np.intp]]] = {}
        for group, options in self._options.items():
            if options and (not single or sum(group) == 1):
                each = np.stack([np.where(o.busy <= bound, o.seconds, np.inf) for o in options])
                costs[group] = each.min(axis=0), each.argmin(axis=0)
        for move in self._moves():
            if move.group not in costs or move.before not in done:
                continue
            seconds, which = costs[move.group]
            paths = done[move.before][:, None] + seconds
            at = paths.argmin(axis=0)
            least = paths.min(axis=0)
            here = done.setdefault(move.after, np.full(last + 1, np.inf))
            for stop in np.flatnonzero(least < here):
                begin = int(at[stop])
                here[stop] = least[stop]
                option = self._options[move.group][int(which[begin, stop])]
                came[move.after, int(stop)] = move.before, begin, option
        best: dict[int, tuple[float, KindCounts]] = {}
        for counts, seconds in done.items():
            used = sum(counts)
            if math.isfinite(seconds[last]) and (used not in best or seconds[last] < best[used][0]):
                best[used] = float(seconds[last]), counts
        return [_traced(came, counts, last) for _, counts in best.values()]


def _traced(
    came: Mapping[tuple[KindCounts, int], tuple[KindCounts, int, GroupOption]], counts: KindCounts, last: int
) -> list[tuple[GroupOption, range]]:
    stages = []
    while last:
        counts, begin, option = came[counts, last]
        stages.append((option, range(begin, last)))
        last = begin
    return stages[::-1]
