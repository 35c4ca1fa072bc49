"""The aggregator's end of the node link: streams in, contributions to the dispatcher, programs out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from aggregator.engine.bulk import Bulk, chunk_bytes
from aggregator.engine.connection import NodeConnection
from aggregator.engine.dispatch import Dispatcher
from aggregator.fleet.membership import Member, Membership
from aggregator.observe.node_metrics import checked
from aggregator.trust.audit import Audit
from aggregator.trust.endpoint import Endpoint
from edge_attention.core.errors import (
    Damaged,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    UnknownProgram,
)
from edge_attention.core.messages.link import (
    SPOKEN,
    Chunk,
    Credit,
    DownloadRequest,
    Heartbeat,
    HeartbeatAck,
    Register,
    Registered,
    UploadChunk,
    Uploaded,
)
from edge_attention.core.messages.program import Contribution
from edge_attention.core.rounds.credit import Debt
from edge_attention.core.transitions import told
from edge_attention.wire.link import CONNECT, DOWNLOAD, UPLOAD, from_node, task_of

log = logging.getLogger(__name__)

CREDIT = Credit(bytes=64 * 1024 * 1024, messages=1024)
"""What a node may have under way to us."""

RETURN_SECONDS = 5.0
"""A node that sent a damaged message is back by then, over the same connection; until then it is not away."""

REPORT_SECONDS = 1.0
"""A node's metrics that come sooner after the last are not looked at."""

Welcome = Callable[[Member], tuple[str, ...]]
"""Called when a node has registered; returns what it may forget of its store."""

RequireName = Callable[[str, str], None]
"""Called with a node's name and what speaks of it; raises unless that node is who calls."""


class LinkObserver(Protocol):
    """Who counts what happens on the node link."""

    def registered(self, outcome: str) -> None:
        """A node's registration was `outcome`: new, resumed or refused."""

    def refused(self, error: EdgeAttentionError) -> None:
        """A node's report of its metrics is refused with `error`."""

    def damaged(self) -> None:
        """A contribution came damaged."""

    def moved(self, direction: str, kind: str, size: int) -> None:
        """Bytes went to a node ("sent") or came from one ("received"), by "stream" or in "bulk"."""

    def tick(self, members: Sequence[Member], now: float) -> None:
        """Comes a few times a second, with all members. `now`: seconds of `time.monotonic`."""


