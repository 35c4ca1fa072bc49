"""What a node does to axes: the factors of its operands and results, and what becomes of each factor.

As in Shardy: an axis of a tensor is a product of factors, outer to inner, and a factor that is in an operand
and in a result is one axis of the model carried along. A matrix product has the factors m, k, n:

    operands [m, k] [k, n], results [m, n], k contracted: a part that has a range of k gives a summand.

A rule is about factors, so one piece of code ties axes together over any operator (`axes.py`), and another
one cuts any operator (`partition.py`). A Reshape is a rule that splits and joins factors; one of size 1 is
left out, so that an axis of size 1 has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Does", "Factor", "Rule"]


class Does(Enum):
    """What becomes of a factor. What is local to a part that has a range of it is said with each."""

    CARRY = "carry"
    """It is in results as it is in operands: local."""
    SUM = "sum"
    """Contracted, or reduced by a sum: a part gives a summand, of all the result."""
    MEAN = "mean"
    """As SUM, each summand weighted by the part's share of the factor."""
    MAX = "max"
    MIN = "min"
    SOFTMAX = "softmax"
    """Normalised over: local with the lse of the part, to be merged; else it must be whole."""
    MOMENTS = "moments"
    """Mean and variance over it: it must be whole."""
    RANGE = "range"
    """Quantised by its minimum and maximum, which parts can find together: 8 bytes."""
    WHOLE = "whole"
    """The operator looks at all of it as no part does alone: it must be whole. `Rule.why` says why."""
    PICK = "pick"
    """Rows of it are picked by index: it must be whole."""


@dataclass(frozen=True)
class Factor:
    size: int
    does: Does = Does.CARRY


@dataclass(frozen=True)
class Rule:
    """The rule of one node.

    Attributes:
        factors: of the node.
        operands: by input, in order: by dimension of the tensor the factors it is made of, outer to inner, by
            number. None: the input is left out. An input that says sizes or axes (a Reshape's second) has
            no factors: `()` a dimension.
        results: by output, the same.
        localised: whether the node, or its constants, must be changed for a part: a Reshape has a shape for
            all of it (`localise.py` knows how).
        why: what of the node keeps factors WHOLE, for a person: "LSTM runs over it".
    """

    factors: tuple[Factor, ...]
    operands: tuple[tuple[tuple[int, ...], ...] | None, ...]
    results: tuple[tuple[tuple[int, ...], ...], ...]
    localised: bool = False
    why: str = ""
