"""What the check of labels tells: how many cannot be used, how far they reach and no further, classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_models import run

from edge_attention.graphs.models.label_graph import LABEL_SUMS, label_graph, reach
from edge_attention.graphs.models.model_form import LabelKind


def look(kind: LabelKind, *batches: Any, weights: Any = None, inner: tuple[int, ...] = ()) -> dict[str, Any]:
    dtype = np.dtype(np.int64 if kind.classes else np.float32)
    graph = label_graph(kind, (dtype, (None, *inner)))
    low, high = reach(kind)
    sums: dict[str, Any] = {"outside": 0, "strange": 0, "lowest": high, "highest": low}
    sums["seen"] = np.zeros(max(1, kind.classes))
    for batch in batches:
        feeds = {f"sum/{name}": np.asarray(value, np.float32) for name, value in sums.items()}
        feeds["y"] = np.asarray(batch, dtype)
        if weights is not None:
            feeds["s"] = np.asarray(weights, np.float32)
        found = run(graph, feeds)
        sums = {name: found[f"next/{name}"] for name in LABEL_SUMS}
    return {name: value.tolist() for name, value in sums.items()}


def test_classes_and_what_is_outside_them() -> None:
    found = look(LabelKind("y", classes=2), [1, 2, 2], [1])
    assert found == {"outside": 2, "strange": 0, "lowest": 1, "highest": 2, "seen": [0, 1]}
    found = look(LabelKind("y", classes=3, ignore=-100), [[0, -100], [2, 0]], inner=(2,))
    assert found == {"outside": 0, "strange": 0, "lowest": 0, "highest": 2, "seen": [1, 0, 1]}


def test_a_label_far_from_the_classes_is_no_value_that_is_told() -> None:
    found = look(LabelKind("y", classes=3), [54_321, -54_321, 1])
    assert (found["outside"], found["lowest"], found["highest"]) == (2, -100, 6)


def test_yes_and_no() -> None:
    kind = LabelKind("y", binary=True)
    assert look(kind, [0, 1, 0.25])["outside"] == 0
    found = look(kind, [0.25, 0.5])
    assert (found["lowest"], found["highest"]) == (0, 1), "no share is told"
    found = look(kind, [1, 2, 2])
    assert (found["outside"], found["lowest"], found["highest"]) == (2, 1, 2)
    found = look(kind, [np.nan, 1, np.inf, -77])
    assert (found["outside"], found["lowest"], found["highest"]) == (3, -1, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers(bad: float) -> None:
    found = look(LabelKind("y"), [1e30, bad, -3, bad])
    assert found["outside"] == 2
    assert (found["lowest"], found["highest"]) == (2, -1), "of numbers nothing is told"


def test_weights_of_rows() -> None:
    found = look(LabelKind("y", weights="s"), [1, 2, 3, 4], weights=[0, np.nan, -1, 2e6])
    assert (found["outside"], found["strange"]) == (0, 3)
