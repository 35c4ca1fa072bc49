"""The decoder that this project has trained: a byte is a token, and it writes about the Python language.

Trained on the chapters that every CPython carries (`text.chapters`), over three nodes that each had others,
by `python -m tools.train_decoder`; its parameters lie beside this file, in float16. It writes what looks like
such a chapter, and knows nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from edge_attention.core.messages.training import LocalSpec, LossSpec, OptimizerSpec, StrategySpec
from edge_attention.core.tensors import Array
from edge_attention.demo import text
from edge_attention.demo.text import Sequences
from edge_attention.graphs.builders import attention_decoder, attention_sequences
from edge_attention.jobs.federated_job import FederatedJob, FederatedModel
from edge_attention.jobs.parameters import read_safetensors

PARAMETERS = Path(__file__).with_name("decoder.safetensors")
TRAINERS = ("north", "east", "south")
VOCABULARY = 256
DIM, HEADS, BLOCKS, HIDDEN = 96, 6, 4, 384
SHORT, LONG = 256, 512
"""Bytes of a row: most is learnt from short ones, which cost less, and then that there are longer ones."""
ROUNDS = {SHORT: 30, LONG: 4}
STEPS, BATCH, RATE = 40, 4, 3e-3
SEED = 0


def byte_rows(written: str, length: int) -> Sequences:
    """The text's bytes in rows, each with its labels one byte further."""
    return Sequences.of_tokens(np.frombuffer(written.encode(), np.uint8).astype(np.int64), length)


def dataset(length: int) -> str:
    """What a node calls its rows of that length."""
    return f"{text.DATASET}-{length}"


def texts() -> tuple[dict[str, str], str]:
    """What each node trains on, and what none does."""
    return text.split(TRAINERS)


@cache
def training_model(length: int) -> bytes:
    """From bytes [B, length] to the logits of each one's follower [B, length, 256], an ONNX file; 0.5 million
    parameters, whatever the length."""
    return attention_sequences(
        VOCABULARY, length, DIM, HEADS, BLOCKS, causal=True, rotary=True, hidden=HIDDEN, seed=SEED
    )


def job(length: int, model: bytes) -> FederatedJob:
    """How it was trained, on rows of that length: federated averaging, a third of the chapters a node."""
    return FederatedJob(
        name=f"decoder-{length}",
        model=FederatedModel(model, LossSpec("cross_entropy", "logits", "labels")),
        dataset=dataset(length),
        strategy=StrategySpec("fedavg"),
        local=LocalSpec(OptimizerSpec("adam", {"lr": RATE}), batch=BATCH, steps=STEPS),
        rounds=ROUNDS[length],
        nodes=TRAINERS,
        seed=SEED,
    )


def parameters(file: Path = PARAMETERS) -> dict[str, Array]:
    """The trained ones, float32, by the names that the builders give them."""
    found = read_safetensors(file.read_bytes(), str(file))
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


@cache
def decoder_model() -> bytes:
    """The decoder, an ONNX file."""
    return attention_decoder(parameters(), HEADS)
