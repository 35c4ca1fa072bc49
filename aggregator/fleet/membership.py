"""Membership: leases and sessions of nodes as a pure state machine. Times are seconds of any steady clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from aggregator.fleet.pace import SELDOM_SECONDS, Pace, pace_of
from aggregator.fleet.registration import description_bytes, require_modest
from edge_attention.core.data_digests import tell_other_data
from edge_attention.core.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted
from edge_attention.core.messages.fleet import Node, NodeState
from edge_attention.core.messages.link import PROTOCOL, SPOKEN, Heartbeat, Register
from edge_attention.core.transitions import Transition

TURNS = 512
"""Changes of nodes' states that are remembered."""
MEMBERS = 10_000
"""Nodes remembered, those that are gone included."""
NAMED = 3
"""Datasets that a change names."""
DESCRIPTIONS = 7 * 512 * 1024
"""Bytes of what clients are told of all of them: a list of the fleet is one message, of 4 MiB at most."""

STORED, STORED_NAME = 512 * 1024 * 1024, 128
"""Bytes of what is known of all that all of them store, and of one name there but for its letters."""


@dataclass
class Member:
    """One node by name, and the connection (`epoch`) that speaks for it now."""

    register: Register
    session: str
    epoch: int
    heard: float
    state: NodeState = NodeState.READY
    memory: int = 0
    tasks: int = 0
    sequences: dict[str, int] = field(default_factory=dict)
    metrics: bytes = b""
    """The node's own, as Prometheus text that was checked (node_metrics.py); empty: none came yet."""
    reported: float = -math.inf
    """When the metrics came."""
    registrations: int = 1
    registered: float = 0.0
    clock: float | None = None
    """By how many seconds its clock was ahead of this one's when it registered."""
    described: int = 0
    """Bytes of what clients are told of it, at most."""
    stored: int = 0
    """Bytes of what it said that it stores."""
    follows: float = 0.0
    """Seconds between its heartbeats: as it says, or as it was told when it registered."""
    told: float = 0.0
    """Seconds between its heartbeats as it was told last; it may not have heard of it yet."""
    broke: float = -math.inf
    """When its stream broke last."""

    @property
    def name(self) -> str:
        return self.register.name

    @property
    def live(self) -> bool:
        """Whether it can be sent work now."""
        return self.state in (NodeState.READY, NodeState.DRAINING)


@dataclass(frozen=True)
class NodeAdmission:
    """A node was let in. `resumed`: the same process as before, with its session.

    `replaced`: datasets of which its process before has declared something else, as a list of a few.
    """

    member: Member
    resumed: bool
    replaced: str = ""


