"""Every figure of the demo of a decoder, and which of them must hold."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WrittenFigures:
    """One deployment, over `nodes` nodes.

    Attributes:
        asked: the plan that was asked for.
        plan: the plan that was taken, in words.
        greedy, sampled: whether each token is the one that one machine gives.
        token_seconds: of a token, one a trip; `guessed_seconds`: where the text's own guesses are verified.
        accepted: tokens that came as guesses that were right.
        deployed: seconds until it served.
        held: bytes of weights, of the node with most of them.
    """

    nodes: int
    asked: str
    plan: str
    greedy: bool
    sampled: bool
    token_seconds: float
    guessed_seconds: float
    accepted: int
    deployed: float
    held: int


@dataclass(frozen=True)
class InterruptedFigures:
    """A text in whose middle a node was killed, over `nodes` by `asked`.

    Attributes:
        same: whether each token is the one that one machine gives.
        after: tokens that had come when the node was killed.
        longest: seconds between two tokens at most, in which others took over.
        seconds: of all of it.
    """

    nodes: int
    asked: str
    same: bool
    after: int
    longest: float
    seconds: float


@dataclass(frozen=True)
class GenerateFigures:
    """The nested objects of `--json`.

    Attributes:
        tokens: of each text.
        prompt, text: what the model was given, and what it wrote, drawn.
        alone_seconds: of a token on one machine, one ONNX Runtime on one thread, no network.
        written, interrupted: a deployment each.
    """

    tokens: int
    prompt: str
    text: str
    alone_seconds: float
    written: list[WrittenFigures]
    interrupted: list[InterruptedFigures]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def failures(self) -> list[str]:
        """What must hold and does not, each as a sentence."""
        checks = {}
        for one in self.written:
            where = f"{one.nodes} nodes by {one.asked}"
            checks[f"{where}: the likeliest tokens are those of one machine"] = one.greedy
            checks[f"{where}: the drawn tokens are those of one machine"] = one.sampled
        for other in self.interrupted:
            where = f"{other.nodes} nodes by {other.asked}, one killed after {other.after} tokens"
            checks[f"{where}: the tokens are those of one machine"] = other.same
        return [sentence for sentence, holds in checks.items() if not holds]
