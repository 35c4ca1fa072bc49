"""Standard losses with their options against float64, and batches that fold to what one machine finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import losses_in_float64 as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import FLOAT, close, model, node, normal, run

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.models.model import Model, gradient_graph, load_model, pruned
from edge_attention.graphs.models.model_form import LOSS_WEIGHT, METRIC

ROWS, WIDTH = 6, 4
Expected = Callable[[np.ndarray], tuple[float, float]]


def shaped(*shape: int) -> bytes:
    """logits [n, *shape] = reshape(x [n, 4] @ w)."""
    size = int(np.prod(shape))
    return model(
        [node("MatMul", ["x", "w"], ["flat"]), node("Reshape", ["flat", "shape"], ["logits"])],
        {"x": (FLOAT, ["n", WIDTH])},
        {"logits": (FLOAT, ["n", *shape])},
        {"w": normal(1, WIDTH, size), "shape": np.array([-1, *shape], np.int64)},
    )


def compare(loaded: Model, feeds: dict[str, np.ndarray], shape: tuple[int, ...], expected: Expected) -> None:
    """Loss, its gradient and what counts, of the graph and in float64."""
    x, w = feeds["x"].astype(np.float64), loaded.parameters["w"].astype(np.float64)
    point = {**feeds, "x/0": loaded.parameters["w"]}
    rows = len(x)
    found = run(gradient_graph(loaded, rows), point)

    def loss(w: np.ndarray) -> float:
        return expected((x @ w).reshape(rows, *shape))[0]

    value, counted = expected((x @ w).reshape(rows, *shape))
    close(found["loss"], value)
    close(found["grad/0"], reference.slope(loss, w), 3e-5)
    assert loaded.weighted == (LOSS_WEIGHT in found)
    if loaded.weighted:
        close(found[LOSS_WEIGHT], counted)
    else:
        assert counted == pytest.approx(rows)


CROSS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.2},
    "classes": {"class_weights": (0.5, 2.0, 0.0, 1.0, 3.0)},
    "ignored": {"ignore_index": -100},
    "ignored-class": {"ignore_index": 2},
    "rows": {"weights": True},
    "all": {
        "label_smoothing": 0.3,
        "ignore_index": -1,
        "class_weights": (0.5, 2.0, 0.25, 1.0, 3.0),
        "weights": True,
    },
    "smoothed-rows": {"label_smoothing": 0.1, "weights": True},
    "smoothed-ignored": {"label_smoothing": 0.1, "ignore_index": -7},
    "smoothed-classes": {"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0, 4.0, 5.0)},
}
SHAPES = {"row": ((5,), -1), "tokens": ((3, 5), -1), "torch": ((5, 3), 1), "image": ((5, 2, 2), 1)}


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("how", CROSS)
def test_cross_entropy_is_pytorchs(form: str, how: str) -> None:
    (shape, axis), given_ = SHAPES[form], dict(CROSS[how])
    weights = given_.pop("weights", False)
    numbers = {k: v for k, v in given_.items() if k != "class_weights"}
    if axis == 1:
        numbers["class_axis"] = 1
    spec = LossSpec(
        "cross_entropy",
        options=numbers,
        class_weights=given_.get("class_weights", ()),
        weights="importance" if weights else "",
    )
    loaded = load_model(shaped(*shape), loss=spec)
    rng = np.random.default_rng(0)
    places = tuple(n for i, n in enumerate(shape) if i != (axis if axis < 0 else axis - 1) % len(shape))
    y = rng.integers(5, size=(ROWS, *places))
    if (ignored := given_.get("ignore_index")) is not None:
        y.reshape(-1)[::3] = ignored
    feeds = {"x": normal(2, ROWS, WIDTH), "labels": y}
    s = None
    if weights:
        feeds["importance"] = rng.uniform(0, 2, ROWS).astype(np.float32)
        s = feeds["importance"].astype(np.float64)
    compare(
        loaded,
        feeds,
        shape,
        lambda z: reference.cross_entropy(z, y, axis=axis, weights=s, **given_),
    )


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("positive", [(), (2.5,), (0.5, 1.0, 4.0)])
@pytest.mark.parametrize("ignore", [None, -1])
def test_binary_cross_entropy_takes_one_label_a_row_or_several(
    shape: tuple[int, ...], weights: bool, positive: tuple[float, ...], ignore: int | None
) -> None:
    if len(positive) > 1 and (not shape or shape[-1] != len(positive)):
        pytest.skip("as many weights as labels")
    spec = LossSpec(
        "binary_cross_entropy",
        options={} if ignore is None else {"ignore_index": ignore},
        positive_weights=positive,
        weights="importance" if weights else "",
    )
    loaded = load_model(shaped(*shape), loss=spec)
    rng = np.random.default_rng(1)
    inner = () if shape == (1,) else shape
    y = rng.integers(2, size=(ROWS, *inner)).astype(np.float32)
    if ignore is not None:
        y.reshape(-1)[::4] = ignore
    feeds = {"x": normal(3, ROWS, WIDTH), "labels": y}
    s = None
    if weights:
        feeds["importance"] = rng.uniform(0, 2, ROWS).astype(np.float32)
        s = feeds["importance"].astype(np.float64)
    wide = y.astype(np.float64)

    def expected(z: np.ndarray) -> tuple[float, float]:
        return reference.binary_cross_entropy(
            z, wide, positive_weights=positive, ignore_index=ignore, weights=s
        )

    compare(loaded, feeds, shape, expected)
    assert loaded.inputs["labels"] == (np.dtype(np.float32), (None, *inner))
    assert loaded.metrics == (("correct", "labels") if inner or ignore is not None else ("correct",))


@pytest.mark.parametrize(("name", "power"), [("mse", 2), ("l1", 1)])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
@pytest.mark.parametrize("weights", [False, True])
def test_differences_take_several_targets_and_rows_that_count_more(
    name: str, power: int, shape: tuple[int, ...], weights: bool
) -> None:
    loaded = load_model(shaped(*shape), loss=LossSpec(name, weights="importance" if weights else ""))
    inner = () if shape == (1,) else shape
    feeds = {"x": normal(4, ROWS, WIDTH), "labels": normal(5, ROWS, *inner)}
    s = None
    if weights:
        feeds["importance"] = np.arange(ROWS, dtype=np.float32)
        s = feeds["importance"].astype(np.float64)
    y = feeds["labels"].astype(np.float64)
    compare(loaded, feeds, shape, lambda z: reference.difference(power, z, y, weights=s))


def test_metrics_count_what_counts() -> None:
    spec = LossSpec("cross_entropy", options={"ignore_index": -100})
    loaded = load_model(shaped(3, 5), loss=spec)
    assert loaded.metrics == ("correct", "tokens")
    x, w = normal(6, ROWS, WIDTH), loaded.parameters["w"]
    best = (x @ w).reshape(ROWS, 3, 5).argmax(axis=-1)
    y = best.copy()
    y[0], y[1, 0] = -100, (best[1, 0] + 1) % 5
    graph = pruned(loaded, [METRIC + name for name in loaded.metrics])
    found = run(graph, {"x": x, "labels": y, "x/0": w})
    assert found[METRIC + "tokens"] == ROWS * 3 - 3
    assert found[METRIC + "correct"] == ROWS * 3 - 4


def test_a_batch_of_which_nothing_counts_has_loss_and_gradient_zero() -> None:
    spec = LossSpec("cross_entropy", options={"ignore_index": -1, "label_smoothing": 0.1})
    loaded = load_model(shaped(5), loss=spec)
    feeds = {"x": normal(2, 2, WIDTH), "labels": np.array([-1, -1]), "x/0": loaded.parameters["w"]}
    found = run(gradient_graph(loaded, 2), feeds)
    assert found["loss"] == 0
    assert found[LOSS_WEIGHT] == 0
    assert not found["grad/0"].any()


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    smoothing=st.sampled_from([0.0, 0.25]),
    tokens=st.sampled_from([(), (3,)]),
)
def test_batches_fold_by_what_they_count_to_the_whole(
    cuts: list[int], seed: int, smoothing: float, tokens: tuple[int, ...]
) -> None:
    spec = LossSpec(
        "cross_entropy",
        options={"ignore_index": -100, "label_smoothing": smoothing},
        class_weights=(0.1, 1.0, 5.0),
        weights="importance",
    )
    loaded = load_model(shaped(*tokens, 3), loss=spec)
    rng = np.random.default_rng(seed)
    rows = sum(cuts)
    x, w = rng.standard_normal((rows, WIDTH)).astype(np.float32), loaded.parameters["w"]
    y = rng.integers(3, size=(rows, *tokens))
    y[rng.random(y.shape) < 0.4] = -100
    s = rng.uniform(0, 3, rows).astype(np.float32)
    total, loss, gradient, start = 0.0, 0.0, np.zeros(w.shape), 0
    for size in cuts:
        part = slice(start, start + size)
        feeds = {"x": x[part], "labels": y[part], "importance": s[part], "x/0": w}
        found = run(gradient_graph(loaded, size), feeds)
        weight = float(found[LOSS_WEIGHT])
        total += weight
        loss += weight * float(found["loss"])
        gradient += weight * found["grad/0"].astype(np.float64)
        start += size
    wide = x.astype(np.float64)

    def whole(w: np.ndarray) -> tuple[float, float]:
        return reference.cross_entropy(
            (wide @ w).reshape(rows, *tokens, 3),
            y,
            class_weights=(0.1, 1.0, 5.0),
            label_smoothing=smoothing,
            ignore_index=-100,
            weights=s.astype(np.float64),
        )

    value, counted = whole(w.astype(np.float64))
    assert total == pytest.approx(counted, rel=1e-5, abs=1e-6)
    if counted:
        assert loss / total == pytest.approx(value, rel=1e-4, abs=1e-6)
        expected = reference.slope(lambda w: whole(w)[0], w.astype(np.float64))
        np.testing.assert_allclose(
            gradient / total, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max())
        )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            LossSpec("cross_entropy", class_weights=(1.0, 2.0)),
            "class_weights of the loss are 2, one a class; .* 5",
        ),
        (LossSpec("cross_entropy", options={"class_axis": 2}), "class_axis of the loss is 2"),
        (LossSpec("cross_entropy", options={"class_axis": 0}), "class_axis of the loss is 0"),
        (
            LossSpec("cross_entropy", options={"smoothing": 0.1}),
            "no option 'smoothing'; it has label_smoothing",
        ),
        (LossSpec("cross_entropy", options={"label_smoothing": 1.0}), r"must be in \[0, 1\)"),
        (LossSpec("cross_entropy", positive_weights=(2.0,)), "no positive_weights; it has class_weights"),
        (LossSpec("binary_cross_entropy", class_weights=(2.0,)), "no class_weights; it has positive_weights"),
        (LossSpec("binary_cross_entropy", positive_weights=(1.0, 2.0)), "one for all labels or one a label"),
        (LossSpec("mse", class_weights=(2.0,)), "no class_weights; it has weights"),
        (LossSpec("mse", options={"ignore_index": 1}), "no option 'ignore_index'; it has none"),
        (LossSpec("mse", weights="labels"), "both 'labels'"),
        (LossSpec("mse", weights="w"), "the weights' input 'w' has the name of a tensor"),
        (LossSpec("cross_entropy", class_weights=(0.0,) * 5), "all 0"),
        (LossSpec("cross_entropy", class_weights=(1.0, -1.0, 1.0, 1.0, 1.0)), "number 1 is -1.0"),
        (LossSpec("cross_entropy", class_weights=(1.0, 1.0, float("nan"), 1.0, 1.0)), "number 2 is nan"),
    ],
)
def test_what_a_loss_does_not_take_is_refused(spec: LossSpec, message: str) -> None:
    with pytest.raises(InvalidGraph, match=message):
        load_model(shaped(5), loss=spec)
