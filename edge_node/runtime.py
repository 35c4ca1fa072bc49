"""ONNX Runtime: graphs from bytes, checked inputs, arrays in and out without copies."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnxruntime as ort

from edge_attention.core import errors
from edge_attention.core.errors import EdgeAttentionError, InvalidGraph, InvalidProgram
from edge_attention.core.tensors import Array
from edge_attention.graphs.attention import library
from edge_attention.providers import open_session, working_provider
from edge_node import shared_memory
from edge_node.cell.cells import Cells
from edge_node.cell.refused_graphs import RefusedGraphs
from edge_node.sessions import (
    Values,
    declared,
    give,
    input_types,
    limit_arena,
    require_feeds,
    require_some,
    session_options,
    translate,
    values_of,
)
from edge_node.steps import Steps

if TYPE_CHECKING:
    from edge_attention.graphs.reading import CheckedGraph
    from edge_node.cell.calls import GraphFile

log = logging.getLogger(__name__)

GRAPHS = 1024
"""Graphs that are kept ready, those with constants of their own left out: these are their programs'."""
FITTING = 64
"""Runs of a graph, by names, types and shapes, that are remembered to fit."""
_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout", "Sampling")
"""In names of operators that draw from a generator, which goes on from one run of a session to the next."""


class Stop:
    """Ends a task from another thread, between its instructions and within a graph.

    `writing`: held, with a `check` within, while something is stored that outlives the task, and is not long
    in being stored: it is stored before `set` returns, or never. Whoever has the task ended, and then has
    another one store something there, finds what that one has stored.
    """

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        self.timer: asyncio.TimerHandle | None = None
        self.writing = threading.Lock()
        self._error: EdgeAttentionError | None = None
        self._watchers: list[Callable[[], None]] = []

    def set(self, error: EdgeAttentionError) -> None:
        """The task ends with `error`, at the next check; the first one counts."""
        with self.writing:
            self._error = self._error or error
        self.options.terminate = True
        for callback in list(self._watchers):
            callback()

    def watch(self, callback: Callable[[], None]) -> None:
        """Call it, from another thread, when the task is to end; now, if it is already. It may come twice."""
        self._watchers.append(callback)
        if self._error is not None:
            callback()

    def unwatch(self, callback: Callable[[], None]) -> None:
        self._watchers.remove(callback)

    @property
    def error(self) -> EdgeAttentionError | None:
        """What the task ends with, once it has been stopped."""
        return self._error

    def check(self) -> None:
        if self._error is not None:
            raise self._error


class Graph:
    """A graph ready to run in this process; `size` is that of its file in bytes.

    `remembers`: how often its random operators ran tells in what they draw next, in a later run.
    `ours`: it is of this project's library. `any_rank`: inputs that may have any number of dimensions.
    """

    def __init__(
        self,
        digest: str,
        session: Any,
        data: bytes,
        remembers: bool = False,
        ours: bool = False,
        values: Values | None = None,
        any_rank: frozenset[str] = frozenset(),
    ) -> None:
        self.digest = digest
        self._any_rank = any_rank
        self._values = values  # the session reads them where they lie
        self.size = len(data)
        self.remembers = remembers
        self._session = session
        # the session has it, too
        self.ours = ours
        self.data = data
        self._inputs = input_types(session, f"graph {digest[:12]}")
        self._outputs = [node.name for node in session.get_outputs()]
        self._fitting = set[Hashable]()
        """Names, types and shapes of runs that were found to fit, and are not looked at again."""

    def check(self, feeds: Mapping[str, Array], outputs: Sequence[str], unsaid: Container[str] = ()) -> None:
        """Raises InvalidProgram if an input or output does not fit. Shapes of inputs `unsaid` may be any."""
        if _form(feeds, outputs) in self._fitting:
            return
        if self._any_rank:  # ONNX Runtime says [] of them, as of a scalar
            unsaid = self._any_rank.union(name for name in feeds if name in unsaid)
        require_feeds(self.digest, self._inputs, self._outputs, feeds, outputs, unsaid)

    def check_some(self, feeds: Mapping[str, Array]) -> None:
        """Raises InvalidProgram if these inputs, of which there may be more, do not fit."""
        require_some(self.digest, self._inputs, feeds)

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stop, private: bool = False
    ) -> list[Array]:
        """The outputs named, computed from `feeds` (contiguous arrays are bound as they are).

        Raises InvalidProgram (an input or output does not fit, or the graph refuses it), OutOfMemory. What is
        said may quote an element: on private data it stays here.
        """
        where = f"graph {self.digest[:12]}"
        form = _form(feeds, outputs)
        if form not in self._fitting:
            self.check(feeds, outputs)
            if len(self._fitting) >= FITTING:
                self._fitting.clear()
            self._fitting.add(form)
        try:
            # On the CPU neither direction copies: feeds are borrowed, results own ONNX Runtime's memory.
            results = self._session.run(list(outputs), dict(feeds), stop.options)
        except Exception as error:
            stop.check()
            raised = translate(error, where, InvalidProgram)
            if isinstance(raised, errors.OutOfMemory) and not private:
                # The figures say what others' graphs have taken, on private data too.
                log.warning("%s", raised.message)
                raised = errors.OutOfMemory(f"{where}: this node has no memory for it; its log says more")
            raise raised from None
        for result in results:
            if not isinstance(result, np.ndarray):
                raise InvalidProgram(f"{where}: an output is no tensor: it cannot be kept")
        return list(results)


