"""The builders for tabular data against plain float64 NumPy, and training with them on real data."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.builders.tabular import classifier_head, tabular_encoder
from edge_attention.graphs.gradients.gradients import check_gradient, encoder_gradient, head_gradient
from edge_attention.graphs.models.one_machine import OneMachine, one_machine_model
from edge_attention.graphs.models.parts import GraphPart, load_part

Array = NDArray[Any]
BATCH = 4


def encoder(seed: int = 5) -> bytes:
    return tabular_encoder(3, key_heads=2, key_dim=4, value_dim=2, width=6, seed=seed)


def head(seed: int = 6) -> bytes:
    return classifier_head(queries=2, query_heads=2, value_dim=2, classes=3, hidden=5, seed=seed)


def run(graph: bytes, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    given = {value.name: feeds[value.name] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def normed(x: Array, gain: Array, bias: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * gain + bias


def encode(p: dict[str, Array], x: Array) -> dict[str, Array]:
    tokens = x.astype(np.float64)[:, :, None] * p["feature_weight"] + p["feature_bias"]
    tokens = tokens + gelu(tokens @ p["hidden_weight"] + p["hidden_bias"])
    out = {}
    for name in ("keys", "values"):
        flat = tokens @ p[f"{name}_weight"] + p[f"{name}_bias"]
        out[name] = flat.reshape(*flat.shape[:2], 2, -1)
    return out


def classify(p: dict[str, Array], fused: Array, y: Array) -> dict[str, Array]:
    rows = normed(fused.astype(np.float64).reshape(len(fused), -1), p["norm_gain"], p["norm_bias"])
    rows = gelu(rows @ p["hidden_weight"] + p["hidden_bias"])
    logits = rows @ p["logits_weight"] + p["logits_bias"]
    likelihood = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return {
        "loss": -np.log(likelihood[np.arange(len(y)), y]).mean(),
        "correct": np.float64((logits.argmax(axis=1) == y).sum()),
        "probabilities": likelihood,
    }


def doubled(part: GraphPart) -> dict[str, Array]:
    return {name: value.astype(np.float64) for name, value in part.parameters.items()}


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def slopes(value: Any, at: Array) -> Array:
    """Central differences of the float64 function `value` at every coordinate."""
    found = np.empty(at.shape)
    for index in np.ndindex(at.shape):
        moved = [at.astype(np.float64) for _ in range(2)]
        moved[0][index] += 1e-5
        moved[1][index] -= 1e-5
        found[index] = (value(moved[0]) - value(moved[1])) / 2e-5
    return found


def close(found: Array, expected: Array) -> None:
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * max(1e-3, np.abs(expected).max()))


def test_the_encoder_computes_what_its_docstring_says() -> None:
    part = load_part(encoder(), "encoder")
    x = normal(0, BATCH, 3)
    found = run(part.forward, {"x": x, **part.parameters})
    expected = encode(doubled(part), x)
    assert found["keys"].shape == (BATCH, 3, 2, 4)
    assert found["values"].shape == (BATCH, 3, 2, 2)
    for name in ("keys", "values"):
        close(found[name], expected[name])


def test_the_encoders_gradient_is_that_of_the_reference() -> None:
    part = load_part(encoder(), "encoder")
    x, dkeys, dvalues = normal(0, BATCH, 3), normal(1, BATCH, 3, 2, 4), normal(2, BATCH, 3, 2, 2)
    found = run(
        encoder_gradient(part, BATCH), {"x": x, "dkeys": dkeys, "dvalues": dvalues, **part.parameters}
    )
    p = doubled(part)

    def objective(name: str, value: Array) -> float:
        out = encode({**p, name: value}, x)
        return float((out["keys"] * dkeys).sum() + (out["values"] * dvalues).sum())

    for name in p:
        close(found[f"grad/{name}"], slopes(lambda value, name=name: objective(name, value), p[name]))


def test_the_head_reports_loss_hits_and_probabilities() -> None:
    part = load_part(head(), "head")
    fused, y = normal(3, 30, 2, 2, 2), np.random.default_rng(0).integers(3, size=30)
    found = run(part.forward, {"fused": fused, "y": y, **part.parameters})
    expected = classify(doubled(part), fused, y)
    assert 0 < expected["correct"] < 30
    assert list(found) == ["loss", "correct", "probabilities"]
    for name in found:
        assert found[name].dtype == np.float32
        close(found[name], expected[name])


def test_the_heads_gradient_is_that_of_the_reference() -> None:
    part = load_part(head(), "head")
    fused, y = normal(3, BATCH, 2, 2, 2), np.array([0, 2, 1, 2])
    found = run(head_gradient(part, BATCH), {"fused": fused, "y": y, **part.parameters})
    p = doubled(part)
    close(found["loss"], classify(p, fused, y)["loss"])
    close(found["dfused"], slopes(lambda value: classify(p, value, y)["loss"], fused))
    for name in p:
        expected = slopes(lambda value, name=name: classify({**p, name: value}, fused, y)["loss"], p[name])
        close(found[f"grad/{name}"], expected)


def test_a_label_out_of_range_is_an_error_not_a_loss() -> None:
    part = load_part(head(), "head")
    fused = normal(3, BATCH, 2, 2, 2)
    with pytest.raises(Exception, match="Out of range value in index"):
        run(part.forward, {"fused": fused, "y": np.array([0, 3, 1, 2]), **part.parameters})


def test_both_builders_pass_the_gradient_check() -> None:
    assert check_gradient(load_part(encoder(), "encoder")) < 1e-2
    assert check_gradient(load_part(head(), "head")) < 1e-2


@pytest.mark.parametrize("build", [encoder, head])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_values(build: Any) -> None:
    assert hashlib.sha256(build(1)).digest() == hashlib.sha256(build(1)).digest()
    one, two = (onnx.load_model_from_string(build(seed)).graph.initializer for seed in (1, 2))
    assert all(a.raw_data != b.raw_data for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("build", [encoder, head])
def test_no_two_parameters_or_coordinates_start_equal(build: Any) -> None:
    """Tools merge initializers of equal value; equal coordinates would be a sign of a constant fill."""
    model = onnx.load_model_from_string(build())
    assert model.ir_version == 10
    assert model.opset_import[0].version <= 26
    arrays = [onnx.numpy_helper.to_array(tensor).ravel() for tensor in model.graph.initializer]
    for a, b in itertools.combinations(arrays, 2):
        assert not np.array_equal(a[: min(len(a), len(b))], b[: min(len(a), len(b))])
    assert all(len(np.unique(array)) == len(array) for array in arrays)


def test_input_label_and_parameter_names_are_the_callers() -> None:
    data = tabular_encoder(
        3, key_heads=1, key_dim=2, value_dim=2, width=4, seed=0, input_name="vitals", prefix="clinic."
    )
    part = load_part(data, "encoder")
    assert list(part.inputs) == ["vitals"]
    assert all(name.startswith("clinic.") for name in part.parameters)
    data = classifier_head(queries=1, query_heads=1, value_dim=2, classes=2, seed=0, label_name="ill")
    assert list(load_part(data, "head").labels) == ["ill"]


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(InvalidGraph, match="features=0"):
        tabular_encoder(0, key_heads=1, key_dim=2, value_dim=2)
    with pytest.raises(InvalidGraph, match="classes=-1"):
        classifier_head(queries=1, query_heads=1, value_dim=2, classes=-1)


GROUPS = {"means": slice(0, 10), "errors": slice(10, 20), "worst": slice(20, 30)}


def accuracy_after_training(
    groups: list[str], steps: int = 150, batch: int = 64, rate: float = 2e-3
) -> float:
    """Train on the breast-cancer data with Adam, knowing only these groups of columns; test accuracy."""
    datasets = pytest.importorskip("sklearn.datasets")
    selection = pytest.importorskip("sklearn.model_selection")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    train, test = selection.train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=1)
    x = ((x - x[train].mean(axis=0)) / x[train].std(axis=0)).astype(np.float32)
    encoders = {
        group: tabular_encoder(10, key_heads=2, key_dim=8, value_dim=8, seed=list(GROUPS).index(group))
        for group in groups
    }
    queries = 0.1 * normal(4, 2, 4, 8)
    top = classifier_head(queries=2, query_heads=4, value_dim=8, classes=2, seed=3)
    machine = OneMachine(one_machine_model(encoders, top, queries, 8**-0.5), batch)

    def feeds(rows: Array) -> dict[str, Array]:
        return {"y": y[rows].astype(np.int64)} | {f"{group}/x": x[rows, GROUPS[group]] for group in groups}

    params = dict(machine.parameters)
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    rng = np.random.default_rng(0)
    order = rng.permutation(train)
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = rng.permutation(train)
        rows, order = order[:batch], order[batch:]
        for name, gradient in machine.gradients(params, feeds(rows))[1].items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            mean, spread = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            params[name] = params[name] - np.float32(rate) * mean / (np.sqrt(spread) + np.float32(1e-8))
    return float(machine.evaluate(params, feeds(test))["correct"]) / len(test)


def test_the_fused_model_beats_every_group_of_columns_alone() -> None:
    fused = accuracy_after_training(list(GROUPS))
    alone = {group: accuracy_after_training([group]) for group in GROUPS}
    assert fused >= 0.96
    assert all(fused > accuracy for accuracy in alone.values()), alone
