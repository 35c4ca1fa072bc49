"""ONNX Runtime: graphs from bytes, checked inputs, arrays in and out without copies."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_attention.core import errors
from edge_attention.core.errors import EdgeAttentionError, InvalidGraph, InvalidProgram
from edge_attention.core.tensors import Array, DataType
from edge_attention.graphs import library
from edge_attention.graphs.reading import read_graph
from edge_attention.providers import open_session, working_provider

log = logging.getLogger(__name__)

_GRAPHS = 64

# ONNX Runtime's names of types, which are NumPy's but for two.
_DTYPES = {f"tensor({t.value})": np.dtype(t.value) for t in DataType}
_DTYPES |= {"tensor(float)": np.dtype("float32"), "tensor(double)": np.dtype("float64")}


class Stop:
    """Ends a task from another thread, between its instructions and within a graph."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        self.timer: asyncio.TimerHandle | None = None
        self._error: EdgeAttentionError | None = None

    def set(self, error: EdgeAttentionError) -> None:
        """The task ends with `error`, at the next check; the first one counts."""
        self._error = self._error or error
        self.options.terminate = True

    def check(self) -> None:
        if self._error is not None:
            raise self._error


class Graph:
    """A graph ready to run; `size` is that of its file in bytes."""

    def __init__(self, digest: str, session: Any, size: int) -> None:
        self.digest, self.size, self._session = digest, size, session
        self._inputs: dict[str, tuple[np.dtype[Any], tuple[Any, ...]]] = {}
        for node in session.get_inputs():
            if node.type not in _DTYPES:
                raise InvalidGraph(f"graph {digest[:12]}: nothing here is {node.type}, as its {node.name!r}")
            self._inputs[node.name] = (_DTYPES[node.type], tuple(node.shape))
        self._outputs = {node.name for node in session.get_outputs()}

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stop, quiet: bool = False
    ) -> list[Array]:
        """The outputs named, computed from `feeds` (contiguous arrays are bound as they are).

        `quiet`: ONNX Runtime's own words, which may quote an element, stay in this node's log.

        Raises InvalidProgram (an input or output does not fit, or the graph refuses it), OutOfMemory.
        """
        where = f"graph {self.digest[:12]}"
        for name, (dtype, shape) in self._inputs.items():
            array = feeds.get(name)
            if array is None:
                raise InvalidProgram(f"{where}: input {name!r} is not bound")
            if array.dtype != dtype or not _fits(array.shape, shape):
                want, have = f"{dtype} {_dims(shape)}", f"{array.dtype} {_dims(array.shape)}"
                raise InvalidProgram(f"{where}: input {name!r} must be {want}; it is {have}")
        if len(feeds) > len(self._inputs):
            unknown = ", ".join(sorted(set(feeds) - set(self._inputs)))
            raise InvalidProgram(f"{where} has no input {unknown[:200]}; it has {', '.join(self._inputs)}")
        if not self._outputs.issuperset(outputs):
            unknown = ", ".join(sorted(set(outputs) - self._outputs))
            raise InvalidProgram(f"{where} has no output {unknown[:200]}; it has {', '.join(self._outputs)}")
        try:
            # On the CPU neither direction copies: feeds are borrowed, results own ONNX Runtime's memory.
            results = self._session.run(list(outputs), dict(feeds), stop.options)
        except Exception as error:
            stop.check()
            raised = _translate(error, where, InvalidProgram)
            if quiet:
                log.warning("%s", raised.message)
                raised = type(raised)(f"{where} failed on private data; the node's log says why")
            raise raised from None
        if not all(isinstance(result, np.ndarray) for result in results):
            raise InvalidProgram(f"{where}: an output is no tensor: it cannot be kept")
        return list(results)


class Runtime:
    """Graphs by digest, at most `_GRAPHS` of them and `limit` bytes; those least recently used go first.

    `provider` is `auto` or the name of one, as `cpu` or `cuda`; without it the CPU serves.
    """

    def __init__(self, provider: str = "cpu", threads: int = 1, limit: int = 1 << 30) -> None:
        self.threads, self.limit, self.asked = threads, limit, provider
        self.provider = working_provider(provider)
        self._graphs: OrderedDict[str, Graph] = OrderedDict()
        self._lock = threading.Lock()
        self._shared_arena = False

    def limit_arena(self) -> None:
        """Bound what all graphs together allocate by `limit`. Once a process: it has one allocator."""
        info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(info, ort.OrtArenaCfg(self.limit, 0, -1, -1))
        self._shared_arena = True

    def cached(self, digest: str) -> Graph | None:
        """The graph with this digest, if it is loaded."""
        with self._lock:
            graph = self._graphs.get(digest)
            if graph is not None:
                self._graphs.move_to_end(digest)
            return graph

    def find(self, digest: str) -> Graph | None:
        """The same, or the graph of this project's library that has the digest."""
        graph = self.cached(digest)
        name = next((name for name in library.names() if library.digest(name) == digest), None)
        return self.load(digest, library.load(name)) if graph is None and name is not None else graph

    def load(self, digest: str, data: bytes) -> Graph:
        """Make the graph in `data`, an ONNX file, ready to run.

        Raises DataLoss (it has another digest) or InvalidGraph (it cannot be used, or is not allowed).
        """
        where = f"graph {digest[:12]}"
        if sha256(data).hexdigest() != digest:
            raise errors.DataLoss(f"{where} came damaged: its bytes have another digest; send it again")
        if all(library.digest(name) != digest for name in library.names()):
            data = read_graph(data, where).data
        try:
            session = open_session(data, self._options, self.provider, where)
        except Exception as error:
            raise _translate(error, where, InvalidGraph) from None
        graph = Graph(digest, session, len(data))
        with self._lock:
            self._graphs[digest] = graph
            size = sum(held.size for held in self._graphs.values())
            while len(self._graphs) > 1 and (len(self._graphs) > _GRAPHS or size > self.limit):
                size -= self._graphs.popitem(last=False)[1].size
        return graph

    def _options(self) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # it holds each graph's whole memory, beside the arena's
        options.log_severity_level = 4  # what fails is raised, and answered to whom it concerns
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if self._shared_arena:
            options.add_session_config_entry("session.use_env_allocators", "1")
        return options


def _fits(have: tuple[int, ...], want: tuple[Any, ...]) -> bool:
    fixed = [n if isinstance(size, int) else size for n, size in zip(have, want, strict=False)]
    return len(have) == len(want) and fixed == list(want)


def _dims(shape: tuple[Any, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size)[:40] for size in shape) + "]"


def _translate(error: Exception, where: str, cls: type[EdgeAttentionError]) -> EdgeAttentionError:
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    if isinstance(error, MemoryError) or "allocate memory" in text or "Available memory of" in text:
        cls = errors.OutOfMemory
    return cls(f"{where}: ONNX Runtime refused it: {text[:300]}")
