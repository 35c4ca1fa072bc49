"""Which rows of which sessions go on the next trip, and through which nodes. A pure state machine.

    idle ── extend ──> waits ──> flies ──┬──> waits      there are more of its tokens than one trip takes
     ^                                   └──> idle       the logits of its new tokens are there
     └── the deadline, an error, or whoever asked has gone

A session is its tokens, and how many of them are stored. What a node stored that has gone is stored again
by sending the tokens once more, through whoever takes over: to the rest of the machine that is a session
with more new tokens. A trip takes what waits when it begins: sessions join and leave between two of them, and
those of the first priority go first, and among them those with few rows, so that a long prompt, or memory,
holds up nobody; and owners take turns, a session each, so that who has many holds up nobody who has one. Who
waits becomes one better with each second (`waiting_level`), so nobody waits for ever; of an owner's sessions
of one priority that bring many rows, or few, only the first does while others' wait as well.

A session beside an encoder has a memory, too: what that made. It is stored before the first token goes, by
trips of its own, and again, as the tokens are, where a node that stored it has gone.

The shell performs the actions, and tells what came of them. Times are readings of one steady clock.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from aggregator.inference.batching.batch_queue import PRIORITY, waiting_level
from aggregator.inference.decoding.actions import (
    Action,
    CallAnswered,
    CallRefused,
    Fly,
    ForgetLane,
    ForgetSession,
    SeekHolder,
    SupplyHolder,
)
from aggregator.inference.decoding.decoder_session import DecodePhase, DecoderSession
from aggregator.inference.decoding.flights import (
    Flight,
    SessionRows,
)
from aggregator.inference.decoding.session_bytes import TILE, SessionBytes
from aggregator.inference.decoding.session_places import SessionPlaces
from aggregator.inference.part_of_request import PartsNodes
from edge_attention.core.errors import (
    Cancelled,
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.schedule.pieces import DecoderForm
from edge_attention.core.tensors import Array, Float32
from edge_attention.core.transitions import Transition, recent

__all__ = ["SessionScheduler"]

FLIGHT_SESSIONS = 16
"""Sessions in one trip: each is an append and a run more of every attention."""
FEW = 8
"""Rows up to which a session goes before those that have more."""
CHUNK_ROWS = 64
"""Of one session in a trip, while others wait."""
SESSION_TRIES = 8
"""Times that one call may lose a node in the middle; then it is refused."""
IDLE_SECONDS = 900.0
"""A session that nobody extends is forgotten after so long."""


class SessionScheduler:
    """The sessions of one decoder.

    Args:
        nodes: what is known of nodes, and of who holds which part.
        room: bytes that a node has for what sessions store.
        lanes: trips under way at a time: with parts one behind the other several keep all of them at work.
        ahead: whether flights may go ahead (ahead.py).

    Attributes:
        sessions: by number.
        bytes: what they store, by node and owner.
        transitions: the last changes, for the log.
    """

    def __init__(
        self,
        form: DecoderForm,
        nodes: PartsNodes,
        room: Callable[[str], int],
        lanes: int = 1,
        ahead: bool = False,
    ) -> None:
        self.form = form
        self._ahead = ahead
        self.sessions: dict[int, DecoderSession] = {}
        self.transitions: deque[Transition] = recent()
        self._nodes = nodes
        self._places = SessionPlaces(form, nodes)
        self.bytes = SessionBytes(form, room)
        self._lanes = list(range(lanes))
        self._next_lane = lanes
        self._flights: dict[int, Flight] = {}
        self._numbers = 0
        self._slots: list[int] = []
        self._next_slot = 0
        self._flew: dict[tuple[str, int, bool], float] = {}
        """By owner, priority, and whether they bring many rows: when one of those sessions flew last."""
        self._spent: set[int] = set()
        """Slots in which a lost flight may still write: they are nobody's again."""
        self._now = 0.0

    # Events

    def open(
        self,
        owner: str,
        now: float,
        memory: Float32 | None = None,
        priority: int = 0,
        greedy: bool = False,
    ) -> DecoderSession:
        """A new session, of no token; `memory`: what an encoder made, of a decoder beside one.

        `priority`: 1 goes first, PRIORITIES last; 0: PRIORITY. Who waits rises: see `waiting_level`.
        `greedy`: it is likely extended by the token that its last logits say is likeliest.

        Raises:
            FailedPrecondition: it is beside an encoder, and there is no memory, or the other way round.
            InvalidArgument: the memory is of another width, or has no tokens.
        """
        self._now = now
        if (memory is None) == bool(self.form.states):
            raise FailedPrecondition(
                "the decoder is beside an encoder: a session begins with that one's input"
                if memory is None
                else "the decoder has no encoder: a session begins with tokens"
            )
        if memory is not None and (
            memory.ndim != 2 or memory.shape[1] != self.form.states_width or not len(memory)
        ):
            raise InvalidArgument(
                f"the encoder made {list(memory.shape)}; the decoder takes [tokens, {self.form.states_width}]"
            )
        self._numbers += 1
        slot = self._new_slot()
        session = DecoderSession(
            self._numbers, owner, slot, now, priority or PRIORITY, memory=memory, greedy=greedy
        )
        self.sessions[session.number] = session
        return session

    def extend(self, number: int, ids: Sequence[int], now: float, deadline: float) -> list[Action]:
        """More tokens, whose logits are wanted.

        Raises:
            NotFound: there is no such session any more.
            FailedPrecondition: it is extended already.
            InvalidArgument: no tokens, or some that the model does not have.
            ResourceExhausted: it would get longer than the model's positions.
        """
        self._now = now
        session = self.require(number)
        self._require_idle(session)
        if not ids:
            raise InvalidArgument("a session is extended by one token or more; there is none")
        if not 0 <= min(ids) <= max(ids) < self.form.vocabulary:
            raise InvalidArgument(
                f"tokens are 0 to {self.form.vocabulary - 1}; {min(ids)} to {max(ids)} were sent"
            )
        if session.length + len(ids) > self.form.length:
            raise ResourceExhausted(
                f"bound session-tokens: the session has {session.length} tokens, and the model positions for "
                f"{self.form.length}: {len(ids)} more do not fit; open another one"
            )
        if session.place and (error := self.bytes.no_room(session, session.place, session.length + len(ids))):
            raise error
        session.asked, session.answered, session.tries = session.length, [], 0
        session.tokens += ids
        self.bytes.count(session, session.number in self.sessions)
        session.began = session.since = session.used = now
        session.deadline = deadline
        self._turn(session, DecodePhase.WAITS)
        return self._go()

    def truncate(self, number: int, length: int, now: float) -> None:
        """Forget all tokens but the first `length`. Raises as `extend`."""
        self._now = now
        session = self.require(number)
        self._require_idle(session)
        if not 0 <= length <= session.length:
            raise InvalidArgument(f"the session has {session.length} tokens: it cannot keep {length}")
        session.used = now
        del session.tokens[length:]
        self.bytes.count(session, session.number in self.sessions)
        self._keep(session, length)

    def close(self, number: int, now: float) -> list[Action]:
        """The session is not needed any more. What is asked of it ends. Nothing if there is none."""
        self._now = now
        session = self.sessions.get(number)
        if session is None:
            return []
        found: list[Action] = []
        if session.phase is not DecodePhase.IDLE:
            found = self._refuse(session, Cancelled("the session was closed"), closing=True)
        if session.closing:
            return found  # its flight has not ended: then it goes
        return [*found, *self._forget(session)]

    def cancel(self, number: int, error: EdgeAttentionError, now: float) -> list[Action]:
        """Nobody waits for what was asked of the session."""
        self._now = now
        session = self.sessions.get(number)
        if session is None or session.phase is DecodePhase.IDLE:
            return []
        return self._refuse(session, error)

    def landed(self, number: int, logits: Array, now: float) -> list[Action]:
        """A flight has ended; `logits`: float32 [rows, vocabulary]."""
        self._now = now
        flight = self._land(number)
        if flight is None:
            return []
        found: list[Action] = []
        first = 0
        for chunk in flight.chunks:
            rows = logits[first : first + chunk.count]
            first += chunk.count
            session = self._back(chunk)
            if session is None:
                continue
            if session.closing:
                found += self._forget(session)
                continue
            session.alone = False
            if chunk.states is not None:
                session.remembered = chunk.stop
                if session.phase is DecodePhase.FLIES:
                    session.since = now  # behind those that wait already, as with a long prompt
                    self._turn(session, DecodePhase.WAITS)
                continue
            session.stored = chunk.stop
            session.spans = list(chunk.spans)
            if session.phase is not DecodePhase.FLIES:  # nobody waits for it; it may have been cut short
                self._keep(session, min(session.stored, session.length))
                continue
            # What is stored anew was answered before, in part.
            wanted = session.asked + sum(map(len, session.answered))
            if chunk.stop > wanted:
                session.answered.append(np.array(rows[max(wanted - chunk.start, 0) :]))
            if session.stored < session.length:
                session.since = now
                self._turn(session, DecodePhase.WAITS)
                continue
            session.used = now
            self._turn(session, DecodePhase.IDLE)
            found.append(CallAnswered(session.number, np.concatenate(session.answered)))
            session.answered = []
        return [*found, *self._go()]

    def lost(
        self,
        number: int,
        error: EdgeAttentionError,
        now: float,
        *,
        again: bool,
        clean: bool,
        lacks: tuple[int, str] | None = None,
    ) -> list[Action]:
        """A flight did not come to its end.

        Args:
            again: a node went, so that it may be tried again; else the error is of what was asked.
            clean: nothing of it can still run on a node. Else its lane and its sessions' slots are numbered
                anew: what it may still write is looked for by nobody.
            lacks: the part, and its node, that says it does not have what it was given, or stored.
        """
        self._now = now
        flight = self._land(number)
        if flight is None:
            return []
        found: list[Action] = [SupplyHolder(*lacks)] if lacks is not None else []
        if not clean:
            self._lanes[self._lanes.index(flight.lane)] = self._next_lane
            self._next_lane += 1
            found.append(ForgetLane(flight.lane, tuple(sorted({*flight.place}))))
        several = len(flight.chunks) > 1
        for chunk in flight.chunks:
            session = self._back(chunk)
            if session is None:
                continue
            if not clean:
                self._spent.add(chunk.slot)
            if session.closing:
                found += self._forget(session)
                continue
            if not clean:
                found.append(ForgetSession(chunk.slot, tuple(sorted(session.nodes))))
                session.slot, session.place, session.lives = self._new_slot(), (), ()
                session.nodes.clear()
                self.bytes.count(session, session.number in self.sessions)
            if not clean or lacks is not None:
                self._lose(session)
            if chunk.states is None:
                self._keep(session, chunk.start)
            self._keep(session, min(session.stored, session.length))
            if session.phase is not DecodePhase.FLIES:
                continue
            session.tries += 1
            if again and session.tries < SESSION_TRIES:
                self._turn(session, DecodePhase.WAITS, str(error))
            elif again:
                found += self._refuse(
                    session, Unavailable(f"nodes went {session.tries} times meanwhile: {error.message}")
                )
            elif several and not session.alone:
                session.alone = True  # whose fault it is shows alone
                self._turn(session, DecodePhase.WAITS, str(error))
            else:
                found += self._refuse(session, error)
        return [*found, *self._go()]

    def freed(self, slot: int) -> None:
        """Nodes have forgotten what was in the slot."""
        if slot in self._spent:
            self._spent.discard(slot)
        else:
            self._slots.append(slot)

    def look(self, now: float) -> list[Action]:
        """Something has changed with the nodes: who is there, or who holds what."""
        self._now = now
        return self._go()

    def tick(self, now: float) -> list[Action]:
        """What is due by `now`. Call it at `wake`; earlier does no harm."""
        self._now = now
        found: list[Action] = []
        for session in list(self.sessions.values()):
            if session.phase is DecodePhase.IDLE:
                if now >= session.used + IDLE_SECONDS and not session.closing:
                    found += self._forget(session)
            elif now >= session.deadline:
                waited = self.waits(session)
                found += self._refuse(
                    session, DeadlineExceeded(f"no logits in {now - session.began:.3g} s: {waited}")
                )
        return [*found, *self._go()]

    # What can be asked

    @property
    def wake(self) -> float:
        """When to call `tick`."""
        times = [
            s.used + IDLE_SECONDS if s.phase is DecodePhase.IDLE else s.deadline
            for s in self.sessions.values()
            if not s.closing
        ]
        return min(times, default=math.inf)

    def require(self, number: int) -> DecoderSession:
        """Raises NotFound: there is no such session any more."""
        session = self.sessions.get(number)
        if session is None or session.closing:
            raise NotFound(
                f"there is no session {number} any more: it was closed, or nobody used it for "
                f"{IDLE_SECONDS:.0f} s; open another one"
            )
        return session

    def waits(self, session: DecoderSession) -> str:
        """For a person: what a session waits for."""
        if session.phase is DecodePhase.FLIES:
            return f"it is on a trip over {', '.join(dict.fromkeys(session.place))}"
        place, lacking = self._places.of(session, self.sessions.values())
        if place is None:
            part = lacking or 0
            return f"no node that is there holds part {part}: {self._nodes.why(part)}"
        return f"{len(self._flights)} trips of other sessions are under way"

    def check(self) -> None:
        """Raises AssertionError where what always holds does not."""
        self.bytes.require_counted(self.sessions.values())
        flying = [chunk.session for flight in self._flights.values() for chunk in flight.chunks]
        assert len(set(flying)) == len(flying), "a session is on two trips"
        slots = [session.slot for session in self.sessions.values()]
        assert len(set(slots)) == len(slots), "a slot is two sessions'"
        assert not set(slots) & set(self._slots), "a slot in use is free"
        assert not self._spent & {*slots, *self._slots}, "a slot that a lost flight writes in is used again"
        assert {owner for owner, *_ in self._flew} <= {one.owner for one in self.sessions.values()}
        lanes = [*self._lanes, *(flight.lane for flight in self._flights.values())]
        assert len(set(lanes)) == len(lanes), "a lane is two flights'"
        for session in self.sessions.values():
            assert session.stored <= session.length or session.number in flying, (
                "more is stored than there is"
            )
            if session.phase is DecodePhase.FLIES:
                assert session.number in flying
            if self.form.by_tokens and session.number not in flying:
                own = sum(span.stop - span.start for span in session.spans)
                assert own == session.stored, "spans are not of what is stored"

    # Inside

    def _new_slot(self) -> int:
        slot = self._slots.pop() if self._slots else self._next_slot
        self._next_slot = max(self._next_slot, slot + 1)
        return slot

    def _require_idle(self, session: DecoderSession) -> None:
        flies = any(c.session == session.number for f in self._flights.values() for c in f.chunks)
        if session.phase is not DecodePhase.IDLE or flies:
            raise FailedPrecondition("the session is being extended: wait for that, and then ask")

    def _turn(self, session: DecoderSession, phase: DecodePhase, *words: str) -> None:
        self.transitions.append((self._now, (f"session {session.number}", *words), session.phase, phase))
        session.phase = phase

    def _lose(self, session: DecoderSession) -> None:
        """Nothing of it counts as stored."""
        self._keep(session, 0)
        session.remembered = 0

    def _keep(self, session: DecoderSession, stored: int) -> None:
        """No more than the first `stored` tokens count as stored."""
        session.stored = min(session.stored, stored)
        cut = [
            replace(s, stop=min(s.stop, session.stored)) for s in session.spans if s.start < session.stored
        ]
        session.spans = cut

    def _refuse(
        self, session: DecoderSession, error: EdgeAttentionError, closing: bool = False
    ) -> list[Action]:
        """Its call ends with `error`; the session is as before it, or goes."""
        flies = session.phase is DecodePhase.FLIES
        del session.tokens[session.asked :]
        self.bytes.count(session, session.number in self.sessions)
        session.answered, session.deadline, session.used = [], math.inf, self._now
        self._turn(session, DecodePhase.IDLE, error.message)
        session.alone = False
        if not flies:
            self._keep(session, session.length)
        elif closing:
            session.closing = True
        return [CallRefused(session.number, error)]

    def _forget(self, session: DecoderSession) -> list[Action]:
        flies = any(c.session == session.number for f in self._flights.values() for c in f.chunks)
        if flies:
            session.closing = True
            return []
        del self.sessions[session.number]
        self.bytes.count(session, session.number in self.sessions)
        if not any(one.owner == session.owner for one in self.sessions.values()):
            self._flew = {of: at for of, at in self._flew.items() if of[0] != session.owner}
        return [ForgetSession(session.slot, tuple(sorted(session.nodes)))]

    def _land(self, number: int) -> Flight | None:
        flight = self._flights.pop(number, None)
        if flight is not None:
            self._lanes.append(flight.lane)
            self._lanes.sort()
        return flight

    def _back(self, chunk: SessionRows) -> DecoderSession | None:
        return self.sessions.get(chunk.session)

    def _go(self) -> list[Action]:
        """Have flights begin, as long as there are lanes and sessions that wait and can go."""
        found: list[Action] = []
        sought: set[int] = set()
        flying = {c.session for f in self._flights.values() for c in f.chunks}
        while self._lanes:
            group: list[DecoderSession] = []
            place: tuple[str, ...] = ()
            remembering = False
            waiting = [
                s for s in self.sessions.values() if s.phase is DecodePhase.WAITS and s.number not in flying
            ]
            for session in self._in_turn(waiting):
                if len(group) >= min(FLIGHT_SESSIONS, self.form.rows[-1]):
                    break
                own, lacking = self._places.of(session, self.sessions.values())
                if own is None:
                    if lacking is not None and lacking not in sought:
                        sought.add(lacking)
                        found.append(SeekHolder(lacking))
                    continue
                if group and (own != place or session.alone or group[0].alone):
                    continue
                lost = self._places.moved(session, own)
                forgets = session.memory is not None and (lost or session.forgets > 0)
                if group and forgets is not remembering:
                    continue  # a trip is of rows of memories, or of tokens
                if own != session.place and (error := self.bytes.no_room(session, own, session.length)):
                    found += self._refuse(session, error)
                    continue
                place, remembering = own, forgets
                group.append(session)
            if not group:
                break
            flight = self._flight(group, place)
            flying.update(chunk.session for chunk in flight.chunks)
            found.append(Fly(flight))
        return found

    def _in_turn(self, waiting: Sequence[DecoderSession]) -> list[DecoderSession]:
        """Those that wait, in the order in which they go."""
        several = len({session.owner for session in waiting}) > 1
        placed: list[tuple[int, bool, DecoderSession]] = []
        first: set[tuple[str, int, bool]] = set()
        for session in sorted(waiting, key=lambda one: (one.since, one.number)):
            since, of = session.since, _turns_of(session)
            if several:
                since = self._now if of in first else max(since, self._flew.get(of, since))
                first.add(of)
            placed.append((waiting_level(session.priority, self._now - since), of[-1], session))
        before: Counter[tuple[str, int, bool]] = Counter()
        found: list[tuple[int, bool, int, DecoderSession]] = []
        for level, many, session in placed:
            found.append((level, many, before[session.owner, level, many], session))
            before[session.owner, level, many] += several
        return [one[-1] for one in sorted(found, key=lambda one: one[:3])]  # stable: then by how long

    def _flight(self, group: Sequence[DecoderSession], place: tuple[str, ...]) -> Flight:
        left = self.form.rows[-1]
        chunks: list[SessionRows] = []
        lives = tuple(self._nodes.life(node) for node in place)
        for number, session in enumerate(group):
            self._flew[_turns_of(session)] = self._now
            self._settle(session, place, lives)
            # Each of those behind has one row at least.
            most = min(left - (len(group) - number - 1), CHUNK_ROWS if len(group) > 1 else left)
            memory = session.memory
            if memory is not None and session.forgets:
                start, stop = session.remembered, min(session.remembered + most, len(memory))
                left -= stop - start
                chunks.append(
                    SessionRows(
                        session.number, session.slot, start, (), memory=len(memory), states=memory[start:stop]
                    )
                )
                self._turn(session, DecodePhase.FLIES)
                continue
            count = min(session.length - session.stored, most)
            left -= count
            start = session.stored
            spans = self._places.spans(session, start, start + count) if self.form.by_tokens else ()
            ids = tuple(session.tokens[start : start + count])
            length = session.memory_length
            chunks.append(SessionRows(session.number, session.slot, start, ids, spans, length))
            self._turn(session, DecodePhase.FLIES)
        rows = next(n for n in self.form.rows if n >= sum(chunk.count for chunk in chunks))
        self._numbers += 1
        flight = Flight(
            self._numbers,
            self._lanes.pop(0),
            rows,
            place,
            tuple(sorted(chunks, key=lambda c: c.slot)),
            rows == 1 and self._goes_ahead(group[0], chunks[0]),
        )
        self._flights[flight.number] = flight
        return flight

    def _goes_ahead(self, session: DecoderSession, chunk: SessionRows) -> bool:
        """Whether nodes begin the token after the one in `chunk`, while nobody else wants anything of them.

        What they store then must be counted already: no new tile begins with it.
        """
        return (
            self._ahead
            and session.greedy
            and chunk.states is None
            and chunk.stop == session.length < self.form.length
            and chunk.stop % TILE != 0
            and all(one.phase is DecodePhase.IDLE for one in self.sessions.values() if one is not session)
        )

    def _settle(self, session: DecoderSession, place: tuple[str, ...], lives: tuple[str, ...]) -> None:
        """From now on it is stored there: what another process had of it is to be stored again."""
        if self._places.moved(session, place):
            self._lose(session)
        if session.place != place:
            session.place = place
            self.bytes.count(session, session.number in self.sessions)
        session.lives = lives
        session.nodes.update(place)


def _turns_of(session: DecoderSession) -> tuple[str, int, bool]:
    """Those that wait for each other. Many rows go behind few, and do not wait for ever for all of these."""
    return session.owner, session.priority, session.rows > FEW