def _form(feeds: Mapping[str, Array], outputs: Sequence[str]) -> Hashable:
    """Names, types and shapes of a run."""
    return tuple([(name, array.dtype, array.shape) for name, array in feeds.items()]), tuple(outputs)


class ForeignGraph:
    """A graph of somebody else: it is loaded where it first runs, in one of the cells."""

    ours = False
    remembers = False
    """What it draws in the cell for private data it does not go on to draw in the other."""

    def __init__(self, file: GraphFile, cells: Cells, graph: CheckedGraph) -> None:
        self.digest = file.digest
        self.sent = file.sent
        self.size = file.size
        self._file = file
        self._cells = cells
        self._inputs = declared(graph)
        self._all = graph.inputs
        self._outputs = frozenset(graph.outputs)

    def check(self, feeds: Mapping[str, Array], outputs: Sequence[str], unsaid: Container[str] = ()) -> None:
        """As Graph.check, by what its file says. Not all that does not fit is found before it is loaded."""
        if len(feeds) > len(self._inputs) and feeds.keys() <= set(self._all):
            feeds = {name: feeds[name] for name in self._inputs if name in feeds}
        require_feeds(self.digest, self._inputs, self._outputs, feeds, outputs, unsaid)

    def check_some(self, feeds: Mapping[str, Array]) -> None:
        """As Graph.check_some, by what its file says."""
        require_some(self.digest, self._inputs, {n: feeds[n] for n in feeds if n in self._inputs})

    @property
    def data(self) -> bytes:
        """Its file, as it was written out again."""
        return self._file.read()

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stop, private: bool = False
    ) -> list[Array]:
        """As Graph.run; `private`: something fed in is.

        Raises also InvalidGraph (it cannot be loaded), GraphDied (it ends the process), Unavailable.
        """
        return self._cells.run(self._file, feeds, outputs, stop, private)

    def steps(self, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stop) -> Steps[list[Array]]:
        """As `run` over nothing private, in steps."""
        return self._cells.steps(self._file, feeds, outputs, stop)


AnyGraph = TypeVar("AnyGraph", Graph, ForeignGraph)


