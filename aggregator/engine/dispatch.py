"""Performs what exchanges decide: programs to connections, contributions back, deadlines on the clock."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, cast

from aggregator.engine.exchange import REFUSALS, Exchange
from aggregator.engine.outcome import Outcome
from aggregator.engine.overlaps import Overlaps
from aggregator.engine.returned import Returned, ReturnedTensor, close
from aggregator.engine.shards import Action, Assignment, Deliver, Revoke, SendProgram
from aggregator.engine.spool import SpooledTensor
from aggregator.fleet.membership import Membership
from aggregator.trust.acting import acting_for
from edge_attention.core.errors import (
    DuplicateContribution,
    EdgeAttentionError,
    Internal,
    NotFinite,
    NotFound,
    StaleVersion,
)
from edge_attention.core.messages.link import Cancel
from edge_attention.core.messages.program import Call, Contribution, Instruction, Program
from edge_attention.core.printable import shown
from edge_attention.core.sentence import Away, Sentence
from edge_attention.core.tensors import Array
from edge_attention.core.transitions import told

log = logging.getLogger(__name__)

TOLD_SECONDS = 1.0
"""How an exchange came to a bad end is logged at most that often: of many at once, one."""

AT_ONCE = 64
"""Shards whose programs are made and encoded in one step of the loop: a few milliseconds."""
WINDOW = 16
"""Tasks of one exchange that a node has at a time: those of others do not wait for all of them."""
POSTED = 4096
"""Tasks nobody waits for whose answers are known as such; then the oldest are forgotten."""


class NodeStream(Protocol):
    """A node's open stream. What is sent of no shard, and a Cancel, it sends again should it get lost."""

    def send(self, message: Program | Call | Cancel) -> None: ...


class DispatchObserver(Protocol):
    """Who counts what becomes of contributions."""

    def contribution(self, outcome: str) -> None:
        """What became of a contribution: it was folded, duplicate, late, stale or refused."""

    def not_finite(self) -> None:
        """A contribution was refused for NaN or infinity in it."""

    def ran(self, seconds: Mapping[str, float]) -> None:
        """An exchange has ended. `seconds`: shard -> what its task took in graphs."""


_NONE: Mapping[str, Array] = {}

Take = Callable[[Returned], None]
"""Takes what has come of a shard, and closes it; raises an EdgeAttentionError to refuse it."""


@dataclass(eq=False, slots=True)
class _Running:
    exchange: Exchange
    take: Take
    done: asyncio.Future[None]
    say: Callable[[str], None] | None = None
    began: float = field(default_factory=time.perf_counter)
    run_seconds: dict[str, float] = field(default_factory=dict)
    task_seconds: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    """Shards whose node had no other task while it had theirs."""
    flight: dict[str, set[str]] = field(default_factory=dict)
    """Node -> tasks it has been sent and has not ended."""
    held: dict[str, dict[str, Program | Call]] = field(default_factory=dict)
    """Node -> task -> its program, which waits until others of the exchange have ended there."""


