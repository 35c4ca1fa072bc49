"""Every figure of the demo, and which of them must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Accuracy:
    """Shares of the held-out patients diagnosed right; `alone` by lab."""

    fleet: float
    one_machine: float
    alone: Mapping[str, float]


@dataclass(frozen=True)
class Bytes:
    """What crossed the network, and what keys and values (and their gradients) would have taken."""

    sent: int
    if_shipped: int


@dataclass(frozen=True)
class PartialAnswer:
    """The answer without the node that was killed: largest bound, largest error, and whether each held."""

    exact: bool
    coverage: list[list[int]]
    covered: float
    bound: float
    tight: bool
    actual_error: float
    holds: bool
    missing: str


@dataclass(frozen=True)
class Figures:
    """The nested objects of `--json`."""

    accuracy: Accuracy
    parameter_difference: float
    rounds: int
    mass: Mapping[str, float]
    bytes: Bytes
    attention_error: float
    attention_bytes: Bytes
    attention_tokens: int
    attention_mass: Mapping[str, float]
    partial: PartialAnswer
    returned_exact: bool
    returned_error: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def failures(self) -> list[str]:
        """What must hold and does not, each as a sentence."""
        accuracy, partial = self.accuracy, self.partial
        best = max(accuracy.alone.values())
        checks = {
            f"the fleet's accuracy {accuracy.fleet:.4f} is within a point of one machine's "
            f"{accuracy.one_machine:.4f}": abs(accuracy.fleet - accuracy.one_machine) <= 0.01,
            f"the fleet's accuracy {accuracy.fleet:.4f} is above that of every lab alone ({best:.4f})": (
                accuracy.fleet > best
            ),
            f"its parameters are within 1e-4 of one machine's ({self.parameter_difference:.2g})": (
                self.parameter_difference <= 1e-4
            ),
            f"the attention error {self.attention_error:.2g} is at most 1e-5": self.attention_error <= 1e-5,
            "masses sum to 1": abs(sum(self.mass.values()) - 1) < 1e-3,
            "the answer without the killed node is labelled": not partial.exact and partial.covered < 1,
            f"its error {partial.actual_error:.3g} is within the certified bound": partial.holds,
            "the answer is exact again with the node back": self.returned_exact,
            f"and its error {self.returned_error:.2g} at most 1e-5": self.returned_error <= 1e-5,
        }
        return [sentence for sentence, holds in checks.items() if not holds]
