"""What a task needs before it can run: graphs and large tensors that are not here, and what it freezes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from concurrent.futures import Executor

import numpy as np

from edge_attention.core.messages.program import BulkTensor
from edge_attention.core.tensors import Encoding
from edge_node.executor import Execution
from edge_node.prepared import Prepared
from edge_node.programs import PreparedPrograms
from edge_node.runtime import ForeignGraph, Graph, Runtime, Stop
from edge_node.store.store import Store
from edge_node.transfers import Transfers, together


class TaskParts:
    """Fetches the parts of tasks. All of it is to be called on one event loop."""

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        transfers: Transfers,
        prepared: PreparedPrograms,
        pool: Executor,
    ) -> None:
        """`pool` loads graphs and freezes programs."""
        self._store = store
        self._runtime = runtime
        self._transfers = transfers
        self._prepared = prepared
        self._pool = pool

    async def fetch(
        self,
        task: Execution,
        bulk_tensors: Sequence[BulkTensor],
        graphs: dict[str, Graph | ForeignGraph],
        missing: Collection[str],
        prepared: Prepared | None,
        stop: Stop,
    ) -> None:
        """Returns when `task` can run.

        Args:
            bulk_tensors: those that are to be downloaded and placed in the task.
            graphs: the task's, by digest; the `missing` ones are added to it.
            prepared: the program it is a call of, whose frozen tensors are bound; None: of none.
            stop: of the task; every wait here ends with it.

        Raises:
            EdgeAttentionError: what `stop` says, or what is wrong with a part.
        """

        async def place(bulk: BulkTensor) -> None:
            # What is stored there already need not come again, as after a restart what is kept.
            digest = bulk.digest if bulk.encoding is Encoding.RAW else ""
            dtype = np.dtype(bulk.data_type.value)
            if digest and self._store.has(bulk.name, digest, dtype, bulk.shape):
                return
            array = await self._transfers.tensor(bulk, stop)
            self._store.release(bulk.size)
            task.place(bulk.name, array, digest)

        for digest in missing:
            graphs[digest] = await self._load(digest, stop)
        if prepared is not None and prepared.program.frozen:
            if not prepared.ready:
                await self._frozen(prepared, graphs, stop)
            # Also where another call has had it made ready while this one waited for its graphs.
            task.carry_out(prepared.instructions)
        await together(place, bulk_tensors)

    async def _load(self, digest: str, stop: Stop) -> Graph | ForeignGraph:
        """The graph; where another task has it come, nodes of this process included, that one's."""
        coming = self._runtime.coming
        while (other := coming.get(digest)) is not None:
            stop.check()
            with contextlib.suppress(TimeoutError):  # woken now and then: this task may be ended meanwhile
                await asyncio.wait_for(other.wait(), 1)
        if (graph := self._runtime.cached(digest)) is not None:
            return graph
        here = coming[digest] = asyncio.Event()
        try:
            return await self._loaded(digest, stop)
        finally:
            del coming[digest]
            here.set()

    async def _loaded(self, digest: str, stop: Stop) -> Graph | ForeignGraph:
        loop = asyncio.get_running_loop()
        graph = await loop.run_in_executor(self._pool, self._runtime.find, digest)
        if graph is not None:
            return graph
        data = await self._transfers.download(digest, self._runtime.limit, stop)
        try:
            return await loop.run_in_executor(self._pool, self._runtime.load, digest, bytes(data))
        finally:
            self._store.release(len(data))

    async def _frozen(self, prepared: Prepared, graphs: dict[str, Graph | ForeignGraph], stop: Stop) -> None:
        """Returns when the program is frozen, for all its calls at once; or raises what `stop` says."""
        loop = asyncio.get_running_loop()
        freezing = prepared.freezing
        if freezing is None:
            freezing = prepared.freezing = asyncio.create_task(self._freeze(prepared, dict(graphs)))
            freezing.add_done_callback(lambda task: task.cancelled() or task.exception())
        stopped = loop.create_future()

        def stops() -> None:
            loop.call_soon_threadsafe(stopped.cancel)

        stop.watch(stops)
        try:
            await asyncio.wait([freezing, stopped], return_when=asyncio.FIRST_COMPLETED)
            stop.check()
            await freezing
        finally:
            stop.unwatch(stops)

    async def _freeze(self, prepared: Prepared, graphs: dict[str, Graph | ForeignGraph]) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._pool, self._prepared.freeze, prepared, graphs)
        finally:
            prepared.freezing = None  # what was wrong may be right at the next call