class Dispatcher:
    """Runs exchanges over the connections there are."""

    def __init__(self, membership: Membership, observer: DispatchObserver) -> None:
        self._membership = membership
        self._observer = observer
        self._connections: dict[str, NodeStream] = {}
        self._running: dict[str, _Running] = {}
        # Task ids of an earlier life of this aggregator must not be taken for this one's.
        life = secrets.token_hex(4)
        self._ids = (f"{life}-{n}" for n in itertools.count())
        self._overlaps = Overlaps()
        self._changed = asyncio.Event()
        self._watching: list[Callable[[str], None]] = []
        # Task -> the node it was posted to.
        self._posted: OrderedDict[str, str] = OrderedDict()
        self._told_at = -TOLD_SECONDS

    # From the link

    def connected(self, name: str, connection: NodeStream) -> None:
        """The node has registered over `connection`: what waits for it is sent there from now on."""
        self._connections[name] = connection
        self.changed(name)

    def disconnected(self, name: str, connection: NodeStream) -> None:
        """The stream `connection` has ended; nothing where the node has come back over another."""
        if self._connections.get(name) is connection:
            del self._connections[name]
            self.changed(name)

    def changed(self, name: str) -> None:
        """The state of a node changed: every exchange hears of it."""
        self._changed.set()
        self._changed = asyncio.Event()
        for running in list(self._running.values()):
            # What a node that is back has to be sent again the exchange says, what it has lost, too.
            for task in running.flight.pop(name, ()):
                self._overlaps.end(name, task)
            running.held.pop(name, None)
            self._perform(running, running.exchange.node(name))
            if running.say is not None:
                running.say(self._waits(running.exchange))
        for hear in self._watching:
            hear(name)

    def watch(self, hear: Callable[[str], None]) -> None:
        """Have `hear` called with the name of a node whose state changed, once the exchanges have heard."""
        self._watching.append(hear)

    def contribution(
        self,
        node: str,
        contribution: Contribution,
        fetch: Callable[[], Mapping[str, SpooledTensor]] | None = None,
    ) -> bool:
        """Hand on what a node returned; refuse and count what fits no exchange.

        `fetch` gives its large tensors; of a contribution that comes again after a connection broke there
        are none any more. They are closed here, unless whoever waits for them took them.

        Returns whether the exchange it is for has ended.
        """
        if self._posted.get(contribution.task_id) == node:
            if contribution.error is not None:
                log.debug("housekeeping on node %s: %s", node, shown(contribution.error.message, 500))
            return False
        running = self._running.get(contribution.task_id.partition(".")[0])
        large: Mapping[str, SpooledTensor] = {}
        actions: Sequence[Action] = ()
        try:
            if running is None:
                raise NotFound(f"nobody waits for task {contribution.task_id[:80]!r}")
            if fetch is not None:
                running.exchange.require_awaited(node, contribution)
                try:
                    large, fetch = fetch(), None
                except EdgeAttentionError as error:
                    self.refuse(node, contribution.task_id, error)
                    return running.done.done()
            actions = running.exchange.contribution(node, contribution)
            if contribution.final:
                shard, took = contribution.shard, time.perf_counter() - running.began
                running.seconds[shard] = took
                alone = self._overlaps.alone(contribution.task_id)
                (running.alone.add if alone else running.alone.discard)(shard)
                running.run_seconds[shard] = _within(contribution.run_seconds, took)
                running.task_seconds[shard] = _within(contribution.task_seconds, took)
            self._perform(running, actions, large)
            if contribution.final:
                self._ended(running, node, contribution.task_id)
        except EdgeAttentionError as error:
            if fetch is not None and not isinstance(error, DuplicateContribution):
                with suppress(EdgeAttentionError):
                    large = fetch()  # to be closed
            outcome = {DuplicateContribution: "duplicate", NotFound: "late", StaleVersion: "stale"}
            self._observer.contribution(outcome.get(type(error), "refused"))
            log.debug("contribution of node %s refused: %s", node, error.message)
        finally:
            if large and not any(isinstance(action, Deliver) for action in actions):
                close(large)
        return running is not None and running.done.done()

    def refuse(self, node: str, task_id: str, error: EdgeAttentionError) -> None:
        """A message of `task_id` came damaged: another holder is asked, if there is one."""
        running = self._running.get(task_id.partition(".")[0])
        if running is not None:
            self._perform(running, running.exchange.damaged(node, task_id, error))

    # For the trip, and what nobody waits for

    async def run(
        self,
        assignments: Sequence[Assignment],
        deadline_seconds: float,
        take: Take,
        say: Callable[[str], None] | None = None,
        *,
        believed: tuple[type[EdgeAttentionError], ...] = REFUSALS,
        version: int = 0,
        tensors: Mapping[str, Array] = _NONE,
        patient: bool = True,
    ) -> Outcome:
        """Run one exchange to its end: every shard answered or missing, at the deadline at the latest.

        `take` gets what comes, message by message; what it does not refuse is its own to close.
        `say` is told which node is waited for while it is away and until when, and "" when it is back.
        `believed`, `version`, `tensors`, `patient`: see `Exchange`.

        Raises:
            EdgeAttentionError: what every holder of a shard found wrong with the program itself.
        """
        loop = asyncio.get_running_loop()
        exchange = Exchange(
            next(self._ids),
            assignments,
            self._membership.state,
            believed,
            acting_for(),
            version=version,
            seconds=deadline_seconds,
            tensors=tensors,
            patient=patient,
        )
        running = _Running(exchange, take, loop.create_future(), say)
        self._running[exchange.id] = running
        timer: asyncio.TimerHandle | None = None
        try:
            self._perform(running, exchange.start(AT_ONCE))
            # Once they are on their way: nobody waits for this.
            timer = loop.call_later(deadline_seconds, lambda: self._perform(running, exchange.deadline()))
            while not (exchange.started or running.done.done()):
                await asyncio.sleep(0)
                self._perform(running, exchange.start(AT_ONCE))
            await running.done
        finally:
            if timer is not None:
                timer.cancel()
            if not exchange.done:
                self._perform(running, exchange.cancel())
            for node, tasks in running.flight.items():
                for task in tasks:
                    self._overlaps.end(node, task)
            del self._running[exchange.id]
            self._observer.ran(running.run_seconds)
        answered, missing = exchange.answered, exchange.missing
        if missing or exchange.failure is not None:
            self._tell(exchange)
        if exchange.failure is not None:
            raise exchange.failure
        seconds = {shard: running.seconds[shard] for shard in answered}
        return Outcome(
            answered, missing, running.run_seconds, running.task_seconds, seconds, frozenset(running.alone)
        )

    def post(self, node: str, instructions: tuple[Instruction, ...]) -> None:
        """Have `node` run instructions nobody waits for, if it is connected."""
        connection = self._connections.get(node)
        if connection is not None:
            task_id = f"{next(self._ids)}.0.1"
            self._posted[task_id] = node
            while len(self._posted) > POSTED:
                self._posted.popitem(last=False)
            connection.send(Program(task_id, "", range(0), instructions, caller=acting_for()))

    async def all_live(self, names: Sequence[str], patience: float, say: Callable[[str], None]) -> bool:
        """Wait until every node of `names` is live, at most `patience` seconds.

        `say` is told who is waited for and until when, and "" at the end.
        """
        until = time.monotonic() + patience
        said = ""
        while away := [n for n in names if n not in self._connections or not self._membership.live(n)]:
            left = until - time.monotonic()
            if left <= 0:
                return False
            states = Sentence.joined(", ", map(self._away, away))
            if said != states:
                clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
                say(Sentence(states, f", until {clock} ({patience:.0f} s in all)"))
                said = states
            changed = self._changed
            try:
                async with asyncio.timeout(min(left, 1.0)):  # wait_for may forget a cancellation
                    await changed.wait()
            except TimeoutError:
                continue
        if said:
            say("")
        return True

    # Inside

    def _tell(self, exchange: Exchange) -> None:
        """Log how `exchange` came to its bad end, unless another has been logged just now."""
        now = time.monotonic()
        if now - self._told_at >= TOLD_SECONDS:
            self._told_at = now
            log.info("exchange %s ended badly: %s", exchange.id, told(exchange.transitions))

    def _waits(self, exchange: Exchange) -> str:
        """Which nodes that are away `exchange` waits for, and until when at the latest."""
        away = []
        for node in sorted(set(exchange.waits.values())):
            member = self._membership.get(node)
            if member is not None and not member.live:
                left = max(self._membership.ends(member) - time.monotonic(), 0.0)
                clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
                away.append(Sentence(self._away(node), f", whose lease ends at {clock}"))
        return Sentence.joined(", ", away)

    def _away(self, node: str) -> Sentence:
        state = self._membership.state(node).value if self._membership.get(node) else "never seen"
        return Sentence(f"node {node!r}", Away(f" ({state})", frozenset({node})))

    def _send(self, running: _Running, node: str, program: Program | Call) -> None:
        connection = self._connections.get(node)
        if connection is None:
            return
        flight = running.flight.setdefault(node, set())
        if program.task_id in flight or len(flight) < WINDOW:
            flight.add(program.task_id)
            self._overlaps.begin(node, program.task_id)
            try:
                connection.send(program)
            except EdgeAttentionError as error:
                # Too large, say: whose exchange it is is told, and not the node that has just come back.
                if not running.done.done():
                    running.done.set_exception(error)
        else:
            running.held.setdefault(node, {})[program.task_id] = program

    def _ended(self, running: _Running, node: str, task_id: str) -> None:
        """The node has ended a task of the exchange, or nobody waits for it: it gets the next one."""
        self._overlaps.end(node, task_id)
        flight, held = running.flight.get(node), running.held.get(node)
        if flight is not None:
            flight.discard(task_id)
            while not running.exchange.done and held and len(flight) < WINDOW:
                self._send(running, node, held.pop(next(iter(held))))

    def _perform(
        self, running: _Running, actions: Sequence[Action], large: Mapping[str, SpooledTensor] | None = None
    ) -> None:
        """`large`: tensors of the contribution that these actions come of."""
        # A recipe that refuses and a connection that is gone add actions of their own.
        queue = list(actions)
        while queue:
            match queue.pop(0):
                case SendProgram(node, program):
                    self._send(running, node, program)
                case Revoke(node, task_id):
                    connection = self._connections.get(node)
                    if running.held.get(node, {}).pop(task_id, None) is None and connection is not None:
                        connection.send(Cancel(task_id))
                    self._ended(running, node, task_id)
                case Deliver(_, node, contribution):
                    returned = Returned(
                        contribution.shard,
                        node,
                        contribution.coverage,
                        # What came from the wire is decoded; Encoded is how tensors leave.
                        cast("Mapping[str, ReturnedTensor]", _with(contribution.tensors, large)),
                        contribution.number,
                        contribution.final,
                    )
                    try:
                        running.take(returned)
                        self._observer.contribution("folded")
                    except Exception as problem:
                        returned.close()
                        # Whatever a peer sends, the stream it came on and this exchange go on.
                        error = problem if isinstance(problem, EdgeAttentionError) else None
                        if error is None:
                            log.exception("a contribution of node %s could not be folded", node)
                            error = Internal(f"its contribution could not be folded: {problem!r}")
                        self._observer.contribution("refused")
                        if isinstance(error, NotFinite):
                            self._observer.not_finite()
                        log.warning("contribution of node %s refused: %s", node, error.message)
                        queue += running.exchange.refuse(contribution.task_id, error)
        if running.exchange.done and not running.done.done():
            running.done.set_result(None)


def _within(seconds: float, most: float) -> float:
    """What a node says it took, as far as it can be true; NaN is not."""
    return min(seconds, most) if seconds >= 0 else 0.0


def _with(tensors: Mapping[str, object], large: Mapping[str, SpooledTensor] | None) -> Mapping[str, object]:
    return {**tensors, **large} if large else tensors
