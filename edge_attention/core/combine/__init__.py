"""Combines: how the updates of a fold become one; some withstand nodes that lie.

    combine = from_config("trimmed_mean", trim=0.2)
    weights = combine.weights(given, norms, distances2)
    folded = combine.fold(updates, weights)          # piece by piece: [n, c] -> [c]

To add one, write a frozen dataclass in a file of its own, name its paper there, and list it below.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from edge_attention.core.combine.base import Combine
from edge_attention.core.combine.clipped_mean import ClippedMean
from edge_attention.core.combine.krum import Krum, MultiKrum
from edge_attention.core.combine.mean import Mean
from edge_attention.core.combine.median import Median
from edge_attention.core.combine.trimmed_mean import TrimmedMean
from edge_attention.core.options import configure, find

__all__ = [
    "ClippedMean",
    "Combine",
    "Krum",
    "Mean",
    "Median",
    "MultiKrum",
    "TrimmedMean",
    "from_config",
    "to_config",
]

_ALL: tuple[type[Combine], ...] = (Mean, Median, TrimmedMean, Krum, MultiKrum, ClippedMean)
_BY_NAME = {combine.name: combine for combine in _ALL}


def from_config(name: str, /, **options: float | bool) -> Combine:
    """The combine `name` with these options, the others at their defaults.

    Raises `InvalidArgument` for a name or an option that does not exist (it lists those that do) and for
    a value out of range.
    """
    return configure(find(_BY_NAME, "combine", name), options)


def to_config(combine: Combine) -> dict[str, Any]:
    """`{"name": ..., "options": {...}}`, all options written out; ready for JSON and for `from_config`."""
    return {"name": combine.name, "options": dataclasses.asdict(combine)}
