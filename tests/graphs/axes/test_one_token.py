"""A plan made for many tokens, and a request of one: there is nothing to share, and one part does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.graphs.axes.cut import analyse, cut, sizes_of
from edge_attention.graphs.axes.in_process import InProcess
from edge_attention.graphs.axes.model_reading import open_model

MODEL = Path(__file__).parent / "exports" / "bert.onnx"
FEEDS = {"input_ids": np.array([[7]]), "attention_mask": np.array([[1]])}


@pytest.mark.parametrize(
    "stage",
    [
        *(Stage(range(99), (0, 1, 2), Cut.TOKENS, crossing) for crossing in Crossing),
        Stage(range(99), (0, 1, 2), Cut.HEADS),
        Stage(range(99), (0, 1, 2), Cut.BATCH),
    ],
)
def test_of_one_token_one_part_does_all(stage):
    model = open_model(MODEL)
    forms = {name: TensorForm("int64", array.shape) for name, array in FEEDS.items()}
    axes = analyse(model, sizes_of(model, forms))
    with pytest.raises(InvalidArgument, match="cannot be cut by"):
        cut(axes, CutPlan((stage,)))
    emitted = cut(axes, CutPlan((stage,)), known=True)
    assert {segment.part for step in emitted.schedule.steps for segment in step.segments} == {0}
    run = InProcess(emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, model.piece)
    wanted = onnxruntime.InferenceSession(str(MODEL)).run(None, FEEDS)
    for found, whole in zip(run.run(FEEDS).results.values(), wanted, strict=True):
        np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max())
