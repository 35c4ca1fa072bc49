"""ONNX Runtime: graphs from bytes, checked inputs, arrays in and out without copies."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort

from edge_attention.core import errors
from edge_attention.core.errors import EdgeAttentionError, InvalidGraph, InvalidProgram
from edge_attention.core.tensors import Array
from edge_attention.graphs import library
from edge_attention.graphs.reading import read_graph
from edge_attention.providers import open_session, working_provider
from edge_node.cell_calls import GraphFile
from edge_node.cell_host import Cells
from edge_node.refused_graphs import RefusedGraphs
from edge_node.sessions import input_types, limit_arena, require_feeds, session_options, translate

log = logging.getLogger(__name__)

_GRAPHS = 64


class Stop:
    """Ends a task from another thread, between its instructions and within a graph."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        self.timer: asyncio.TimerHandle | None = None
        self._error: EdgeAttentionError | None = None
        self._watchers: list[Callable[[], None]] = []

    def set(self, error: EdgeAttentionError) -> None:
        """The task ends with `error`, at the next check; the first one counts."""
        self._error = self._error or error
        self.options.terminate = True
        for callback in list(self._watchers):
            callback()

    def watch(self, callback: Callable[[], None]) -> None:
        """Call it, from another thread, when the task is to end; now, if it is already. Twice is possible."""
        self._watchers.append(callback)
        if self._error is not None:
            callback()

    def unwatch(self, callback: Callable[[], None]) -> None:
        self._watchers.remove(callback)

    def check(self) -> None:
        if self._error is not None:
            raise self._error


class Graph:
    """A graph ready to run in this process; `size` is that of its file in bytes."""

    def __init__(self, digest: str, session: Any, size: int) -> None:
        self.digest, self.size, self._session = digest, size, session
        self._inputs = input_types(session, f"graph {digest[:12]}")
        self._outputs = [node.name for node in session.get_outputs()]

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stop, quiet: bool = False
    ) -> list[Array]:
        """The outputs named, computed from `feeds` (contiguous arrays are bound as they are).

        `quiet`: ONNX Runtime's own words, which may quote an element, stay in this node's log.

        Raises InvalidProgram (an input or output does not fit, or the graph refuses it), OutOfMemory.
        """
        where = f"graph {self.digest[:12]}"
        require_feeds(self.digest, self._inputs, self._outputs, feeds, outputs)
        try:
            # On the CPU neither direction copies: feeds are borrowed, results own ONNX Runtime's memory.
            results = self._session.run(list(outputs), dict(feeds), stop.options)
        except Exception as error:
            stop.check()
            raised = translate(error, where, InvalidProgram)
            raise (_hushed(raised, where) if quiet else raised) from None
        if not all(isinstance(result, np.ndarray) for result in results):
            raise InvalidProgram(f"{where}: an output is no tensor: it cannot be kept")
        return list(results)


class ForeignGraph:
    """A graph of somebody else: it is loaded where it first runs, in one of the cells."""

    def __init__(self, file: GraphFile, cells: Cells) -> None:
        self.digest, self.size = file.digest, file.size
        self._file, self._cells = file, cells

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stop, quiet: bool = False
    ) -> list[Array]:
        """As Graph.run; `quiet` means that something fed in is private, too.

        Raises also InvalidGraph (it cannot be loaded), GraphDied (it ends the process), Unavailable.
        """
        try:
            return self._cells.run(self._file, feeds, outputs, stop, quiet)
        except (InvalidProgram, errors.OutOfMemory) as error:
            raise (_hushed(error, f"graph {self.digest[:12]}") if quiet else error) from None


AnyGraph = TypeVar("AnyGraph", Graph, ForeignGraph)


class Runtime:
    """Graphs by digest, at most `_GRAPHS` of them and `limit` bytes; those least recently used go first.

    `provider` is `auto` or the name of one, as `cpu` or `cuda`; without it the CPU serves. `graphs`: which of
    others' are refused for what they did; None: there are no cells, they all run in this process.
    """

    def __init__(
        self,
        provider: str = "cpu",
        threads: int = 1,
        limit: int = 1 << 30,
        graphs: RefusedGraphs | None = None,
    ) -> None:
        self.threads, self.limit, self.asked = threads, limit, provider
        self.provider = working_provider(provider)
        possible = graphs is not None and hasattr(os, "memfd_create") and hasattr(os, "eventfd")
        self.cells = Cells(self.provider, threads, limit, graphs) if graphs and possible else None
        self._graphs: OrderedDict[str, Graph | ForeignGraph] = OrderedDict()
        self._lock = threading.Lock()
        self._shared_arena = False

    def limit_arena(self) -> None:
        """Bound what all graphs together allocate by `limit`. Once a process: it has one allocator."""
        limit_arena(self.limit)
        self._shared_arena = True

    def close(self) -> None:
        """End the cells; what runs there fails."""
        if self.cells is not None:
            self.cells.close()

    def cached(self, digest: str) -> Graph | ForeignGraph | None:
        """The graph with this digest, if it is loaded."""
        with self._lock:
            graph = self._graphs.get(digest)
            if graph is not None:
                self._graphs.move_to_end(digest)
            return graph

    def find(self, digest: str) -> Graph | ForeignGraph | None:
        """The same, or the graph of this project's library that has the digest."""
        graph = self.cached(digest)
        name = next((name for name in library.names() if library.digest(name) == digest), None)
        if graph is not None or name is None:
            return graph
        return self._keep(self._open(digest, library.load(name)))

    def load(self, digest: str, data: bytes) -> Graph | ForeignGraph:
        """Make the graph in `data`, an ONNX file of somebody else, ready to run.

        Raises DataLoss (it has another digest) or InvalidGraph (it cannot be used, or is not allowed).
        """
        where = f"graph {digest[:12]}"
        if sha256(data).hexdigest() != digest:
            raise errors.DataLoss(f"{where} came damaged: its bytes have another digest; send it again")
        if any(library.digest(name) == digest for name in library.names()):
            return self._keep(self._open(digest, data))
        data = read_graph(data, where).data
        if self.cells is None:
            return self._keep(self._open(digest, data))
        return self._keep(ForeignGraph(GraphFile(digest, data), self.cells))

    def _open(self, digest: str, data: bytes) -> Graph:
        where = f"graph {digest[:12]}"

        def options() -> Any:
            return session_options(self.threads, self._shared_arena)

        try:
            session = open_session(data, options, self.provider, where)
        except Exception as error:
            raise translate(error, where, InvalidGraph) from None
        return Graph(digest, session, len(data))

    def _keep(self, graph: AnyGraph) -> AnyGraph:
        with self._lock:
            self._graphs[graph.digest] = graph
            size = sum(held.size for held in self._graphs.values())
            while len(self._graphs) > 1 and (len(self._graphs) > _GRAPHS or size > self.limit):
                size -= self._graphs.popitem(last=False)[1].size
        return graph


def _hushed(error: EdgeAttentionError, where: str) -> EdgeAttentionError:
    log.warning("%s", error.message)
    return type(error)(f"{where} failed on private data; the node's log says why")
