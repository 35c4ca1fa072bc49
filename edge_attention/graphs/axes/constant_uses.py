"""Gives each use of a constant a name of its own: exporters merge constants of equal value.

One zero for the biases of two layers would tie axes that have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_attention.core.schedule.extents import Extent
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.known_values import SMALL, KnownValues

__all__ = ["ConstantUses"]


class ConstantUses:
    """The constants that nodes read, by what they are; as the fields of the same names of a `BoundGraph`."""

    def __init__(self, known: KnownValues, pieces: Mapping[str, tuple[str, Extent]]) -> None:
        self._known = known
        self._pieces = pieces
        self._times: dict[str, int] = {}
        self.weights: dict[str, str] = {}
        self.pieces: dict[str, Extent] = {}
        self.literals: dict[str, Array] = {}
        self.derived: dict[str, Array] = {}
        self.specs: dict[str, TensorForm] = {}

    def named(self, name: str) -> str:
        """The name of this use."""
        times = self._times[name] = self._times.get(name, 0) + 1
        own = name if times == 1 else f"{name}#{times}"
        self.keep(name, own)
        return own

    def keep(self, name: str, own: str) -> None:
        """Have a constant under a name."""
        known = self._known
        value = None if known.is_weight(name) else known.value(name)
        if name in self._pieces:
            self.weights[own], self.pieces[own] = self._pieces[name]
        elif value is None:
            if known.is_file(name):
                self.weights[own] = name
        elif name not in known.sized and value.size <= SMALL:
            self.literals[own] = value
        else:
            self.derived[own] = value
        form = known.form(name)
        if form is not None:
            self.specs[own] = form
