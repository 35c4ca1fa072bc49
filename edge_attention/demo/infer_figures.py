"""Every figure of the demo of a cut model, and which of them must hold."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

ERROR = 1e-5


@dataclass(frozen=True)
class ServedFigures:
    """One deployment, over `nodes` nodes.

    Attributes:
        asked: the plan that was asked for.
        plan: the plan that was taken, in words.
        error: the largest of the answer, relative to the largest value of the whole file's.
        seconds: of a request, the median; `deployed`: until it served.
        bytes: of a request's activations between aggregator and nodes, both ways.
        held: bytes of weights, of the node with most of them.
    """

    nodes: int
    asked: str
    plan: str
    exact: bool
    error: float
    seconds: float
    deployed: float
    bytes: int
    held: int


@dataclass(frozen=True)
class KilledFigures:
    """A request in whose middle a node was killed. `again`: segments that another node did again."""

    exact: bool
    error: float
    again: int
    seconds: float
    undisturbed: float


@dataclass(frozen=True)
class InferFigures:
    """The nested objects of `--json`.

    Attributes:
        whole_seconds: of the whole file in one ONNX Runtime on one thread, without a network.
        pairs: sentences found alike by the whole file, most alike first, with their cosine.
        right: how many of them mean the same.
        same_pairs: each deployment found the same ones.
        picked: the planner's plan over all nodes and what it predicted, in words; `considered`: those that
            it did not take, with what it says of them.
    """

    whole_seconds: float
    pairs: list[tuple[str, str, float]]
    right: int
    same_pairs: bool
    served: list[ServedFigures]
    picked: str
    considered: list[str]
    killed: KilledFigures
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def failures(self) -> list[str]:
        """What must hold and does not, each as a sentence."""
        killed = self.killed
        checks = {
            f"all {len(self.pairs)} pairs found alike mean the same ({self.right})": self.right
            == len(self.pairs),
            "each deployment finds the same pairs": self.same_pairs,
            f"the answer is exact though a node was killed, within {ERROR:g} ({killed.error:.2g})": (
                killed.exact and killed.error <= ERROR
            ),
            f"another node did the killed one's work again ({killed.again} segments)": killed.again > 0,
        }
        for one in self.served:
            what = f"{one.nodes} nodes by {one.asked}: exact, within {ERROR:g} ({one.error:.2g})"
            checks[what] = one.exact and one.error <= ERROR
        return [sentence for sentence, holds in checks.items() if not holds]
