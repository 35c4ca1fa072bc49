"""One node's stream, outgoing side: what is written to it, in what order, and what of it may get lost."""

from __future__ import annotations

import asyncio
import collections
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from aggregator.engine.prepared import KNOWN
from edge_attention.core.errors import EdgeAttentionError, ResourceExhausted
from edge_attention.core.messages.link import Cancel, Credit, HeartbeatAck, ToNode
from edge_attention.core.messages.program import Call, Program
from edge_attention.core.rounds.credit import CreditWindow
from edge_attention.wire.link import to_node
from edge_attention.wire.writer import StreamWriter

LARGE_PROGRAM = 64 * 1024
"""Bytes of a program's tensors from which it is encoded only when it is sent."""

UNWRITTEN_SECONDS = 5.0
"""What is being written when a stream is to end has so long to get on its way."""

UNCONFIRMED = 4096
"""Messages kept in case they get lost, of those that nobody else would send again; then the oldest go."""

UNREAD = 4096
"""Answers to what a node sends (to heartbeats, and credit) that wait to be written; of more it is left."""

Write = Callable[[bytes], Coroutine[Any, Any, None]]


class NodeConnection:
    """One node's stream, outgoing side: control messages first, programs as the node's credit allows.

    A message is on its way when `send` returns, if the stream is free: no task and no turn of the event loop
    lies between. What is sent before `open` waits for it.

    What nobody else would send again should it get lost, programs of no shard and cancellations, is kept
    until the node says in a heartbeat that it has come.
    """

    def __init__(
        self,
        unsendable: Callable[[str, EdgeAttentionError], None] = lambda task, error: None,
        taken: int = 0,
    ) -> None:
        """`unsendable`: called with a task and the error for which its program cannot be encoded."""
        self._unsendable = unsendable
        self.taken = taken
        """Contributions of the session that have come, as its node counts them."""
        self._control: collections.deque[tuple[bytes, Cancel | None]] = collections.deque()
        # Large ones are encoded when they are sent: until then their tensors are one array for all segments.
        self._programs: dict[str, Program | bytes] = {}  # those, and calls
        self._kept: dict[str, Program] = {}  # of these
        self._prepared: OrderedDict[bytes, None] = OrderedDict()
        """Prepared programs sent on this stream: the node may know them, and says if it does not."""
        self._sent = 0
        self._unconfirmed: collections.deque[tuple[int, Program | Cancel]] = collections.deque(
            maxlen=UNCONFIRMED
        )
        # The node grants its credit after it has registered.
        self._window = CreditWindow()
        self._writer: StreamWriter | None = None
        self._end = asyncio.Event()

    def send(self, message: ToNode) -> None:
        """Have the message written, as soon as the stream and, for a program or a call, credit allow."""
        if isinstance(message, Program):
            large = sum(array.nbytes for array in message.tensors.values()) > LARGE_PROGRAM
            self._programs[message.task_id] = message if large else to_node.encode(message)
            if not message.shard:
                self._kept[message.task_id] = message
        elif isinstance(message, Call):
            if known := message.program in self._prepared:
                self._prepared.move_to_end(message.program)
            else:
                self._prepared[message.program] = None
                if len(self._prepared) > KNOWN:
                    self._prepared.popitem(last=False)
            self._programs[message.task_id] = to_node.encode_call(message, known)
        elif isinstance(message, Cancel):
            if self._programs.pop(message.task_id, None) is not None:
                self._kept.pop(message.task_id, None)
                return  # it still waited for credit: the node has never heard of it
            self._control.append((to_node.encode(message), message))
        else:
            if isinstance(message, HeartbeatAck):
                # Control messages go in order, before all else.
                message = replace(message, sent=self._sent + len(self._control))
            self._control.append((to_node.encode(message), None))
        self._kick()

    def require_read(self) -> None:
        """Raises ResourceExhausted for a node that sends and does not read what it is answered."""
        if len(self._control) > UNREAD:
            raise ResourceExhausted(f"{UNREAD:,} answers to this node wait: read them, or send less")

    def unknown(self) -> None:
        """The node has said that it does not know a program: calls bring their programs along again."""
        self._prepared.clear()

    def confirmed(self, count: int) -> None:
        """The node has received the first `count` messages of this stream: they need not be kept."""
        while self._unconfirmed and self._unconfirmed[0][0] <= count:
            self._unconfirmed.popleft()

    def take_over(self, former: NodeConnection) -> None:
        """Send again what `former`, an ended connection of the same session, may have lost."""
        for _, message in former._unconfirmed:
            self.send(message)
        for _, kept in former._control:
            if kept is not None:
                self.send(kept)
        for program in former._kept.values():
            self.send(program)

    def grant(self, credit: Credit) -> None:
        """The node has granted credit for more programs."""
        self._window.grant(credit)
        self._kick()

    @property
    def queue(self) -> tuple[int, int]:
        """How many programs wait to be sent, and how many bytes may be sent now."""
        return len(self._programs), self._window.bytes

    def open(self, write: Write, written: Callable[[int], None] = lambda size: None) -> None:
        """Write to the stream from now on, first what waits. `write`, `written`: as of `StreamWriter`."""
        self._writer = StreamWriter(write, self._take, written, self._more)
        self._writer.kick()

    def close(self) -> None:
        """Write nothing more, and have `closed` return. Closing it again does nothing."""
        if self._writer is not None:
            self._writer.close()
        self._end.set()

    async def closed(self) -> None:
        """Returns once it is closed, and gRPC has what was being written; it gives that some seconds."""
        await self._end.wait()
        if self._writer is not None:
            await self._writer.idle(UNWRITTEN_SECONDS)

    def _kick(self) -> None:
        if self._writer is not None:
            self._writer.kick()

    def _more(self) -> bool:
        """Whether anything waits, be it for credit."""
        return bool(self._control or self._programs)

    def _take(self) -> bytes | None:
        """The next message to write, which counts as sent from now on; None: nothing may be written now."""
        kept: Program | Cancel | None
        if self._control:
            data, kept = self._control.popleft()
        elif (found := self._next()) is not None:
            task_id, data = found
            kept = self._kept.pop(task_id, None)
        else:
            return None
        self._sent += 1
        if kept is not None:
            self._unconfirmed.append((self._sent, kept))
        return data

    def _next(self) -> tuple[str, bytes] | None:
        """The next program there is credit for: its task, and its bytes; None: there is none."""
        while self._programs:
            task_id, program = next(iter(self._programs.items()))
            if isinstance(program, Program):
                try:
                    program = self._programs[task_id] = to_node.encode(program)
                except EdgeAttentionError as error:
                    del self._programs[task_id]
                    self._unsendable(task_id, error)
                    continue
            if not self._window.take(len(program)):
                return None
            del self._programs[task_id]
            return task_id, program
        return None
