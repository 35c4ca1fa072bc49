"""Evaluation, attention and penalty graphs, and the trained file, against float64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import FLOAT, Array, attending, close, linear, model, node, normal, run, softmax

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.gradients.gradients import graph_inputs, graph_outputs
from edge_attention.graphs.models.model import Model, load_model
from edge_attention.graphs.models.model_graphs import attention_graph, evaluation_graph, penalty_graph
from edge_attention.graphs.models.trained import trained_onnx

LOSS = LossSpec("cross_entropy", "logits")
FLOAT32 = np.dtype(np.float32)
TOKENS = np.array([[0, 3, 3, 1, 6], [2, 2, 5, 0, 1], [6, 5, 4, 3, 2]])


def point(loaded: Model) -> dict[str, np.ndarray]:
    return {f"x/{i}": value for i, value in enumerate(loaded.parameters.values())}


def weights(loaded: Model, tokens: np.ndarray) -> tuple[Array, Array]:
    table, query = (loaded.parameters[name].astype(np.float64) for name in ("table", "query"))
    embedded = table[tokens]
    return embedded, softmax((embedded @ query)[..., 0])


def logits(loaded: Model, tokens: np.ndarray) -> Array:
    embedded, p = weights(loaded, tokens)
    head, bias = (loaded.parameters[name].astype(np.float64) for name in ("head", "bias"))
    return np.einsum("bt,btd->bd", p, embedded) @ head + bias


def test_evaluation_adds_up_batches_of_any_size_to_the_sums_over_all_rows() -> None:
    loaded = load_model(attending(), loss=LOSS, others=("weights",))
    graph = evaluation_graph(loaded)
    assert graph_inputs(graph)["tokens"][1] == (None, 5)
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(7, size=(11, 5)), rng.integers(3, size=11)
    sums = {"sum/loss": np.zeros((), np.float32), "sum/correct": np.zeros((), np.float32)}
    for rows in (slice(0, 4), slice(4, 10), slice(10, 11)):
        found = run(graph, {"tokens": tokens[rows], "labels": labels[rows], **point(loaded), **sums})
        sums = {name.replace("next", "sum"): value for name, value in found.items()}
    z = logits(loaded, tokens)
    close(sums["sum/loss"], -np.log(softmax(z)[np.arange(11), labels]).sum())
    assert float(sums["sum/correct"]) == (z.argmax(axis=1) == labels).sum()
    assert graph_outputs(graph) == {"next/loss": (FLOAT32, ()), "next/correct": (FLOAT32, ())}


def test_over_tokens_the_metrics_count_tokens() -> None:
    nodes = [node("MatMul", ["x", "w"], ["logits"])]
    values = {"w": normal(1, 4, 3)}
    file = model(nodes, {"x": (FLOAT, ["n", 2, 4])}, {"logits": (FLOAT, ["n", 2, 3])}, values)
    loaded = load_model(file, loss=LOSS)
    zero = np.zeros((), np.float32)
    x, labels = normal(0, 5, 2, 4), np.zeros((5, 2), np.int64)
    sums = {"sum/loss": zero, "sum/correct": zero, "sum/tokens": zero}
    found = run(evaluation_graph(loaded), {"x": x, "labels": labels, **point(loaded), **sums})
    z = x.astype(np.float64) @ values["w"]
    close(found["next/loss"], -np.log(softmax(z)[..., 0]).mean() * 5)
    assert float(found["next/tokens"]) == 10
    assert float(found["next/correct"]) == (z.argmax(axis=-1) == 0).sum()


def test_attention_is_the_output_the_job_names() -> None:
    loaded = load_model(attending(), loss=LOSS, others=("weights",))
    graph = attention_graph(loaded, "weights")
    assert set(graph_inputs(graph)) == {"tokens", "x/0", "x/1"}
    close(run(graph, {"tokens": TOKENS, **point(loaded)})["attention"], weights(loaded, TOKENS)[1])


def test_an_output_called_attention_is_taken_as_it_is() -> None:
    nodes = [node("MatMul", ["x", "w"], ["logits"]), node("Softmax", ["logits"], ["attention"])]
    outputs = {"logits": (FLOAT, ["n", 3]), "attention": (FLOAT, ["n", 3])}
    loaded = load_model(
        model(nodes, {"x": (FLOAT, ["n", 4])}, outputs, {"w": normal(1, 4, 3)}),
        loss=LOSS,
        others=("attention",),
    )
    x = normal(0, 2, 4)
    expected = softmax(x.astype(np.float64) @ loaded.parameters["w"])
    close(run(attention_graph(loaded, "attention"), {"x": x, **point(loaded)})["attention"], expected)
    rows = {"probe/x": x, "alpha": np.zeros((2, 3), np.float32)}
    found = run(penalty_graph(loaded, "attention", 2), {**rows, **point(loaded)})
    close(found["penalty"], (expected**2).sum())
    other = run(attention_graph(loaded, "logits"), {"x": x, **point(loaded)})["attention"]
    close(other, x.astype(np.float64) @ loaded.parameters["w"])


def test_the_penalty_and_its_gradients_are_those_derived_by_hand() -> None:
    loaded = load_model(attending(), loss=LOSS, others=("weights",))
    graph = penalty_graph(loaded, "weights", 3)
    parameters = {f"x/{i}": (FLOAT32, loaded.parameters[n].shape) for i, n in enumerate(["table", "query"])}
    data = {"probe/tokens": (np.dtype(np.int64), (3, 5)), "alpha": (FLOAT32, (3, 5))}
    assert graph_inputs(graph) == {**data, **parameters}
    alpha = softmax(normal(8, 3, 5).astype(np.float64)).astype(np.float32)
    found = run(graph, {"probe/tokens": TOKENS, "alpha": alpha, **point(loaded)})
    embedded, p = weights(loaded, TOKENS)
    slope = 2 * (p - alpha)
    scores = p * (slope - (p * slope).sum(axis=1, keepdims=True))
    close(found["penalty"], ((p - alpha) ** 2).sum())
    close(found["grad/1"], np.einsum("bt,btd->d", scores, embedded)[:, None])
    back = np.zeros((7, 4))
    np.add.at(back, TOKENS, scores[..., None] * loaded.parameters["query"][:, 0].astype(np.float64))
    close(found["grad/0"], back)
    close(found["grad/2"], np.zeros((4, 3)))
    close(found["grad/3"], np.zeros(3))


def test_an_attention_output_that_is_not_there_is_refused() -> None:
    loaded = load_model(attending(), loss=LOSS, others=("weights",))
    for name in ("mask", "loss", "metric/correct"):
        with pytest.raises(InvalidGraph, match=r"no float32 output .*\['logits', 'weights'\]: export"):
            attention_graph(loaded, name)


def test_the_trained_file_serves_the_trained_values() -> None:
    file = attending()
    values = {name: normal(20 + i, *value.shape) for i, (name, value) in enumerate(fresh(file).items())}
    served = run(trained_onnx(file, values), {"tokens": TOKENS})
    assert list(served) == ["logits", "weights"]
    loaded = load_model(file, loss=LOSS, others=("weights",))
    expected = run(
        loaded.forward, {**served_inputs(), **dict(zip(point(loaded), values.values(), strict=True))}
    )
    close(served["logits"], expected["logits"].astype(np.float64))
    close(served["weights"], expected["weights"].astype(np.float64))


def test_parameters_that_were_merged_are_served_apart() -> None:
    nodes = [
        node("LayerNormalization", ["x", "scale"], ["a"], name="one"),
        node("LayerNormalization", ["a", "scale"], ["y"], name="two"),
    ]
    values = {"scale": np.ones(4, np.float32)}
    file = model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}, values)
    trained = {"scale": normal(1, 4), "scale@two": normal(2, 4)}
    loaded = load_model(file, loss=LossSpec("mse"))
    x = normal(0, 3, 4)
    feeds = {"x": x, "labels": x, "x/0": trained["scale"], "x/1": trained["scale@two"]}
    close(run(trained_onnx(file, trained), {"x": x})["y"], run(loaded.forward, feeds)["y"].astype(np.float64))
    tied = run(trained_onnx(file, {"scale": trained["scale"]}), {"x": x})["y"]
    close(tied, run(loaded.forward, {**feeds, "x/1": trained["scale"]})["y"].astype(np.float64))


def test_a_parameter_that_is_one_number_stays_one_number() -> None:
    """`nn.Parameter(torch.tensor(2.0))`, as of a learned temperature: its shape is [], not [1]."""
    file = model(
        [node("MatMul", ["x", "w"], ["found"]), node("Mul", ["found", "scale"], ["logits"])],
        {"x": (1, ["n", 4])},
        {"logits": (1, ["n", 3])},
        {"w": normal(1, 4, 3), "scale": np.array(2, np.float32)},
    )
    loaded = load_model(file, loss=LOSS, parameters=["w", "scale"])
    assert loaded.parameters["scale"].shape == ()
    made = onnx.load_model_from_string(trained_onnx(file, {"scale": np.array(3, np.float32)}))
    (scale,) = (tensor for tensor in made.graph.initializer if tensor.name == "scale")
    assert list(scale.dims) == []
    assert onnx.numpy_helper.to_array(scale) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"v": normal(1, 3)}, "parameter 'v' is no float32 initializer"),
        ({"b": normal(1, 4)}, r"value of 'b' is float32 \[4\]; it must be float32 \[3\]"),
        ({"b": normal(1, 3).astype(np.float64)}, "value of 'b' is float64"),
        ({"b": np.full(3, np.nan, np.float32)}, "value of 'b' has NaN or Inf"),
    ],
)
def test_values_that_are_not_the_files_are_refused(values: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InvalidGraph, match=message):
        trained_onnx(linear(), values)


def fresh(file: bytes) -> dict[str, np.ndarray]:
    return dict(load_model(file, loss=LOSS).parameters)


def served_inputs() -> dict[str, np.ndarray]:
    return {"tokens": TOKENS, "labels": np.zeros(3, np.int64)}


def test_a_file_in_float16_is_written_in_float16_and_says_what_does_not_fit() -> None:
    half = onnx.TensorProto.FLOAT16
    file = model(
        [node("MatMul", ["x", "w"], ["logits"])],
        {"x": (half, ["n", 4])},
        {"logits": (half, ["n", 3])},
        {"w": normal(1, 4, 3).astype(np.float16)},
    )
    made = onnx.load_model_from_string(trained_onnx(file, {"w": normal(2, 4, 3)}))
    assert made.graph.initializer[0].data_type == half
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(made.graph.initializer[0]), normal(2, 4, 3).astype(np.float16)
    )
    with pytest.raises(InvalidGraph, match="'w' is larger than the file's type holds; take the parameters"):
        trained_onnx(file, {"w": np.full((4, 3), 1e6, np.float32)})


def test_outputs_that_nothing_here_may_have_are_left_out_of_the_trained_file() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["logits"]),
        node("Mystery", ["logits"], ["more"], domain="somebody.else"),
    ]
    outputs = {"logits": (FLOAT, ["n", 3]), "more": (FLOAT, ["n", 3])}
    file = model(nodes, {"x": (FLOAT, ["n", 4])}, outputs, {"w": normal(1, 4, 3)})
    proto = onnx.load_model_from_string(file)
    proto.opset_import.append(onnx.helper.make_opsetid("somebody.else", 1))
    x, w = normal(3, 2, 4), normal(2, 4, 3)
    served = run(trained_onnx(proto.SerializeToString(), {"w": w}, output="logits"), {"x": x})
    close(served["logits"], x.astype(np.float64) @ w)
    with pytest.raises(InvalidGraph, match=r"somebody\.else"):
        trained_onnx(proto.SerializeToString(), {"w": w})
