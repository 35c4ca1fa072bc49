"""Gradients of pieces add up to those of the whole; samples are drawn by seed; what is none is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.training.federated.plan import DataInput
from aggregator.training.split.samples import OwnSamples, SampleTurns, check_samples
from aggregator.training.split.versions import GradientSum
from edge_attention.core.errors import InvalidTensor, NotFinite
from edge_attention.graphs.backward.summed import COUNT, adding_graph

NAMES = ("w", "b")


def piece(rng):
    return {
        "w": rng.standard_normal((3, 2)).astype(np.float32),
        "b": rng.standard_normal(2).astype(np.float32),
    }


def test_one_piece_is_what_it_is_to_the_bit():
    rng = np.random.default_rng(0)
    gradients, total = piece(rng), GradientSum(NAMES)
    total.add(0.7, gradients, 3.0)
    loss, found, norm = total.mean()
    assert loss == pytest.approx(0.7)
    assert all(one.tobytes() == gradients[name].tobytes() for one, name in zip(found, NAMES, strict=True))
    flat = np.concatenate([gradients[name].ravel() for name in NAMES]).astype(np.float64)
    assert norm == pytest.approx(np.linalg.norm(flat))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 7.0]), min_size=2, max_size=5), st.integers(0, 100))
def test_pieces_count_by_what_their_labels_count(counts, seed):
    rng = np.random.default_rng(seed)
    pieces, total = [piece(rng) for _ in counts], GradientSum(NAMES)
    for number, (gradients, count) in enumerate(zip(pieces, counts, strict=True)):
        total.add(float(number), gradients, count)
    loss, found, _ = total.mean()
    whole = sum(counts) or 1.0
    assert loss == pytest.approx(sum(n * c for n, c in enumerate(counts)) / whole)
    for name, array in zip(NAMES, found, strict=True):
        wanted = sum(c * g[name].astype(np.float64) for g, c in zip(pieces, counts, strict=True)) / whole
        np.testing.assert_allclose(array, wanted, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([1.0, 0.5, 3.0, 7.0]), min_size=2, max_size=5), st.integers(0, 100))
def test_graphs_that_add_on_nodes_make_the_bits_that_adding_here_makes(counts, seed):
    rng = np.random.default_rng(seed)
    shapes = [(3, 2), (2,)]
    first, following = (
        ort.InferenceSession(adding_graph(shapes, begins).SerializeToString()) for begins in (True, False)
    )
    here, sums = GradientSum(NAMES), []
    for count in counts:
        gradients = piece(rng)
        here.add(1.0, gradients, count)
        feeds = {f"g/{i}": gradients[name] for i, name in enumerate(NAMES)}
        feeds |= {f"s/{i}": array for i, array in enumerate(sums)} | {COUNT: np.array(count, np.float32)}
        sums = (following if sums else first).run(["t/0", "t/1"], feeds)
    there = GradientSum(NAMES)
    there.take(sum(counts), dict(zip(NAMES, sums, strict=True)), sum(counts))
    (loss, wanted, norm), (other, found, same) = here.mean(clip=0.5), there.mean(clip=0.5)
    assert (loss, norm) == (other, same)
    for one, two in zip(wanted, found, strict=True):
        assert one.tobytes() == two.tobytes()


def test_a_norm_past_clip_is_clip():
    total = GradientSum(("w",))
    total.add(1.0, {"w": np.array([3.0, 4.0], np.float32)}, 1.0)
    _, (found,), norm = total.mean(clip=1.0)
    assert norm == pytest.approx(5.0)
    np.testing.assert_allclose(found, [0.6, 0.8], rtol=1e-6)


def test_a_gradient_that_is_no_number_is_named():
    with pytest.raises(InvalidTensor, match="gradient of w"):
        GradientSum(("w",)).add(1.0, {"w": np.array([np.nan], np.float32)}, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 4), st.floats(0, 0.9), st.integers(0, 5))
def test_no_sample_that_is_held_out_is_trained_on_and_a_step_is_the_same_again(count, size, holdout, seed):
    turns = SampleTurns(count, 2 * size, size, holdout, seed)
    held = set(turns.held_out().tolist())
    assert len(held) == turns.held
    assert turns.held % size == 0
    assert turns.held < count
    seen = [turns.of_step(number).tolist() for number in range(1, 8)]
    assert all(len(rows) == 2 * size for rows in seen)
    assert not held & {row for rows in seen for row in rows}
    assert seen == [
        SampleTurns(count, 2 * size, size, holdout, seed).of_step(n).tolist() for n in range(1, 8)
    ]


INPUTS = (DataInput("x", "float32", (3,)), DataInput("y", "int64", ()))
LABEL = SimpleNamespace(labels="y", weights="", classes=4, binary=False, ignore=-100)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({}, None, ""),
        ({"x": None}, InvalidTensor, "lacks 'x'"),
        ({"x": np.ones((5, 2), np.float32)}, InvalidTensor, r"'x' is float32 \[2\] a row"),
        ({"x": np.ones((5, 3), np.float64)}, InvalidTensor, "float64"),
        ({"x": np.full((5, 3), np.inf, np.float32)}, NotFinite, "'x' holds NaN or Inf"),
        ({"y": np.arange(5)}, InvalidTensor, "'y' are 0 to 4, and the model has the classes 0 to 3"),
        ({"y": np.array([0, -100, 3, -100, 1])}, None, ""),
        ({"z": np.ones(5, np.float32)}, InvalidTensor, "'z', which is no input"),
        ({"y": np.arange(4)}, InvalidTensor, "several numbers of rows"),
    ],
)
def test_samples_are_what_the_model_takes_or_are_refused_by_name(tmp_path, changed, error, said):
    arrays = {"x": np.arange(15, dtype=np.float32).reshape(5, 3), "y": np.array([0, 1, 2, 3, 0])} | changed
    arrays = {name: array for name, array in arrays.items() if array is not None}
    file = tmp_path / "data.safetensors"
    safetensors.numpy.save_file(arrays, file)
    if error is not None:
        with pytest.raises(error, match=said):
            check_samples(file, INPUTS, LABEL)
        return
    assert check_samples(file, INPUTS, LABEL) == 5
    own = OwnSamples(file, INPUTS)
    found = own.feeds(np.array([4, 0, 4]))
    assert own.count == 5
    np.testing.assert_array_equal(found["x"], arrays["x"][[4, 0, 4]])
    np.testing.assert_array_equal(found["y"], arrays["y"][[4, 0, 4]])
