"""A session of a decoder: its tokens, how many of them are stored, where, and how its call stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from aggregator.inference.batching.batch_queue import PRIORITY
from aggregator.inference.decoding.flights import TokenSpan
from edge_attention.core.tensors import Array, Float32

__all__ = ["DecodePhase", "DecoderSession"]


class DecodePhase(Enum):
    """How a session stands."""

    IDLE = "idle"
    WAITS = "waits for a trip"
    FLIES = "is on a trip"


@dataclass(eq=False)
class DecoderSession:
    """A session; only the machine changes it.

    Attributes:
        owner: who may use it.
        priority: 1 goes first.
        stored: of how many of its tokens, from the first, keys and values are stored.
        greedy: it is likely extended by the likeliest token.
        memory: what an encoder made of its input, float32 [tokens, width]; None: there is no encoder.
        remembered: of how many tokens of that, from the first, keys and values are stored.
        place, lives: by part, the node that stores them, and which process of it.
        answered: logits of its new tokens, so far; from token `asked` on they are wanted.
    """

    number: int
    owner: str
    slot: int
    used: float
    priority: int = PRIORITY
    tokens: list[int] = field(default_factory=list)
    stored: int = 0
    memory: Float32 | None = None
    greedy: bool = False
    remembered: int = 0
    place: tuple[str, ...] = ()
    lives: tuple[str, ...] = ()
    spans: list[TokenSpan] = field(default_factory=list)
    phase: DecodePhase = DecodePhase.IDLE
    asked: int = 0
    answered: list[Array] = field(default_factory=list)
    since: float = 0.0
    began: float = 0.0
    deadline: float = math.inf
    tries: int = 0
    alone: bool = False
    closing: bool = False
    nodes: set[str] = field(default_factory=set)
    """All that may store something of it."""
    counted: Mapping[str, int] = field(default_factory=dict)
    """By node the bytes of it that are counted there."""

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def memory_length(self) -> int:
        return 0 if self.memory is None else len(self.memory)

    @property
    def forgets(self) -> int:
        """Tokens of its memory that are not stored."""
        return self.memory_length - self.remembered

    @property
    def rows(self) -> int:
        """Rows that are to go until its call is answered."""
        return self.length - self.stored + self.forgets
