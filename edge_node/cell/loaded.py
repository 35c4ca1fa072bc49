"""A graph that is loaded in a cell, and its runs that are like earlier ones: all is bound already."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime

from edge_attention.core.tensors import Array
from edge_node.cell.messages import Placed, keep
from edge_node.sessions import Values

__all__ = ["Loaded", "RunInWindows", "lying_in"]


@dataclass(eq=False)
class RunInWindows:
    """A run whose inputs and outputs all lie in the windows, for those that are like it.

    `answer`: the head that says where its outputs are.
    """

    feeds: dict[str, Array]
    outputs: list[str]
    placed: list[Placed]
    answer: bytes
    _binding: Any = None
    _starts: list[int] = field(default_factory=list)

    def run(self, session: Any, window: Array, options: Any) -> bool:
        """Whether the outputs are in the window now; the first run binds. Raises what ONNX Runtime does."""
        if self._binding is None:
            binding, value = session.io_binding(), onnxruntime.OrtValue.ortvalue_from_numpy
            for name, array in self.feeds.items():
                binding.bind_ortvalue_input(name, value(array))
            for name, placed in zip(self.outputs, self.placed, strict=True):
                binding.bind_ortvalue_output(name, value(lying_in(window, placed)))
            self._starts = [window.ctypes.data + placed.offset for placed in self.placed]
            self._binding = binding
        session.run_with_iobinding(self._binding, options)
        return [one.data_ptr() for one in self._binding.get_outputs()] == self._starts


class Loaded:
    """A graph's session, and what is bound of it, by the lane and the head it was asked for with."""

    def __init__(self, session: Any, values: Values) -> None:
        self.session = session
        self._values = values  # it reads them where they lie
        self._bound: dict[tuple[int, bytes], RunInWindows] = {}
        self._unbound = False

    def bound(self, lane: int, head: bytes) -> RunInWindows | None:
        """What was kept of an earlier run on this lane, with this head."""
        return None if self._unbound else self._bound.get((lane, head))

    def keep(self, lane: int, head: bytes, bound: RunInWindows) -> None:
        if not self._unbound:
            keep(self._bound, (lane, head), bound)

    def unbind(self) -> None:
        """Its outputs were not what they had been, or not where: from now on each run is one of its own."""
        self._unbound = True
        self._bound.clear()


def lying_in(window: Array, placed: Placed) -> Array:
    return np.ndarray(placed.shape, placed.dtype, window, placed.offset)
