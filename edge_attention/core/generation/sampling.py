"""Which token comes next: greedy, or drawn.

The draw depends on the seed, the token's place in its sequence, the logits there and, with a repetition
penalty, on the tokens before it: on nothing else. So guesses that are verified several at a time, other cuts
of the model and other machines give the same tokens, as far as they give the same logits. Logits that differ
by rounding give another token only where the draw, or two candidates, are that close.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from edge_attention.core.errors import InvalidArgument, NotFinite
from edge_attention.core.generation.draws import exp, uniform
from edge_attention.core.tensors import Array, Float32

__all__ = ["GREEDY", "Sampling", "choose"]

MAX_TEMPERATURE = 100.0
LEAST_PENALTY, MAX_PENALTY = 0.01, 100.0
"""Beyond them logits, times or over the penalty, leave what floats can say."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Filters are applied in the order of the attributes.

    Attributes:
        repetition_penalty: logits of tokens that were there before are divided by it where positive, else
            multiplied (Keskar et al., "CTRL", 2019); 1: none.
        temperature: logits are divided by it; 0: the likeliest token, of several the first.
        top_k: only so many of the likeliest may be drawn; 0: all. Of equal ones, those of the lowest numbers.
        top_p: only the likeliest that together have this share (Holtzman et al., 2020), the first that
            reaches it included; 1: all.
        min_p: only those at least so likely, as a share of the likeliest; 0: all.
        seed: int64.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether it is always the token with the largest logit."""
        return not self.temperature and self.repetition_penalty == 1

    def check(self) -> None:
        """Raises InvalidArgument for a value that none can have; it names it."""
        for name, value, low, high, above in (
            ("repetition_penalty", self.repetition_penalty, LEAST_PENALTY, MAX_PENALTY, False),
            ("temperature", self.temperature, 0.0, MAX_TEMPERATURE, False),
            ("top_p", self.top_p, 0.0, 1.0, True),
            ("min_p", self.min_p, 0.0, 1.0, False),
        ):
            if not (low < value <= high if above else low <= value <= high):  # NaN is neither
                least = f"above {low:g}" if above else f"at least {low:g}"
                raise InvalidArgument(f"{name} is {value:g}; it must be {least} and at most {high:g}")
        if self.top_k < 0:
            raise InvalidArgument(f"top_k is {self.top_k}; it must be 0, for all tokens, or more")
        if not -(2**63) <= self.seed < 2**63:
            raise InvalidArgument(f"seed is {self.seed}; it must fit in 64 bits, with its sign")


GREEDY = Sampling()


def choose(logits: Float32, sampling: Sampling, place: int, before: Collection[int] = ()) -> int:
    """The token at `place` (from 0) of a sequence.

    Args:
        logits: float32 [vocabulary]; -inf for tokens that cannot come.
        before: tokens that the sequence has, for the penalty; they need not be distinct.

    Raises:
        NotFinite: a logit is NaN or +inf, or all are -inf.
    """
    top = logits.max(initial=-np.inf)  # NaN where there is one
    if not -np.inf < top < np.inf:
        raise NotFinite(
            f"the logits at place {place} have {top} as their largest; the model cannot go on from there"
        )
    scores = logits.astype(np.float64)
    if sampling.repetition_penalty != 1 and before:
        known = np.unique(np.fromiter(before, np.int64))
        penalty = sampling.repetition_penalty
        scores[known] = np.where(scores[known] > 0, scores[known] / penalty, scores[known] * penalty)
    if not sampling.temperature:
        return int(scores.argmax())
    weights = _weights(scores, sampling)
    # Sums one after the other: NumPy's pairwise ones would be as exact, but in an order of its own.
    sums = np.cumsum(weights)
    drawn = int(np.searchsorted(sums, uniform(sampling.seed, place) * sums[-1], side="right"))
    return min(drawn, int(np.flatnonzero(weights)[-1]))  # the product may round up to the last sum


def _weights(scores: Array, sampling: Sampling) -> Array:
    """Weights in proportion to the probabilities of those that may be drawn; 0 for the others.

    Which of two is the likelier is asked of the scores: where these differ, weights may still be one float.

    `scores`: float64 [vocabulary], before the temperature.
    """
    with np.errstate(over="ignore"):  # of the least temperatures: -inf, of which exp is 0
        weights = exp((scores - scores.max()) / sampling.temperature)
    if 0 < sampling.top_k < len(scores):
        least = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        kept = scores > least
        kept[np.flatnonzero(scores == least)[: sampling.top_k - int(kept.sum())]] = True
        weights[~kept] = 0.0
    if sampling.top_p < 1:
        order = np.argsort(-scores, kind="stable")
        sums = np.cumsum(weights[order])
        last = int(np.searchsorted(sums, sampling.top_p * sums[-1], side="left"))
        weights[order[last + 1 :]] = 0.0
    if sampling.min_p > 0:
        weights[weights < sampling.min_p] = 0.0  # the likeliest has weight 1
    return weights
