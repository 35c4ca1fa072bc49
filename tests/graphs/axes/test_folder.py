"""A cut model on disk: what is written is read again, and weights come from the model's own file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_attention.core.errors import DataLoss, NotFound
from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import TensorForm, Weight
from edge_attention.graphs.axes.cut import cut_model
from edge_attention.graphs.axes.folder import CutFolder
from edge_attention.graphs.axes.in_process import InProcess
from tests.graphs.axes.random_transformers import feeds_of, recipe_of, transformer

RECIPE = recipe_of(
    3, layers=2, tokens=6, key_heads=3, memory=0, source="ids", positions="none", mask="none", quantised=False
)
PLAN = CutPlan((Stage(range(1), (0, 1), Cut.HEADS, shares=(2.0, 1.0)),))


@pytest.fixture
def written(tmp_path: Path) -> CutFolder:
    onnx.save(transformer(RECIPE), tmp_path / "model.onnx")
    feeds = {name: TensorForm(value.dtype.name, value.shape) for name, value in feeds_of(RECIPE, 0).items()}
    schedule = cut_model(tmp_path / "model.onnx", PLAN, feeds, tmp_path / "cut")
    folder = CutFolder(tmp_path / "model.onnx", tmp_path / "cut")
    assert folder.schedule() == schedule
    return folder


def test_all_that_a_schedule_names_is_there(written: CutFolder, tmp_path: Path) -> None:
    schedule = written.schedule()
    for digest in schedule.graphs.values():
        assert sha256(written.graph(digest).read_bytes()).hexdigest() == digest
    for constant in schedule.constants.values():
        assert sha256(written.constant(constant.digest).read_bytes()).hexdigest() == constant.digest
    kinds = {c.digest: c.spec.dtype for c in schedule.constants.values()}
    parts = InProcess(
        schedule,
        lambda digest: written.graph(digest).read_bytes(),
        lambda digest: np.frombuffer(written.constant(digest).read_bytes(), kinds[digest]),
        written.weight,
    )
    assert all(np.isfinite(value).all() for value in parts.run(feeds_of(RECIPE, 1)).results.values())


def test_parts_hold_their_share_of_the_weights(written: CutFolder) -> None:
    schedule = written.schedule()
    sizes = [sum(written.weight(w).nbytes for w in schedule.weights_of(part)) for part in (0, 1)]
    assert sizes[0] > sizes[1] > 0


def test_what_is_damaged_is_said(written: CutFolder, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="'none'"):
        written.weight(Weight("none"))
    (tmp_path / "cut" / "weights.json").write_text("{")
    (tmp_path / "cut" / "schedule.json").write_text('{"parts": 2}')
    again = CutFolder(tmp_path / "model.onnx", tmp_path / "cut")
    with pytest.raises(DataLoss, match="deploy"):
        again.weight(Weight("none"))
    with pytest.raises(DataLoss, match="deploy"):
        again.schedule()
