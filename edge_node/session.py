"""The node's side of the link as a state machine: events and the time in, actions out. No I/O, no clock.

    waiting --(wake)--> connecting --(connected)--> registering --(Registered)--> registered
       ^_______________________________ lost ___________________________________________|

A Session says what to do and by `wake` when to call `tick`; `edge_node.link` does it. Contributions
are encoded already. The other side grants credit back as it takes them, in order: what was sent and not
granted back is sent again after a reconnection, and the number in each tells a repetition.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_attention.core.credit import Debt, Window
from edge_attention.core.errors import (
    AlreadyExists,
    Cancelled,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.program import Program
from edge_attention.core.session import (
    Cancel,
    Credit,
    FromNode,
    Heartbeat,
    HeartbeatAck,
    Register,
    Registered,
    ToNode,
)

PROGRAMS = Credit(bytes=64 * 1024 * 1024, messages=256)
"""Programs the aggregator may have with this node unfinished."""
KEPT_BYTES = 64 * 1024 * 1024
"""Contributions of finished tasks kept in case their program comes again."""
BACKOFF = (0.25, 30.0)
ANSWER_SECONDS = 10.0
DRAIN_SECONDS = 10.0
"""How long a node that leaves tries to deliver while it has no connection."""
_TERMINAL = (AlreadyExists, InvalidArgument, PermissionDenied, FailedPrecondition)


@dataclass(frozen=True)
class Connect:
    """Open a stream, then call `connected`, or `lost` if it fails or when it ends."""


@dataclass(frozen=True)
class Disconnect:
    """Close the stream; `lost` is not to be called for it."""


@dataclass(frozen=True)
class Send:
    """Write to the stream, in order; bytes are an encoded contribution."""

    message: FromNode | bytes


@dataclass(frozen=True)
class Start:
    """Run the program, or answer with `refusal`; call `produced` for each contribution."""

    program: Program
    refusal: EdgeAttentionError | None = None


@dataclass(frozen=True)
class End:
    """End the task early."""

    task_id: str
    error: EdgeAttentionError


@dataclass(frozen=True)
class Forget:
    """Drop these from the store."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Say:
    """Tell the operator."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Leave:
    """End the process, once everything sent is on its way."""

    code: int
    text: str = ""


Action = Connect | Disconnect | Send | Start | End | Forget | Say | Leave


@dataclass
class _Task:
    size: int
    epoch: int
    contributions: list[bytes] | None = field(default_factory=list)  # None: not kept


class Session:
    """One node's life with its aggregator.

    Args:
        register: makes the Register message for the session to resume ("" for a new one).
        memory: bytes stored now, for heartbeats.
        random: uniform in [0, 1), for the backoff's jitter.
    """

    def __init__(
        self,
        name: str,
        where: str,
        *,
        register: Callable[[str], Register],
        memory: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        self._name, self._where = name, where
        self._register, self._memory, self._random = register, memory, random
        self.phase = "waiting"
        self.id = ""
        self.draining = False
        self.reconnects = 0
        self._until = 0.0  # waiting: when to connect; connecting, registering: when to give up
        self._attempts = self._epoch = self._beats = 0
        self._heard = self._beat_at = self._drain_until = 0.0
        self._lease = self._heartbeat = ANSWER_SECONDS
        self._window, self._debt = Window(), Debt(PROGRAMS)
        self._running: dict[str, _Task] = {}
        self._kept: OrderedDict[str, list[bytes]] = OrderedDict()
        self._outbox: deque[bytes] = deque()
        self._flight: deque[bytes] = deque()
        self.backlog = 0

    @property
    def tasks(self) -> int:
        return len(self._running)

    @property
    def wake(self) -> float | None:
        """When to call `tick`, if nothing else happens before."""
        if self.phase == "left":
            return None
        times = [min(self._beat_at, self._heard + self._lease) if self.phase == "registered" else self._until]
        return min(times + ([self._drain_until] if self.draining and self.phase != "registered" else []))

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        if self.draining and self.phase not in ("registered", "left") and now >= self._drain_until:
            return self._leave(1, "left without delivering everything: the aggregator cannot be reached")
        if self.phase == "waiting" and now >= self._until:
            self.phase, self._until = "connecting", now + ANSWER_SECONDS
            return [Connect()]
        limit = self._heard + self._lease if self.phase == "registered" else self._until
        if self.phase in ("connecting", "registering", "registered") and now >= limit:
            silent = self._lease if self.phase == "registered" else ANSWER_SECONDS
            return [
                Disconnect(),
                *self.lost(Unavailable(f"{self._where} was silent for {silent:.1f} s"), now),
            ]
        return [self._beat(now)] if self.phase == "registered" and now >= self._beat_at else []

    def connected(self, now: float) -> list[Action]:
        """The stream is open."""
        self.phase, self._until = "registering", now + ANSWER_SECONDS
        return [Send(self._register(self.id))]

    def lost(self, error: EdgeAttentionError, now: float) -> list[Action]:
        """The stream could not be opened, or has ended."""
        if self.phase == "left":
            return []
        if not self.id and isinstance(error, _TERMINAL):
            return self._leave(1, error.message)
        was, self.phase = self.phase, "waiting"
        # What was sent and not granted back may not have arrived: it goes again, before the rest.
        self.backlog += sum(map(len, self._flight))
        self._outbox.extendleft(reversed(self._flight))
        self._flight.clear()
        self._window = Window()
        self._epoch += 1
        base, cap = BACKOFF
        delay = self._random() * min(cap, base * 2.0 ** min(self._attempts, 16))
        self._attempts += 1
        self._until = now + delay
        first = was == "registered" or self._attempts == 1
        say = [Say(f"{error.message}; trying again until it answers", warning=True)] if first else []
        return [*say, *self._finish()]

    def received(self, message: ToNode, size: int, now: float) -> list[Action]:
        """A message of `size` bytes came."""
        self._heard = now
        match message:
            case Registered():
                return self._registered(message, now)
            case Program():
                return self._program(message, size)
            case Cancel(task_id) if task_id in self._running:
                return [End(task_id, Cancelled(f"task {task_id[:80]} was cancelled by the aggregator"))]
            case Credit():
                for _ in range(min(message.messages, len(self._flight))):
                    self._flight.popleft()
                self._window.grant(message)
                return self._pump()
            case Cancel() | HeartbeatAck():
                return []

    def damaged(self, size: int, now: float) -> list[Action]:
        """A message of `size` bytes came that cannot be read: a program, nothing else is granted credit."""
        self._heard = now
        return self._consumed(size, self._epoch)

    def produced(
        self, task_id: str, data: bytes, now: float, *, final: bool, keep: bool = True
    ) -> list[Action]:
        """A task has a contribution. `keep`: it can be sent again as it is if its program comes again."""
        actions: list[Action] = []
        task = self._running.get(task_id)
        if task is not None:
            if not keep or sum(map(len, task.contributions or ())) + len(data) > KEPT_BYTES // 8:
                task.contributions = None
            if task.contributions is not None:
                task.contributions.append(data)
            if final:
                del self._running[task_id]
                actions += self._consumed(task.size, task.epoch)
                if task.contributions is not None:
                    self._keep(task_id, task.contributions)
        self._outbox.append(data)
        self.backlog += len(data)
        return [*actions, *self._pump()]

    def drain(self, now: float) -> list[Action]:
        """Finish what runs, take nothing more, and leave; asked again, leave at once."""
        if self.draining:
            return self._leave(1, "left at once, with tasks unfinished" if self._running else "")
        self.draining, self._drain_until = True, now + DRAIN_SECONDS
        text = f"draining: {self.tasks} tasks to finish; a second signal ends this at once"
        beat: list[Action] = [self._beat(now)] if self.phase == "registered" else []
        return [Say(text), *beat, *self._finish()]

    def _registered(self, message: Registered, now: float) -> list[Action]:
        if self.phase != "registering":
            return []
        self.reconnects += bool(self.id)
        self.phase, self.id, self._attempts = "registered", message.session, 0
        self._lease = max(message.lease_seconds, 1.0)
        self._heartbeat = max(message.heartbeat_seconds, 0.1)
        self._beat_at = now + self._heartbeat
        self._window, self._debt = Window(message.credit), Debt(PROGRAMS)
        actions: list[Action] = [Send(PROGRAMS)]
        if message.drop:
            actions.append(Forget(message.drop))
        if self.draining:
            actions.append(self._beat(now))
        how = " (session resumed)" if message.resumed else ""
        actions.append(Say(f"registered with {self._where} as {self._name}{how}"))
        return [*actions, *self._pump()]

    def _program(self, program: Program, size: int) -> list[Action]:
        task_id = program.task_id
        if task_id in self._running:
            return self._consumed(size, self._epoch)
        if task_id in self._kept:
            again = [data for data in self._kept[task_id] if data not in self._outbox]
            self._outbox.extend(again)
            self.backlog += sum(map(len, again))
            return [*self._consumed(size, self._epoch), *self._pump()]
        self._running[task_id] = _Task(size, self._epoch)
        refusal: EdgeAttentionError | None = None
        if self.draining:
            refusal = Unavailable("this node is about to leave and takes no more tasks")
        elif len(self._running) > 2 * PROGRAMS.messages:  # twice: a reconnection grants it anew
            refusal = ResourceExhausted(f"this node has {self.tasks} tasks under way, more than it granted")
        return [Start(program, refusal)]

    def _consumed(self, size: int, epoch: int) -> list[Action]:
        # Credit belongs to a stream: for a program of an earlier one there is nothing to grant back.
        if epoch != self._epoch or self.phase != "registered":
            return []
        credit = self._debt.consumed(size)
        return [Send(credit)] if credit else []

    def _pump(self) -> list[Action]:
        actions: list[Action] = []
        while self.phase == "registered" and self._outbox and self._window.take(len(self._outbox[0])):
            data = self._outbox.popleft()
            self.backlog -= len(data)
            self._flight.append(data)
            actions.append(Send(data))
        return [*actions, *self._finish()]

    def _keep(self, task_id: str, contributions: list[bytes]) -> None:
        self._kept[task_id] = contributions
        total = sum(len(data) for kept in self._kept.values() for data in kept)
        while total > KEPT_BYTES or len(self._kept) > 1024:
            total -= sum(map(len, self._kept.popitem(last=False)[1]))

    def _beat(self, now: float) -> Send:
        self._beats += 1
        self._beat_at = now + self._heartbeat
        return Send(Heartbeat(self._beats, self._memory(), self.tasks, self.draining))

    def _finish(self) -> list[Action]:
        """Leave, if that is what remains."""
        done = self.draining and not self._running and not self._outbox
        return self._leave(0, "") if done else []

    def _leave(self, code: int, text: str) -> list[Action]:
        if self.phase == "left":
            return []
        self.phase = "left"
        return [Leave(code, text)]
