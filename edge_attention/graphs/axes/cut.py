"""A model, a plan and sizes in; a schedule with its graphs and constants out, and kept in a folder."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import Schedule, TensorForm
from edge_attention.core.schedule.shares import shared_ranges
from edge_attention.core.tensors import DataType
from edge_attention.graphs.axes.averaging import averaged
from edge_attention.graphs.axes.axes import axes_of
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.emit import Emitted, emit
from edge_attention.graphs.axes.folder import write_cut
from edge_attention.graphs.axes.forms import StageCut
from edge_attention.graphs.axes.halving import in_halves
from edge_attention.graphs.axes.jumps import jumps
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel, open_model
from edge_attention.graphs.axes.narrow import narrow_places
from edge_attention.graphs.axes.partition import Partitioner
from edge_attention.graphs.onnx_file import all_nodes
from edge_attention.graphs.reading.needed import graphs_in

__all__ = [
    "analyse",
    "analyse_for",
    "cut",
    "cut_model",
    "cuts_no_layer",
    "shared_ranges",
    "sizes_of",
    "stage_cuts",
    "stages_of",
]

Ranges = tuple[tuple[int, int], ...]

_TRAVEL = frozenset(one.value for one in DataType)


def analyse(
    model: OpenModel, dimensions: Mapping[str, int], *, fused: bool = False, changing: Collection[str] = ()
) -> Axes:
    """The axes of a model for inputs of fixed sizes.

    Raises as `bind`, which says what the options are; InvalidGraph, too, where a weight is of a type that
    does not travel.
    """
    bound = bind(model.model, dimensions, model.read, fused=fused, changing=changing, given=model.given)
    for name, weight in bound.weights.items():
        if bound.specs[name].dtype not in _TRAVEL:
            raise InvalidGraph(
                f"weight {weight[:80]!r} is {bound.specs[name].dtype}, which does not travel by itself: "
                "replicate the model, or save it in another type (numbers of 4 bits as uint8, two in each)"
            )
    return axes_of(bound)


def cuts_no_layer(plan: CutPlan) -> bool:
    """Whether each layer is one part's: then it is cut from an analysis with fused operators kept, so that
    what parts compute is to the bit what the file does, and as fast. Layers are the same ones in both."""
    return all(stage.cut is Cut.NONE for stage in plan.stages)


def analyse_for(model: OpenModel, dimensions: Mapping[str, int], plan: CutPlan) -> Axes:
    """The axes that a plan is to be cut from. Raises as `analyse`.

    Fused operators stay, where it cuts none of them. A plan is made of layers without: those of a model that
    is no transformer may be others with them, and then it is cut without.
    """
    if cuts_no_layer(plan):
        axes = analyse(model, dimensions, fused=True)
        layers = max(stage.layers.stop for stage in plan.stages)
        if len(plan.stages) == 1 or layers == len(narrow_places(axes)) + 1:
            return axes
    return analyse(model, dimensions)


def cut(
    axes: Axes, plan: CutPlan, known: bool = False, attention: bool = False, everywhere: bool = False
) -> Emitted:
    """The schedule of `plan`, with its graphs and constants.

    Args:
        known: the plan is of this model at other sizes. Of a single token nothing is an axis, so that there
            is nothing to share: one part of such a stage does all of it.
        attention: parts that share heads share attention alone. What their heads make is gathered, and each
            does all that lies between two attentions: one meeting a layer in place of two, for more work.
        everywhere: all parts of the last stage make the results (see `Partition`).

    Raises:
        InvalidArgument: the plan is not of this model: layers, axes or ranges that it has not; or the model
            cannot be cut so, with the reason.
    """
    if plan.mean:
        whole = Stage(plan.stages[0].layers, (0,))
        if len(plan.stages) > 1:
            raise InvalidArgument("a plan by averaging has one stage, each of whose parts does all of it")
        return averaged(cut(axes, CutPlan((whole,))), plan.parts)
    _require_alike(axes, plan)
    stages = stage_cuts(axes, plan, known, attention)
    stage_of = stages_of(axes, plan)
    partitioner = Partitioner(axes, stages, stage_of)
    partition = partitioner.run()
    partition.everywhere = everywhere
    emitted = emit(
        partition,
        axes.bound,
        partitioner.stock.specs,
        partitioner.stock.literals,
        partitioner.stock.derived,
        partitioner.stock.dims,
    )
    coverage, lacking = _coverage(axes, stages)
    lacking = "; ".join(filter(None, (lacking, jumps(axes, {stage.cut for stage in plan.stages}))))
    schedule = replace(emitted.schedule, coverage=coverage, lacking=lacking)
    schedule.check()
    made = replace(emitted, schedule=schedule)
    return in_halves(made) if plan.halves else made


def stage_cuts(axes: Axes, plan: CutPlan, known: bool = False, attention: bool = False) -> list[StageCut]:
    """What each stage of the plan cuts, and the range of each part. Arguments and errors as of `cut`."""
    return [_stage(axes, number, stage, known, attention) for number, stage in enumerate(plan.stages)]


def _require_alike(axes: Axes, plan: CutPlan) -> None:
    """Refuse what each part would draw for itself where several parts do it alike."""
    for node in axes.bound.nodes:
        for one in (node, *(inner for graph in graphs_in(node) for inner in all_nodes(graph))):
            if plan.parts > 1 and (one.op_type.startswith("Random") or one.op_type in _RANDOM):
                raise InvalidArgument(
                    f"{one.op_type} '{one.name or node.output[0]}' is random, and parts would each draw for "
                    "themselves: replicate the model, or export it without"
                )


_RANDOM = frozenset({"Bernoulli", "Multinomial"})


def cut_model(model: Path, plan: CutPlan, feeds: Mapping[str, TensorForm], folder: Path) -> Schedule:
    """Cut a model's file by a plan, for inputs of these forms, and write all of it into a folder.

    Takes the memory of the model's graph, not of its weights. Raises as `open_model`, `sizes_of` and `cut`.
    """
    opened = open_model(model)
    emitted = cut(analyse_for(opened, sizes_of(opened, feeds), plan), plan)
    write_cut(emitted, opened, folder)
    return emitted.schedule


def sizes_of(model: OpenModel, feeds: Mapping[str, TensorForm]) -> dict[str, int]:
    """The sizes that inputs of these shapes give to what is symbolic.

    Raises:
        InvalidArgument: an input is missing, of another rank, or two say different sizes of one name.
    """
    found: dict[str, int] = {}
    if unknown := sorted(set(feeds) - {value.name for value in model.model.graph.input}):
        raise InvalidArgument(f"the model has no input '{unknown[0]}'")
    weights = {tensor.name for tensor in model.model.graph.initializer}
    for value in model.model.graph.input:
        if value.name in weights:
            continue
        if value.name not in feeds:
            raise InvalidArgument(f"input '{value.name}' is missing: say its shape")
        shape, dims = feeds[value.name].shape, value.type.tensor_type.shape.dim
        if len(shape) != len(dims):
            raise InvalidArgument(f"input '{value.name}' has {len(dims)} dimensions, not {len(shape)}")
        for axis, (size, dim) in enumerate(zip(shape, dims, strict=True)):
            if dim.HasField("dim_value"):
                if dim.dim_value not in (size, -1, 0):
                    raise InvalidArgument(
                        f"dimension {axis} of '{value.name}' is {dim.dim_value} in the model, not {size}"
                    )
                if dim.dim_value == size:
                    continue
            name = dim.dim_param or f"{value.name}.{axis}"
            if found.setdefault(name, size) != size:
                raise InvalidArgument(
                    f"'{name}' is {found[name]} in one input and {size} in '{value.name}': they must agree"
                )
    return found


_FAMILIES = {Cut.TOKENS: ("tokens",), Cut.BATCH: ("batch",), Cut.HEADS: ("heads", "feedforward")}


def _stage(axes: Axes, number: int, stage: Stage, known: bool, attention: bool) -> StageCut:
    names = _names(axes, stage.cut)
    attention = attention and stage.cut is Cut.HEADS
    if stage.cut is not Cut.NONE and not any(name.startswith(_FAMILIES[stage.cut][0]) for name in names):
        word = _FAMILIES[stage.cut][0]
        if known and word not in axes.named:
            return StageCut(number, stage.parts, stage.cut, stage.crossing, {}, frozenset())
        why = axes.refused.get(word, f"it has no {word} axis")
        raise InvalidArgument(f"the model cannot be cut by {word}: {why}; cut it by layers, or replicate it")
    if unknown := sorted(set(stage.ranges) - set(axes.named)):
        have = ", ".join(sorted(axes.named))
        raise InvalidArgument(f"the model has no axis '{unknown[0]}'; it has {have}")
    home = {axes.named[name][0] for name in names}
    if stage.cut is Cut.TOKENS and stage.crossing is Crossing.SWITCH:
        names += _names(axes, Cut.HEADS)
    ranges: dict[int, Ranges] = {}
    if len(stage.parts) > 1:
        shares = stage.shares or (1.0,) * len(stage.parts)
        for name in names:
            axis = axes.named[name][0]
            given = stage.ranges.get(name)
            if attention and not name.startswith("heads"):
                continue
            if given is None:
                ranges[axis] = shared_ranges(axes.sizes[axis], shares)
            else:
                ranges[axis] = _checked(name, given, axes.sizes[axis], stage)
    home &= set(ranges)
    return StageCut(
        number, stage.parts, stage.cut, stage.crossing, ranges, frozenset(home), sums=not attention
    )


def _names(axes: Axes, cut: Cut) -> list[str]:
    families = _FAMILIES.get(cut, ())
    return [n for n in axes.named if n.split(".")[0] in families and n not in axes.refused]


def _checked(name: str, ranges: Ranges, size: int, stage: Stage) -> Ranges:
    """Ranges as said, if they are of the axis and no two overlap."""
    if len(ranges) != len(stage.parts):
        raise InvalidArgument(
            f"'{name}' has {len(ranges)} ranges for {len(stage.parts)} parts; give one each"
        )
    end = 0
    for start, stop in sorted(span for span in ranges if span[0] < span[1]):
        if start < end or stop > size:
            raise InvalidArgument(f"the ranges of '{name}' overlap, or are beyond its {size}")
        if start > end and stage.cut is not Cut.HEADS:
            raise InvalidArgument(f"{end} to {start} of '{name}' is nobody's; only heads may be left out")
        end = stop
    if end < size and stage.cut is not Cut.HEADS:
        raise InvalidArgument(f"{end} to {size} of '{name}' is nobody's; only heads may be left out")
    return ranges


def stages_of(axes: Axes, plan: CutPlan) -> list[int]:
    """By node, the stage that does it."""
    if len(plan.stages) == 1 and not plan.stages[0].layers.start:
        return [0] * len(axes.bound.nodes)
    borders = [place.before for place in narrow_places(axes)]
    stage_of = [
        next((n for n, stage in enumerate(plan.stages) if layer in stage.layers), -1)
        for layer in range(len(borders) + 1)
    ]
    if -1 in stage_of or max(stage.layers.stop for stage in plan.stages) != len(stage_of):
        raise InvalidArgument(
            f"the model has {len(stage_of)} layers: the plan's stages must have each in one of them, in order"
        )
    return [stage_of[bisect_right(borders, number)] for number in range(len(axes.bound.nodes))]


def _coverage(axes: Axes, stages: Sequence[StageCut]) -> tuple[float, str]:
    """How much of the model the parts do: the least over kinds of axes of what they have of those."""
    names = {ids[0]: name for name, ids in axes.named.items()}
    had: dict[str, list[int]] = {}
    lacking = []
    for stage in stages:
        for axis, ranges in stage.ranges.items():
            size, own = axes.sizes[axis], sum(stop - start for start, stop in ranges)
            kind = names[axis].split(".")[0]
            total = had.setdefault(kind, [0, 0])
            total[0] += own
            total[1] += size
            if own < size:
                lacking.append(f"{size - own} of {size} of {names[axis]}")
    coverage = min((own / size for own, size in had.values()), default=1.0)
    shown = ", ".join(lacking[:8]) + (f" and {len(lacking) - 8} more" if len(lacking) > 8 else "")
    return coverage, f"nobody does {shown}" if lacking else ""