class FleetLink:
    """Serves EdgeLinkService: the nodes' streams, and their downloads and uploads.

    Args:
        welcome, require_name: see `Welcome` and `RequireName`. Without the latter any caller may be any node.
        audit: what has nodes that come, resume, drain and are refused written down; None: nothing does.

    Attributes:
        bytes_sent, bytes_received: node -> bytes, over its streams and in bulk.
    """

    def __init__(
        self,
        membership: Membership,
        dispatcher: Dispatcher,
        bulk: Bulk,
        observer: LinkObserver,
        *,
        welcome: Welcome,
        require_name: RequireName | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._membership = membership
        self._dispatcher = dispatcher
        self._bulk = bulk
        self._observer = observer
        self._welcome = welcome
        self._require_name = require_name or (lambda name, what: None)
        self._audit = audit or Audit(None)
        self._connections: dict[str, NodeConnection] = {}
        self._former: dict[str, NodeConnection] = {}
        """Node that is away -> the connection it had."""
        self.bytes_sent: Counter[str] = Counter()
        self.bytes_received: Counter[str] = Counter()

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(CONNECT, self.connect, "node"),
            Endpoint(DOWNLOAD, self.download, "node"),
            Endpoint(UPLOAD, self.upload, "node"),
        )

    def close(self) -> None:
        """End every stream; nodes will try to come back."""
        for connection in self._connections.values():
            connection.close()

    def lost(self, name: str) -> None:
        """The node's lease ran out: end its stream, so that it registers again when it is back."""
        if (connection := self._connections.get(name)) is not None:
            connection.close()
        self._former.pop(name, None)
        if (member := self._membership.get(name)) is not None:
            self._bulk.forget(member.session)

    def queues(self) -> dict[str, tuple[int, int]]:
        """Node -> programs that wait to be sent, and bytes that may be sent now; for the metrics."""
        return {name: connection.queue for name, connection in list(self._connections.items())}

    async def connect(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Serve a node's stream, from its registration to its end.

        Raises:
            EdgeAttentionError: why the node is not let in, or why the stream cannot go on.
        """
        register = await self._first(requests)
        self._require_name(register.name, "the registration")
        known = self._membership.get(register.name)
        try:
            admission = self._membership.register(register, time.monotonic())
        except EdgeAttentionError as error:
            self._observer.registered("refused")
            log.warning("refused node %s from %s: %s", register.name[:80], context.peer(), error.message)
            self._audit.write(
                "refused",
                outcome="refused",
                subject=f"node/{register.name}",
                peer=context.peer(),
                reason=error.message,
            )
            raise
        member, name = admission.member, register.name
        if (box := member.register.box) is not None and box.time_seconds:
            member.clock = box.time_seconds - time.time()
        if known is not None and not admission.resumed:
            self._bulk.forget(known.session)
        self._observer.registered("resumed" if admission.resumed else "new")
        former, previous = self._former.pop(name, None), self._connections.get(name)
        if previous is not None:
            former = previous
            previous.close()
        resumed = former if former is not None and admission.resumed else None
        taken = register.taken if resumed is None else max(register.taken, resumed.taken)
        connection = self._connections[name] = NodeConnection(
            lambda task_id, error: self._dispatcher.refuse(name, task_id, error), taken
        )
        how = "resumed" if admission.resumed else "registered"
        log.info("node %s %s from %s", name, how, context.peer())
        if admission.replaced:
            log.warning("node %s has other data than before in %s", name, admission.replaced)
        releases = list(register.releases)
        if previous is None or not admission.resumed:  # else it was never away: a message came damaged
            self._audit.write(how, subject=f"node/{name}", peer=context.peer(), releases=releases)
        drop = self._welcome(member)
        pace = self._membership.pace
        connection.send(
            Registered(
                member.session,
                pace.lease,
                pace.heartbeat,
                admission.resumed,
                CREDIT,
                drop,
                taken,
            )
        )
        if resumed is not None:
            connection.take_over(resumed)
        # Only now: the node hears "registered" before its first program.
        self._dispatcher.connected(name, connection)
        reader = asyncio.create_task(self._read(name, member, connection, requests), name=f"read {name}")
        try:
            connection.open(
                context.write, lambda size: self._count(self.bytes_sent, name, size, "sent", "stream")
            )
            await connection.closed()
        finally:
            connection.close()
            failure = reader.exception() if reader.done() and not reader.cancelled() else None
            reader.cancel()
            if isinstance(failure, Damaged):
                loop = asyncio.get_running_loop()
                loop.call_later(RETURN_SECONDS, self._gone, name, member, connection)
            else:
                self._gone(name, member, connection)
        if failure is not None:
            raise failure

    def _gone(self, name: str, member: Member, connection: NodeConnection) -> None:
        """The connection has ended, and the node has no other unless it has come back meanwhile."""
        if self._connections.get(name) is connection:
            self._former[name] = self._connections.pop(name)
            log.info("node %s disconnected", name)
        self._membership.disconnected(name, member.epoch, time.monotonic())
        self._dispatcher.disconnected(name, connection)

    async def _first(self, requests: AsyncIterator[bytes]) -> Register:
        try:
            data = await asyncio.wait_for(anext(aiter(requests)), 10)
        except (TimeoutError, StopAsyncIteration):
            raise FailedPrecondition("a node registers within 10 s of connecting; nothing came") from None
        try:
            message = from_node.decode(data)
        except Damaged as damage:
            try:
                message = from_node.decode(data, sealed=False)
            except EdgeAttentionError:
                raise damage from None
            if not isinstance(message, Register) or message.protocol in SPOKEN:
                raise
            return message  # of an earlier release, which sends no checksums: it is told so
        if not isinstance(message, Register):
            raise FailedPrecondition(f"the first message is Register, not {type(message).__name__}")
        return message

    async def _read(
        self, name: str, member: Member, connection: NodeConnection, requests: AsyncIterator[bytes]
    ) -> None:
        debt, came = Debt(CREDIT), 1
        try:
            async for data in requests:
                came += 1
                connection.require_read()
                try:
                    message = from_node.decode(data)
                except Damaged as error:
                    self._heard(name, len(data))
                    self._observer.damaged()
                    log.warning("node %s: %s", name, error.message)
                    raise
                except EdgeAttentionError as error:
                    self._heard(name, len(data))
                    self._observer.damaged()
                    log.warning("node %s sent a message that cannot be read: %s", name, error.message)
                    task_id = task_of(data)
                    self._dispatcher.refuse(name, task_id, error)
                    # A contribution took credit, damaged or not.
                    connection.taken += bool(task_id)
                    if task_id and (credit := debt.consumed(len(data))) is not None:
                        connection.send(credit)
                    continue
                match message:
                    case Contribution():
                        connection.taken += 1
                        if message.error is not None and message.error.name == UnknownProgram.__name__:
                            connection.unknown()
                        if self._contribution(name, member, message):
                            await asyncio.sleep(0)  # who waited for it goes first
                        self._heard(name, len(data))
                        if (credit := debt.consumed(len(data))) is not None:
                            connection.send(credit)
                    case Heartbeat():
                        self._heard(name, len(data))
                        if message.sent and message.sent != came - 1:
                            raise Damaged(
                                f"node {name!r} has sent {message.sent} messages, {came - 1} have come"
                            )
                        connection.confirmed(message.received)
                        draining = message.draining
                        before = self._membership.state(name)
                        self._membership.heard(name, time.monotonic(), message)
                        connection.send(self._answer(name, message))
                        if message.metrics:
                            self._report(member, message.metrics, time.monotonic())
                        if draining and self._membership.state(name) is not before:
                            log.info("node %s is draining", name)
                            self._audit.write("drained", subject=f"node/{name}")
                            self._dispatcher.changed(name)
                    case Credit():
                        self._heard(name, len(data))
                        connection.grant(message)
                    case Register():
                        raise InvalidArgument("a node registers once a stream")
        finally:
            connection.close()

    def _answer(self, name: str, heartbeat: Heartbeat) -> HeartbeatAck:
        if (pace := self._membership.answer(name, heartbeat)) is None:
            return HeartbeatAck(heartbeat.number)
        return HeartbeatAck(heartbeat.number, lease_seconds=pace.lease, heartbeat_seconds=pace.heartbeat)

    def _report(self, member: Member, report: bytes, now: float) -> None:
        if now - member.reported < REPORT_SECONDS:
            return  # reading it takes a while, of which a node gets no more than its share
        member.reported = now
        try:
            member.metrics = checked(report)
        except InvalidArgument as error:
            member.metrics = b""
            self._observer.refused(error)
            log.warning("the metrics of node %s are not shown: %s", member.name, error.message)

    def _heard(self, name: str, size: int) -> None:
        """A message of `size` bytes came from the node: count it, and renew the node's lease."""
        self._count(self.bytes_received, name, size, "received", "stream")
        self._membership.heard(name, time.monotonic())

    def _contribution(self, name: str, member: Member, contribution: Contribution) -> bool:
        """Hand the contribution on. Returns whether the exchange that waited for it has ended."""
        bulk = contribution.bulk_tensors
        take = (lambda: self._bulk.received(member.session, bulk)) if bulk else None
        return self._dispatcher.contribution(name, contribution, take)

    def download(self, request: DownloadRequest, context: Any) -> AsyncIterator[Chunk]:
        name = self._membership.of_session(request.session).name
        self._require_name(name, "a session")
        return self._bulk.download(
            request, lambda size: self._count(self.bytes_sent, name, size, "sent", "bulk")
        )

    async def upload(self, chunks: AsyncIterator[UploadChunk], context: Any) -> Uploaded:
        # A chunk is kept nowhere while the next is waited for: of many uploads at once that would be much.
        ahead = [chunk] if (chunk := await anext(aiter(chunks), None)) is not None else []
        del chunk
        if not ahead:
            raise InvalidArgument("an upload without a message; send a chunk")
        session = ahead[0].session
        name = self._membership.of_session(session).name
        self._require_name(name, "a session")

        async def counted() -> AsyncIterator[UploadChunk]:
            yield self._counted(name, ahead.pop())
            try:
                async for chunk in chunks:
                    yield self._counted(name, chunk)
                    del chunk
            except Damaged as error:
                # The answer says how much is there: the node goes on from there at once.
                self._observer.damaged()
                log.warning("node %s: %s", name, error.message)

        uploaded = await self._bulk.upload(session, counted(), keep=False)
        live = sum(member.live for member in self._membership.members())
        return replace(uploaded, chunk_bytes=chunk_bytes(live))

    def _counted(self, name: str, chunk: UploadChunk) -> UploadChunk:
        self._count(self.bytes_received, name, len(chunk.data), "received", "bulk")
        self._membership.heard(name, time.monotonic())
        return chunk

    def _count(self, counter: Counter[str], name: str, size: int, direction: str, kind: str) -> None:
        counter[name] += size
        self._observer.moved(direction, kind, size)


async def watch_leases(
    membership: Membership, dispatcher: Dispatcher, link: FleetLink, observer: LinkObserver
) -> None:
    """Notice leases that run out; runs as long as the aggregator does."""
    while True:
        await asyncio.sleep(min(0.5, membership.lease / 4))
        lost = membership.tick(time.monotonic())
        for name in lost:
            log.warning("node %s is lost: its lease has run out", name)
            link.lost(name)
            dispatcher.changed(name)
        if lost:
            log.info("nodes came and went so: %s", told(membership.transitions))
        observer.tick(membership.members(), time.monotonic())
