"""What a task on private data tells of its end: a class of error, the instruction, a digest, time in steps.

A graph can make shapes, texts and time depend on a private value. The rest is in the node's own log.
"""

from __future__ import annotations

import math
import traceback

from edge_attention.core import errors
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.printable import shown

__all__ = ["FAILED_STEP_SECONDS", "MOMENTS", "PLAIN", "STEP_SECONDS", "moment", "private_error", "words"]

STEP_SECONDS = 0.002
"""An unreleased task on private data is over at a multiple of this. Short: somebody waits for it."""
FAILED_STEP_SECONDS = 0.25
"""The same of one that failed."""
MOMENTS = 16
"""From so many steps on, steps double with every doubling of the time: so an hour has some 300 moments."""
_WORDS = 4_000
"""Characters of an error in the node's own log."""

_CLASSES: tuple[type[EdgeAttentionError], ...] = (
    errors.OutOfMemory,
    errors.DeadlineExceeded,
    errors.Cancelled,
    errors.Unavailable,
    errors.GraphDied,
    errors.InvalidProgram,
)
PLAIN = (errors.PrivateTensor, errors.PrivateLimit, errors.NotFound, errors.Overtaken)
"""What these say depends on the program and on names alone."""


def moment(seconds: float, step: float) -> float:
    """The first moment not before `seconds` at which a task may be over: a multiple of `step`, or of more."""
    octaves = math.log2(max(seconds / (MOMENTS * step), 1.0))
    unit = step * 2.0 ** math.floor(octaves)
    return math.ceil(seconds / unit) * unit


def private_error(error: Exception, place: str, graph: str, look: str) -> EdgeAttentionError:
    """What is told of `error`, met on private data at `place` of a program, whose last graph was `graph`.

    `look` says where in the log it is, by what has nothing to do with the data.
    """
    if isinstance(error, PLAIN):
        return type(error)(error.message)
    cls: type[EdgeAttentionError] = errors.Internal
    if isinstance(error, EdgeAttentionError):
        known = next((cls for cls in _CLASSES if isinstance(error, cls)), None)
        cls = known or (
            errors.InvalidProgram if isinstance(error, errors.InvalidArgument) else errors.Internal
        )
    elif isinstance(error, MemoryError):
        cls = errors.OutOfMemory
    after = f", graph {graph}" if graph else ""
    return cls(f"{place}{after}: failed on private data; why is in the node's own log alone ({look})")


def words(error: Exception) -> str:
    """All of `error` for the node's own log: without control characters, and bounded."""
    if isinstance(error, EdgeAttentionError):
        return shown(f"{type(error).__name__}: {error.message[:_WORDS]}")[:_WORDS]
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(shown(line) for line in lines)[-_WORDS:]
