"""How likely a token was: of the model's own logits, before temperature, penalties, bias and filters."""

from __future__ import annotations

import math

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.generation.sampling import check_finite
from edge_attention.core.messages.inference import TokenValue, ToldToken
from edge_attention.core.tensors import Float32

__all__ = ["MAX_LIKELIEST", "check_likeliest", "told_token"]

MAX_LIKELIEST = 20
"""Other tokens of a place that may be asked for, as OpenAI has it."""
BLOCKS = 512
"""Parts of a vocabulary whose largest are looked for first: of 128,000 the likeliest take 0.1 ms so, 1.9 by a
partition of all."""


def told_token(logits: Float32, token: int, place: int, likeliest: int) -> ToldToken:
    """The token at `place` (from 0) of a sequence, by the logits there.

    Args:
        logits: float32 [vocabulary].
        likeliest: how many of the likeliest are told; all, where the vocabulary has fewer.

    Raises:
        NotFinite: a logit is NaN or +inf, or all are -inf.
    """
    check_finite(logits, place)
    scores = logits.astype(np.float64)
    top = scores.max()
    whole = top + math.log(np.exp(scores - top).sum())
    told = tuple(TokenValue(one, float(scores[one] - whole)) for one in _likeliest(logits, likeliest))
    return ToldToken(token, float(scores[token] - whole), told)


def check_likeliest(likeliest: int | None) -> None:
    """Raises InvalidArgument: more are asked for than may be; None: nothing is told."""
    if likeliest is not None and not 0 <= likeliest <= MAX_LIKELIEST:
        raise InvalidArgument(f"logprobs is {likeliest}; it must be 0 to {MAX_LIKELIEST}")


def _likeliest(logits: Float32, count: int) -> list[int]:
    """Of `logits` [vocabulary] the places of the largest, the largest first, of equal ones the first."""
    count = min(count, len(logits))
    if not count:
        return []
    # As many blocks have one at least as large as the least of their largest: few are left to be sorted.
    width = max(len(logits) // max(BLOCKS, count), 1)
    largest = np.maximum.reduceat(logits, np.arange(0, len(logits), width))
    found = np.flatnonzero(logits >= np.partition(largest, -count)[-count])
    return [int(one) for one in found[np.lexsort((found, -logits[found]))][:count]]
