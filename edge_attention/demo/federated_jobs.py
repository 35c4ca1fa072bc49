"""The federated demo's models and jobs. Everything chosen for them is here."""

from __future__ import annotations

from functools import cache

from edge_attention.core.messages.training import LocalSpec, LossSpec, OptimizerSpec, StrategySpec
from edge_attention.demo import digits, text
from edge_attention.demo.digits import NODES
from edge_attention.graphs.builders import attention_patches, attention_sequences
from edge_attention.jobs.federated_job import FederatedJob, FederatedModel

LOSS = LossSpec("cross_entropy", "logits", "labels")
SEED = 0

# Digits: 16 patches of 2 x 2, 9,610 parameters.
BATCH, EPOCHS, RATE = 32, 2, 0.1
CLIP = 1.0  # a usual update is a quarter of that; steps go wrong now and then, and this bounds the harm
ROUNDS, BUFFERED_ROUNDS = 150, 300  # of FedBuff, each of which takes three updates in place of five
ONE_MACHINE_EPOCHS = 60
SYNCHRONOUS_ROUNDS = 50

# Text: 64 characters at a time, 83,552 parameters.
LENGTH, TEXT_BATCH, TEXT_STEPS, TEXT_ROUNDS, TEXT_RATE = 64, 16, 40, 24, 5e-3


@cache
def digit_model() -> bytes:
    """From images [B, 8, 8] to logits [B, 10], an ONNX file."""
    return attention_patches(digits.SIDE, digits.SIDE, 2, digits.CLASSES, dim=32, heads=4, seed=SEED)


@cache
def text_model() -> bytes:
    """From characters [B, LENGTH] to the logits of each one's follower [B, LENGTH, 96], an ONNX file."""
    return attention_sequences(text.VOCABULARY, LENGTH, 64, 4, 2, causal=True, hidden=128, seed=SEED)


def compared() -> dict[str, FederatedJob]:
    """The strategies of the table, by the name it shows."""
    return {
        "FedAvg": _digits("fedavg", StrategySpec("fedavg"), ROUNDS),
        "FedAdam": _digits("fedadam", StrategySpec("fedadam", {"lr": 0.03}), ROUNDS),
        "FedBuff": _digits("fedbuff", StrategySpec("fedbuff", {"buffer": 3}), BUFFERED_ROUNDS),
    }


def synchronous() -> FederatedJob:
    """One local step a round, every node's gradient in it: what one machine would do with all the batches."""
    return FederatedJob(
        name="digits-synchronous",
        model=FederatedModel(digit_model(), LOSS, {"labels": "label"}),
        dataset=digits.DATASET,
        strategy="gradient_averaging",
        local=LocalSpec(OptimizerSpec("sgd", {"lr": RATE}), batch=BATCH, steps=1),
        rounds=SYNCHRONOUS_ROUNDS,
        nodes=NODES,
        seed=SEED,
        weighting="equal",
    )


def next_character() -> FederatedJob:
    """Federated averaging of the text model, each node on its own chapters."""
    return FederatedJob(
        name="next-character",
        model=FederatedModel(text_model(), LOSS),
        dataset=text.DATASET,
        strategy="fedavg",
        local=LocalSpec(OptimizerSpec("adam", {"lr": TEXT_RATE}), batch=TEXT_BATCH, steps=TEXT_STEPS),
        rounds=TEXT_ROUNDS,
        nodes=NODES,
        seed=SEED,
    )


def _digits(name: str, strategy: StrategySpec, rounds: int) -> FederatedJob:
    return FederatedJob(
        name=f"digits-{name}",
        model=FederatedModel(digit_model(), LOSS, {"labels": "label"}),
        dataset=digits.DATASET,
        strategy=strategy,
        local=LocalSpec(OptimizerSpec("sgd", {"lr": RATE}), batch=BATCH, epochs=EPOCHS, clip=CLIP),
        rounds=rounds,
        nodes=NODES,
        seed=SEED,
    )