class Runtime:
    """Graphs by digest, at most GRAPHS of them and `limit` bytes; those least recently used go first.

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
        self.threads = threads
        self.limit = limit
        self.asked = provider
        self.provider = working_provider(provider)
        possible = graphs is not None and hasattr(os, "memfd_create") and hasattr(os, "eventfd")
        self.cells = Cells(self.provider, threads, limit, graphs) if graphs and possible else None
        self._graphs: OrderedDict[str, Graph | ForeignGraph] = OrderedDict()
        self._lock = threading.Lock()
        self._shared_arena = False
        self.coming: dict[str, asyncio.Event] = {}
        """Digest of a graph that a task has come -> set when it is here, or does not come."""

    def limit_arena(self) -> None:
        """Bound what all graphs together allocate by `limit`. Once a process, which has one allocator."""
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
        """The graph with this digest, if it is loaded or this project's library has it, which loads it."""
        graph = self.cached(digest)
        name = next((name for name in library.names() if library.digest(name) == digest), None)
        if graph is not None or name is None:
            return graph
        return self._keep(self._open(digest, library.load(name), ours=True))

    def load(self, digest: str, data: bytes) -> Graph | ForeignGraph:
        """Make the graph in `data`, an ONNX file of somebody else, ready to run.

        Raises DataLoss (it has another digest) or InvalidGraph (it cannot be used, or is not allowed).
        """
        where = f"graph {digest[:12]}"
        if sha256(data).hexdigest() != digest:
            raise errors.DataLoss(f"{where} came damaged: its bytes have another digest; send it again")
        if any(library.digest(name) == digest for name in library.names()):
            return self._keep(self._open(digest, data, ours=True))
        from edge_attention.graphs.reading import read_graph  # 2 MB that a node without such graphs spares

        graph = read_graph(data, where)
        if self.cells is None:
            remembers = any(word in operator for _, operator in graph.operators for word in _RANDOM)
            return self._keep(self._open(digest, graph.data, remembers, any_rank=_any_rank(graph)))
        from edge_node.cell.calls import GraphFile

        return self._keep(
            ForeignGraph(GraphFile(digest, graph.data, any_rank=_any_rank(graph)), self.cells, graph)
        )

    def frozen(
        self, graph: Graph | ForeignGraph, digest: str, constants: Mapping[str, Array]
    ) -> Graph | ForeignGraph:
        """`graph` with inputs that are constants from now on. It is called `digest`, and not kept here.

        Raises InvalidGraph (it has no such inputs, or cannot be used so), InvalidProgram (they do not fit).
        """
        from edge_attention.graphs.reading.constants import with_constants

        graph.check_some(constants)
        # As they lie ONNX Runtime reads only contiguous ones.
        large = {n: np.ascontiguousarray(a) for n, a in constants.items() if a.nbytes >= shared_memory.LEAST}
        foreign = isinstance(graph, ForeignGraph) and self.cells is not None
        if foreign:
            from edge_node.cell.calls import GraphFile, within_reach

            large = within_reach(large)
        where = f"graph {graph.digest[:12]}"
        checked = with_constants(graph.data, constants, where, large.keys())
        if foreign:
            assert self.cells is not None
            assert isinstance(graph, ForeignGraph)
            file = GraphFile(digest, checked.data, large, _any_rank(checked), sent=graph.sent)
            return ForeignGraph(file, self.cells, checked)
        return self._open(digest, checked.data, graph.remembers, graph.ours, large, _any_rank(checked))

    def _open(
        self,
        digest: str,
        data: bytes,
        remembers: bool = False,
        ours: bool = False,
        constants: Mapping[str, Array] | None = None,
        any_rank: frozenset[str] = frozenset(),
    ) -> Graph:
        where, values = f"graph {digest[:12]}", values_of(constants or {})

        def options() -> Any:
            return give(session_options(self.threads, self._shared_arena), values)

        try:
            session = open_session(data, options, self.provider, where)
        except Exception as error:
            raise translate(error, where, InvalidGraph) from None
        return Graph(digest, session, data, remembers, ours, values, any_rank)

    def _keep(self, graph: AnyGraph) -> AnyGraph:
        with self._lock:
            self._graphs[graph.digest] = graph
            size = sum(held.size for held in self._graphs.values())
            while len(self._graphs) > 1 and (len(self._graphs) > GRAPHS or size > self.limit):
                size -= self._graphs.popitem(last=False)[1].size
        return graph


def _any_rank(graph: CheckedGraph) -> frozenset[str]:
    """Inputs of which the graph does not say how many dimensions they have."""
    return frozenset(graph.inputs).difference(graph.types)
