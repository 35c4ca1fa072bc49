"""What the cells of a node have been through, for its metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Counts"]


@dataclass
class Counts:
    """What happened to cells so far.

    `died`: by the signal that ended one, or `exit`; those that were ended for a reason count, those that were
    idle do not. `seconds`: that tasks waited for cells; `graph_seconds`: for how long ONNX Runtime ran
    meanwhile, as the cells say.
    """

    started: int = 0
    died: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    graph_seconds: float = 0.0
    running: int = 0
    refused: int = 0
