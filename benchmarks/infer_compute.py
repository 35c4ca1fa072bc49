"""Computing alone: a cut model in one process, the slowest part of each step added up, by the whole model.

Both run on one thread, in turns; processor time, so that what else the machine does counts less.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.infer_models import feeds_of, whole_session
from benchmarks.turns import median_ratio
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.cut import analyse, cut, sizes_of
from edge_attention.graphs.axes.in_process import InProcess
from edge_attention.graphs.axes.model_reading import open_model
from edge_attention.graphs.axes.narrow import narrow_places

__all__ = ["Computed", "by_heads", "by_tokens", "computed"]


@dataclass(frozen=True)
class Computed:
    """Attributes:
    ratio: slowest part of each step, summed, by the whole model; the median over turns.
    whole: milliseconds of the whole model, the quickest turn.
    error: the largest, by the largest value.
    """

    ratio: float
    whole: float
    error: float


def by_tokens(parts: int, crossing: Crossing = Crossing.GATHER) -> Stage:
    """All layers (their number is filled in), the tokens shared evenly."""
    return Stage(range(1), tuple(range(parts)), Cut.TOKENS if parts > 1 else Cut.NONE, crossing)


def by_heads(parts: int) -> Stage:
    return Stage(range(1), tuple(range(parts)), Cut.HEADS if parts > 1 else Cut.NONE)


def computed(path: Path, stage: Stage, batch: int, length: int, turns: int) -> Computed:
    """A model's file cut by one stage, for inputs of this shape, against the whole."""
    feeds = feeds_of(path, batch, length)
    opened = open_model(path)
    axes = analyse(opened, sizes_of(opened, forms_of(feeds)))
    layers = range(len(narrow_places(axes)) + 1)
    emitted = cut(axes, CutPlan((Stage(layers, stage.parts, stage.cut, stage.crossing, stage.shares),)))
    parts = InProcess(
        emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, opened.piece
    )
    whole = whole_session(path)
    names = [value.name for value in whole.get_outputs()]
    expected = dict(zip(names, whole.run(None, feeds), strict=True))
    results = parts.run(feeds).results
    error = max(
        float(np.abs(results[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in names
    )
    slowest, one = [], []
    for _ in range(turns):
        one.append(_seconds(whole, feeds))
        slowest.append(parts.run(feeds).slowest)
    return Computed(median_ratio(slowest, one), 1e3 * min(one), error)


def forms_of(feeds: Mapping[str, Array]) -> dict[str, TensorForm]:
    return {name: TensorForm(value.dtype.name, value.shape) for name, value in feeds.items()}


def _seconds(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array]) -> float:
    began = time.thread_time()
    session.run(None, feeds)
    return time.thread_time() - began
