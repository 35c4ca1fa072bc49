"""Sentences that know which of their words say why a node is away, so that it need not be said twice."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

__all__ = ["Away", "Sentence"]


class Away(NamedTuple):
    """Words of a sentence that say why these nodes are away."""

    words: str
    nodes: frozenset[str]


class Sentence(str):
    """A text for a person, of these parts, which it is where nobody asks for less.

    >>> lost = Sentence("node 'b'", Away(" (lost)", frozenset("b")))
    >>> waits = Sentence("run r waits for ", lost, ", until 12:00")
    >>> waits, waits.without(["b"])
    ("run r waits for node 'b' (lost), until 12:00", "run r waits for node 'b', until 12:00")
    """

    parts: tuple[str | Away, ...]

    def __new__(cls, *parts: str | Away) -> Sentence:
        flat: list[str | Away] = []
        for part in parts:
            flat += part.parts if isinstance(part, Sentence) else [part]
        self = super().__new__(cls, "".join(map(_words, flat)))
        self.parts = tuple(flat)
        return self

    @classmethod
    def joined(cls, separator: str, texts: Iterable[str]) -> Sentence:
        """These texts with `separator` between them."""
        parts = [part for text in texts for part in (separator, text)]
        return cls(*parts[1:])

    @property
    def only(self) -> frozenset[str]:
        """The nodes it is about, where all that it says is that they are away."""
        nodes = [part.nodes for part in self.parts if isinstance(part, Away)]
        return frozenset().union(*nodes) if len(nodes) == len(self.parts) else frozenset()

    def without(self, away: Collection[str]) -> str:
        """It without the words that are about none but nodes in `away`."""
        told = frozenset(away)
        return "".join(
            _words(part) for part in self.parts if not (isinstance(part, Away) and part.nodes <= told)
        )


def _words(part: str | Away) -> str:
    return part.words if isinstance(part, Away) else part
