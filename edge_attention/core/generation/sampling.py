"""Which token comes next: greedy, or drawn.

The draw depends on the seed, the token's place in its sequence, the logits there and, with penalties, on the
tokens before it: on nothing else. So guesses that are verified several at a time, other cuts
of the model and other machines give the same tokens, as far as they give the same logits. Logits that differ
by rounding give another token only where the draw, or two candidates, are that close.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from edge_attention.core.errors import InvalidArgument, NotFinite
from edge_attention.core.generation.draws import exp, uniform
from edge_attention.core.tensors import Array, Float32

__all__ = ["GREEDY", "MAX_BIAS", "MAX_BIASES", "MAX_COUNTED", "Sampling", "check_finite", "choose"]

MAX_TEMPERATURE = 100.0
LEAST_PENALTY, MAX_PENALTY = 0.01, 100.0
"""Beyond them logits, times or over the penalty, leave what floats can say."""
MAX_COUNTED = 2.0
"""Of the penalties that are subtracted, either way, as OpenAI has it."""
MAX_BIAS = 100.0
MAX_BIASES = 300
"""Tokens that one generation may have a bias for."""
NONE_CAME: Mapping[int, int] = {}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. First `repetition_penalty`, the penalties that count and `logit_bias` change the
    logits; then temperature and filters are applied in the order of the attributes.

    Attributes:
        repetition_penalty: logits of tokens that were there before are divided by it where positive, else
            multiplied (Keskar et al., "CTRL", 2019); 1: none.
        temperature: logits are divided by it; 0: the likeliest token, of several the first.
        top_k: only so many of the likeliest may be drawn; 0: all. Of equal ones, those of the lowest numbers.
        top_p: only the likeliest that together have this share (Holtzman et al., 2020), the first that
            reaches it included; 1: all.
        min_p: only those at least so likely, as a share of the likeliest; 0: all.
        seed: int64.
        frequency_penalty: subtracted from a token's logit as often as it has come; 0: none. What the prompt
            has does not count.
        presence_penalty: subtracted once from the logit of each token that has come; 0: none.
        logit_bias: pairs of a token and what is added to its logit, of each token one.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether it is always the token with the largest logit."""
        return not (self.temperature or self.counts or self.logit_bias) and self.repetition_penalty == 1

    @property
    def counts(self) -> bool:
        """Whether it matters how often a token has come."""
        return bool(self.frequency_penalty or self.presence_penalty)

    def check(self) -> None:
        """Raises InvalidArgument for a value that none can have; it names it."""
        for name, value, low, high, above in (
            ("repetition_penalty", self.repetition_penalty, LEAST_PENALTY, MAX_PENALTY, False),
            ("temperature", self.temperature, 0.0, MAX_TEMPERATURE, False),
            ("top_p", self.top_p, 0.0, 1.0, True),
            ("min_p", self.min_p, 0.0, 1.0, False),
            ("frequency_penalty", self.frequency_penalty, -MAX_COUNTED, MAX_COUNTED, False),
            ("presence_penalty", self.presence_penalty, -MAX_COUNTED, MAX_COUNTED, False),
            *(("a logit_bias", bias, -MAX_BIAS, MAX_BIAS, False) for _, bias in self.logit_bias[:MAX_BIASES]),
        ):
            if not (low < value <= high if above else low <= value <= high):  # NaN is neither
                least = f"above {low:g}" if above else f"at least {low:g}"
                raise InvalidArgument(f"{name} is {value:g}; it must be {least} and at most {high:g}")
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidArgument(
                f"bound logit-biases: logit_bias has {len(self.logit_bias):,} tokens; give it at most "
                f"{MAX_BIASES}"
            )
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise InvalidArgument("logit_bias has a token twice; give each one bias")
        if self.top_k < 0:
            raise InvalidArgument(f"top_k is {self.top_k}; it must be 0, for all tokens, or more")
        if not -(2**63) <= self.seed < 2**63:
            raise InvalidArgument(f"seed is {self.seed}; it must fit in 64 bits, with its sign")

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises InvalidArgument: a bias is for a token that is none of so many."""
        wrong = next((token for token, _ in self.logit_bias if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise InvalidArgument(f"logit_bias has token {wrong}; the model knows 0 to {vocabulary - 1}")


GREEDY = Sampling()


def choose(
    logits: Float32,
    sampling: Sampling,
    place: int,
    before: Collection[int] = (),
    came: Mapping[int, int] = NONE_CAME,
) -> int:
    """The token at `place` (from 0) of a sequence.

    Args:
        logits: float32 [vocabulary]; -inf for tokens that cannot come.
        before: tokens that the sequence has, for `repetition_penalty`; they need not be distinct.
        came: of the tokens that came after the prompt how often each did, for the two that count.

    Raises:
        NotFinite: a logit is NaN or +inf, or all are -inf.
    """
    check_finite(logits, place)
    scores = logits.astype(np.float64)
    if sampling.repetition_penalty != 1 and before:
        known = np.unique(np.fromiter(before, np.int64))
        penalty = sampling.repetition_penalty
        scores[known] = np.where(scores[known] > 0, scores[known] / penalty, scores[known] * penalty)
    if sampling.counts and came:
        known = np.fromiter(came, np.int64, len(came))
        times = np.fromiter(came.values(), np.float64, len(came))
        scores[known] -= sampling.frequency_penalty * times + sampling.presence_penalty
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    if not sampling.temperature:
        return int(scores.argmax())
    weights = _weights(scores, sampling)
    # Sums one after the other: NumPy's pairwise ones would be as exact, but in an order of its own.
    sums = np.cumsum(weights)
    drawn = int(np.searchsorted(sums, uniform(sampling.seed, place) * sums[-1], side="right"))
    return min(drawn, int(np.flatnonzero(weights)[-1]))  # the product may round up to the last sum


def check_finite(logits: Float32, place: int) -> None:
    """Raises NotFinite: of the logits [vocabulary] at `place` one is NaN or +inf, or all are -inf."""
    top = logits.max(initial=-np.inf)  # NaN where there is one
    if not -np.inf < top < np.inf:
        raise NotFinite(
            f"the logits at place {place} have {top} as their largest; the model cannot go on from there"
        )


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
