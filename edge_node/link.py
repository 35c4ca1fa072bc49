"""The asyncio shell: performs what the session decides, over gRPC, and runs tasks in a few threads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import grpc

from edge_attention import box
from edge_attention.core.errors import (
    Damaged,
    DeadlineExceeded,
    EdgeAttentionError,
    Internal,
    ResourceExhausted,
    Unavailable,
    UnknownProgram,
)
from edge_attention.core.messages import link as said
from edge_attention.core.messages.program import CALL_BYTES, Call, Contribution, Program
from edge_attention.core.transitions import told
from edge_attention.metrics.node import NodeMetrics
from edge_attention.wire.codec import MESSAGE_LIMIT
from edge_attention.wire.link import from_node, task_of, to_node
from edge_attention.wire.writer import StreamWriter
from edge_node.crew import Hands
from edge_node.dialling import Connector, LinkLine, LinkStream
from edge_node.direct import DirectCall
from edge_node.executor import Execution, LocalNode
from edge_node.limits import graphs_of, require_caller
from edge_node.parts import TaskParts
from edge_node.prepared import Prepared
from edge_node.programs import PreparedPrograms
from edge_node.runtime import ForeignGraph, Graph, Runtime, Stop
from edge_node.session import (
    UNTAKEN,
    UNTAKEN_BYTES,
    Action,
    Connect,
    Disconnect,
    End,
    Forget,
    Leave,
    Say,
    SendMessage,
    Session,
    SessionPhase,
    Start,
)
from edge_node.short import SHORT_SECONDS, kind_of
from edge_node.steps import ANYTHING, readable
from edge_node.transfers import INLINE, NODE_STREAM, Transfers, in_messages, is_large, split

log = logging.getLogger(__name__)

BACKLOG = 16 * 1024 * 1024
"""Bytes of contributions that wait for credit before tasks are held up."""


class _Work:
    """A task that is ready to run, and what of it is still to come.

    `kind`: see `short.kind_of`; `inline`: bytes of tensors that a message of it has.
    """

    def __init__(
        self, execution: Execution | DirectCall, stop: Stop, kind: Hashable | None, inline: int
    ) -> None:
        self.execution = execution
        self.stop = stop
        self.kind = kind
        self.inline = inline
        self._running: Generator[Contribution | int, None, None] = (
            execution.steps() if isinstance(execution, DirectCall) else execution.contributions()
        )
        self.contributions: Iterator[Contribution | int] = self._running
        """Those still to come, and what is waited for before (edge_node/steps.py)."""

    def failed(self, error: Exception, number: int) -> tuple[Contribution, bytes]:
        """What to send in place of contribution `number`, which cannot be: why, and that it is the last."""
        message = replace(self.execution.failure(error), number=number)
        return message, from_node.encode(message)

    def close(self) -> None:
        """No more of it is wanted."""
        self._running.close()


class NodeLink:
    """Keeps `node` connected to the aggregator `dial` reaches, until it is told to leave."""

    def __init__(
        self, dial: Connector, name: str, node: LocalNode, runtime: Runtime, hands: Hands | None = None
    ) -> None:
        """`hands`: what nodes of one process share; None: this one has its own."""
        self._dial = dial
        self._name = name
        self._node = node
        self._runtime = runtime
        self._instance = secrets.token_hex(8)
        self._hands, self._own_hands = hands or Hands(), hands is None
        reports = self._hands.reports
        memory, report = lambda: node.store.used, lambda now: self.metrics.report(now) if reports else b""
        self._session = Session(name, dial.address, self._register, memory, random.random, report)
        quiet = bool(node.datasets)
        self.metrics: NodeMetrics = NodeMetrics(
            node.store,
            self._session,
            runtime.provider,
            runtime.threads,
            runtime.cells,
            quiet,
            node.store.folder,
        )
        # Later it would tell what tasks on private data take.
        self._free = self._hands.machine(None).memory_available if quiet else None
        self.metrics.certificate_expiry.follow(lambda: dial.ends())
        self._transfers = Transfers(node.store, lambda way, n: self.metrics.bytes.labels(way, "bulk").inc(n))
        self._prepared = PreparedPrograms(node.store, runtime)
        self._parts = TaskParts(node.store, runtime, self._transfers, self._prepared, self._hands.loaders)
        node.store.freed = self._prepared.forget
        self._short = self._hands.short
        self._serials = itertools.count()
        self._stops: dict[str, Stop] = {}
        self._tasks = set[asyncio.Task[None]]()
        self._stream: asyncio.Task[None] | None = None
        self._caller: LinkLine | None = (
            None  # of the connection there is, or was until a message came damaged
        )
        self._former: LinkStream | None = None  # the stream that one came on
        self._turn = threading.RLock()
        """Whose turn it is with the session: the loop's, or a worker's that has an answer."""
        self._outgoing: deque[bytes] = deque()
        self._writer: StreamWriter | None = None
        self._open: LinkStream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake: float | None = None
        self._room = asyncio.Event()
        self._left: asyncio.Future[tuple[int, str]] | None = None
        """The exit code and what to say about it, once it runs."""

    def registered(self) -> bool:
        return self._session.registered

    async def run(self) -> tuple[int, str]:
        """Returns the exit code and what to say about it."""
        if self._session.phase is SessionPhase.LEFT:
            return 1, ""  # gone before it began
        self._loop = asyncio.get_running_loop()
        left = self._left = self._loop.create_future()
        self._step(self._session.tick)
        code, text = await left
        if self._stream is not None:
            await self._end_stream(self._stream, 2.0 if code == 0 else 0.1)
        for stop in self._stops.values():
            stop.set(Unavailable("the node has left"))
        if self._own_hands:
            self._hands.crew.close()
        if self._caller is not None:
            await self._caller.close()
        return code, text

    async def _end_stream(self, stream: asyncio.Task[None], seconds: float) -> None:
        """Have it end once all that was to be said is on its way; returns after `seconds` at the latest."""
        with contextlib.suppress(TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
            async with asyncio.timeout(seconds):
                if self._open is not None and self._writer is not None:
                    await self._writer.idle(seconds)
                    await self._open.done_writing()
                await asyncio.wait([stream])

    def drain(self) -> None:
        """Finish what runs and leave; called again, leave at once."""
        self._step(self._session.drain)

    def vanish(self) -> None:
        """Be gone at once, as after kill -9: what runs is lost, and it does not come back. `run` returns."""
        with self._turn:
            actions = self._session.vanish(time.monotonic())
        for action in actions:
            self._perform(action)
        if self._left is not None:
            self._settle()

    def _register(self, session: str) -> said.Register:
        node, r, name = self._node, self._runtime, self._name
        who = (box.software(), name, self._instance, session, r.provider, r.threads, node.store.limit)
        sets = tuple(dataset.describe() for dataset in node.datasets.values())
        held = tuple(said.Sequence(*item) for item in node.store.sequences().items())
        machine = self._hands.machine(r.asked)
        if self._free is not None:
            machine = replace(machine, memory_available=self._free)
        return said.Register(said.PROTOCOL, *who, sets, held, node.releases.announced, machine)

    def _step(self, event: Callable[..., Sequence[Action]], *args: Any, **kwargs: Any) -> None:
        """Tell the session of an event, do what it says, and set the clock for the next."""
        with self._turn:
            for action in event(*args, self._loop.time(), **kwargs):
                self._perform(action)
        self._settle()

    def _settle(self) -> None:
        """Set the clock for what the session does next, and let in who waits for room."""
        if (wake := self._session.wake) != self._wake:
            if self._timer is not None:
                self._timer.cancel()
            self._wake = wake
            self._timer = None if wake is None else self._loop.call_at(wake, self._tick)
        if self._session.outbox.backlog < BACKLOG:
            self._room.set()

    def _tick(self) -> None:
        self._wake = None
        self._step(self._session.tick)

    def _perform(self, action: Action) -> None:
        match action:
            case Connect():
                self._stream = asyncio.create_task(self._connection(), name="connection")
            case Disconnect():
                assert self._stream is not None
                self._stream.cancel()
            case SendMessage(message):
                self._send(message)
            case Start(program, None):
                self._start(program)
            case Start(program, refusal) if refusal is not None:
                self._answer(Execution(_named(program), self._node, {}).failure(refusal))
            case End(task_id, error):
                self._stops.get(task_id, Stop()).set(error)
            case Forget(names):
                log.info("dropping %d sequences the aggregator no longer knows", len(names))
                for name in names:
                    self._node.store.drop(name)
            case Say(text, warning):
                log.log(logging.WARNING if warning else logging.INFO, "%s", text)
            case Leave(code, text):
                if code:
                    log.info("it came to this so: %s", told(self._session.transitions))
                if self._left is not None and not self._left.done():
                    self._left.set_result((code, text))

    def _send(self, message: said.FromNode | bytes) -> None:
        self._outgoing.append(message if isinstance(message, bytes) else from_node.encode(message))
        if self._writer is not None:
            self._writer.kick()

    async def _connection(self) -> None:
        error: EdgeAttentionError = Unavailable(f"{self._dial.address} ended the connection")
        try:
            await self._converse()
        except EdgeAttentionError as raised:
            # Without its traceback: that holds the call, and a call that is not let go keeps dialling.
            error = type(raised)(raised.message)
        except Exception as raised:
            log.exception("the connection failed on this side")
            error = Unavailable(f"the connection failed on this side: {type(raised).__name__}: {raised}")
        self._step(self._session.lost, error)
        if (wake := self._session.wake) is None or wake > self._loop.time():
            self._let_go()

    def _let_go(self) -> None:
        if self._former is not None:
            self._former.cancel()
            self._former = None

    async def _converse(self) -> None:
        """One stream, to its end. Where that is damage the connection stays, and is the next stream's.

        The stream on which a message came damaged is let go when the next one is there, and not before: to
        the aggregator the node was never away.
        """
        damaged = False
        caller = self._caller = self._caller or self._dial.open_caller()
        stream = self._open = caller.duplex(NODE_STREAM)
        with self._turn:
            self._outgoing = outgoing = deque[bytes]()
            self._writer = writer = stream.writer(
                lambda: outgoing.popleft() if outgoing else None,
                self.metrics.sent.inc,
                lambda: bool(outgoing),
            )
        try:
            self._step(self._session.connected)
            online = False
            async for data in stream:
                self._received(data)
                if not online and self._session.registered:
                    online = True  # to its end
                    self._let_go()
                    self._transfers.online(caller, self._session.id)
        except Damaged:
            damaged = True
            raise
        finally:
            self._let_go()
            writer.close()
            if damaged:
                self._former = stream
            else:
                self._caller = None
                self._transfers.offline()
                await caller.close()

    def _require_read(self) -> None:
        """Raises ResourceExhausted where too much was sent that gRPC does not take, as nobody reads it.

        The session does not see it: an aggregator may say that it has taken what it has not.
        """
        outgoing = self._outgoing
        if len(outgoing) <= UNTAKEN_BYTES // MESSAGE_LIMIT:
            return
        waiting = outgoing.copy()  # in one step: workers add to it
        if len(waiting) > UNTAKEN or sum(map(len, waiting)) > UNTAKEN_BYTES:
            raise ResourceExhausted(
                f"{self._dial.address} does not read: {len(waiting):,} messages wait here"
            )

    def _received(self, data: bytes) -> None:
        self.metrics.received.inc(len(data))
        self._require_read()
        try:
            message = to_node.decode(data)
        except Damaged:
            raise
        except EdgeAttentionError as error:
            # It came as it was sent, and cannot be read. A program's fields that say what task it is are
            # numbered as a contribution's.
            task_id = task_of(data)
            log.warning("a message of task %.80r cannot be read: %s", task_id, error.message)
            self._step(self._session.received, None, len(data))
            if task_id:
                unread = Internal(f"the program cannot be read: {error.message}")
                self._answer(Execution(Program(task_id, "", range(0), ()), self._node, {}).failure(unread))
            return
        self._step(self._session.received, message, len(data))

    def _start(self, asked: Program | Call) -> None:
        stop = self._stops[asked.task_id] = Stop()
        try:
            if isinstance(asked, Call):
                require_caller(asked.caller)
                self._call(asked, self._prepared.find(asked), stop)
            else:
                self._carry_out(asked, graphs_of(asked), None, True, stop)
        except Exception as error:  # whatever it is, the task ends
            self._fail(self._execution(_named(asked), {}, stop), stop, error)
        # Behind that: while a worker wakes up nobody waits for this.
        if (seconds := asked.deadline_seconds) is not None and asked.task_id in self._stops:
            stop.timer = self._loop.call_later(max(0.0, seconds), _late, stop, seconds)

    def _call(self, call: Call, prepared: Prepared, stop: Stop) -> None:
        # In this order: a thread that freezes it now changes the last of these first.
        ready, direct, wanted = prepared.ready, prepared.direct, prepared.wanted
        graphs = self._loaded(wanted)
        if direct is None or len(graphs) < len(wanted) or call.bulk_tensors:
            return self._carry_out(prepared.called(call), wanted, prepared, ready, stop)

        def execution() -> Execution:
            return self._execution(prepared.called(call), graphs, stop)

        store = self._node.store
        kind = direct.kind(
            store.layouts, store.extent, lambda: self._kind(prepared.called(call), graphs, in_steps=True)
        )
        task = DirectCall(call, direct, prepared.tensors(call, True), graphs, store, stop, execution)
        self._run(_Work(task, stop, kind, _inline(prepared)), call.deadline_seconds)

    def _carry_out(
        self,
        program: Program,
        wanted: Collection[str],
        prepared: Prepared | None,
        ready: bool,
        stop: Stop,
    ) -> None:
        """`ready`: what `prepared` freezes was bound before `program` was made of it."""
        graphs = self._loaded(wanted)
        execution = self._execution(program, graphs, stop)
        if ready and not program.bulk_tensors and len(graphs) == len(wanted):
            work = _Work(execution, stop, self._kind(program, graphs), _inline(prepared))
            return self._run(work, program.deadline_seconds)
        missing = [digest for digest in wanted if digest not in graphs]
        task = asyncio.create_task(self._fetch(program, missing, graphs, execution, stop, prepared))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _loaded(self, wanted: Collection[str]) -> dict[str, Graph | ForeignGraph]:
        """Those of the graphs `wanted` that are loaded, by digest."""
        return {digest: graph for digest in wanted if (graph := self._runtime.cached(digest))}

    def _execution(
        self, program: Program, graphs: Mapping[str, Graph | ForeignGraph], stop: Stop
    ) -> Execution:
        return Execution(program, self._node, graphs, serial=next(self._serials), stop=stop)

    def _kind(
        self, program: Program, graphs: Mapping[str, Graph | ForeignGraph], in_steps: bool = False
    ) -> Hashable | None:
        if (kind := self._hands.kind) is not None:
            return kind(program, graphs)
        if self._node.datasets:
            return None
        store = self._node.store
        return kind_of(program, graphs, store.layout, store.extent if in_steps else None)

    async def _fetch(
        self,
        program: Program,
        missing: Collection[str],
        graphs: dict[str, Graph | ForeignGraph],
        task: Execution,
        stop: Stop,
        prepared: Prepared | None,
    ) -> None:
        try:
            await self._parts.fetch(task, program.bulk_tensors, graphs, missing, prepared, stop)
            self._queue(_Work(task, stop, None, _inline(prepared)))
        except Exception as error:
            self._fail(task, stop, error)

    def _fail(self, task: Execution, stop: Stop, error: Exception) -> None:
        failure = task.failure(error)
        self._end(task, stop, failure, from_node.encode(failure))

    def _end(self, task: Execution | DirectCall, stop: Stop, message: Contribution, data: bytes) -> None:
        task.close()
        self._ended(stop, message)
        self._produced(message, data)

    def _ended(self, stop: Stop, message: Contribution) -> None:
        if stop.timer is not None:
            stop.timer.cancel()
        if self._stops.get(message.task_id) is stop:  # else it has come again, and runs
            del self._stops[message.task_id]

    def _run(self, work: _Work, seconds: float | None) -> None:
        """Run a task all of whose parts are here, for `seconds`: on the loop if it is short and alone."""
        alone = len(self._stops) == 1 and (seconds is None or seconds > SHORT_SECONDS)
        if alone and self._short.may(work.kind, self._loop.time()):
            self._run_here(work)
        else:
            self._queue(work)

    def _queue(self, work: _Work) -> None:
        self._hands.crew.put(partial(self._job, work), len(self._stops))

    def _job(self, work: _Work) -> Callable[[], None]:
        """In a worker thread: carry the task out. What is returned has its last contribution leave."""
        began = self._hands.clock()
        message, data, plain = self._carried_out(work)
        took = self._hands.clock() - began if plain else math.inf
        return partial(self._deliver, work, message, data, took)

    def _deliver(self, work: _Work, message: Contribution, data: bytes, took: float) -> None:
        rest = self._said(message, data)
        self._loop.call_soon_threadsafe(self._over, work, message, rest, took)

    def _over(self, work: _Work, message: Contribution, rest: list[Action], took: float) -> None:
        """The answer is on its way, and nobody waits for this."""
        self._ended(work.stop, message)
        self._do(rest)
        self._count(message)
        self._short.took(work.kind, took, self._loop.time(), on_loop=False)

    def _run_here(self, work: _Work) -> None:
        """Run a short task on the loop's own thread."""
        began = self._hands.clock()
        contributions = work.contributions
        for message in contributions:
            if isinstance(message, int):
                if message != ANYTHING and readable(message, SHORT_SECONDS - (self._hands.clock() - began)):
                    continue
                # What it waits for takes longer: a worker goes on from here.
                self._short.took(work.kind, math.inf, self._loop.time(), on_loop=True)
                return self._queue(work)
            if is_large(message, work.inline) or self._session.outbox.backlog > BACKLOG:
                # It has to wait for something after all, which a worker can.
                work.contributions = itertools.chain([message], contributions)
                self._short.took(work.kind, math.inf, self._loop.time(), on_loop=True)
                return self._queue(work)
            try:
                data = from_node.encode(message)
            except Exception as error:
                message, data = work.failed(error, message.number)
            if message.final:
                work.close()
                self._end(work.execution, work.stop, message, data)
                break
            self._produced(message, data)
        self._short.took(work.kind, self._hands.clock() - began, self._loop.time(), on_loop=True)

    def _carried_out(self, work: _Work) -> tuple[Contribution, bytes, bool]:
        """In a worker thread: run the task and send its contributions, but for the last.

        That one is returned, encoded, and whether nothing had to be waited for.
        """
        number, plain = 0, True
        try:
            for message in self._messages(work):
                number = message.number
                message, blobs = split(message, work.inline)
                data = from_node.encode(message)
                if blobs or self._session.outbox.backlog > BACKLOG:
                    plain = False
                    asyncio.run_coroutine_threadsafe(self._make_way(blobs, work.stop), self._loop).result()
                if not message.final and (rest := self._said(message, data)):
                    self._loop.call_soon_threadsafe(self._do, rest)
        except Exception as error:
            # In place of the one that could not be sent.
            message, data = work.failed(error, number)
        finally:
            work.close()
        return message, data, plain

    @staticmethod
    def _messages(work: _Work) -> Iterator[Contribution]:
        """The task's contributions; of a call that may bring much, tensors are in messages that hold them."""
        more = 0
        for message in work.contributions:
            if isinstance(message, int):
                continue  # a worker may wait
            if work.inline <= INLINE or not is_large(message, work.inline):
                yield replace(message, number=message.number + more) if more else message
                continue
            parts = in_messages(replace(message, number=message.number + more), work.inline)
            more += len(parts) - 1
            yield from parts

    async def _make_way(self, blobs: dict[str, memoryview], stop: Stop) -> None:
        await self._transfers.upload_all(blobs, stop)
        while self._session.outbox.backlog > BACKLOG:
            stop.check()
            self._room.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), 1)

    def _answer(self, contribution: Contribution) -> None:
        self._produced(contribution, from_node.encode(contribution))

    def _said(self, message: Contribution, data: bytes) -> list[Action]:
        """In a worker thread: tell the session, and write what it has to say; the rest of it is the loop's.

        The loop would have to be woken first, and beside kernels it waits for its turn on a processor.
        """
        keep, rest = not message.bulk_tensors, list[Action]()
        with self._turn:
            for action in self._session.produced(
                message.task_id, data, self._loop.time(), message.final, keep
            ):
                if isinstance(action, SendMessage):
                    self._send(action.message)
                else:
                    rest.append(action)
        return rest

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            self._perform(action)
        self._settle()

    def _produced(self, contribution: Contribution, data: bytes) -> None:
        final, keep = contribution.final, not contribution.bulk_tensors
        self._step(self._session.produced, contribution.task_id, data, final=final, keep=keep)
        if contribution.final:
            self._count(contribution)  # it is on its way, or waits for the writer: nobody waits for this

    def _count(self, contribution: Contribution) -> None:
        if contribution.error and contribution.error.name == UnknownProgram.__name__:
            return  # it comes again, with the program
        self.metrics.ended(contribution)
        if contribution.error:
            log.warning("task %.80r failed: %s", contribution.task_id, contribution.error.message)


def _late(stop: Stop, seconds: float) -> None:
    stop.set(DeadlineExceeded(f"the task was not done in its {seconds} s"))


def _inline(prepared: Prepared | None) -> int:
    """Bytes of tensors up to which a message of a task has them itself."""
    return CALL_BYTES if prepared is not None and prepared.program.frozen else INLINE


def _named(asked: Program | Call) -> Program:
    """A program that does nothing, of the same task."""
    return Program(asked.task_id, asked.shard, asked.coverage, (), asked.version)
