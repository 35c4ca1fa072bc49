"""`edge-attention demo infer`, shortened: a small model of random weights, two sizes of fleet."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from edge_attention.cli.local_fleet import LocalFleet
from edge_attention.core.tensors import Array
from edge_attention.demo.infer import InferDemo
from edge_attention.demo.minilm import HEADS, MiniLM
from edge_attention.demo.sentences import SENTENCES
from edge_attention.demo.wordpiece import BertPieces

pytestmark = pytest.mark.e2e

WIDTH, INNER, LAYERS, PLACES = 8 * HEADS, 200, 6, 64


def small_model() -> MiniLM:
    """Of the sentences' own words; random weights, so what it finds alike means nothing."""
    words = sorted({word for text in SENTENCES for word in text.lower().replace(".", " .").split()})
    pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *words)
    rng = np.random.default_rng(0)

    def matrix(outputs: int, inputs: int) -> Array:
        return (rng.standard_normal((outputs, inputs)) / inputs**0.5).astype(np.float32)

    weights: dict[str, Array] = {
        f"embeddings.{kind}_embeddings.weight": matrix(rows, WIDTH)
        for kind, rows in (("word", len(pieces)), ("position", PLACES), ("token_type", 2))
    }
    weights |= {"embeddings.LayerNorm.weight": np.ones(WIDTH, np.float32)}
    weights |= {"embeddings.LayerNorm.bias": np.zeros(WIDTH, np.float32)}
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        shapes = {f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        shapes |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (INNER, WIDTH)}
        for part, shape in (shapes | {"output.dense": (WIDTH, INNER)}).items():
            weights[f"{name}.{part}.weight"] = matrix(*shape)
            weights[f"{name}.{part}.bias"] = matrix(1, shape[0])[0]
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights[f"{name}.{part}.weight"] = np.ones(WIDTH, np.float32)
            weights[f"{name}.{part}.bias"] = np.zeros(WIDTH, np.float32)
    return MiniLM(weights, BertPieces({piece: number for number, piece in enumerate(pieces)}))


def test_every_plan_is_exact_and_so_is_a_request_in_whose_middle_a_node_is_killed(tmp_path: Path) -> None:
    plans = {1: ("replicate",), 3: ("tokens", "heads", "layers")}
    with LocalFleet(state=tmp_path / "state") as fleet:
        figures = InferDemo(fleet, tmp_path, small_model(), time.perf_counter(), plans, 1).run()
    assert [(one.nodes, one.asked) for one in figures.served] == [
        (count, plan) for count, asked in plans.items() for plan in asked
    ]
    assert figures.same_pairs
    # All pairs are taken for right, as these weights cannot know.
    assert dataclasses.replace(figures, right=len(figures.pairs)).failures() == []
    whole, _, heads, layers = (one.held for one in figures.served)
    assert heads < whole
    assert layers < whole
    assert figures.killed.again > 0
    assert figures.to_json()["served"][1]["error"] <= 1e-5
