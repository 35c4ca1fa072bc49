"""A new head on a file: what it computes, against NumPy, and that nothing else trains."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import FLOAT, INT64, close, model, node, normal, run

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec, NewHead
from edge_attention.graphs.models.model import gradient_graph, load_model
from edge_attention.graphs.models.model_checks import check_model
from edge_attention.graphs.models.trained import trained_onnx

LOSS = LossSpec("cross_entropy")
IDS = np.random.default_rng(0).integers(9, size=(6, 5))
MASK = (np.arange(5) < np.array([[5], [1], [3], [2], [4], [5]])).astype(np.int64)
TABLE, W = normal(1, 9, 4), normal(2, 4, 4)


def encoder(opset: int = 18) -> bytes:
    """tokens [B, S] to features [B, S, 4], and an output called logits that is another's."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("MatMul", ["e", "w"], ["h"]),
        node("Tanh", ["h"], ["features"]),
        node("MatMul", ["features", "old"], ["logits"]),
    ]
    inputs = {"ids": (INT64, ["b", "s"]), "attention_mask": (INT64, ["b", "s"])}
    outputs = {"features": (FLOAT, ["b", "s", 4]), "logits": (FLOAT, ["b", "s", 2])}
    return model(nodes, inputs, outputs, {"table": TABLE, "w": W, "old": normal(3, 4, 2)}, opset)


def pooled(how: str, mask: np.ndarray) -> np.ndarray:
    f = np.tanh(TABLE[IDS].astype(np.float64) @ W)
    counts = mask[..., None].astype(np.float64)
    if how == "mean":
        return np.asarray((f * counts).sum(1) / counts.sum(1))
    if how == "max":
        return np.asarray(np.where(counts > 0, f, -np.inf).max(1))
    if how == "first":
        return np.asarray(f[:, 0])
    return np.asarray(f[np.arange(6), mask.sum(1) - 1])


@pytest.mark.parametrize("opset", [9, 13, 17, 18, 21])
@pytest.mark.parametrize("how", ["mean", "max", "first", "last"])
def test_tokens_that_count_are_pooled_and_the_head_alone_trains(how: str, opset: int) -> None:
    head = NewHead("features", outputs=3, pool=how)
    loaded = load_model(encoder(opset), loss=LOSS, head=head, dimensions={"s": 5}, seed=7)
    check_model(loaded)
    assert loaded.names == ("head.weight", "head.bias")
    assert loaded.frozen.keys() == {"table", "w"}
    weight, bias = loaded.parameters.values()
    feeds = {"ids": IDS, "attention_mask": MASK, "labels": np.zeros(6, np.int64), "x/0": weight, "x/1": bias}
    wanted = pooled(how, MASK) @ weight + bias
    close(run(loaded.forward, feeds)["logits"], wanted)
    written = trained_onnx(encoder(opset), loaded.parameters, head=head, dimensions={"s": 5})
    served = run(written, {"ids": IDS, "attention_mask": MASK})
    assert list(served) == ["logits"]
    close(served["logits"], wanted)


def test_a_value_that_is_not_there_is_said_before_sizes_are_asked_for_with_values_that_are() -> None:
    for of, near in (("featurs", "e', 'h|features"), ("hh", "'h'")):
        with pytest.raises(InvalidGraph, match=f"no value '{of}' in the file; .*({near})"):
            load_model(encoder(), loss=LOSS, head=NewHead(of, 3), dimensions={"s": 5})
        with pytest.raises(InvalidGraph, match=f"no value '{of}' in the file"):
            load_model(encoder(), loss=LOSS, head=NewHead(of, 3))


def test_a_head_on_probabilities_is_told_what_they_are_made_of() -> None:
    file = model(
        [node("MatMul", ["x", "w"], ["z"]), node("Softmax", ["z"], ["p"], axis=-1, name="last")],
        {"x": (FLOAT, ["b", 4])},
        {"p": (FLOAT, ["b", 7])},
        {"w": normal(1, 4, 7)},
    )
    notes = load_model(file, loss=LOSS, head=NewHead("p", 3)).notes
    assert any("'p', which Softmax 'last' makes" in note and "head.of = 'z'" in note for note in notes)
    assert not any("Softmax" in note for note in load_model(file, loss=LOSS, head=NewHead("z", 3)).notes)


