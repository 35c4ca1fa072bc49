"""Which part does what, and when: only what leads to something that another part or the caller waits for.

An operation is done as late as the part's own next use of it allows, so that what belongs together is in one
segment and little is kept from step to step; what others wait for is done as early as it can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edge_attention.core.schedule.extents import AxisSpan, Extent
from edge_attention.graphs.axes.forms import Form, Move, Operation, Partition, SplitBy, StageCut, Unfolded
from edge_attention.graphs.axes.ways import Dims

__all__ = ["Needs", "PartNeeds", "find_needs", "own_piece", "span_of"]


@dataclass(eq=False)
class PartNeeds:
    """What one part does.

    Attributes:
        levels: operation -> when; those that are fixed are made wherever they are used, and are not here.
        uses: form -> first and last level at which the part needs it.
        contributes: form -> its extents that others wait for.
    """

    levels: dict[Operation, int] = field(default_factory=dict)
    uses: dict[Form, tuple[int, int]] = field(default_factory=dict)
    contributes: dict[Form, list[Extent]] = field(default_factory=dict)

    def use(self, form: Form, level: int) -> None:
        first, last = self.uses.get(form, (level, level))
        self.uses[form] = (min(first, level), max(last, level))


Needs = dict[int, PartNeeds]


def find_needs(partition: Partition, dims: Mapping[str, Dims]) -> Needs:
    """By part, what it does."""
    return _NeedSearch(partition, dims).found()


def span_of(dims: Mapping[str, Dims], tensor: str, split: SplitBy, start: int, stop: int) -> AxisSpan:
    """A range of the axis that `split` is by, in the tensor."""
    outer, inner, size = 1, 1, 0
    for axis, count in dims[tensor][split.dim]:
        if axis == split.axis:
            size = count
        elif size:
            inner *= count
        else:
            outer *= count
    return AxisSpan(split.dim, start, stop, size, outer, inner)


def own_piece(stages: tuple[StageCut, ...], form: Form, part: int) -> bool:
    """Whether `part`, of the form's own stage, has something of it."""
    if form.state is None:
        return True
    start, stop = stages[form.stage].range_of(form.state.axis, part)
    return start < stop


class _NeedSearch:
    def __init__(self, partition: Partition, dims: Mapping[str, Dims]) -> None:
        self._stages = partition.stages
        self._dims = dims
        self._partition = partition
        self._seen: set[tuple[int, Form]] = set()
        self._operations: dict[int, set[Operation]] = {}
        self._wanted: dict[Form, list[tuple[int, Form]]] = {}
        """Source of moves -> parts that want it, and as which form."""
        self._results = set(partition.results.values())

    def found(self) -> Needs:
        for form in self._partition.results.values():
            self._contribute(form)
            for part in self._keepers(form):
                self._need(part, form)
        needs: Needs = {part: PartNeeds() for stage in self._stages for part in stage.parts}
        for form in {*self._wanted, *self._results}:
            for part in self._stages[form.stage].parts:
                if extents := self._extents(form, part):
                    needs[part].contributes[form] = extents
        for part, mine in needs.items():
            self._times(part, mine)
        return needs

    # Who does what

    def _contribute(self, form: Form) -> None:
        for part in self._givers(form):
            self._need(part, form)

    def _givers(self, form: Form) -> list[int]:
        """The parts whose contributions make the form."""
        stage = self._stages[form.stage]
        if form.state is None:
            return [next((part for part in stage.parts if stage.has_any(part)), stage.parts[0])]
        return [part for part in stage.parts if own_piece(self._stages, form, part)]

    def _keepers(self, form: Form) -> tuple[int, ...]:
        """The parts that make a result, but for who contributes it, and keep it."""
        if not self._partition.everywhere or form.state is not None:
            return ()
        stage, givers = self._stages[form.stage], self._givers(form)
        return tuple(part for part in stage.parts if stage.has_any(part) and part not in givers)

    def _need(self, part: int, form: Form) -> None:
        rest = [(part, form)]
        while rest:
            one = rest.pop()
            if one in self._seen:
                continue
            self._seen.add(one)
            part, form = one
            if isinstance(form.origin, Operation):
                self._operations.setdefault(part, set()).add(form.origin)
                rest += [(part, f) for f in _inputs(form.origin)]
                rest += [(part, f) for f in form.lse if isinstance(form.state, Unfolded)]
            elif isinstance(form.origin, Move):
                source = form.origin.source
                self._wanted.setdefault(source, []).append(one)
                rest += [(giver, source) for giver in self._givers(source)]

    def _extents(self, form: Form, part: int) -> list[Extent]:
        """What of the form the part sends: what others wait for, and no more."""
        stage = self._stages[form.stage]
        others = [
            (p, f)
            for p, f in self._wanted.get(form, [])
            if p != part or f.stage != form.stage or isinstance(form.state, Unfolded)
        ]
        if part not in self._givers(form) or not (others or form in self._results):
            return []
        if not isinstance(form.state, SplitBy):
            return [()]
        start, stop = stage.range_of(form.state.axis, part)
        own = span_of(self._dims, form.tensor, form.state, start, stop)
        states = {f.state for _, f in others if f.stage == form.stage}
        if form in self._results or any(f.stage != form.stage for _, f in others) or len(states) != 1:
            return [(own,)]
        (state,) = states
        if not isinstance(state, SplitBy) or state.dim == form.state.dim:
            return [(own,)]
        first, last = stage.range_of(state.axis, part)
        size = span_of(self._dims, form.tensor, state, 0, 0).size
        pieces = [(0, first), (last, size)] if first < last else [(0, size)]
        return [(own, span_of(self._dims, form.tensor, state, one, end)) for one, end in pieces if one < end]

    # When

    def _times(self, part: int, mine: PartNeeds) -> None:
        for form in mine.contributes:
            mine.use(form, form.level)
            for lse in form.lse if isinstance(form.state, Unfolded) else ():
                mine.use(lse, form.level)
        for form in self._results:
            if part in self._keepers(form):
                mine.use(form, form.level)
                mine.use(form, form.level + 1)
        todo = self._operations.get(part, set())
        for operation in reversed(self._partition.operations):
            if operation not in todo or operation.fixed:
                continue
            levels = [mine.uses[form][0] for form in operation.results if form in mine.uses]
            level = mine.levels[operation] = min(levels)
            for form in _inputs(operation):
                mine.use(form, level)
                if isinstance(form.origin, Move) and self._has_own(part, form):
                    mine.use(form.origin.source, level)

    def _has_own(self, part: int, form: Form) -> bool:
        """Whether the part itself has some of what was moved."""
        assert isinstance(form.origin, Move)
        source = form.origin.source
        return (
            source.stage == form.stage
            and isinstance(source.state, SplitBy)
            and own_piece(self._stages, source, part)
        )


def _inputs(operation: Operation) -> Iterator[Form]:
    """The forms that an operation reads; of what is fixed, what that reads."""
    for form in (*operation.inputs, *operation.captured.values()):
        if form is not None:
            if form.fixed and isinstance(form.origin, Operation):
                yield from _inputs(form.origin)
            yield form
