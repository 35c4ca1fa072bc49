"""Which programs run on the event loop's own thread: those that are over in a moment, as is known of others.

To hand a task to a worker thread and its answer back takes longer than a small graph does. But while a graph
runs on the loop nothing else happens: no heartbeat, no cancellation, no other task. So it is only for
programs that are short, and only while there is no other task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from edge_attention.core.messages.program import Append, Program, Return, Run, Stored
from edge_node.direct import BoundRun

Shape = tuple[int, ...]

__all__ = ["SHORT_SECONDS", "Short", "kind_of"]

SHORT_SECONDS = 0.002
"""A program may hold the loop so long. Heartbeats come every second or so, a step may take 20 ms."""
RUNS = 3
"""So often in a row programs of a kind have to be short before the next one runs on the loop."""
IDLE_PART = 0.25
"""After a task on it the loop is everybody's for this part of the time that took."""
_KINDS = 256
"""Kinds of programs that are remembered; then all are learned anew."""


def kind_of(
    program: Program,
    graphs: Mapping[str, Any],
    layout: Callable[[str], Shape | None],
    whole: Callable[[str], Shape | None] | None = None,
) -> Hashable | None:
    """What programs take as long as this one: of the same graphs over tensors as large, to a power of two.

    None: it must not run on the loop, however short it is: it may have to wait for a disk, or a graph of it
    belongs to somebody else, or something it reads is private, so that its time is to tell nothing.

    Args:
        graphs: those it runs, by digest: `ours` says whether this project's library has it.
        layout: the shape of what is stored under a name, of a sequence that of a tile; None: it is private,
            or nothing is.
        whole: the same, of a sequence that of all of it, for a program that runs in steps.
            The loop need not wait in such a one for graphs of others, and it may read all of what is stored.
    """
    if program.bulk_tensors:
        return None
    kind: list[Any] = []
    kept = ("task/",) if whole is None else ("task/", "job/")
    for name, array in program.tensors.items():
        if not name.startswith("task/"):
            return None
        kind.append(_about(array.shape))
    for instruction in program.instructions:
        if isinstance(instruction, Return):
            if not instruction.stored.startswith(kept):
                return None
            continue
        if isinstance(instruction, Append) and whole is not None:
            kind.append(instruction.sequence)
            continue
        if not isinstance(instruction, Run):
            return None
        if isinstance(instruction, BoundRun):
            if instruction.given:
                return None
            graph = instruction.session
        else:
            graph = graphs[instruction.graph]
        if not graph.ours and whole is None:
            return None
        # Of one with constants of its own that is its own.
        kind.append(graph.digest)
        for value in instruction.inputs.values():
            if not isinstance(value, Stored):
                kind.append(_about(value.shape))
            elif not value.name.startswith("task/"):
                looked = whole if value.tiles is None else layout
                shape = None if looked is None else looked(value.name)
                if shape is None:
                    return None
                kind += (0 if value.tiles is None else len(value.tiles).bit_length(), _about(shape))
        if not all(name.startswith(kept) for name in instruction.outputs.values()):
            return None
    return tuple(kind)


def _about(shape: Shape) -> Shape:
    """Each dimension to a power of two: of as many elements in another shape a graph may make far more."""
    return tuple([size.bit_length() for size in shape])


class Short:
    """What is known of kinds of programs: which of them are short.

    Whoever has run one says what it `took`; times are of one clock, in seconds.
    """

    def __init__(self) -> None:
        self._runs: dict[Hashable, int] = {}
        """Kind -> times in a row that it was short, up to RUNS."""
        self._free = float("-inf")

    def may(self, kind: Hashable | None, now: float) -> bool:
        """Whether a program of this kind may run on the loop now."""
        return kind is not None and self._runs.get(kind, 0) >= RUNS and now >= self._free

    def took(self, kind: Hashable | None, seconds: float, now: float, on_loop: bool) -> None:
        """A program of this kind has run: for `seconds`, to `now`.

        Infinity: for longer than anybody waits; on the loop a worker has gone on with it by then.
        """
        if on_loop:
            self._free = now + IDLE_PART * (SHORT_SECONDS if math.isinf(seconds) else seconds)
        if kind is None:
            return
        if len(self._runs) >= _KINDS and kind not in self._runs:
            self._runs.clear()
        self._runs[kind] = min(self._runs.get(kind, 0) + 1, RUNS) if seconds <= SHORT_SECONDS else 0
