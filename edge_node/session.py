"""The node's side of the link as a state machine: events and the time in, actions out. No I/O, no clock.

    waiting --(wake)--> connecting --(connected)--> registering --(Registered)--> registered
       ^_______________________________ lost ___________________________________________|

From each of them a node that drains, is revoked or is refused for good goes to `left`, and stays there.

A Session says what to do and by `wake` when to call `tick`; `edge_node.link` does it. Contributions
are encoded already; their numbers tell one that comes again after a reconnection.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from edge_attention.core import errors
from edge_attention.core.errors import Damaged, EdgeAttentionError, Unavailable
from edge_attention.core.messages import link as said
from edge_attention.core.messages.program import Call, Program
from edge_attention.core.rounds.credit import Debt, Outbox
from edge_attention.core.transitions import Transition, recent

PROGRAMS = said.Credit(bytes=64 * 1024 * 1024, messages=256)
"""Programs the aggregator may have with this node unfinished."""
UNTAKEN_BYTES, UNTAKEN = 256 * 1024 * 1024, 16_384
"""Contributions that the aggregator has not taken: of more the stream ends at the next program."""
KEPT_TASKS = 1024
KEPT_BYTES = 64 * 1024 * 1024
"""Contributions of finished tasks kept in case their program comes again."""
BACKOFF = (0.25, 30.0)
AT_ONCE, AT_ONCE_SECONDS = 8, 1.0
"""After damage a node connects again at once, but no more than so many times in so many seconds: then it
waits for up to as long, which is less than any lease."""
ANSWER_SECONDS = 10.0
DRAIN_SECONDS = 10.0
"""How long a node that leaves tries to deliver while it has no connection."""
BEAT_SECONDS = (0.1, 60.0)
"""Between two heartbeats, whatever the aggregator asks for."""
LEASE_SECONDS = (1.0, 3600.0)
"""How long a silent aggregator is waited for, whatever it asks for; and never less than two heartbeats."""
_FINAL = (errors.AlreadyExists, errors.InvalidArgument, errors.PermissionDenied, errors.FailedPrecondition)


class SessionPhase(Enum):
    """How far the node is with its connection."""

    WAITING = "waiting"
    """Until it is time to connect."""
    CONNECTING = "connecting"
    REGISTERING = "registering"
    """The stream is open, the aggregator has not answered yet."""
    REGISTERED = "registered"
    LEFT = "left"
    """The process is to end."""


class Connect(NamedTuple):
    """Open a stream, then call `connected`, or `lost` if it fails or when it ends."""


class Disconnect(NamedTuple):
    """Close the stream; `lost` is not to be called for it."""


class SendMessage(NamedTuple):
    """Write to the stream, in order; bytes are an encoded contribution."""

    message: said.FromNode | bytes


class Start(NamedTuple):
    """Run the program, or answer with `refusal`; call `produced` for each contribution."""

    program: Program | Call
    refusal: EdgeAttentionError | None = None


class End(NamedTuple):
    """End the task early, with `error`."""

    task_id: str
    error: EdgeAttentionError


class Forget(NamedTuple):
    """Drop the sequences `names` from the store: the aggregator no longer knows them."""

    names: tuple[str, ...]


class Say(NamedTuple):
    """Tell the operator `text`, as a warning or not."""

    text: str
    warning: bool = False


class Leave(NamedTuple):
    """End the process with exit code `code`, once everything that was sent is on its way."""

    code: int
    text: str = ""


Action = Connect | Disconnect | SendMessage | Start | End | Forget | Say | Leave


class _RunningTask:
    def __init__(self, size: int, stream: int) -> None:
        self.size = size
        self.stream = stream
        self.contributions: list[bytes] | None = []  # None: not kept
        self.bytes = 0  # of these


class Session:
    """One node's life with its aggregator. Once it has left, no event does anything.

    `register` makes the Register message for the session to resume ("" for a new one), `memory` gives the
    bytes stored now and `report` what is to be told of the time it is given, for heartbeats, `random` numbers
    in [0, 1) for the backoff's jitter.
    """

    def __init__(
        self,
        name: str,
        where: str,
        register: Callable[[str], said.Register],
        memory: Callable[[], int],
        random: Callable[[], float],
        report: Callable[[float], bytes] = lambda now: b"",
    ) -> None:
        self.phase = SessionPhase.WAITING
        self.id = ""
        """The session to resume; empty: there is none yet."""
        self.draining = False
        self.reconnects = 0
        self.outbox = Outbox()
        self.transitions: deque[Transition] = recent()
        self._name = name
        self._where = where
        self._register = register
        self._memory = memory
        self._random = random
        self._report = report
        self._said = ""
        """The last trouble the operator was told of."""
        self._until = 0.0
        """Waiting: when to connect; connecting, registering: when to give up."""
        self._attempts = 0
        self._streams = 0
        self._beats = 0
        self._heard = 0.0
        self._beat_at = 0.0
        self._drain_until = 0.0
        self._lease = ANSWER_SECONDS
        self._heartbeat = ANSWER_SECONDS
        self._sent = 0  # messages, on this connection
        self._came = 0
        self._damages = deque[float](maxlen=AT_ONCE + 1)
        self._debt = Debt(PROGRAMS)
        self._running: dict[str, _RunningTask] = {}
        self._running_bytes = 0
        self._kept = OrderedDict[str, list[bytes]]()
        self._kept_bytes = 0
        self._leaving = OrderedDict[str, bytes]()  # task done, not kept -> its last contribution

    @property
    def tasks(self) -> int:
        return len(self._running)

    @property
    def registered(self) -> bool:
        return self.phase is SessionPhase.REGISTERED

    @property
    def wake(self) -> float | None:
        """When to call `tick`, if nothing else happens before."""
        if self.phase is SessionPhase.LEFT:
            return None
        if self.registered:
            return min(self._beat_at, self._heard + self._lease)
        return min(self._until, self._drain_until) if self.draining else self._until

    def tick(self, now: float) -> list[Action]:
        """What is due by `now`: a heartbeat, a try, the end of a silent connection. Call it at `wake`."""
        if self.phase is SessionPhase.LEFT:
            return []
        if self.draining and not self.registered and now >= self._drain_until:
            text = "left without delivering everything: the aggregator cannot be reached"
            return self._leave(1, text, now)
        if self.phase is SessionPhase.WAITING:
            if now < self._until:
                return []
            self._turn(SessionPhase.CONNECTING, now, "it is time")
            self._until = now + ANSWER_SECONDS
            return [Connect()]
        if now >= (self._heard + self._lease if self.registered else self._until):
            silent = self._lease if self.registered else ANSWER_SECONDS
            error = Unavailable(f"{self._where} was silent for {silent:.1f} s")
            return [Disconnect(), *self.lost(error, now)]
        return [self._beat(now)] if self.registered and now >= self._beat_at else []

    def connected(self, now: float) -> list[Action]:
        """The stream that `Connect` asked for is open."""
        if self.phase is SessionPhase.LEFT:
            return []
        self._turn(SessionPhase.REGISTERING, now, "connected")
        self._until = now + ANSWER_SECONDS
        self._sent = 1
        self._came = 0
        return [SendMessage(replace(self._register(self.id), taken=self.outbox.taken))]

    def lost(self, error: EdgeAttentionError, now: float) -> list[Action]:
        """The stream could not be opened, or has ended.

        Damaged, a message on it came so, or some did not come at all, this way or the other: the next stream
        resumes the session at once, and programs and contributions that may be lost are sent again.
        """
        if self.phase is SessionPhase.LEFT:
            return []
        if isinstance(error, errors.Revoked) or (not self.id and isinstance(error, _FINAL)):
            return self._leave(1, error.message, now)
        first = self.registered or self._attempts == 0 or self._said != error.message
        self._said = error.message
        self._turn(SessionPhase.WAITING, now, type(error).__name__)
        self.outbox.broke()
        base, cap = BACKOFF
        wait = self._random() * min(cap, base * 2.0 ** min(self._attempts, 16))
        if isinstance(error, Damaged) and self._attempts == 0:
            # The network works: what did not come whole is asked for again at once.
            self._damages.append(now)
            often = len(self._damages) > AT_ONCE and now - self._damages[-AT_ONCE - 1] < AT_ONCE_SECONDS
            wait = (0.5 + 0.5 * self._random()) * AT_ONCE_SECONDS if often else 0.0
        self._until = now + wait
        self._attempts += 1
        self._streams += 1
        say = [Say(f"{error.message}; trying again until it answers", warning=True)] if first else []
        return [*say, *self._finish(now)]

    def received(self, message: said.ToNode | None, size: int, now: float) -> list[Action]:
        """A message of `size` bytes came; None for one that cannot be read, which counts as a program.

        Raises:
            Damaged: others have not come. `lost` is to be called with it, as where a message came damaged.
            ResourceExhausted: the aggregator asks, and does not take the answers. The same.
        """
        if self.phase is SessionPhase.LEFT:
            return []
        self._heard = now
        self._came += 1
        match message:
            case said.Registered():
                return self._registered(message, now)
            case Program() | Call():
                self._require_taken()
                return self._program(message, size, now)
            case said.Cancel(task_id) if task_id in self._running:
                return [End(task_id, errors.Cancelled(f"task {task_id[:80]} was cancelled"))]
            case said.Credit():
                self.outbox.granted(message)
                self._let_go()
                return self._pump(now)
            case said.HeartbeatAck(number, sent, lease, heartbeat):
                if sent and sent != self._came - 1:
                    raise Damaged(f"{self._where} has sent {sent} messages, {self._came - 1} have come")
                self.outbox.answered(number)
                self._let_go()
                if heartbeat and self.registered:
                    self._go_by(lease, heartbeat)
                    self._beat_at = min(self._beat_at, now + self._heartbeat)
            case None:
                self._require_taken()
                return self._consumed(size, self._streams)
        return []

    def _require_taken(self) -> None:
        count, size = len(self.outbox), self.outbox.backlog + self.outbox.flying
        if size > UNTAKEN_BYTES or count > UNTAKEN:
            raise errors.ResourceExhausted(
                f"{self._where} asks and does not take the answers: {count:,} of them wait, {size:,} bytes"
            )

    def produced(self, task_id: str, data: bytes, now: float, final: bool, keep: bool = True) -> list[Action]:
        """A task has made a contribution, which is encoded as `data`.

        `keep`: it can be sent again as it is if its program comes again.
        """
        if self.phase is SessionPhase.LEFT:
            return []
        actions: list[Action] = []
        task = self._running.get(task_id)
        if task is not None:
            task.bytes += len(data)
            if not keep or task.contributions is None or task.bytes > KEPT_BYTES // 8:
                task.contributions = None
            else:
                task.contributions.append(data)
            if final:
                del self._running[task_id]
                self._running_bytes -= task.size
                actions = self._consumed(task.size, task.stream)
                self._keep(task_id, task, data)
        taken = self.outbox.send(data)
        self._sent += len(taken)
        actions += map(SendMessage, taken)
        return [*actions, *self._finish(now)] if self.draining else actions

    def drain(self, now: float) -> list[Action]:
        """Finish what runs, take nothing more, and leave; asked again, leave at once."""
        if self.phase is SessionPhase.LEFT:
            return []
        if self.draining:
            return self._leave(1, "left at once, with tasks unfinished" if self._running else "", now)
        self.draining = True
        self._drain_until = now + DRAIN_SECONDS
        text = f"draining: {self.tasks} tasks to finish; a second signal ends this at once"
        beat: list[Action] = [self._beat(now)] if self.registered else []
        return [Say(text), *beat, *self._finish(now)]

    def vanish(self, now: float) -> list[Action]:
        """Be gone without a word."""
        return [] if self.phase is SessionPhase.LEFT else self._leave(1, "", now)

    def _registered(self, message: said.Registered, now: float) -> list[Action]:
        if self.phase is not SessionPhase.REGISTERING:
            return []
        self.reconnects += bool(self.id)
        # Another aggregator process than the one whose tasks run here: nobody waits for them.
        anew = errors.Cancelled("the aggregator that asked for this task is gone")
        ended = list(self._running) if self.id and not message.resumed else []
        self._turn(SessionPhase.REGISTERED, now, "resumed" if message.resumed else "registered")
        self.id = message.session
        self._attempts = 0
        self._go_by(message.lease_seconds, message.heartbeat_seconds)
        self._beat_at = now + self._heartbeat
        self.outbox.open(message.credit, message.taken)
        self._debt = Debt(PROGRAMS)
        self._sent += 1
        actions: list[Action] = [SendMessage(PROGRAMS), *(End(task_id, anew) for task_id in ended)]
        if message.drop:
            actions.append(Forget(message.drop))
        if self.draining:
            actions.append(self._beat(now))
        how = " (session resumed)" if message.resumed else ""
        actions.append(Say(f"registered with {self._where} as {self._name}{how}"))
        return [*actions, *self._pump(now)]

    def _go_by(self, lease: float, heartbeat: float) -> None:
        """Beat and wait for the aggregator as it asks, within this node's own bounds."""
        least, most = BEAT_SECONDS
        self._heartbeat = min(most, max(least, heartbeat))  # in this order NaN is no harm
        least, most = max(LEASE_SECONDS[0], 2 * self._heartbeat), LEASE_SECONDS[1]
        self._lease = min(most, max(least, lease))

    def _program(self, program: Program | Call, size: int, now: float) -> list[Action]:
        task_id = program.task_id
        last = self._leaving.get(task_id)
        if task_id in self._running or (last is not None and self.outbox.holds(last)):
            return self._consumed(size, self._streams)
        if task_id in self._kept:
            self.outbox.add(self._kept[task_id])
            return [*self._consumed(size, self._streams), *self._pump(now)]
        self._running[task_id] = _RunningTask(size, self._streams)
        self._running_bytes += size
        refusal: EdgeAttentionError | None = None
        if self.draining:
            refusal = Unavailable("this node is about to leave and takes no more tasks")
        elif (
            len(self._running) > 2 * PROGRAMS.messages or self._running_bytes - size > 2 * PROGRAMS.bytes
        ):  # twice: a reconnection grants it anew; the last may overdraw
            refusal = errors.ResourceExhausted(
                f"this node has {self.tasks} tasks of {self._running_bytes:,} bytes, more than it granted"
            )
        return [Start(program, refusal)]

    def _consumed(self, size: int, stream: int) -> list[Action]:
        # Credit belongs to a stream: for a program of an earlier one there is nothing to grant back.
        if stream != self._streams or not self.registered:
            return []
        credit = self._debt.consumed(size)
        self._sent += credit is not None
        return [SendMessage(credit)] if credit else []

    def _pump(self, now: float) -> list[Action]:
        taken = self.outbox.take()
        self._sent += len(taken)
        return [*map(SendMessage, taken), *self._finish(now)]

    def _keep(self, task_id: str, task: _RunningTask, last: bytes) -> None:
        if task.contributions is None:
            # On its way, or to be sent again: not a reason to run the task once more.
            self._let_go()
            self._leaving[task_id] = last
        else:
            self._kept[task_id] = task.contributions
            self._kept_bytes += task.bytes
        while self._kept_bytes > KEPT_BYTES or len(self._kept) > KEPT_TASKS:
            self._kept_bytes -= sum(map(len, self._kept.popitem(last=False)[1]))

    def _let_go(self) -> None:
        while self._leaving and not self.outbox.holds(next(iter(self._leaving.values()))):
            self._leaving.popitem(last=False)

    def _beat(self, now: float) -> SendMessage:
        self._beats += 1
        self.outbox.beat(self._beats)
        self._beat_at = now + self._heartbeat
        report, sent = self._report(now), self._sent
        self._sent += 1
        beat = said.Heartbeat(
            self._beats, self._memory(), self.tasks, self.draining, report, sent, self._came, self._heartbeat
        )
        return SendMessage(beat)

    def _finish(self, now: float) -> list[Action]:
        """Leave, if that is what remains."""
        done = self.draining and not self._running and not self.outbox
        return self._leave(0, "", now) if done else []

    def _leave(self, code: int, text: str, now: float) -> list[Action]:
        self._turn(SessionPhase.LEFT, now, text)
        return [Leave(code, text)]

    def _turn(self, phase: SessionPhase, now: float, why: str) -> None:
        self.transitions.append((now, (why,), self.phase, phase))
        self.phase = phase

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        left = self.phase is SessionPhase.LEFT
        assert (self.wake is None) == left, "nobody is to look again, or after its end"
        assert left or not self.draining or self._running or self.outbox, "all is done, and it stays"
        assert left or self.registered or not self.outbox.in_flight, "sent where nobody is connected"
        assert not self._running.keys() & self._kept.keys(), "a task runs that has ended"
        assert self._kept_bytes == sum(len(data) for kept in self._kept.values() for data in kept)
        assert self._kept_bytes <= KEPT_BYTES
        assert self._running_bytes == sum(task.size for task in self._running.values())
        assert len(self._kept) <= KEPT_TASKS
        if self.registered:
            assert BEAT_SECONDS[0] <= self._heartbeat <= BEAT_SECONDS[1]
            assert 2 * self._heartbeat <= self._lease <= LEASE_SECONDS[1]
        self.outbox.check()
