"""What came of one request to a cut model, and each of its segments as it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_attention.core.errors import NotFinite
from edge_attention.core.tensors import Array

__all__ = ["MakesNaN", "ModelAnswer", "SegmentRun"]


class MakesNaN(NotFinite):
    """The model makes NaN of what it was asked. `where`: which node, part and step, and what of it."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"the model makes NaN of these inputs: {where}; look for NaN in them, and for a row whose mask "
            "hides all of it"
        )
        self.where = where


@dataclass(frozen=True)
class SegmentRun:
    """One segment of a request, as it ran.

    Attributes:
        run: seconds in graphs, as the node says.
        seconds: from when it was asked to its last word.
        sent, received: bytes of tensors.
        alone: whether its node had nothing else to do for this aggregator meanwhile.
    """

    step: int
    part: int
    node: str
    run: float
    seconds: float
    sent: int
    received: int
    alone: bool = True


@dataclass(frozen=True, eq=False)
class ModelAnswer:
    """What came of one request.

    Attributes:
        results: by the model's outputs. Elements that nobody contributed are NaN.
        exact: whether it is the whole model's answer.
        coverage: how much of the model's work it stands on, 1.0 of an exact one; `lacking` says what is not.
        seconds: `part 0` and so on: in graphs, as nodes say; `turn`: until it began; `wait`: for nodes;
            `fold`: in folding; `all`.
        sent, received: node -> bytes of tensors.
        moves: how often a part went on on another node.
        segments: all that ran, in the order in which they ended, step by step.
        rows: of the batch that it ran in with others; 0: it ran alone.
    """

    results: Mapping[str, Array]
    exact: bool
    coverage: float
    lacking: str
    seconds: Mapping[str, float]
    sent: Mapping[str, int]
    received: Mapping[str, int]
    moves: int = 0
    segments: tuple[SegmentRun, ...] = ()
    rows: int = 0