def test_a_head_goes_on_a_value_of_many_axes_that_a_transpose_makes() -> None:
    """It is looked through for a Softmax, with its own axes."""
    file = model(
        [node("Conv", ["x", "w"], ["c"]), node("Transpose", ["c"], ["p"], perm=[0, 2, 3, 1])],
        {"x": (FLOAT, ["b", 3, 4, 5])},
        {"p": (FLOAT, ["b", 4, 5, 6])},
        {"w": normal(1, 6, 3, 1, 1)},
    )
    assert load_model(file, loss=LOSS, head=NewHead("p", 2, pool="flatten")).inputs["x"][1] == (None, 3, 4, 5)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (NewHead("features", 1 << 30), r"would have 4,294,967,296 parameters, more .*MAX_BYTES"),
        (NewHead("features", 3, hidden=1 << 28), r"on the 4 numbers of 'features' would have .*MAX_BYTES"),
        (NewHead("features", 0), "1 output or more"),
        (NewHead("features", 3, hidden=-1), "0 hidden ones or more"),
    ],
)
def test_a_head_that_is_too_large_is_refused_before_it_is_drawn(head: NewHead, said: str) -> None:
    """Whoever writes to the aggregator himself is not held by the checks of a client."""
    with pytest.raises(InvalidGraph, match=said):
        load_model(encoder(), loss=LOSS, head=head, dimensions={"s": 5})


def test_no_gradient_is_computed_through_what_is_frozen() -> None:
    loaded = load_model(encoder(), loss=LOSS, head=NewHead("features", 3), dimensions={"s": 5})
    graph = gradient_graph(loaded, 6).graph
    read = [name for n in graph.node for name in n.input]
    assert read.count("table") == read.count("w") == 1


def test_with_a_mask_of_another_name_or_none() -> None:
    def logits(head: NewHead) -> np.ndarray:
        loaded = load_model(encoder(), loss=LOSS, head=head, dimensions={"s": 5})
        feeds = {"ids": IDS, "attention_mask": MASK, "labels": np.zeros(6, np.int64)}
        feeds |= {f"x/{i}": value for i, value in enumerate(loaded.parameters.values())}
        return np.asarray(run(loaded.forward, feeds)["logits"])

    named = NewHead("features", 3, mask="attention_mask")
    np.testing.assert_array_equal(logits(named), logits(NewHead("features", 3)))
    with pytest.raises(InvalidGraph, match=r"head.mask is 'padding', which is no input \[batch, 5\]"):
        logits(NewHead("features", 3, mask="padding"))


def test_a_hidden_layer_and_some_of_the_files_own() -> None:
    head = NewHead("features", outputs=3, hidden=6)
    loaded = load_model(encoder(), loss=LOSS, head=head, dimensions={"s": 5}, parameters=["w*"])
    check_model(loaded)
    assert set(loaded.names) == {"w", "head.hidden.weight", "head.hidden.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize(("pool", "width"), [("", 3), ("max", 3), ("flatten", 48)])
def test_channels_and_places(pool: str, width: int) -> None:
    nodes = [node("Mul", ["x", "k"], ["y"])]
    inputs, outputs = {"x": (FLOAT, ["b", 3, 4, 4])}, {"y": (FLOAT, ["b", 3, 4, 4])}
    file = model(nodes, inputs, outputs, {"k": normal(1, 3, 4, 4)}, 17)
    loaded = load_model(file, loss=LossSpec("mse"), head=NewHead("", outputs=2, pool=pool))
    check_model(loaded)
    assert loaded.parameters["head.weight"].shape == (width, 2)


def test_the_same_seed_draws_the_same_head_and_another_another() -> None:
    def weight(seed: int) -> np.ndarray:
        head = NewHead("features", 3)
        return load_model(encoder(), loss=LOSS, head=head, dimensions={"s": 5}, seed=seed).parameters[
            "head.weight"
        ]

    np.testing.assert_array_equal(weight(1), weight(1))
    assert (weight(1) != weight(2)).any()


def test_a_file_with_a_head_weight_of_its_own_keeps_it() -> None:
    proto = onnx.load_model_from_string(encoder())
    proto.graph.initializer[1].name = proto.graph.node[1].input[1] = "head.weight"
    loaded = load_model(
        proto.SerializeToString(), loss=LOSS, head=NewHead("features", 3), dimensions={"s": 5}
    )
    assert loaded.names == ("new_head.weight", "head.bias")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            NewHead("nowhere", 3),
            r"no value 'nowhere' .* one of its outputs, \['features'",
        ),
        (NewHead("", 3), "head.of must name what the head is on"),
        (NewHead("features", 3, pool="none"), "several vectors a row, which pool = 'none' does not fit"),
        (NewHead("features", 3, pool="median"), "no way to pool called 'median'"),
    ],
)
def test_a_head_that_fits_nothing_is_refused(head: NewHead, message: str) -> None:
    with pytest.raises(InvalidGraph, match=message):
        load_model(encoder(), loss=LOSS, head=head, dimensions={"s": 5})
