"""The exchange: place a program on a holder of each shard, take each contribution once, retry, finish.

A pure state machine: events in, actions out. `dispatch.py` performs the actions. Attend, append and
train are recipes over it; what a contribution means is theirs.

A shard goes   waiting -> asked -> answered
                  ^          |        |
                  '-- retry -'--------'--> missing     (no holder left to ask, or the deadline)

An exchange that is cancelled, or that fails, abandons the shards that are open then.

A node whose stream broke keeps its tasks until its lease runs out: it may come back and still answer.
Where another live holder is there, that one is asked at once.

What a node says of a request is its word and no more: another holder is asked. Where every holder that can
be asked has refused the request itself, nobody contradicts them, and the exchange fails with what they say.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from aggregator.engine.outcome import MissingKind, MissingShard
from aggregator.engine.shards import OPEN, Action, Assignment, Deliver, Revoke, SendProgram, Shard, ShardState
from edge_attention.core import errors
from edge_attention.core.errors import (
    DuplicateContribution,
    EdgeAttentionError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    StaleVersion,
    UnknownProgram,
)
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.program import Call, Contribution, Program
from edge_attention.core.sentence import Away, Sentence
from edge_attention.core.tensors import Array
from edge_attention.core.transitions import Transition, recent

REFUSALS = (InvalidArgument, PermissionDenied)
"""What a node may say of the request itself: that it is wrong, or that its operator does not allow it."""

_NONE: Mapping[str, Array] = {}


class Exchange:
    """One exchange over `assignments`.

    Call `start` first, perform the actions that each event returns, in order, and go on until `done`; then
    read `failure`, `answered` and `missing`.

    Args:
        id: what its tasks' ids begin with.
        state: tells a node's state now.
        believed: refusals that end the exchange where every holder of a shard gives one.
        caller: for whom nodes are asked.
        clock: seconds of any steady clock, for `transitions`.
        version: of the parameters that contributions are to be made with.
        seconds: what nodes are told that they have for it; None: nothing.
        tensors: what travels with each program, but where an assignment has tensors of its own.
        patient: whether a holder whose stream broke is waited for, where no other can be asked; else a shard
            is missing at once, and whoever asks decides what then.

    Attributes:
        failure: why it failed as a whole; None: it has not.
        transitions: the last changes of its shards' states, for the log.

    Raises:
        InvalidArgument: two assignments name the same shard.
    """

    def __init__(
        self,
        id: str,
        assignments: Sequence[Assignment],
        state: Callable[[str], NodeState],
        believed: tuple[type[EdgeAttentionError], ...] = REFUSALS,
        caller: str = "",
        clock: Callable[[], float] = time.monotonic,
        *,
        version: int = 0,
        seconds: float | None = None,
        tensors: Mapping[str, Array] = _NONE,
        patient: bool = True,
    ) -> None:
        self.id = id
        self.failure: EdgeAttentionError | None = None
        self.transitions: deque[Transition] = recent()
        self._state = state
        self._believed = believed
        self._caller = caller
        self._clock = clock
        self._version = version
        self._seconds = seconds
        self._tensors = tensors
        self._patient = patient
        self._over = False
        """Whether nobody is asked any more: its time is up, it was cancelled, or it has failed."""
        self._shards = {a.shard: Shard(a, i) for i, a in enumerate(assignments)}
        self._tasks: dict[str, Shard] = {}
        self._order = tuple(self._shards.values())
        self._begun = 0
        """Shards that `start` has looked at, from the first one on."""
        self._open = len(self._shards)
        self._loads: dict[str, int] = {}
        """Node -> how many shards it is asked for now."""
        if len(self._shards) != len(assignments):
            raise InvalidArgument("two assignments of one exchange name the same shard")

    # Events

    def start(self, most: int | None = None) -> list[Action]:
        """Ask a holder of every shard. Call it first.

        `most`: only of so many shards; call it again until `started`. Other events may come in between.
        """
        actions: list[Action] = []
        fresh = self._order[self._begun :][:most]
        self._begun += len(fresh)
        for shard in fresh:
            if shard.open:  # its time may be up
                actions += self._ask(shard)
        return actions

    def contribution(self, node: str, contribution: Contribution) -> list[Action]:
        """A contribution of `node` came: deliver it, or, if it tells of an error, ask another holder.

        Raises (and nothing changes): as `require_awaited`.
        """
        self.require_awaited(node, contribution)
        shard = self._tasks[contribution.task_id]
        shard.numbers += 1
        if contribution.error is not None:
            return self._failed(
                shard, errors.of_node(node, contribution.error.name, contribution.error.message)
            )
        if contribution.final:
            self._turn(shard, ShardState.ANSWERED, "answered by", node)
        return [Deliver(shard.assignment, node, contribution)]

    def require_awaited(self, node: str, contribution: Contribution) -> None:
        """Refuse what this exchange does not wait for; a failure of a task it does, whatever else it says.

        Raises:
            NotFound: no such task, or one that was given up.
            DuplicateContribution: this one came already.
            StaleVersion: it was made with other parameters.
            InvalidArgument: it is not what the task was to return.
        """
        shard = self._tasks.get(contribution.task_id)
        if shard is None or shard.task_id != contribution.task_id or not shard.open or shard.node != node:
            raise NotFound(f"nobody waits for task {contribution.task_id!r} of node {node!r}")
        asked = shard.assignment
        if contribution.error is not None and contribution.number == shard.numbers:
            # A node that could not read the program knows nothing of it but whose task it was.
            return
        if contribution.number < shard.numbers:
            raise DuplicateContribution(
                f"node {node!r} returned number {contribution.number} of task {contribution.task_id!r} twice"
            )
        if contribution.number > shard.numbers:
            raise InvalidArgument(
                f"node {node!r} returned number {contribution.number} of task {contribution.task_id!r} "
                f"before number {shard.numbers}"
            )
        if contribution.version != self._version:
            raise StaleVersion(
                f"node {node!r} returned version {contribution.version}, version {self._version} was "
                "asked for"
            )
        if contribution.shard != asked.shard or contribution.coverage != asked.coverage:
            raise InvalidArgument(
                f"node {node!r} returned shard {contribution.shard[:80]!r} over {contribution.coverage}, "
                f"shard {asked.shard!r} over {asked.coverage} was asked for"
            )

    def damaged(self, node: str, task_id: str, error: EdgeAttentionError) -> list[Action]:
        """A contribution of `node` to the task came damaged: ask another holder, if there is one.

        Nothing where nobody waits for the task.
        """
        shard = self._tasks.get(task_id)
        if shard is None or shard.node != node or not shard.open:
            return []
        return self._refuse(task_id, MissingKind.DAMAGED, error)

    def refuse(self, task_id: str, error: EdgeAttentionError) -> list[Action]:
        """What the task returned could not be folded: ask another holder, if there is one.

        It undoes the answer, if that was complete; nothing where nobody waits for the task any more.
        """
        return self._refuse(task_id, MissingKind.WRONG, error)

    def _refuse(self, task_id: str, kind: MissingKind, error: EdgeAttentionError) -> list[Action]:
        shard = self._tasks.get(task_id)
        if shard is None or shard.task_id != task_id:
            return []
        if shard.state not in (ShardState.ASKED, ShardState.ANSWERED):
            return []
        revoke: list[Action] = [Revoke(shard.node, task_id)]
        named = type(error)(f"node {shard.node!r}: {error.message}")
        shard.tried[shard.node] = named.message
        shard.fault = (kind, named)
        return revoke + self._ask(shard)

    def node(self, name: str) -> list[Action]:
        """The state of node `name` changed: ask it what waits for it, or another what it had."""
        state = self._state(name)
        actions: list[Action] = []
        for shard in self._order[: self._begun]:
            if not shard.open:
                continue
            if shard.node != name:
                if not shard.node and name in shard.assignment.holders:
                    actions += self._ask(shard)
            elif state in (NodeState.READY, NodeState.DRAINING):
                # Back. The same process ignores a task it runs and repeats what it has returned, a new one
                # starts over; either way what came already is a duplicate and changes nothing.
                actions.append(SendProgram(name, self._program(shard)))
            elif state is NodeState.LOST or not self._patient or self._choose(shard):
                # Not held against it: it may be asked again when it is back.
                actions += self._ask(shard)
        return actions

    def deadline(self) -> list[Action]:
        """The exchange's time is up: every shard without an answer is missing from now on."""
        self._over = True
        actions: list[Action] = []
        for shard in self._shards.values():
            if not shard.open:
                continue
            actions += self._revoke(shard)
            late = bool(shard.node) and self._live(shard.node)
            self._miss(shard, late, "no answer by the deadline")
        return actions

    def cancel(self) -> list[Action]:
        """Nobody waits for the exchange any more: every shard that is open is abandoned."""
        return self._abandon("cancelled")

    # What can be asked

    @property
    def done(self) -> bool:
        """Whether nothing is open. An answer that is refused opens its shard again."""
        return self.failure is not None or not self._open

    @property
    def started(self) -> bool:
        """Whether a holder of every shard was asked, where there was one."""
        return self._begun == len(self._order)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task's id so far."""
        return tuple(self._tasks)

    @property
    def answered(self) -> dict[str, str]:
        """Shard -> the node that answered."""
        return {n: shard.node for n, shard in self._shards.items() if shard.state is ShardState.ANSWERED}

    @property
    def missing(self) -> dict[str, MissingShard]:
        """Shard -> why it has no answer."""
        return {name: shard.missing for name, shard in self._shards.items() if shard.missing is not None}

    @property
    def waits(self) -> dict[str, str]:
        """Shard -> the node waited for, empty while nobody could be asked."""
        return {name: shard.node for name, shard in self._shards.items() if shard.open}

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests.

        Each shard is in one state, asked of one holder at a time, under the task it was given last; a holder
        that has failed it is not asked again; and where the exchange is over nothing is open.
        """
        for name, shard in self._shards.items():
            holders = set(shard.assignment.holders)
            assert (shard.missing is not None) == (shard.state is ShardState.MISSING), name
            assert shard.tried.keys() <= holders, f"{name}: tried with who does not hold it"
            assert len(shard.refusals) <= len(shard.tried), f"{name}: a refusal of nobody"
            assert not shard.tried or shard.fault is not None, f"{name}: tried, and nothing was wrong"
            if shard.state is ShardState.WAITING:
                assert not shard.node, f"{name}: waits, and is asked of {shard.node}"
            if shard.state in (ShardState.ASKED, ShardState.ANSWERED):
                assert shard.node in holders, f"{name}: asked of {shard.node}, who does not hold it"
                assert shard.node not in shard.tried, f"{name}: asked again of {shard.node}"
                assert shard.asked == shard.node, name
                assert self._tasks.get(shard.task_id) is shard, f"{name}: its task is another's"
                assert shard.task_id == f"{self.id}.{shard.index}.{shard.attempts}", f"{name}: an old task"
            if shard.state is ShardState.ANSWERED:
                assert shard.numbers > 0, f"{name}: answered without a message"
        assert sum(s.attempts for s in self._shards.values()) == len(self._tasks), "two tasks of one id"
        still_open = [name for name, shard in self._shards.items() if shard.open]
        assert not (self._over and still_open), f"over, and still open: {still_open}"
        assert self._over or self.failure is None, "it has failed and goes on"
        assert self.done == (not still_open)
        assert self._open == len(still_open)
        asked = Counter(s.node for s in self._shards.values() if s.state is ShardState.ASKED)
        assert all(self._loads.get(node, 0) == asked[node] for node in {*self._loads, *asked})

    # Inside

    def _turn(self, shard: Shard, state: ShardState, *words: str) -> None:
        self.transitions.append((self._clock(), (shard.assignment.shard, *words), shard.state, state))
        self._open += (state in OPEN) - shard.open
        loads = self._loads
        if shard.counted:
            loads[shard.counted] -= 1
        shard.counted = counted = shard.node if state is ShardState.ASKED else ""
        if counted:
            loads[counted] = loads.get(counted, 0) + 1
        shard.state = state

    def _live(self, node: str) -> bool:
        return self._state(node) in (NodeState.READY, NodeState.DRAINING)

    def _choose(self, shard: Shard) -> str:
        """The live holder, not tried yet, with the fewest open tasks of this exchange."""
        live = [name for name in shard.assignment.holders if name not in shard.tried and self._live(name)]
        if len(live) < 2:
            return live[0] if live else ""
        return min(live, key=lambda name: self._loads.get(name, 0))

    def _ask(self, shard: Shard) -> list[Action]:
        shard.node = "" if self._over else self._choose(shard)
        if shard.node:
            self._turn(shard, ShardState.ASKED, "asked of", shard.node)
            shard.asked = shard.node
            shard.unknown = False
            return self._send(shard)
        waiting = [h for h in shard.assignment.holders if h not in shard.tried]
        if (
            self._patient
            and not self._over
            and any(self._state(name) is NodeState.SUSPECT for name in waiting)
        ):
            if shard.state is not ShardState.WAITING:
                self._turn(shard, ShardState.WAITING, "waits for a holder")
        else:
            self._miss(shard, False, "no node holds it")
        return []

    def _send(self, shard: Shard) -> list[Action]:
        """A task of its own for the shard's node."""
        shard.attempts += 1
        shard.numbers = 0
        shard.task_id = f"{self.id}.{shard.index}.{shard.attempts}"
        self._tasks[shard.task_id] = shard
        return [SendProgram(shard.node, self._program(shard))]

    def _miss(self, shard: Shard, late: bool, otherwise: str) -> None:
        """`shard` gets no answer: it is `late`, or the last answer was wrong, or nobody is there."""
        text = self._why(shard) or otherwise
        if late or shard.fault is None:
            shard.missing = MissingShard(MissingKind.LATE if late else MissingKind.LOST, shard.asked, text)
        else:
            shard.missing = MissingShard(shard.fault[0], shard.asked, text, shard.fault[1])
        self._turn(shard, ShardState.MISSING, shard.missing.kind.value)

    def _abandon(self, why: str) -> list[Action]:
        """End it: nobody is asked any more, and what is open is given up."""
        self._over = True
        actions: list[Action] = []
        for shard in self._shards.values():
            if shard.open:
                actions += self._revoke(shard)
                self._turn(shard, ShardState.ABANDONED, why)
        return actions

    def _program(self, shard: Shard) -> Program | Call:
        asked = shard.assignment
        tensors = self._tensors if asked.tensors is None else asked.tensors
        if (prepared := asked.prepared) is not None:
            return Call(
                task_id=shard.task_id,
                shard=asked.shard,
                coverage=asked.coverage,
                version=self._version,
                deadline_seconds=self._seconds,
                program=prepared.digest,
                slots=prepared.packed(tensors),
                caller=self._caller,
                prepared=prepared.data,
                bulk_tensors=asked.bulk_tensors,
            )
        return Program(
            task_id=shard.task_id,
            shard=asked.shard,
            coverage=asked.coverage,
            instructions=asked.instructions,
            version=self._version,
            deadline_seconds=self._seconds,
            tensors=tensors,
            bulk_tensors=asked.bulk_tensors,
            caller=self._caller,
            releases=asked.releases,
        )

    def _revoke(self, shard: Shard) -> list[Action]:
        return [Revoke(shard.node, shard.task_id)] if shard.node else []

    def _failed(self, shard: Shard, error: EdgeAttentionError) -> list[Action]:
        if isinstance(error, UnknownProgram) and shard.assignment.prepared is not None and not shard.unknown:
            shard.unknown = True  # once: it is sent the program now
            self._turn(shard, ShardState.ASKED, "sent the program", shard.node)
            return self._send(shard)
        kind = MissingKind.REFUSED if isinstance(error, REFUSALS) else MissingKind.FAILED
        shard.tried[shard.node] = error.message
        shard.fault = (kind, error)
        if isinstance(error, self._believed):
            shard.refusals.append(error)
        actions = self._ask(shard)
        if shard.missing is not None and len(shard.refusals) == len(shard.tried):
            # Nobody who could be asked says otherwise.
            self.failure = type(error)("; ".join(shard.tried.values()))
            return self._abandon("failed")
        return actions

    def _why(self, shard: Shard) -> str:
        reasons = list(shard.tried.values())
        away = frozenset(name for name in shard.assignment.holders if not self._live(name))
        for name in shard.assignment.holders:
            if name not in shard.tried:
                asked = f"node {name!r} has not answered in time"
                reasons.append(f"node {name!r} is {self._state(name).value}" if name in away else asked)
        text = "; ".join(reasons)
        only = not shard.tried and len(away) == len(shard.assignment.holders)
        return Sentence(Away(text, away)) if text and only else text
