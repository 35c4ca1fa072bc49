"""The federated demo's data: parts that are disjoint, files that nodes read, text that is not leaked."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from edge_attention.demo import text
from edge_attention.demo.digits import CLASSES, MINIMUM, NODES, Digits, dirichlet_split
from edge_attention.demo.federated_figures import FederatedFigures, Text, Trained
from edge_attention.graphs.builders import attention_sequences
from edge_attention.tables.reading import read_table


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits.load()


def test_every_image_is_on_one_node_or_in_the_test_set(digits):
    parts = [*digits.nodes.values(), digits.test]
    assert tuple(digits.nodes) == NODES
    assert np.array_equal(np.sort(np.concatenate([part.id for part in parts])), np.arange(1797))
    assert len(digits.test.label) == round(0.2 * 1797)
    assert set(digits.train.id) == set(range(1797)) - set(digits.test.id)
    assert min(len(part.label) for part in digits.nodes.values()) >= MINIMUM
    for part in parts:
        assert part.image.dtype == np.float32
        assert (part.image.min(), part.image.max()) == (0, 1)


def test_nodes_hold_different_digits(digits):
    everywhere = np.bincount(digits.train.label, minlength=CLASSES) / len(digits.train.label)
    for part in digits.nodes.values():
        shares = np.bincount(part.label, minlength=CLASSES) / len(part.label)
        assert np.abs(shares - everywhere).sum() > 0.3


def test_the_same_seed_gives_the_same_parts(digits):
    again, other = Digits.load(), Digits.load(seed=1)
    assert all(np.array_equal(digits.nodes[node].id, again.nodes[node].id) for node in NODES)
    assert not np.array_equal(digits.test.id, other.test.id)


def test_images_go_to_a_file_that_a_node_reads(digits, tmp_path):
    part = digits.nodes["north"]
    table = read_table(part.write(tmp_path / "north.npz"))
    assert list(table.ids) == [str(i).encode() for i in part.id]
    assert np.array_equal(table.columns["image"].values, part.image)
    assert np.array_equal(table.columns["label"].values, part.label)


@settings(deadline=None, max_examples=50)
@given(
    labels=st.lists(st.integers(0, 4), min_size=40, max_size=120).map(np.array),
    nodes=st.integers(1, 6),
    alpha=st.floats(0.5, 100),
    seed=st.integers(0, 1000),
)
def test_a_dirichlet_split_is_a_partition(labels, nodes, alpha, seed):
    parts = dirichlet_split(labels, nodes, alpha, 1, seed)
    assert len(parts) == nodes
    assert min(map(len, parts)) >= 1
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    again = dirichlet_split(labels, nodes, alpha, 1, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_a_small_alpha_skews_and_a_large_one_does_not():
    labels = np.repeat(np.arange(10), 100)

    def skew(alpha: float) -> float:
        parts = dirichlet_split(labels, 5, alpha, 1, 0)
        return float(np.mean([np.bincount(labels[p], minlength=10).max() / len(p) for p in parts]))

    assert skew(0.1) > 2 * skew(1000)


def test_too_few_rows_for_the_nodes_is_said():
    with pytest.raises(ValueError, match="too few for 3 nodes of at least 4"):
        dirichlet_split(np.zeros(11, np.int64), 3, 0.3, 4, 0)


def test_chapters_share_no_paragraph_and_nodes_no_chapter():
    chapters = text.chapters()
    paragraphs = [line for chapter in chapters.values() for line in chapter.splitlines()]
    assert len(set(paragraphs)) == len(paragraphs)
    texts, held_out = text.split(NODES)
    assert sorted("".join([*texts.values(), held_out])) == sorted("".join(chapters.values()))
    lengths = [len(part) for part in texts.values()]
    assert max(lengths) < 1.2 * min(lengths)
    assert len(held_out) > 5000
    assert not set(held_out.splitlines()) & {line for part in texts.values() for line in part.splitlines()}


def test_characters_and_numbers_and_back():
    assert text.decode(text.encode("for x in “y”:\n")) == 'for x in "y":\n'
    assert text.decode(text.encode("ß")) == "?"
    assert len(set(text.ALPHABET)) == text.VOCABULARY == 96


def test_labels_are_the_characters_that_follow(tmp_path):
    rows = text.Sequences.of("abcdefgh", 3)
    assert [text.decode(row) for row in rows.tokens] == ["abc", "def"]
    assert [text.decode(row) for row in rows.labels] == ["bcd", "efg"]
    table = read_table(rows.write(tmp_path / "text.npz"))
    assert np.array_equal(table.columns["labels"].values, rows.labels)
    with pytest.raises(ValueError, match="3 characters has no row of 3"):
        text.Sequences.of("abc", 3)


def test_the_entropy_of_characters():
    # Counts with one added each: a 3, b 2, and 1 for the 94 others.
    expected = -(3 * math.log(3 / 99) + math.log(2 / 99) + math.log(1 / 99)) / 5
    assert text.entropy({"one": "aa", "two": "b"}, "aaabc") == pytest.approx(expected)


def follower() -> bytes:
    """An ONNX model that follows each character by the next one of the alphabet, nearly always."""
    model = onnx.load_model_from_string(attention_sequences(96, 4, 96, 1, 1, causal=True, hidden=1))
    keep = {
        "embedding": np.eye(96) * 9,
        "norm.gain": np.ones(96),
        "head.weight": np.roll(np.eye(96), 1, 1) * 20,
    }
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = keep.get(tensor.name, np.zeros(tuple(tensor.dims))).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model.SerializeToString()


def test_generating_continues_the_prompt():
    model = follower()
    assert text.generate(model, "a", 8) == "bcdefghi"
    assert text.generate(model, "more than four characters: k", 3) == "lmn"


def test_generating_is_the_same_for_the_same_seed():
    model = attention_sequences(96, 4, 8, 2, 1, causal=True)
    first = text.generate(model, "ab", 12)
    assert first == text.generate(model, "ab", 12)
    assert first != text.generate(model, "ab", 12, seed=1)


def test_a_lower_temperature_draws_the_likeliest():
    model = onnx.load_model_from_string(attention_sequences(96, 4, 8, 2, 1, causal=True))
    drawn = {
        text.generate(model.SerializeToString(), "ab", 6, temperature=1e-3, seed=seed) for seed in range(4)
    }
    assert len(drawn) == 1


def figures(**changes) -> FederatedFigures:
    given = {
        "one_machine": Trained(0.96, 100, 1.0, 0),
        "strategies": {"FedAvg": Trained(0.95, 10, 1.0, 1), "FedBuff": Trained(0.9, 10, 1.0, 1)},
        "synchronous_rounds": 50,
        "synchronous_difference": 1e-5,
        "text": Text(4.8, 1.6, 3.2, 20, 1.0, 1, "The ", "end"),
        "seconds": 1.0,
    }
    return FederatedFigures(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"one_machine": Trained(0.94, 100, 1.0, 0)}, "one machine names at least 95%"),
        (
            {"strategies": {"FedAvg": Trained(0.93, 10, 1.0, 1)}},
            "FedAvg's accuracy 93.00% is within 2 points",
        ),
        (
            {"strategies": {"FedBuff": Trained(0.5, 10, 1.0, 1)}},
            "FedBuff's accuracy 50.00% is within 10 points",
        ),
        ({"synchronous_difference": 2e-4}, "within 0.0001 of one machine's"),
        ({"synchronous_difference": float("nan")}, "within 0.0001 of one machine's"),
        ({"text": Text(4.8, 3.3, 3.2, 20, 1.0, 1, "The ", "end")}, "loss 3.300 is below"),
    ],
)
def test_what_must_hold_and_does_not_is_said(changes, said):
    assert figures().failures() == []
    (failure,) = figures(**changes).failures()
    assert said in failure
