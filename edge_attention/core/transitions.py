"""The last changes of state of a state machine, for the log: when, by what, from which state to which.

A machine notes one with an append to a deque, so that it costs nothing worth naming on the way of a request:

    self.transitions = recent()
    self.transitions.append((now, ("shard s", "asked of", "edge-1"), ShardState.WAITING, ShardState.ASKED))
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum

from edge_attention.core.printable import shown

KEPT = 32
"""Transitions a machine keeps; then the oldest are forgotten."""

WORDS = 200
"""Characters of what is shown of one transition."""

Transition = tuple[float, tuple[str, ...], Enum, Enum]
"""Seconds of the machine's clock, words that say what happened, the state before and the state after."""


def recent() -> deque[Transition]:
    """An empty list of transitions that holds the last KEPT of them."""
    return deque(maxlen=KEPT)


def told(transitions: Iterable[Transition]) -> str:
    """The transitions in one line for the log, the oldest first, its time as 0.

    Example: `told([(7.0, ("s",), State.OPEN, State.SHUT)])` is `0.000 s: s: open -> shut`.
    """
    found = list(transitions)
    return "; ".join(
        shown(f"{seconds - found[0][0]:.3f} s: {' '.join(words)}: {before.value} -> {after.value}", WORDS)
        for seconds, words, before, after in found
    )
