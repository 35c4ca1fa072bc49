"""A model's graphs against its arithmetic written out in float64, and the files that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import (
    FLOAT,
    INT64,
    Array,
    attending,
    close,
    linear,
    model,
    node,
    normal,
    run,
    softmax,
)

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.gradients.gradients import graph_inputs, graph_outputs
from edge_attention.graphs.models.model import Model, gradient_graph, load_model
from edge_attention.graphs.onnx_file import serialize

BATCH = 6
FLOAT32, INT = np.dtype(np.float32), np.dtype(np.int64)


def point(loaded: Model) -> dict[str, np.ndarray]:
    return {f"x/{i}": value for i, value in enumerate(loaded.parameters.values())}


def logits(loaded: Model, x: np.ndarray) -> tuple[Array, Array]:
    w, b = (value.astype(np.float64) for value in loaded.parameters.values())
    wide = x.astype(np.float64)
    return wide, wide @ w + b


def test_cross_entropy_is_the_mean_over_the_batch_and_its_gradient_the_one_derived_by_hand() -> None:
    loaded = load_model(linear(), loss=LossSpec("cross_entropy"))
    x, y = normal(0, BATCH, 4), np.array([0, 2, 1, 1, 0, 2])
    found = run(gradient_graph(loaded, BATCH), {"x": x, "labels": y, **point(loaded)})
    wide, z = logits(loaded, x)
    slope = (softmax(z) - np.eye(3)[y]) / BATCH
    assert list(found) == ["loss", "grad/0", "grad/1"]
    close(found["loss"], -np.log(softmax(z)[np.arange(BATCH), y]).mean())
    close(found["grad/0"], wide.T @ slope)
    close(found["grad/1"], slope.sum(axis=0))
    assert loaded.names == ("w", "b")
    assert loaded.metrics == ("correct",)
    assert loaded.inputs == {"x": (FLOAT32, (None, 4)), "labels": (INT, (None,))}
    assert loaded.outputs["logits"] == (FLOAT32, (None, 3))


def test_cross_entropy_over_tokens_is_the_mean_over_batch_and_tokens() -> None:
    nodes = [node("Gather", ["table", "t"], ["e"]), node("MatMul", ["e", "w"], ["logits"])]
    file = model(
        nodes,
        {"t": (INT64, ["n", 3])},
        {"logits": (FLOAT, ["n", 3, 5])},
        {"table": normal(1, 7, 4), "w": normal(2, 4, 5)},
    )
    loaded = load_model(file, loss=LossSpec("cross_entropy", "logits", "next"))
    assert loaded.inputs["next"] == (INT, (None, 3))
    rng = np.random.default_rng(0)
    t, y = rng.integers(7, size=(BATCH, 3)), rng.integers(5, size=(BATCH, 3))
    found = run(gradient_graph(loaded, BATCH), {"t": t, "next": y, **point(loaded)})
    table, w = (value.astype(np.float64) for value in loaded.parameters.values())
    e = table[t]
    slope = (softmax(e @ w) - np.eye(5)[y]) / (BATCH * 3)
    back = np.zeros_like(table)
    np.add.at(back, t, slope @ w.T)
    close(found["loss"], -np.log((softmax(e @ w) * np.eye(5)[y]).sum(-1)).mean())
    close(found["grad/0"], back)
    close(found["grad/1"], np.einsum("btd,btc->dc", e, slope))
    assert loaded.metrics == ("correct", "tokens")


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_binary_cross_entropy_does_not_overflow(scale: float) -> None:
    loaded = load_model(linear(1), loss=LossSpec("binary_cross_entropy"))
    assert loaded.inputs["labels"] == (FLOAT32, (None,))
    x, y = normal(0, BATCH, 4) * np.float32(scale), np.array([0, 1, 1, 0, 1, 0], np.float32)
    found = run(gradient_graph(loaded, BATCH), {"x": x, "labels": y, **point(loaded)})
    wide, z = logits(loaded, x)
    slope = (np.exp(-np.logaddexp(0, -z[:, 0])) - y) / BATCH
    close(found["loss"], (np.logaddexp(0, z[:, 0]) - z[:, 0] * y).mean())
    close(found["grad/0"], wide.T @ slope[:, None])


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", ["mse", "l1"])
def test_regression_losses(name: str, outputs: int) -> None:
    loaded = load_model(linear(outputs), loss=LossSpec(name))
    x, y = normal(0, BATCH, 4), normal(1, *((BATCH,) if outputs == 1 else (BATCH, outputs)))
    found = run(gradient_graph(loaded, BATCH), {"x": x, "labels": y, **point(loaded)})
    wide, z = logits(loaded, x)
    miss = z - y.reshape(z.shape)
    slope = 2 * miss if name == "mse" else np.sign(miss)
    close(found["loss"], (miss**2 if name == "mse" else np.abs(miss)).mean())
    close(found["grad/0"], wide.T @ slope / miss.size)
    assert loaded.metrics == ()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 1000), st.floats(0.1, 300))
def test_cross_entropy_at_any_batch_and_scale(batch: int, classes: int, seed: int, scale: float) -> None:
    loaded = load_model(linear(classes), loss=LossSpec("cross_entropy"))
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((batch, 4)) * scale).astype(np.float32)
    y = rng.integers(classes, size=batch)
    found = run(gradient_graph(loaded, batch), {"x": x, "labels": y, **point(loaded)})
    wide, z = logits(loaded, x)
    shifted = z - z.max(axis=-1, keepdims=True)
    each = np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(batch), y]
    np.testing.assert_allclose(found["loss"], each.mean(), rtol=1e-4, atol=1e-5 * np.abs(z).max())
    slope = (softmax(z) - np.eye(classes)[y]) / batch
    np.testing.assert_allclose(found["grad/0"], wide.T @ slope, rtol=0, atol=2e-4 * scale)


def own_loss() -> bytes:
    nodes = [
        node("MatMul", ["x", "grad/w"], ["loss"]),  # names that the graphs of a job need
        node("Sub", ["loss", "y"], ["miss"]),
        node("Mul", ["miss", "miss"], ["square"]),
        node("ReduceMean", ["square"], ["objective"], keepdims=0),
        node("Greater", ["miss", "zero"], ["over"]),
        node("Cast", ["over"], ["ones"], to=INT64),
        node("ReduceSum", ["ones"], ["too_high"], keepdims=0),
    ]
    return model(
        nodes,
        {"x": (FLOAT, ["n", 4]), "y": (FLOAT, ["n", 2])},
        {"objective": (FLOAT, []), "too_high": (INT64, []), "loss": (FLOAT, ["n", 2])},
        {"grad/w": normal(1, 4, 2), "zero": np.array(0, np.float32)},
    )


def test_a_file_may_compute_its_own_loss_and_metrics_under_any_names() -> None:
    loaded = load_model(own_loss(), loss=LossSpec("output", "objective"), metrics=["too_high"])
    x, y = normal(0, BATCH, 4), normal(1, BATCH, 2)
    found = run(gradient_graph(loaded, BATCH), {"x": x, "y": y, **point(loaded)})
    (w,) = (value.astype(np.float64) for value in loaded.parameters.values())
    miss = x.astype(np.float64) @ w - y
    close(found["loss"], (miss**2).mean())
    close(found["grad/0"], 2 * x.T.astype(np.float64) @ miss / miss.size)
    assert loaded.names == ("grad/w",)
    assert loaded.metrics == ("too_high",)
    assert set(loaded.outputs) == {"loss", "objective", "too_high", "metric/too_high"}
    assert (
        float(run(loaded.forward, {"x": x, "y": y, **point(loaded)})["metric/too_high"]) == (miss > 0).sum()
    )


def test_the_gradient_graph_has_the_names_and_shapes_of_its_contract() -> None:
    loaded = load_model(attending(), loss=LossSpec("cross_entropy", "logits"))
    graph = serialize(gradient_graph(loaded, 2))
    parameters = {f"x/{i}": (FLOAT32, value.shape) for i, value in enumerate(loaded.parameters.values())}
    assert graph_inputs(graph) == {"tokens": (INT, (2, 5)), "labels": (INT, (2,)), **parameters}
    assert graph_outputs(graph) == {
        "loss": (FLOAT32, ()),
        **{f"grad/{i}": (FLOAT32, value.shape) for i, value in enumerate(loaded.parameters.values())},
    }
    assert all(not value.flags.writeable for value in loaded.parameters.values())


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 21])
def test_every_opset_gives_the_same_gradient(opset: int) -> None:
    nodes = [node("Gemm", ["x", "w", "b"], ["h"]), node("Tanh", ["h"], ["a"])]
    if opset < 18:
        nodes.append(node("ReduceMean", ["a"], ["p"], axes=[1], keepdims=0))
    else:
        nodes.append(node("ReduceMean", ["a", "axes"], ["p"], keepdims=0))
    values = {"w": normal(1, 4, 3), "b": normal(2, 3)}
    values |= {} if opset < 18 else {"axes": np.array([1], np.int64)}
    file = model(nodes, {"x": (FLOAT, ["n", 4])}, {"p": (FLOAT, ["n"])}, values, opset)
    loaded = load_model(file, loss=LossSpec("mse"))
    x, y = normal(0, BATCH, 4), normal(3, BATCH)
    found = run(gradient_graph(loaded, BATCH), {"x": x, "labels": y, **point(loaded)})
    wide, z = logits(loaded, x)
    slope = 2 * (np.tanh(z).mean(1) - y)[:, None] / BATCH * (1 - np.tanh(z) ** 2) / 3
    close(found["grad/0"], wide.T @ slope)
    assert gradient_graph(loaded, BATCH).opset_import[0].version == 21


def test_parameters_may_be_named_and_the_others_stay_as_they_are() -> None:
    loaded = load_model(linear(), loss=LossSpec("cross_entropy"), parameters=["b"])
    assert loaded.names == ("b",)
    assert graph_outputs(serialize(gradient_graph(loaded, 2))).keys() == {"loss", "grad/0"}
    with pytest.raises(InvalidGraph, match=r"parameter 'c' is no float32 initializer; there are w, b"):
        load_model(linear(), loss=LossSpec("cross_entropy"), parameters=["c"])


@pytest.mark.parametrize(
    ("file", "loss", "message"),
    [
        (linear(batch=4), LossSpec("cross_entropy"), "dimension 0 of input 'x' must be the batch"),
        (linear(), LossSpec("hinge"), "no loss 'hinge'; there are binary_cross_entropy, cross_entropy"),
        (linear(), LossSpec("mse", "z"), r"no output 'z' among \['logits'\]"),
        (linear(), LossSpec("output", "logits"), r"the loss 'logits' is float32 .* scalar of shape \[\]"),
        (linear(), LossSpec("mse", "logits", "x"), "'x' has the name of a tensor of the file"),
        (linear(), LossSpec("mse", "logits", "x/0"), "input name 'x/0' is reserved"),
        (linear(1), LossSpec("cross_entropy"), "for one number a row use binary_cross_entropy"),
        (attending(), LossSpec("cross_entropy"), r"loss.output must name one of the outputs .*'weights'"),
        (b"no model", LossSpec("mse"), "not an ONNX file"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(file: bytes, loss: LossSpec, message: str) -> None:
    with pytest.raises(InvalidGraph, match=message):
        load_model(file, loss=loss)


def test_a_batch_that_others_have_fixed_is_named_as_the_message_says() -> None:
    file = onnx.load_model_from_string(linear(batch=1))
    with pytest.raises(InvalidGraph, match=r'each input and output .*shape\.dim\[0\].dim_param = "batch"'):
        load_model(file.SerializeToString(), loss=LossSpec("cross_entropy"))
    for value in (*file.graph.input, *file.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    assert load_model(file.SerializeToString(), loss=LossSpec("cross_entropy")).names == ("w", "b")


def test_a_second_dynamic_dimension_takes_the_size_that_the_job_says_or_is_refused_with_what_to_say() -> None:
    nodes = [node("ReduceMean", ["x", "axes"], ["m"], keepdims=0), node("Mul", ["m", "w"], ["logits"])]
    values = {"axes": np.array([1], np.int64), "w": normal(1, 4)}
    inputs = {"x": (FLOAT, ["batch", "length", 4])}
    file = model(nodes, inputs, {"logits": (FLOAT, ["batch", 4])}, values)
    with pytest.raises(InvalidGraph, match=r"of input 'x' \(length\) .* dimensions = \{ length = 64 \}"):
        load_model(file, loss=LossSpec("cross_entropy"))
    loaded = load_model(file, loss=LossSpec("cross_entropy"), dimensions={"length": 7})
    assert loaded.inputs["x"] == (FLOAT32, (None, 7, 4))
    assert loaded.dimensions == {"length": 7}


def test_a_model_that_cannot_be_differentiated_is_refused_with_the_operators_name() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("SplitToSequence", ["h"], ["pieces"], axis=1, name="cut"),
        node("ConcatFromSequence", ["pieces"], ["logits"], axis=1),
    ]
    file = model(nodes, {"x": (FLOAT, ["n", 4])}, {"logits": (FLOAT, ["n", 3])}, {"w": normal(1, 4, 3)})
    loaded = load_model(file, loss=LossSpec("cross_entropy"))
    with pytest.raises(InvalidGraph, match=r"SplitToSequence|ConcatFromSequence"):
        gradient_graph(loaded, 2)


def test_a_loss_that_depends_on_no_parameter_or_no_data_is_refused() -> None:
    nodes = [node("Mul", ["x", "half"], ["logits"]), node("Identity", ["w"], ["out"])]
    values = {"half": np.array(0.5, np.float32), "w": normal(1, 4)}
    outputs = {"logits": (FLOAT, ["n", 4]), "out": (FLOAT, [4])}
    file = model(nodes, {"x": (FLOAT, ["n", 4])}, outputs, values)
    with pytest.raises(InvalidGraph, match="no parameters that the loss depends on"):
        load_model(file, loss=LossSpec("cross_entropy", "logits"))
    with pytest.raises(InvalidGraph, match=r"the loss does not depend on parameters \['w'\]"):
        load_model(file, loss=LossSpec("cross_entropy", "logits"), parameters=["w"])


def test_the_same_file_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(attending())
    program = (
        "import hashlib, pathlib, sys; from edge_attention.core.messages.federated import LossSpec; "
        "from edge_attention.graphs.models.model import gradient_graph, load_model; "
        "from edge_attention.graphs.onnx_file import serialize; "
        "data = pathlib.Path(sys.argv[1]).read_bytes(); "
        "model = load_model(data, loss=LossSpec('cross_entropy', 'logits')); "
        "print(hashlib.sha256(model.forward + serialize(gradient_graph(model, 3))).hexdigest())"
    )
    digests = set()
    for seed in ("0", "7"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1
    onnx.checker.check_model(
        onnx.load_model_from_string(load_model(attending(), loss=LossSpec("mse", "weights")).forward)
    )
