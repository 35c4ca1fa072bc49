"""The exchange: place a program on a holder of each shard, take each contribution once, retry, finish.

A pure state machine: events in, actions out. `dispatch.py` performs the actions. Attend, append and
train are recipes over it; what a contribution means is theirs.

A shard goes   waiting -> asked -> answered
                  ^          |
                  '-- retry -'--> missing      (no holder left to ask, or the deadline)

A node whose stream broke keeps its tasks until its lease runs out: it may come back and still answer.
Where another live holder is there, that one is asked at once.

What a node says of a request is its word and no more: another holder is asked. Where every holder that can
be asked has refused the request itself, nobody contradicts them, and the exchange fails with what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aggregator.engine.outcome import Kind, MissingShard
from edge_attention.core import errors
from edge_attention.core.errors import (
    DuplicateContribution,
    EdgeAttentionError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    StaleVersion,
)
from edge_attention.core.messages.fleet import NodeState
from edge_attention.core.messages.program import BulkTensor, Contribution, Instruction, Program
from edge_attention.core.tensors import Array


@dataclass(frozen=True, eq=False)
class Assignment:
    """One shard: who holds it, and what is to run there. The exchange builds the program of it."""

    shard: str
    holders: tuple[str, ...]
    coverage: range
    instructions: tuple[Instruction, ...]
    version: int = 0
    deadline_seconds: float | None = None
    tensors: Mapping[str, Array] = field(default_factory=dict)
    bulk_tensors: tuple[BulkTensor, ...] = ()
    releases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Send:
    node: str
    program: Program


@dataclass(frozen=True)
class Revoke:
    """Nobody waits for the task any more."""

    node: str
    task_id: str


@dataclass(frozen=True)
class Deliver:
    """A contribution to fold."""

    assignment: Assignment
    node: str
    contribution: Contribution


Action = Send | Revoke | Deliver

REFUSALS = (InvalidArgument, PermissionDenied)
"""What a node may say of the request itself: that it is wrong, or that its operator does not allow it."""


@dataclass
class _Shard:
    assignment: Assignment
    index: int = 0
    node: str = ""
    task_id: str = ""
    attempts: int = 0
    numbers: int = 0
    asked: str = ""
    """The node asked last, also where it is not waited for any more."""
    answered: bool = False
    missing: MissingShard | None = None
    tried: dict[str, str] = field(default_factory=dict)
    fault: tuple[Kind, EdgeAttentionError] | None = None
    """What was wrong with the last answer, if one has come."""
    refusals: list[EdgeAttentionError] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return not self.answered and self.missing is None


class Exchange:
    """One exchange over `assignments`, for `caller`. `state` tells a node's state now."""

    def __init__(
        self,
        id: str,
        assignments: Sequence[Assignment],
        state: Callable[[str], NodeState],
        believed: tuple[type[EdgeAttentionError], ...] = REFUSALS,
        caller: str = "",
    ) -> None:
        """`believed`: refusals that end the exchange where every holder of a shard gives one."""
        self.id = id
        self._believed, self._caller = believed, caller
        self.failure: EdgeAttentionError | None = None
        self._state = state
        self._shards = {a.shard: _Shard(a, i) for i, a in enumerate(assignments)}
        self._tasks: dict[str, _Shard] = {}
        if len(self._shards) != len(assignments):
            raise InvalidArgument("two assignments of one exchange name the same shard")

    # Events

    def start(self) -> list[Action]:
        """Ask a holder of every shard."""
        return [action for shard in self._shards.values() for action in self._ask(shard)]

    def contribution(self, node: str, contribution: Contribution) -> list[Action]:
        """A contribution came.

        Raises (and nothing changes): as `check`.
        """
        self.check(node, contribution)
        shard = self._tasks[contribution.task_id]
        shard.numbers += 1
        if contribution.error is not None:
            return self._failed(
                shard, errors.of_node(node, contribution.error.name, contribution.error.message)
            )
        deliver: list[Action] = [Deliver(shard.assignment, node, contribution)]
        shard.answered = contribution.final
        return deliver

    def check(self, node: str, contribution: Contribution) -> None:
        """Whether it is what this exchange waits for; a failure of the task is, whatever else it says.

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
        if contribution.version != asked.version:
            raise StaleVersion(
                f"node {node!r} returned version {contribution.version}, version {asked.version} was "
                "asked for"
            )
        if contribution.shard != asked.shard or contribution.coverage != asked.coverage:
            raise InvalidArgument(
                f"node {node!r} returned shard {contribution.shard[:80]!r} over {contribution.coverage}, "
                f"shard {asked.shard!r} over {asked.coverage} was asked for"
            )

    def damaged(self, node: str, task_id: str, error: EdgeAttentionError) -> list[Action]:
        """A contribution of `node` to the task came damaged: ask another holder, if there is one."""
        shard = self._tasks.get(task_id)
        if shard is None or shard.node != node or not shard.open:
            return []
        return self._refuse(task_id, Kind.DAMAGED, error)

    def refuse(self, task_id: str, error: EdgeAttentionError) -> list[Action]:
        """What the task returned could not be folded: ask another holder, if there is one."""
        return self._refuse(task_id, Kind.WRONG, error)

    def _refuse(self, task_id: str, kind: Kind, error: EdgeAttentionError) -> list[Action]:
        shard = self._tasks.get(task_id)
        if shard is None or shard.task_id != task_id or shard.missing is not None:
            return []
        shard.answered = False
        revoke: list[Action] = [Revoke(shard.node, task_id)]
        named = type(error)(f"node {shard.node!r}: {error.message}")
        shard.tried[shard.node], shard.fault = named.message, (kind, named)
        return revoke + self._ask(shard)

    def node(self, name: str) -> list[Action]:
        """The state of node `name` changed."""
        state, actions = self._state(name), list[Action]()
        for shard in self._shards.values():
            if not shard.open:
                continue
            if shard.node != name:
                if not shard.node and name in shard.assignment.holders:
                    actions += self._ask(shard)
            elif state in (NodeState.READY, NodeState.DRAINING):
                # Back. The same process ignores a task it runs and repeats what it has returned, a new one
                # starts over; either way what came already is a duplicate and changes nothing.
                actions.append(Send(name, self._program(shard)))
            elif state is NodeState.LOST or self._choose(shard):
                # Not held against it: it may be asked again when it is back.
                actions += self._ask(shard)
        return actions

    def deadline(self) -> list[Action]:
        """Time is up: what has not come is missing."""
        actions: list[Action] = []
        for shard in self._shards.values():
            if not shard.open:
                continue
            actions += self._revoke(shard)
            late = bool(shard.node) and self._live(shard.node)
            shard.missing = self._missing(shard, late, "no answer by the deadline")
        return actions

    def cancel(self) -> list[Action]:
        """Nobody waits any more."""
        return [action for shard in self._shards.values() if shard.open for action in self._revoke(shard)]

    # What can be asked

    @property
    def done(self) -> bool:
        return self.failure is not None or not any(shard.open for shard in self._shards.values())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task's id so far."""
        return tuple(self._tasks)

    @property
    def answered(self) -> dict[str, str]:
        """Shard -> the node that answered."""
        return {name: shard.node for name, shard in self._shards.items() if shard.answered}

    @property
    def missing(self) -> dict[str, MissingShard]:
        """Shard -> why it has no answer."""
        return {name: shard.missing for name, shard in self._shards.items() if shard.missing is not None}

    @property
    def waits(self) -> dict[str, str]:
        """Shard -> the node waited for, empty while nobody could be asked."""
        return {name: shard.node for name, shard in self._shards.items() if shard.open}

    # Inside

    def _live(self, node: str) -> bool:
        return self._state(node) in (NodeState.READY, NodeState.DRAINING)

    def _choose(self, shard: _Shard) -> str:
        """The live holder, not tried yet, with the fewest open tasks of this exchange."""
        live = [name for name in shard.assignment.holders if name not in shard.tried and self._live(name)]
        if len(live) < 2:
            return live[0] if live else ""
        load = {name: sum(s.open and s.node == name for s in self._shards.values()) for name in live}
        return min(live, key=lambda name: load[name], default="")

    def _ask(self, shard: _Shard) -> list[Action]:
        shard.node = self._choose(shard)
        if shard.node:
            shard.asked = shard.node
            shard.attempts += 1
            shard.numbers = 0
            shard.task_id = f"{self.id}.{shard.index}.{shard.attempts}"
            self._tasks[shard.task_id] = shard
            return [Send(shard.node, self._program(shard))]
        waiting = [h for h in shard.assignment.holders if h not in shard.tried]
        if not any(self._state(name) is NodeState.SUSPECT for name in waiting):
            shard.missing = self._missing(shard, False, "no node holds it")
        return []

    def _missing(self, shard: _Shard, late: bool, otherwise: str) -> MissingShard:
        """Why `shard` has no answer: it is `late`, or the last answer was wrong, or nobody is there."""
        text = self._why(shard) or otherwise
        if late or shard.fault is None:
            return MissingShard(Kind.LATE if late else Kind.LOST, shard.asked, text)
        return MissingShard(shard.fault[0], shard.asked, text, shard.fault[1])

    def _program(self, shard: _Shard) -> Program:
        asked = shard.assignment
        return Program(
            task_id=shard.task_id,
            shard=asked.shard,
            coverage=asked.coverage,
            instructions=asked.instructions,
            version=asked.version,
            deadline_seconds=asked.deadline_seconds,
            tensors=asked.tensors,
            bulk_tensors=asked.bulk_tensors,
            caller=self._caller,
            releases=asked.releases,
        )

    def _revoke(self, shard: _Shard) -> list[Action]:
        return [Revoke(shard.node, shard.task_id)] if shard.node else []

    def _failed(self, shard: _Shard, error: EdgeAttentionError) -> list[Action]:
        kind = Kind.REFUSED if isinstance(error, REFUSALS) else Kind.FAILED
        shard.tried[shard.node], shard.fault = error.message, (kind, error)
        if isinstance(error, self._believed):
            shard.refusals.append(error)
        actions = self._ask(shard)
        if shard.missing is not None and len(shard.refusals) == len(shard.tried):
            # Nobody who could be asked says otherwise.
            self.failure = type(error)("; ".join(shard.tried.values()))
            return [a for s in self._shards.values() if s.open for a in self._revoke(s)]
        return actions

    def _why(self, shard: _Shard) -> str:
        reasons = list(shard.tried.values())
        for name in shard.assignment.holders:
            if name not in shard.tried:
                asked = f"node {name!r} has not answered in time"
                reasons.append(asked if self._live(name) else f"node {name!r} is {self._state(name).value}")
        return "; ".join(reasons)
