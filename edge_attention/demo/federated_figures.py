"""Every figure of the federated demo, and which of them must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MARGIN = 0.02  # of FedAvg below one machine
LEARNT = 0.10  # of the other strategies: that they work, not that they win
ONE_MACHINE = 0.95
DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Trained:
    """One line of the table: the share of the test set named right, and what it took.

    `rounds` counts steps on one machine; `bytes` is what crossed the network, both ways.
    """

    accuracy: float
    rounds: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Text:
    """The next-character model: losses in nats a character on the held-out chapters, and what it writes.

    `unigram`: the loss of knowing only how often each character comes.
    """

    before: float
    after: float
    unigram: float
    rounds: int
    seconds: float
    bytes: int
    prompt: str
    generated: str


@dataclass(frozen=True)
class FederatedFigures:
    """The nested objects of `--json`. `synchronous_difference`: the largest of any parameter, after
    `synchronous_rounds` rounds of one local step, from one machine's on the same batches."""

    one_machine: Trained
    strategies: Mapping[str, Trained]
    synchronous_rounds: int
    synchronous_difference: float
    text: Text
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def failures(self) -> list[str]:
        """What must hold and does not, each as a sentence."""
        one = self.one_machine.accuracy
        checks = {
            f"one machine names at least {ONE_MACHINE:.0%} of the test set right ({one:.2%})": one
            >= ONE_MACHINE,
            f"after {self.synchronous_rounds} synchronous rounds the parameters are within {DIFFERENCE:g} of "
            f"one machine's ({self.synchronous_difference:.2g})": self.synchronous_difference <= DIFFERENCE,
            f"the next-character model's loss {self.text.after:.3f} is below that of the frequencies alone, "
            f"{self.text.unigram:.3f}, and below the untrained model's, {self.text.before:.3f}": (
                self.text.after < min(self.text.unigram, self.text.before)
            ),
        }
        for name, trained in self.strategies.items():
            margin = MARGIN if name == "FedAvg" else LEARNT
            points = f"{100 * margin:.0f} points of one machine's {one:.2%}"
            checks[f"{name}'s accuracy {trained.accuracy:.2%} is within {points}"] = (
                trained.accuracy >= one - margin
            )
        return [sentence for sentence, holds in checks.items() if not holds]
