"""Sizes of open dimensions that nobody says: what an exporter calls a sum is the sum of its terms."""

from __future__ import annotations

import pytest

from aggregator.inference.cut_request import CutRequest
from aggregator.inference.model_inputs import feeds_of, with_masks_of_all
from edge_attention.cli.plan_command import sizes_by_name
from edge_attention.core.messages.inference import ModelTensor
from edge_attention.core.tensors import DataType
from edge_attention.graphs.axes.input_forms import size_said

PAST, SUM = "past_sequence_length", "past_sequence_length + sequence_length"
SHAPES = {
    "input_ids": ("batch_size", "sequence_length"),
    "attention_mask": ("batch_size", SUM),
    "past_key_values.0.key": ("batch_size", "6", PAST, "16"),
    "more": ("batch_size", "sequence_length + 1"),
}
"""As optimum writes a decoder."""
INPUTS = tuple(ModelTensor(name, DataType.INT64, shape) for name, shape in SHAPES.items())


def shapes(**dimensions: int) -> list[tuple[int, ...]]:
    request = CutRequest("m.onnx", "into", dimensions=dimensions)
    return [form.shape for form in feeds_of(INPUTS, request, 64).values()]


def test_of_a_deployment() -> None:
    assert shapes() == [(1, 64), (1, 128), (1, 6, 64, 16), (1, 65)]
    said = {PAST: 12, "sequence_length": 3, "batch_size": 2}
    assert shapes(**said) == [(2, 3), (2, 15), (2, 6, 12, 16), (2, 4)]
    assert shapes(**said, **{SUM: 20}) == [(2, 3), (2, 20), (2, 6, 12, 16), (2, 4)]


@pytest.mark.parametrize("name", ["total_sequence_length", f"{PAST} + 1", "?"])
def test_a_mask_is_tried_with_all_tokens_whatever_its_size_is_called(name: str) -> None:
    inputs = (INPUTS[0], ModelTensor("attention_mask", DataType.INT64, ("batch_size", name)), INPUTS[2])
    past = {"past_key_values.0.key": 2}

    def tried(**dimensions: int) -> tuple[int, ...]:
        request = CutRequest("m.onnx", "into", dimensions=dimensions)
        return with_masks_of_all(inputs, feeds_of(inputs, request, 64), past, request)["attention_mask"].shape

    assert tried() == (1, 128)
    assert tried(sequence_length=3, **{PAST: 12}) == (1, 15)
    assert tried(**{"attention_mask.1": 9}) == (1, 9)  # what is said is taken at its word
    request = CutRequest("m.onnx", "into")
    joined = ModelTensor("past", DataType.FLOAT32, ("2", "batch_size", "6", PAST, "16"))  # keys with values
    of_both = (*inputs[:2], joined)
    found = with_masks_of_all(of_both, feeds_of(of_both, request, 64), {"past": 3}, request)
    assert found["attention_mask"].shape == (1, 128)
    feeds = feeds_of(inputs, request, 64)
    assert with_masks_of_all(inputs, feeds, {}, request) == feeds  # of a model without a past


def test_of_a_plan_that_the_command_line_makes() -> None:
    names = {name: ["" if dim.isdigit() else dim for dim in shape] for name, shape in SHAPES.items()}
    found = sizes_by_name(names, 2, 64, {PAST: 12})
    assert found == {
        "batch_size": 2,
        "sequence_length": 64,
        PAST: 12,
        SUM: 76,
        "sequence_length + 1": 65,
    }
    assert sizes_by_name(names, 2, 64, {SUM: 20})[SUM] == 20


def test_digits_without_end_are_a_name() -> None:
    """Python makes no number of more than 4,300 of them."""
    digits = "1" * 5000
    assert size_said(f"a + {digits}", {"a": 3, digits: 64}.__getitem__) == 67


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (("batch_size", "sequence", "32"), (1, 64, 32)),
        (("N", "T", "32"), (1, 64, 32)),
        (("seq_len", "batch", "32"), (64, 1, 32)),  # as PyTorch's own nn.Transformer has them
        (("T", "B", "32"), (64, 1, 32)),
        (("num_tokens", "32"), (64, 32)),  # no batch at all
        (("?", "?", "32"), (1, 64, 32)),
        (("nodes", "nodes"), (64, 64)),
        (("n", "n"), (64, 64)),
        (("batch", "3", "height", "width"), (1, 3, 64, 64)),
        (("batch_sequences", "32"), (1, 32)),
    ],
)
def test_what_comes_first_may_be_tokens(shape: tuple[str, ...], wanted: tuple[int, ...]) -> None:
    inputs = [ModelTensor("x", DataType.FLOAT32, shape)]
    assert feeds_of(inputs, CutRequest("m.onnx", "into"), 64)["x"].shape == wanted