class Membership:
    """Registers nodes, renews their leases, and says who is live.

    Args:
        lease: seconds for which a node of a small fleet may be silent, and a node of any fleet whose stream
            broke may be away, before it is no longer a holder.
        new_session: makes an unguessable session name.

    Attributes:
        pace: what the size of the fleet asks of each node.
        transitions: the last changes of nodes' states: (name, why), for the log and the page.
    """

    def __init__(self, lease: float, new_session: Callable[[], str]) -> None:
        self.lease = lease
        self.pace = pace_of(0, lease)
        self.transitions: deque[Transition] = deque(maxlen=TURNS)
        self._new_session = new_session
        self._members: dict[str, Member] = {}
        self._by_name: tuple[Member, ...] | None = None
        """All members by name, made once until one comes or goes."""
        self._expected: dict[str, float] = {}
        """Node -> when it is lost, if it has not come by then."""
        self._epoch = 0

    def expect(self, names: Iterable[str], now: float) -> None:
        """Nodes that hold something since an earlier life of this aggregator: suspect for a lease.

        Those that are here already need not be expected.
        """
        absent = [name for name in names if name not in self._members]
        self._expected |= dict.fromkeys(absent, now + pace_of(len(absent), self.lease).lease)

    def register(self, register: Register, now: float) -> NodeAdmission:
        """Let a node in, or say why not.

        A name whose lease is good belongs to the process that holds it. One whose stream broke may be
        taken at once: the box was restarted.

        Raises:
            FailedPrecondition: it speaks another version of the protocol.
            InvalidArgument: what it says of itself is no name, too long or too much.
            AlreadyExists: the name belongs to another live node.
            ResourceExhausted: there are too many nodes, or they have too much to say of themselves.
        """
        if register.protocol not in SPOKEN:
            raise FailedPrecondition(
                f"node {register.name[:80]!r} speaks version {register.protocol} of the protocol, this "
                f"aggregator speaks {PROTOCOL}: install the same release on both"
            )
        if register.box is not None:
            register = replace(register, box=register.box.bounded())
        require_modest(register)
        member = self._members.get(register.name)
        same = member is not None and member.register.instance == register.instance
        if member is not None and member.state in (NodeState.READY, NodeState.DRAINING) and not same:
            raise AlreadyExists(
                f"a node named {register.name!r} is connected already; stop it, or start this one with "
                "another --name"
            )
        resumed = member is not None and same and member.session == register.session
        session = member.session if member is not None and resumed else self._new_session()
        registrations = 1 if member is None else member.registrations + 1
        described = description_bytes(register)
        stored = sum(len(sequence.name) + STORED_NAME for sequence in register.sequences)
        self._make_room(register.name, described, stored)
        before = self.state(register.name)
        replaced = _replaced(member.register, register) if member is not None and not same else ""
        self._epoch += 1
        metrics = member.metrics if member is not None and resumed else b""
        member = Member(
            register, session, self._epoch, now, metrics=metrics, registrations=registrations, registered=now,
            described=described, stored=stored, follows=self.pace.heartbeat, told=self.pace.heartbeat,
        )  # fmt: skip
        member.sequences = {s.name: s.tokens for s in register.sequences}
        self._members[register.name] = member
        self._by_name = None
        self._expected.pop(register.name, None)
        how = "resumed" if resumed else "registered"
        if replaced:
            how += f", with other data in {replaced}"
        self.transitions.append((now, (register.name, how), before, member.state))
        return NodeAdmission(member, resumed, replaced)

    def _make_room(self, name: str, described: int, stored: int) -> None:
        """For node `name`: forget those that have been lost longest, or refuse it.

        A fleet of names made up must not fill the memory, nor make the list of nodes too long to be sent.
        """
        others = [member for member in self._members.values() if member.name != name]
        count, size = len(others) + 1, described + sum(member.described for member in others)
        kept = stored + sum(member.stored for member in others)
        forgotten = []
        lost = (member for member in others if member.state is NodeState.LOST)
        longest = iter(sorted(lost, key=lambda member: member.heard))
        while count > MEMBERS or size > DESCRIPTIONS or kept > STORED:
            member = next(longest, None)
            if member is not None:
                forgotten.append(member.name)
                count, size, kept = count - 1, size - member.described, kept - member.stored
                continue
            if count > MEMBERS:
                raise ResourceExhausted(f"{MEMBERS:,} nodes are connected already, which is the limit")
            if size > DESCRIPTIONS:
                raise ResourceExhausted(
                    f"with node {name!r} the nodes here would describe themselves in {size:,} bytes; the "
                    f"limit is {DESCRIPTIONS:,}: have them serve fewer datasets and columns and allow fewer "
                    "releases, or stop some"
                )
            raise ResourceExhausted(
                f"with node {name!r} what is known of what the nodes here store would take {kept:,} bytes; "
                f"the limit is {STORED:,}: drop contexts that nobody needs, or stop some nodes"
            )
        for gone in forgotten:
            del self._members[gone]
            self._by_name = None

    def forget(self, name: str) -> None:
        """Forget a node that is lost, or expected and has not come.

        Raises:
            NotFound: there is none of that name.
            FailedPrecondition: it is connected, or may come back within its lease.
        """
        self.require_forgettable(name)
        self._expected.pop(name, None)
        if self._members.pop(name, None) is not None:
            self._by_name = None

    def require_forgettable(self, name: str) -> None:
        """Raises as `forget`, and changes nothing."""
        member = self._members.get(name)
        if member is None and name not in self._expected:
            known = ", ".join(sorted(self._members)[:20]) or "none"
            raise NotFound(f"no node {name[:80]!r}; nodes seen: {known}")
        if member is not None and member.state is not NodeState.LOST:
            raise FailedPrecondition(
                f"node {name!r} is {member.state.value}; stop it, and forget it when it is lost"
            )

    def heard(self, name: str, now: float, heartbeat: Heartbeat | None = None) -> None:
        """Something came from the node, which renews its lease; with `heartbeat` it says how it is."""
        member = self._members.get(name)
        if member is None:
            return
        member.heard = now
        if heartbeat is not None:
            member.memory = heartbeat.memory
            member.tasks = heartbeat.tasks
            if heartbeat.interval_seconds > 0:
                # No longer than any node is told, whatever it says: its lease goes by it.
                member.follows = min(heartbeat.interval_seconds, max(SELDOM_SECONDS, self.pace.heartbeat))
            if member.live:
                state = NodeState.DRAINING if heartbeat.draining else NodeState.READY
                if state is not member.state:
                    self._turn(member, state, now, "says so")

    def answer(self, name: str, heartbeat: Heartbeat) -> Pace | None:
        """What to tell the node in answer to its heartbeat; None: it beats as it is to.

        One of an earlier release, which does not say how often it beats, is not told: it would not follow.
        """
        member = self._members.get(name)
        if member is None or heartbeat.interval_seconds in (0.0, self.pace.heartbeat):
            return None
        member.told = self.pace.heartbeat
        return self.pace

    def ends(self, member: Member) -> float:
        """When the lease of `member` runs out unless it is heard of before.

        A lease has the same number of heartbeats in it at every pace, and until the node says that it follows
        another pace the slower of both counts. Who has lost its stream has to come back, not to beat: it has
        the time of a small fleet's nodes for that.
        """
        end = member.heard + self.pace.tries * max(member.follows, member.told)
        if member.state is NodeState.SUSPECT:
            end = min(end, max(member.heard, member.broke) + self.lease)
        return end

    def disconnected(self, name: str, epoch: int, now: float) -> bool:
        """The stream of connection `epoch` ended. False if another has taken its place already."""
        member = self._members.get(name)
        if member is None or member.epoch != epoch or not member.live:
            return False
        member.broke = now
        # One that said it was leaving has left.
        draining = member.state is NodeState.DRAINING
        self._turn(member, NodeState.LOST if draining else NodeState.SUSPECT, now, "disconnected")
        return True

    def tick(self, now: float) -> tuple[str, ...]:
        """Names of the nodes whose lease ran out since the last tick."""
        lost = [name for name, end in self._expected.items() if now > end]
        for name in lost:
            del self._expected[name]
        live = 0
        for member in self._members.values():
            if member.state is not NodeState.LOST and now > self.ends(member):
                self._turn(member, NodeState.LOST, now, "silent")
                lost.append(member.name)
            live += member.live
        self.pace = pace_of(live, self.lease)
        return tuple(lost)

    def _turn(self, member: Member, state: NodeState, now: float, why: str) -> None:
        self.transitions.append((now, (member.name, why), member.state, state))
        member.state = state
        if state is NodeState.LOST:
            member.metrics = b""

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does; for tests."""
        members = self._members.values()
        assert all(name == member.name for name, member in self._members.items()), "under another name"
        assert not self._expected.keys() & self._members.keys(), "expected, and here"
        for what in ("session", "epoch"):
            held = [getattr(member, what) for member in members]
            assert len(set(held)) == len(held), f"two nodes of one {what}"
        assert all(0 < member.epoch <= self._epoch for member in members), "of a connection to come"
        assert len(members) <= MEMBERS
        assert sum(member.described for member in members) <= DESCRIPTIONS
        assert sum(member.stored for member in members) <= STORED

    def of_session(self, session: str) -> Member:
        """The member that holds `session`.

        Raises:
            NotFound: nobody does.
        """
        for member in self._members.values():
            if session and member.session == session:
                return member
        raise NotFound("this session is not known here; connect first")

    def get(self, name: str) -> Member | None:
        """The member `name`, whatever its state; None: it has never come, or is forgotten."""
        return self._members.get(name)

    def require_live(self, name: str) -> Member:
        """The member `name`, if it can be sent work.

        Raises:
            NotFound: no such node has ever connected.
            FailedPrecondition: it is not connected.
        """
        member = self._members.get(name)
        if member is None:
            known = ", ".join(sorted(self._members)) or "none"
            raise NotFound(f"no node {name[:80]!r}; nodes seen: {known}")
        if not member.live:
            raise FailedPrecondition(f"node {name!r} is {member.state.value}; start it, or wait for it")
        return member

    def live(self, name: str) -> bool:
        """Whether node `name` can be sent work now."""
        member = self._members.get(name)
        return member is not None and member.live

    def state(self, name: str) -> NodeState:
        """The state of node `name`; of one that is not here SUSPECT while it is expected, else LOST."""
        member = self._members.get(name)
        if member is None:
            return NodeState.SUSPECT if name in self._expected else NodeState.LOST
        return member.state

    def members(self) -> tuple[Member, ...]:
        """All members that are remembered, in order of their names."""
        if self._by_name is None:
            self._by_name = tuple(sorted(self._members.values(), key=lambda m: m.name))
        return self._by_name

    def nodes(self, now: float, members: Iterable[Member] | None = None) -> tuple[Node, ...]:
        """The fleet as clients see it, by name; or these `members`, in any thread."""
        return tuple(
            Node(
                name=m.name,
                state=m.state,
                provider=m.register.provider,
                threads=m.register.threads,
                memory_limit=m.register.memory_limit,
                memory=m.memory,
                datasets=m.register.datasets,
                silent_seconds=max(now - m.heard, 0.0),
                software=m.register.software,
                tasks=m.tasks,
                releases=m.register.releases,
                box=m.register.box,
                registrations=m.registrations,
                registered_seconds=max(now - m.registered, 0.0),
                clock_seconds=m.clock,
            )
            for m in (self.members() if members is None else members)
        )


def _replaced(before: Register, now: Register) -> str:
    """Datasets of both of which something is another; digests of different keys tell nothing."""
    known = {dataset.name: dataset for dataset in before.datasets}
    found = []
    for dataset in now.datasets:
        was = known.get(dataset.name)
        if was is None:
            continue
        other = tell_other_data(was.digest, dataset.digest)
        if other or replace(was, digest="") != replace(dataset, digest=""):
            found.append(repr(dataset.name))
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more
