"""The cells of a node: none of what they need is loaded before somebody's graph comes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edge_attention.core.tensors import Array
from edge_node.cell.counts import Counts
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.steps import Steps

if TYPE_CHECKING:
    from edge_node.cell.calls import GraphFile, Stoppable
    from edge_node.cell.host import Cell

__all__ = ["LANES", "Cells"]

LANES = 4
"""Graphs a cell runs at a time."""


class Cells:
    """Two of them, each started when it is first needed.

    One for runs that read something private, one for those that do not: a cell that was taken over must not
    put what it saw of the first kind into an answer of the second, which may leave.
    """

    def __init__(self, provider: str, threads: int, limit: int, graphs: RefusedGraphs) -> None:
        self._provider = provider
        self._threads = threads
        self._limit = limit
        self.graphs = graphs
        self._lock = threading.Lock()
        self._made: dict[str, Cell] = {}

    @property
    def private(self) -> Cell:
        return self._cell("private")

    @property
    def public(self) -> Cell:
        return self._cell("public")

    def run(
        self,
        graph: GraphFile,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        stop: Stoppable,
        private: bool,
    ) -> list[Array]:
        """See Cell.run; `private`: something that is fed in is."""
        return (self.private if private else self.public).run(graph, feeds, outputs, stop)

    def steps(
        self, graph: GraphFile, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stoppable
    ) -> Steps[list[Array]]:
        """See Cell.steps; nothing that is fed in is private."""
        return self.public.steps(graph, feeds, outputs, stop)

    def counts(self) -> Counts:
        """What both cells have counted, how many run, and how many graphs are refused now."""
        cells = list(self._made.values())
        return Counts(
            sum(cell.counts.started for cell in cells),
            sum((cell.counts.died for cell in cells), Counter()),
            sum(cell.counts.seconds for cell in cells),
            sum(cell.counts.graph_seconds for cell in cells),
            sum(cell.pid is not None for cell in cells),
            self.graphs.refused,
        )

    def close(self) -> None:
        """End both cells: the node leaves."""
        for cell in list(self._made.values()):
            cell.close()

    def _cell(self, name: str) -> Cell:
        with self._lock:
            if name not in self._made:
                from edge_node.cell.host import Cell
                from edge_node.cell.process import CellSettings

                settings = CellSettings(self._provider, self._threads, self._limit, LANES)
                self._made[name] = Cell(name, settings, self.graphs)
            return self._made[name]
