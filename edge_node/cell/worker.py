"""The process that runs graphs of others: `python -m edge_node.cell.worker`, started by the daemon only.

It gets what `edge_node.cell.messages` describes, shuts itself in, and answers. Before that it imports all it
will ever need: afterwards it can open nothing. What is wrong with a graph is answered; if the graph ends this
process, the daemon lives on.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_attention.core.errors import EdgeAttentionError, InvalidGraph, InvalidProgram, OutOfMemory
from edge_attention.core.tensors import Array
from edge_attention.priority import give_way
from edge_attention.providers import open_session
from edge_node.cell.confinement import Limits, confine
from edge_node.cell.loaded import Loaded, RunInWindows, lying_in
from edge_node.cell.messages import (
    DTYPES,
    KEPT_BYTES,
    LARGE,
    TEXT,
    WINDOW,
    CellKind,
    Channel,
    Message,
    Placed,
    encoded,
    types_of,
)
from edge_node.sessions import (
    give,
    input_types,
    limit_arena,
    output_types,
    run_options,
    session_options,
    translate,
    values_of,
)
from edge_node.shared_memory import Region

_STACK = 2 << 20
"""Bytes of the stack of a lane's thread: all of them count against the process's limit."""
_BADNESS = "700"
"""Short of memory the kernel ends this process rather than the daemon."""
_NICENESS = 5
"""Short of processors the daemon, which answers queries, has three times this process's share."""


class _Stopped(Exception):
    """The task for which the graph ran is over."""


