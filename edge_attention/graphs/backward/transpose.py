"""A schedule transposed: gradients come to a segment of what it gave, and go from it of what it was given.

    forward                                      back
    parts ──> boundary b ──> parts               parts <── boundary "gradient of b" <── parts
    GATHER, SUM of extents                       SUM of what each part was sent, sent to each by what it gave

So a gather becomes a reduce-scatter, a sum a broadcast, a switch a switch; a partial of attention is sent the
gradient of what was merged, with the merged lse. Nothing has to be known of who computes the same as others:
each part adds what its own use of a tensor gives, and the loss is contributed once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.schedule.extents import Extent, extent_shape
from edge_attention.core.schedule.fold_plan import overlap
from edge_attention.core.schedule.schedule import (
    Boundary,
    Collective,
    Constant,
    Contributed,
    Delivery,
    Kept,
    ModelInput,
    ModelSegment,
    Source,
    Step,
    TensorForm,
    Weight,
)
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.backward.backward_graph import (
    Asked,
    BackwardGraph,
    BackwardInput,
    Comes,
    backward_graph,
)
from edge_attention.graphs.backward.draft import SegmentDraft, one_of
from edge_attention.graphs.backward.fixed_graph import SAYS_SIZES, FixedGraph, fixed_graph, reached

__all__ = ["GRADIENT", "transposed"]

GRADIENT = "grad:"
"""Prefix of results that are gradients, before the name of the weight in the file."""


def transposed(
    forward: Emitted,
    trained: Collection[str],
    weight: Callable[[Weight], TensorForm],
    *,
    loss: str = "loss",
    recompute: bool = False,
) -> Emitted:
    """A schedule that also computes the gradients of its result `loss`.

    Args:
        forward: cut from a model that has its loss; a result `loss` is one number.
        trained: weights by name in the model's file, of each of which there is a result `grad:<name>`.
        weight: what form a piece of a weight has.
        recompute: the backward pass computes the forward one again, of what its segments were given; else
            what it needs is kept on the node that computed it.

    Raises:
        InvalidGraph: an operator between a trained weight and the loss has no gradient; or nothing of a
            trained weight reaches the loss.
        InvalidArgument: gradients would have to pass where parts find the least or largest of a tensor.
    """
    return _Transposing(forward, trained, weight, loss, recompute).emitted()


@dataclass
class _Adjoint:
    """The boundary that gathers a gradient."""

    name: str
    spec: TensorForm
    extents: list[Extent] = field(default_factory=list)

    def boundary(self) -> Boundary:
        """Contributions that have nothing in common are placed, others are added."""
        apart = not any(overlap(self.spec.shape, one, other) for one, other in combinations(self.extents, 2))
        return Boundary(self.spec, Collective.GATHER if apart else Collective.SUM)


@dataclass(frozen=True, eq=False)
class _StudiedSegment:
    """What is known of a segment."""

    fixed: FixedGraph
    key: tuple[object, ...]
    moving: frozenset[str]
    moved: frozenset[str]


class _Transposing:
    def __init__(
        self,
        forward: Emitted,
        trained: Collection[str],
        weight: Callable[[Weight], TensorForm],
        loss: str,
        recompute: bool,
    ) -> None:
        self._forward, self._trained, self._weight = forward, frozenset(trained), weight
        self._schedule = forward.schedule
        self._loss = self._schedule.results[loss]
        self._recompute = recompute
        self._names = {"b": len(self._schedule.boundaries), "k": self._kept_before()}
        self._kept_forms: dict[tuple[int, str], TensorForm] = {}
        self._sizes: dict[tuple[int, str], int] = {}
        """Bytes of what a part keeps, by its name."""
        self._active_kept: set[tuple[int, str]] = set()
        self._active: set[str] = set()
        self._known: dict[tuple[int, int], _StudiedSegment] = {}
        self._fixed: dict[tuple[object, ...], FixedGraph] = {}
        self._backs: dict[tuple[object, ...], BackwardGraph | None] = {}
        self._adjoints: dict[str, _Adjoint] = {}
        self._deltas: dict[str, _Adjoint] = {}
        self._gradients: dict[str, _Adjoint] = {}
        self._kept_gradients: dict[tuple[int, str], list[str]] = {}
        self._pending: dict[tuple[int, Weight], tuple[SegmentDraft, str]] = {}
        """Gradients of weights that the part has so far: the last segment with one, and its output."""
        self._drafts: dict[tuple[int, int], SegmentDraft] = {}

    def emitted(self) -> Emitted:
        steps = self._schedule.steps
        for number, step in enumerate(steps):
            for segment in step.segments:
                self._forwards(number, segment)
        back: list[list[SegmentDraft]] = []
        for number in reversed(range(len(steps))):
            found = [self._backwards(number, segment) for segment in steps[number].segments]
            back.append([draft for draft in found if draft is not None])
        self._contribute_gradients()
        forward = [[self._drafts[n, s.part] for s in step.segments] for n, step in enumerate(steps)]
        self._turn(forward[-1], back[0])
        return self._written([*forward, *back])

    def _turn(self, last: list[SegmentDraft], first: list[SegmentDraft]) -> None:
        """The last step forward and the first one back are one, of the parts that wait for nobody between."""
        for back in list(first):
            place = next(n for n, one in enumerate(last) if one.part == back.part)
            both = one_of(last[place], back)
            if both is not None:
                last[place] = both
                first.remove(back)

    # The forward pass

    def _forwards(self, number: int, segment: ModelSegment) -> None:
        forms: dict[str, TensorForm] = {}
        arrays: dict[str, Array] = {}
        moving: set[str] = set()
        digests: list[str] = []
        schedule = self._schedule
        for name, source in segment.inputs.items():
            match source:
                case ModelInput(of, extent):
                    forms[name] = _within(schedule.feeds[of], extent)
                case Delivery(of, extent):
                    forms[name] = _within(schedule.boundaries[of].spec, extent)
                    if of in self._active:
                        moving.add(name)
                case Kept(of):
                    forms[name] = self._kept_forms[segment.part, of]
                    if (segment.part, of) in self._active_kept:
                        moving.add(name)
                case Weight(of):
                    forms[name] = self._weight(source)
                    if of in self._trained:
                        moving.add(name)
                case Constant(of):
                    spec = forms[name] = schedule.constants[of].spec
                    if np.dtype(spec.dtype).kind in "iu" and int(np.prod(spec.shape)) <= SAYS_SIZES:
                        digest = schedule.constants[of].digest
                        arrays[name] = self._forward.constants[digest].reshape(spec.shape)
                        digests.append(digest)
        moving = {name for name in moving if forms[name].dtype.startswith("float")}
        digest = schedule.graphs[segment.graph]
        key = digest, tuple(sorted((n, f.dtype, f.shape) for n, f in forms.items())), *digests
        if key not in self._fixed:
            self._fixed[key] = fixed_graph(self._forward.graphs[digest], forms, arrays)
        fixed = self._fixed[key]
        moved = reached(fixed, moving)
        for output, name in segment.kept.items():
            if output not in fixed.forms:
                raise InvalidGraph(
                    f"the size of what part {segment.part} keeps in step {number} is not known: an operator "
                    "that makes it is none that shapes can be told of; train only what comes after it"
                )
            form = self._kept_forms[segment.part, name] = fixed.forms[output]
            self._sizes[segment.part, name] = _nbytes(form)
            if output in moved:
                self._active_kept.add((segment.part, name))
        self._active |= {one.boundary for one in segment.contributions if one.output in moved}
        self._known[number, segment.part] = _StudiedSegment(fixed, key, frozenset(moving), frozenset(moved))
        self._drafts[number, segment.part] = SegmentDraft(
            segment.part,
            dict(segment.inputs),
            dict(segment.kept),
            list(segment.contributions),
            graph=self._forward.graphs[digest],
        )

    # The backward pass

    def _backwards(self, number: int, segment: ModelSegment) -> SegmentDraft | None:
        known = self._known[number, segment.part]
        seeds, partials = self._seeds(segment, known)
        if not seeds or not known.moving:
            return None
        # Of what waits for nobody both passes are one segment, and nothing is kept between them.
        turns = number == len(self._schedule.steps) - 1 and not any(
            isinstance(source, Delivery) for given in seeds.values() for source in given
        )
        merged = {
            name
            for name, source in segment.inputs.items()
            if isinstance(source, Delivery)
            and self._schedule.boundaries[source.boundary].collective is Collective.MERGE
        }
        before = {
            name
            for name, source in segment.inputs.items()
            if isinstance(source, Weight) and (segment.part, source) in self._pending
        }
        asked = Asked(
            known.moving,
            tuple((name, 0 if None in given else len(given)) for name, given in seeds.items()),
            tuple((out, lse) for out, (lse, _) in partials.items()),
            frozenset(merged & known.moving),
            frozenset(before & known.moving),
            self._recompute and not turns,
        )
        key = (known.key, asked)
        if key not in self._backs:
            self._backs[key] = backward_graph(known.fixed, asked, f"segment {number} of part {segment.part}")
        back = self._backs[key]
        if back is None:
            return None
        inputs = {
            name: self._source(number, segment, one, seeds, partials) for name, one in back.inputs.items()
        }
        draft = SegmentDraft(segment.part, inputs, {}, [], model=back.model)
        for name, output in back.gradients.items():
            self._hand_on(draft, segment.inputs[name], output, back.deltas.get(name, ""))
        return draft

    def _seeds(
        self, segment: ModelSegment, known: _StudiedSegment
    ) -> tuple[dict[str, list[Source | None]], dict[str, tuple[str, str]]]:
        """By output the gradients that come to it, None for that of the loss, 1; and the partials among them.

        A partial: its output with the lse, and the boundary of what was merged.
        """
        seeds: dict[str, list[Source | None]] = {}
        partials: dict[str, tuple[str, str]] = {}
        lses = {one.boundary: one.output for one in segment.contributions}
        for one in segment.contributions:
            if one.output not in known.moved:
                continue
            boundary = self._schedule.boundaries[one.boundary]
            if one.boundary == self._loss:
                seeds.setdefault(one.output, []).append(None)
            adjoint = self._adjoints.get(one.boundary)
            if adjoint is None:
                continue
            if boundary.collective in (Collective.MIN, Collective.MAX):
                raise InvalidArgument(
                    "a gradient would have to pass where parts find the least or the largest of a tensor, as "
                    "int8 does: cut the model by layers, or train a float32 file"
                )
            seeds.setdefault(one.output, []).append(Delivery(adjoint.name, one.extent))
            if boundary.collective is Collective.MERGE:
                partials[one.output] = (lses[boundary.lse], one.boundary)
        for output, name in segment.kept.items():
            for gradient in self._kept_gradients.pop((segment.part, name), []):
                seeds.setdefault(output, []).append(Kept(gradient))
        return seeds, partials

    def _source(
        self,
        number: int,
        segment: ModelSegment,
        one: BackwardInput,
        seeds: Mapping[str, Sequence[Source | None]],
        partials: Mapping[str, tuple[str, str]],
    ) -> Source:
        """Where an input of a backward pass comes from."""
        match one.comes:
            case Comes.INPUT:
                source = segment.inputs[one.name]
                if isinstance(source, Kept | Weight | Constant):
                    return source
                return Kept(self._keep(number, segment.part, one.name))
            case Comes.VALUE:
                return Kept(self._keep(number, segment.part, one.name))
            case Comes.SEED:
                found = seeds[one.name][one.number]
                assert found is not None
                return found
            case Comes.DELTA:
                return Delivery(self._deltas[partials[one.name][1]].name)
            case Comes.LSE:
                merged = next(boundary for lse, boundary in partials.values() if lse == one.name)
                return Delivery(self._schedule.boundaries[merged].lse)
            case Comes.BEFORE:
                weight = segment.inputs[one.name]
                assert isinstance(weight, Weight)
                last, output = self._pending[segment.part, weight]
                name = last.kept.setdefault(output, self._name("k"))
                self._sizes[segment.part, name] = _nbytes(self._weight(weight))
                return Kept(name)

    def _keep(self, number: int, part: int, value: str) -> str:
        """Have a value of a segment kept; the name."""
        form = self._known[number, part].fixed.forms[value]
        name = self._drafts[number, part].keep(value, form, self._name("k"))
        self._sizes[part, name] = _nbytes(form)
        return name

    def _hand_on(self, draft: SegmentDraft, source: Source, output: str, delta: str) -> None:
        """What becomes of a gradient: kept for the part's own earlier segment, or sent."""
        match source:
            case Kept(of):
                name = draft.kept[output] = self._name("k")
                self._sizes[draft.part, name] = self._sizes[draft.part, of]
                self._kept_gradients.setdefault((draft.part, of), []).append(name)
            case Delivery(of, extent):
                spec = self._schedule.boundaries[of].spec
                adjoint = self._adjoint(self._adjoints, of, spec)
                adjoint.extents.append(extent)
                draft.contributions.append(Contributed(output, adjoint.name, extent))
                if delta:
                    rows = TensorForm(spec.dtype, (*spec.shape[:-1], 1))
                    there = tuple(span for span in extent if span.axis < len(spec.shape) - 1)
                    sums = self._adjoint(self._deltas, of, rows)
                    sums.extents.append(there)
                    draft.contributions.append(Contributed(delta, sums.name, there))
            case Weight():
                self._pending[draft.part, source] = draft, output
            case _:
                raise AssertionError(f"{source} has no gradient")

    def _adjoint(self, among: dict[str, _Adjoint], of: str, spec: TensorForm) -> _Adjoint:
        if of not in among:
            among[of] = _Adjoint(self._name("b"), spec)
        return among[of]

    def _contribute_gradients(self) -> None:
        """Of each weight a part sends what it has of its gradient, once."""
        for (_, weight), (draft, output) in self._pending.items():
            whole = self._weight(Weight(weight.name))
            adjoint = self._adjoint(self._gradients, weight.name, whole)
            adjoint.extents.append(weight.extent)
            draft.contributions.append(Contributed(output, adjoint.name, weight.extent))
        if lacking := sorted(self._trained - self._gradients.keys()):
            raise InvalidGraph(
                f"the loss has no gradient by '{lacking[0]}': nothing that is computed of it, by operators "
                "that have one, reaches the loss; leave it out of what trains"
            )

    # All of it

    def _name(self, letter: str) -> str:
        self._names[letter] += 1
        return f"{letter}{self._names[letter] - 1}"

    def _kept_before(self) -> int:
        """How many names of what is kept the forward pass has."""
        steps = self._schedule.steps
        return len({name for step in steps for segment in step.segments for name in segment.kept.values()})

    def _written(self, drafts: Sequence[Sequence[SegmentDraft]]) -> Emitted:
        graphs: dict[str, bytes] = {}
        names: dict[str, str] = {}
        steps = []
        for step in drafts:
            segments = []
            for draft in sorted(step, key=lambda one: one.part):
                data = draft.data()
                digest = hashlib.sha256(data).hexdigest()
                graphs.setdefault(digest, data)
                name = names.setdefault(digest, f"g{len(names)}")
                segments.append(
                    ModelSegment(draft.part, name, draft.inputs, draft.kept, tuple(draft.contributions))
                )
            if segments:
                steps.append(Step(tuple(segments)))
        adjoints = (*self._adjoints.values(), *self._deltas.values(), *self._gradients.values())
        schedule = replace(
            self._schedule,
            results={
                **self._schedule.results,
                **{f"{GRADIENT}{name}": self._gradients[name].name for name in sorted(self._gradients)},
            },
            boundaries={**self._schedule.boundaries, **{one.name: one.boundary() for one in adjoints}},
            steps=tuple(steps),
            graphs={name: digest for digest, name in names.items()},
        )
        schedule.check()
        kept = dict.fromkeys(range(schedule.parts), 0)
        for segment in (segment for step in steps for segment in step.segments):
            for name in segment.kept.values():
                kept[segment.part] += self._sizes[segment.part, name]
        return Emitted(schedule, graphs, self._forward.constants, kept)


def _nbytes(form: TensorForm) -> int:
    return math.prod(form.shape) * np.dtype(form.dtype).itemsize


def _within(form: TensorForm, extent: Extent) -> TensorForm:
    return TensorForm(form.dtype, extent_shape(form.shape, extent))
