"""What the machine of sessions (scheduling.py) has its shell do."""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.inference.decoding.flights import Flight
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.tensors import Array

__all__ = [
    "Action",
    "CallAnswered",
    "CallRefused",
    "Fly",
    "ForgetLane",
    "ForgetSession",
    "SeekHolder",
    "SupplyHolder",
]


@dataclass(frozen=True)
class Fly:
    """Take this flight, and say `landed` or `lost`."""

    flight: Flight


@dataclass(frozen=True)
class CallAnswered:
    """The session's logits are all there: float32 [new tokens, vocabulary]."""

    session: int
    logits: Array


@dataclass(frozen=True)
class CallRefused:
    """The session's call has ended so. Its tokens are those before the call."""

    session: int
    error: EdgeAttentionError


@dataclass(frozen=True)
class ForgetSession:
    """Nodes are to forget what they store of a session; then its slot is free (`freed`)."""

    slot: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class ForgetLane:
    """Nodes are to forget what a flight in this lane left there. The lane is not used again."""

    lane: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class SeekHolder:
    """No node that is there holds the part: have another one given it."""

    part: int


@dataclass(frozen=True)
class SupplyHolder:
    """The node lacks what it was given for the part: have it given that again."""

    part: int
    node: str


Action = Fly | CallAnswered | CallRefused | ForgetSession | ForgetLane | SeekHolder | SupplyHolder