class Lane:
    """Answers one message after the other, on a thread of its own."""

    def __init__(self, cell: CellWorker, channel: Channel, number: int) -> None:
        self._cell = cell
        self._channel = channel
        self._number = number
        self._lock = threading.Lock()
        self._stopped: int | None = None
        self._job: int | None = None
        self._stop: Callable[[], None] | None = None
        self._options = run_options()
        self._ran = 0
        """Nanoseconds that ONNX Runtime has run since the daemon was told last."""

    def stop(self, job: int) -> None:
        """End what runs for this job, or is about to. To be called from another thread."""
        with self._lock:
            self._stopped = job
            if self._stop is not None and self._job == job:
                self._stop()

    def serve(self) -> None:
        while (message := self._channel.receive()) is not None:
            head: dict[str, Any] | bytes
            try:
                if message.kind is CellKind.LOAD:
                    kind, head = CellKind.LOADED, self._load(message)
                else:
                    kind, head = CellKind.DONE, self._run_again(message) or self._run(message)
            except _Stopped:
                kind, head = CellKind.FAILED, {"error": "Stopped", "text": ""}
            except EdgeAttentionError as error:
                kind, head = CellKind.FAILED, {"error": type(error).__name__, "text": error.message[:TEXT]}
            except MemoryError:
                kind, head = CellKind.FAILED, {"error": "OutOfMemory", "text": "no memory is left for it"}
            self._send(kind, head)

    def _send(self, kind: CellKind, head: dict[str, Any] | bytes) -> None:
        ran, self._ran = self._ran, 0
        self._channel.send(kind, head, (), ran)

    def _begin(self, job: int, stop: Callable[[], None]) -> None:
        """From now on `stop` ends what runs for the job. Raises _Stopped if it was to end already."""
        with self._lock:
            if self._stopped == job:
                raise _Stopped
            self._job = job
            self._stop = stop

    def _end(self, job: int) -> None:
        """What ran for the job has ended. Raises _Stopped if it was to."""
        with self._lock:
            self._stop = None
            if self._stopped == job:
                raise _Stopped

    def _load(self, message: Message) -> dict[str, Any]:
        head, descriptors = message.head, message.descriptors
        digest, where = head["graph"], f"graph {head['graph'][:12]}"
        try:
            file, *regions = [
                Region(descriptor, os.fstat(descriptor).st_size, writable=False, keep=False)
                for descriptor in descriptors
            ]
        except OSError as error:
            raise OutOfMemory(f"{where}: its constants cannot be mapped: {error.strerror}") from None
        data = np.asarray(file)[: head["size"]].tobytes()
        file.unmap()
        values = values_of(
            {
                name: regions[number - 1].array(offset, tuple(shape), np.dtype(kind))
                for name, kind, shape, number, offset in head["constants"]
            }
        )
        for forgotten in head["forget"]:
            self._cell.graphs.pop(forgotten, None)
        made: list[Any] = []

        def options() -> Any:
            made.append(give(self._cell.options(), values))
            return made[-1]

        def stop() -> None:
            for option in made:
                with contextlib.suppress(AttributeError):  # before ONNX Runtime 1.21 a load goes on
                    option.set_load_cancellation_flag(True)

        self._begin(message.number, stop)
        try:
            session = open_session(data, options, self._cell.provider, where)
        except Exception as error:
            raise translate(error, where, InvalidGraph) from None
        finally:
            self._end(message.number)
        session._model_bytes = None  # ONNX Runtime keeps the file; the daemon has it
        types = input_types(session, where), output_types(session)
        for region in regions:
            region.let_go()  # what is packed is not read there again
        self._cell.graphs[digest] = Loaded(session, values)
        said = [[[name, dtype.name, list(dims)] for name, (dtype, dims) in ends.items()] for ends in types]
        return {"in": said[0], "out": said[1]}

    def _fresh_options(self) -> Any:
        if self._options.terminate:
            self._options = run_options()
        return self._options

    def _run_again(self, message: Message) -> bytes | None:
        """The answer to a run that is like an earlier one. None: it is to be done as any other."""
        graph = self._cell.graphs[message.head["graph"]]
        bound = graph.bound(self._number, message.text)
        if bound is None:
            return None
        options = self._fresh_options()

        def stop() -> None:
            options.terminate = True

        self._begin(message.number, stop)
        began = time.perf_counter_ns()
        try:
            if bound.run(graph.session, self._channel.writes, options):
                return bound.answer
        except Exception:
            if options.terminate:
                raise _Stopped from None
        finally:
            self._ran += time.perf_counter_ns() - began
            self._end(message.number)
        graph.unbind()
        return None

    def _run(self, message: Message) -> dict[str, Any] | bytes:
        head, descriptors = message.head, message.descriptors
        where = f"graph {head['graph'][:12]}"
        graph = self._cell.graphs[head["graph"]]
        made = {n: (kind, shape, room, offset) for n, kind, shape, room, offset in head.get("made", ())}
        for_outputs = {place[2] for place in made.values()}
        regions = [
            Region(descriptor, os.fstat(descriptor).st_size, writable=number in for_outputs, keep=False)
            for number, descriptor in enumerate(descriptors)
        ]
        inputs = zip(head["names"], types_of(head["in"], places=True), strict=True)
        feeds = {name: self._array(placed, regions, self._channel.reads) for name, placed in inputs}
        rooms = {
            n: regions[room].array(offset, tuple(shape), np.dtype(kind))
            for n, (kind, shape, room, offset) in made.items()
        }
        options = self._fresh_options()

        def stop() -> None:
            options.terminate = True

        self._begin(message.number, stop)
        began = time.perf_counter_ns()
        try:
            results = self._bound(graph.session, head["out"], feeds, rooms, options) if rooms else None
            if results is None:
                rooms.clear()
                results = dict(enumerate(graph.session.run(head["out"], feeds, options)))
        except Exception as error:
            if options.terminate:
                raise _Stopped from None
            raise translate(error, where, InvalidProgram) from None
        finally:
            self._ran += time.perf_counter_ns() - began
            self._end(message.number)
        for number in for_outputs:
            regions[number].unmap()  # before the answer: the daemon seals what this process could still write
        for result in results.values():
            if not isinstance(result, np.ndarray) or result.dtype not in DTYPES:
                raise InvalidProgram(f"{where}: an output is no tensor: it cannot be kept")
        known = {n: [kind, shape] for n, (kind, shape, _, _) in made.items()} if rooms else {}
        said, placed = self._answer(results, known)
        if descriptors or placed is None or len(message.text) > KEPT_BYTES:
            return said
        answer = encoded(said)
        graph.keep(self._number, message.text, RunInWindows(feeds, head["out"], placed, answer))
        return answer

    def _bound(
        self, session: Any, outputs: list[str], feeds: dict[str, Array], rooms: dict[int, Array], options: Any
    ) -> dict[int, Array] | None:
        """Run with the outputs of `rooms` there; the others are returned. None: the rooms do not fit them."""
        binding = session.io_binding()
        value = self._cell.value
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, value(array))
        for n, name in enumerate(outputs):
            if n in rooms:
                binding.bind_ortvalue_output(name, value(rooms[n]))
            else:
                binding.bind_output(name)
        try:
            session.run_with_iobinding(binding, options)
        except Exception:
            if options.terminate:
                raise
            return None  # without, it says what is wrong, or works
        found = binding.get_outputs()
        if any(found[n].data_ptr() != room.ctypes.data for n, room in rooms.items()):
            return None  # of an output that is an input ONNX Runtime writes nothing
        results = {n: found[n].numpy() for n in range(len(outputs)) if n not in rooms}
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        return results

    @staticmethod
    def _array(placed: Placed, regions: list[Region], window: Array) -> Array:
        if placed.where >= 0:
            return regions[placed.where].array(placed.offset, placed.shape, placed.dtype)
        return lying_in(window, placed)

    def _answer(
        self, results: dict[int, Array], made: dict[int, list[Any]]
    ) -> tuple[dict[str, Any], list[Placed] | None]:
        """`results` to where the daemon finds them; those in `made`, by number, are there already.

        The head that says so, and where they are if all are in the window.
        """
        channel = self._channel
        channel.begin()
        places = {
            n: channel.place(result) if result.nbytes < LARGE else None for n, result in results.items()
        }
        types = made | {n: [DTYPES[result.dtype], result.shape] for n, result in results.items()}
        starts = [place for place in places.values() if place is not None]
        if len(starts) == len(places):
            found = [[*types[n], -1, places.get(n, 0)] for n in range(len(types))]
            placed = [
                Placed(result.dtype, result.shape, -1, start)
                for result, start in zip(results.values(), starts, strict=True)
            ]
            return {"out": found, "made": bool(made)}, None if made else placed
        # More than the window holds: the daemon has memory for it, or not.
        self._send(CellKind.NEED, {"out": [types[n] for n in range(len(types))], "made": bool(made)})
        message = channel.receive()
        if message is None:
            raise SystemExit(0)
        regions = [Region(fd, os.fstat(fd).st_size, writable=True, keep=False) for fd in message.descriptors]
        for n, room, offset in message.head["out"] or ():
            np.copyto(regions[room].array(offset, results[n].shape, results[n].dtype), results[n])
        for region in regions:
            region.unmap()
        return {}, None


