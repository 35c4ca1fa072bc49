"""The plans that every model is tried by, on parts of unequal size, and what comes of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, helper, numpy_helper

from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import ModelSegment, TensorForm, Weight
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.cut import analyse_for, cut, cuts_no_layer, sizes_of
from edge_attention.graphs.axes.in_process import InProcess
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.axes.narrow import narrow_places
from edge_attention.graphs.axes.work import work_of

__all__ = ["PLANS", "SHARES", "NotWhole", "Tried", "plan_of", "try_plan", "whole_answer"]

SHARES: Mapping[int, tuple[float, ...]] = {2: (3, 2), 3: (4, 1, 2), 5: (1, 3, 2, 1, 2)}
"""By number of parts, what each has of an axis."""

PLANS = ("replicate", "layers", "tokens, gather", "tokens, switch", "tokens, merge", "heads")


@dataclass(frozen=True)
class Tried:
    """What came of a plan.

    Attributes:
        error: the largest of an output, relative to its largest value; None: there is no answer.
        why: there is none; or it is not exact, as the answer itself says.
        fault: it is no refusal but a fault of the cut.
        share: of the model's arithmetic that the part with most of it does: 1 where all do everything.
    """

    error: float | None
    why: str = ""
    fault: bool = False
    share: float = 0.0

    @property
    def said(self) -> str:
        return f"{self.error:.0e}" if self.error else "0" if self.error == 0 else self.why


def plan_of(name: str, axes: Axes, parts: int) -> CutPlan:
    """A plan by its name in PLANS; of `replicate` it is what each box does, and of so few layers as there are
    each part has one or none."""
    layers = len(narrow_places(axes)) + 1
    if name == "replicate":
        return CutPlan((Stage(range(layers), (0,)),))
    if name == "layers":
        return CutPlan(tuple(_stages(layers, parts)))
    kind, _, crossing = name.partition(", ")
    found = Stage(
        range(layers),
        tuple(range(parts)),
        Cut(kind),
        Crossing(crossing) if crossing else Crossing.GATHER,
        shares=SHARES[parts],
    )
    return CutPlan((found,))


def _stages(layers: int, parts: int) -> Iterator[Stage]:
    """Stages of unequal length, none of them empty."""
    parts = min(layers, parts)
    total, ends, done = sum(SHARES.get(parts, (1,) * parts)), [0], 0.0
    for number, share in enumerate(SHARES.get(parts, (1,) * parts)):
        done += share
        least, most = ends[-1] + 1, layers - (parts - 1 - number)
        ends.append(min(max(round(layers * done / total), least), most))
    for number, (start, stop) in enumerate(pairwise(ends)):
        yield Stage(range(start, stop), (number,))


class NotWhole(Exception):
    """ONNX Runtime does not run the file as it is: there is nothing to hold parts against."""


def whole_answer(path: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime answers with all of the model, on one thread.

    Without the fusion of Add and LayerNormalization: it rounds otherwise than they do, and takes place where
    ONNX Runtime happens to know shapes, 3 of 6 times in one BERT. It is all that int8 models differ by.

    Raises NotWhole.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
        )
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:  # of classes that ONNX Runtime makes for each status
        raise NotWhole(f"ONNX Runtime does not run the file itself: {str(error)[:160]}") from None


def try_plan(
    model: OpenModel, axes: Axes, plan: CutPlan, feeds: Mapping[str, Array], expected: Mapping[str, Array]
) -> Tried:
    """Cut the model, run its parts in this process and compare."""
    if cuts_no_layer(plan):
        forms = {name: TensorForm(str(value.dtype), value.shape) for name, value in feeds.items()}
        axes = analyse_for(model, sizes_of(model, forms), plan)
    try:
        made = cut(axes, plan)
    except EdgeAttentionError as error:
        return Tried(None, error.message)
    schedule = made.schedule
    runs = _Counting(schedule, made.graphs.__getitem__, made.constants.__getitem__, model.piece)
    ran = runs.run(feeds)
    if schedule.coverage < 1 or set(ran.results) != set(expected):
        return Tried(None, f"it covers {schedule.coverage:.0%}: {schedule.lacking}", True)
    worst = max(relative(ran.results[name], one) for name, one in expected.items())
    whole = work_of(axes.bound.nodes, axes.bound.specs).flops
    fault = not worst < 1e-5 and not schedule.lacking
    return Tried(worst, schedule.lacking, fault, runs.most_work() / whole)


class _Counting(InProcess):
    """Also says how much arithmetic the part with most of it did."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._given_to: list[tuple[ModelSegment, dict[str, Array]]] = []

    def _given(self, segment: ModelSegment, *more: Any) -> dict[str, Array]:
        found = super()._given(segment, *more)
        self._given_to.append((segment, found))
        return found

    def most_work(self) -> float:
        """Flops."""
        counts = dict.fromkeys(range(self.schedule.parts), 0.0)
        for segment, given in self._given_to:
            weights = {n: self.weight(s) for n, s in segment.inputs.items() if isinstance(s, Weight)}
            graph = ModelProto.FromString(self.graph(self.schedule.graphs[segment.graph]))
            counts[segment.part] += _flops(graph, given | weights)
        return max(counts.values())


def _flops(model: ModelProto, given: Mapping[str, Array]) -> float:
    """Of a graph whose inputs have these values."""
    inputs = list(model.graph.input)
    del model.graph.input[:], model.graph.value_info[:]
    for value in inputs:
        array = given[value.name]
        if array.dtype.kind == "i" and array.ndim <= 1:  # it may say a shape
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(helper.make_tensor_value_info(value.name, kind, array.shape))
    bound = bind(model, {})
    return work_of(bound.nodes, bound.specs).flops


def relative(found: Array, expected: Array) -> float:
    """The largest difference, relative to the largest value; NaN where a value is none."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())
