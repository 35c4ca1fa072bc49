"""Which nodes are asked in a round: pure, so that a resumed run asks the same ones."""

from __future__ import annotations

import math
from collections.abc import Collection
from hashlib import sha256

from edge_attention.core.errors import InvalidArgument, Unavailable
from edge_attention.core.messages.federated import SelectionSpec


def share_of(share: float, count: int) -> int:
    """The least whole number of `count` things that is a share of at least `share`; 1 or more.

    0.56 of 25 is 14, although 0.56 * 25 is a little above it.

    Raises:
        InvalidArgument: it is no share, in [0, 1].
    """
    if not 0 <= share <= 1:
        raise InvalidArgument(f"{share} is no share; it is a number from 0 to 1")
    return max(1, math.ceil(share * count - 1e-9))


def select(available: Collection[str], rules: SelectionSpec, seed: int, round_number: int) -> tuple[str, ...]:
    """The nodes of round `round_number`, by name: `rules.fraction` of `available`, `rules.minimum` at least.

    Each node draws a number, a hash of seed, round and name, and those with the lowest are asked: a uniform
    sample without replacement. A node that comes or goes changes no other's number, so the choice changes
    by that node alone.

    Raises:
        InvalidArgument: the fraction is not in (0, 1], or the minimum is below 1.
        Unavailable: fewer nodes are there than the minimum.
    """
    if not 0 < rules.fraction <= 1:
        raise InvalidArgument(f"selection: fraction is {rules.fraction}; it is above 0 and at most 1")
    if rules.minimum < 1:
        raise InvalidArgument(f"selection: minimum is {rules.minimum}; it is 1 or more")
    if len(available) < rules.minimum:
        raise Unavailable(
            f"round {round_number} takes at least {rules.minimum} nodes, there are {len(available)}; "
            "start more nodes, or run the job with a smaller selection.minimum"
        )
    count = max(rules.minimum, share_of(rules.fraction, len(available)))

    def draw(node: str) -> tuple[bytes, str]:
        return sha256(f"{seed}\0{round_number}\0{node}".encode()).digest(), node

    return tuple(sorted(sorted(available, key=draw)[:count]))