class CellWorker:
    """The process: its lanes, and what all of them share."""

    def __init__(self, said: dict[str, Any]) -> None:
        import onnxruntime

        self.graphs: dict[str, Loaded] = {}
        self.provider = said["provider"]
        self._threads = said["threads"]
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        limit_arena(said["limit"])
        self._control = socket.socket(fileno=said["control"])
        self._lanes: list[Lane] = []
        for connection, inward, outward in said["lanes"]:
            reads = Region(inward, WINDOW, writable=False, keep=False)
            writes = Region(outward, WINDOW, writable=True, keep=False)
            channel = Channel(socket.socket(fileno=connection), np.asarray(reads), np.asarray(writes))
            self._lanes.append(Lane(self, channel, len(self._lanes)))

    def options(self) -> Any:
        return session_options(self._threads, shared_arena=True)

    def serve(self, report: str) -> None:
        """Answer what comes on the lanes; returns when the daemon has gone. `report`: how it is shut in."""
        threading.stack_size(_STACK)
        threads = [threading.Thread(target=_lane, args=(lane,), daemon=True) for lane in self._lanes]
        for thread in threads:
            thread.start()
        ids = [thread.native_id for thread in threads]
        self._control.send(json.dumps({"ready": report, "threads": ids}).encode())
        while data := self._control.recv(4096):
            said = json.loads(data)
            self._lanes[said["lane"]].stop(said["stop"])


def _lane(lane: Lane) -> None:
    try:
        lane.serve()
    finally:
        # Without its threads the cell is of no use; the daemon starts another.
        os._exit(70)


def _shut(said: dict[str, Any], keep: frozenset[int]) -> str:
    """Shut this process in; what holds, in words."""
    room = said["limit"] + said["overhead"]
    return confine(Limits(room, said["descriptors"], keep, devices=said["devices"])).describe()


def _try(cell: CellWorker) -> None:
    """Load and run a graph once: what ONNX Runtime and NumPy load as they go, they load now."""
    from edge_attention.graphs.attention import library

    options = session_options(
        1, shared_arena=True
    )  # one thread: there may be no second before this is shut in
    session = open_session(library.load("attention_scores"), lambda: options, "CPUExecutionProvider", "")
    x = {node.name: np.ones([1] * len(node.shape), input_types(session, "")[node.name][0])
         for node in session.get_inputs()}  # fmt: skip
    with contextlib.suppress(Exception):
        session.run(None, x, run_options())
        binding = session.io_binding()
        for name, array in x.items():
            binding.bind_ortvalue_input(name, cell.value(array))
        binding.bind_output(session.get_outputs()[0].name)
        session.run_with_iobinding(binding, run_options())
        binding.get_outputs()[0].numpy()


def main() -> None:
    said = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group: the daemon decides
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_BADNESS)
    give_way(_NICENESS)
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # threads of ONNX Runtime: 8 MiB each would count, too
        attributes = ctypes.create_string_buffer(256)
        libc.pthread_attr_init(attributes)
        libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(said["stack"]))
        libc.pthread_setattr_default_np(attributes)
    cell = CellWorker(said)
    _try(cell)
    gc.freeze()  # what is loaded stays; nobody need look at it again
    keep = frozenset([said["control"], *(lane[0] for lane in said["lanes"])])
    cell.serve(_shut(said, keep))
    os._exit(0)


if __name__ == "__main__":
    main()
