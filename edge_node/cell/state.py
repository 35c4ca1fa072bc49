"""What becomes of graphs and of the process they run in, decided. No I/O, no clock, no threads.

    absent --(ask)--> starting --(ready)--> ready --(idle, leave)--> ending --(died)--> absent
                          \\______________ died, whatever the state ________________/

A job is one task's wish to run one graph in the cell. It waits, is granted a lane, and is done; or its cell
dies under it. Then each job that ran is tried again alone, one after the other: whose graph ends the process
so, too, is guilty; the others never learn of it, nor of a process that was ended from outside.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from edge_attention.core.errors import EdgeAttentionError, GraphDied, Unavailable
from edge_attention.core.transitions import Transition, recent

GRACE_SECONDS = 2.0
"""What a graph that was told to stop may take to do so, before its cell is ended."""
IDLE_SECONDS = 300.0
"""A cell without a job ends after that, and its memory is the box's again."""
START_SECONDS = 60.0
"""What a cell may take to start, on a slow box that is busy."""
START_TRIES = 3
"""So many that end before they are ready, one after the other, and whoever waits is told."""
LOAD_PROCESSOR_SECONDS = 120.0
"""Seconds of one thread that a graph may take to load."""
RUN_PROCESSOR_SECONDS = 3600.0
"""Seconds of all threads, shared among the jobs that run at the time: what one run may take."""
LOOK_SECONDS = 0.5
"""How often the processor's time is looked at while jobs run."""


class CellPhase(Enum):
    """How far the cell's process is."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"


@dataclass(frozen=True)
class Usage:
    """Processor seconds so far: of the whole cell, and of the thread of each lane."""

    cell: float = 0.0
    lanes: tuple[float, ...] = ()


class StartCell(NamedTuple):
    """Start a process; then `ready` or `died`."""


class Grant(NamedTuple):
    """The job may use the lane until `done`."""

    job: int
    lane: int


class StopJob(NamedTuple):
    """Tell the cell that the job on this lane is to end; it answers as if the graph had failed."""

    job: int
    lane: int


class Fail(NamedTuple):
    """The job ends with this error."""

    job: int
    error: EdgeAttentionError


class EndCell(NamedTuple):
    """End the process: `kill` at once, or by closing what connects it. Then `died`."""

    kill: bool


class Blame(NamedTuple):
    """Count it against the graph that it has ended a process."""

    digest: str


class Notice(NamedTuple):
    """Tell the operator `text`."""

    text: str


Action = StartCell | Grant | StopJob | Fail | EndCell | Blame | Notice


@dataclass(eq=False)
class _Job:
    digest: str
    alone: bool = False
    lane: int | None = None
    loading: bool = False
    stopped: float | None = None  # when it was told to end
    lane_seconds: float = 0.0  # the lane's, when the load began
    seconds: float = 0.0  # its share of the cell's


class CellState:
    """One cell of `lanes` lanes. `refusal(digest)` says why a graph is not taken, or None.

    Each event returns actions, to be performed in order. `transitions`: its last changes of phase.
    """

    def __init__(self, lanes: int, refusal: Callable[[str], EdgeAttentionError | None]) -> None:
        self.phase = CellPhase.ABSENT
        self.transitions: deque[Transition] = recent()
        self._lanes = lanes
        self._refusal = refusal
        self._jobs: OrderedDict[int, _Job] = OrderedDict()  # those that wait in the order they came
        self._began = 0.0
        self._idle_since = 0.0
        self._looked_at = 0.0
        self._used = Usage()
        self._touched: set[str] = set()  # graphs that the process was given
        self._ended_for: tuple[int, EdgeAttentionError, bool] | None = None
        self._killed = False
        self._failed = 0  # starts, one after the other

    @property
    def jobs(self) -> int:
        return len(self._jobs)

    @property
    def wake(self) -> float | None:
        """When to call `tick`, if nothing else happens before."""
        if self.phase is CellPhase.ABSENT or self._killed:
            return None
        if self.phase is CellPhase.STARTING:
            return self._began + START_SECONDS
        if self.phase is CellPhase.ENDING:
            return self._began + GRACE_SECONDS
        if not self._jobs:
            return self._idle_since + IDLE_SECONDS
        found = self._looked_at + LOOK_SECONDS
        for job in self._jobs.values():
            if job.stopped is not None and job.lane is not None:
                found = min(found, job.stopped + GRACE_SECONDS)
        return found

    # Events

    def ask(self, job: int, digest: str, now: float) -> list[Action]:
        """A task wants to run the graph `digest`, as job `job`."""
        if (error := self._refusal(digest)) is not None:
            return [Fail(job, error)]
        self._jobs[job] = _Job(digest)
        if self.phase is CellPhase.ABSENT:
            return self._start(now)
        return self._grant(now)

    def ready(self, now: float) -> list[Action]:
        """The process has started and waits for work."""
        if self.phase is not CellPhase.STARTING:
            return []
        self._failed = 0
        self._turn(CellPhase.READY, now, "ready")
        self._used = Usage()
        self._idle_since = now
        self._looked_at = now
        self._touched = set()
        return self._grant(now)

    def loading(self, job: int, begins: bool) -> list[Action]:
        """The job's graph is being loaded from now on, or no more."""
        if (found := self._jobs.get(job)) is not None and found.lane is not None:
            found.loading = begins
            lanes = self._used.lanes
            found.lane_seconds = lanes[found.lane] if found.lane < len(lanes) else 0.0
        return []

    def done(self, job: int, now: float) -> list[Action]:
        """The job has its answer, or nobody wants it any more."""
        self._jobs.pop(job, None)
        if not self._jobs:
            self._idle_since = now
        return self._grant(now)

    def stop(self, job: int, now: float) -> list[Action]:
        """The job's task is over: whoever waits for the job is told, what runs is to end."""
        found = self._jobs.get(job)
        if found is None or found.stopped is not None:
            return []
        found.stopped = now
        if found.lane is None:
            # Who waits takes the reason from the task itself.
            return self._drop(job, Unavailable("the task was stopped"))
        return [StopJob(job, found.lane)]

    def nonsense(self, job: int, what: str, now: float) -> list[Action]:
        """What the cell answered to this job cannot be right: it is not what it was any more."""
        found = self._jobs.get(job)
        if found is None or found.lane is None or self._killed:
            return []
        error = GraphDied(f"graph {found.digest[:12]} made its process answer what cannot be: {what}")
        if not found.alone:
            # Another graph may have done this to the process: each is tried again by itself.
            return [Notice(f"{error.message}: its process is ended"), *self._kill(now)]
        return self._end_for(job, error, blame=True, now=now)

    def given_up(self, job: int, now: float) -> list[Action]:
        """Nobody hears what the cell answers to this job, which may be on its way: the next to use the lane
        would take it for its own. So nobody uses it any more."""
        found = self._jobs.get(job)
        return [] if found is None or found.lane is None or self._killed else self._kill(now)

    def tick(self, now: float, used: Usage) -> list[Action]:
        """What is due by `now`, a reading of the clock, given the processor time the cell has `used`.

        Call it at `wake` at the latest: a cell that does not start, runs too long or has nothing to do is
        ended here.
        """
        if self._killed or self.phase is CellPhase.ABSENT:
            return []
        if self.phase is not CellPhase.READY:
            limit = START_SECONDS if self.phase is CellPhase.STARTING else GRACE_SECONDS
            return self._kill(now) if now >= self._began + limit else []
        if not self._jobs:
            return self._end(now) if now >= self._idle_since + IDLE_SECONDS else []
        if now >= self._looked_at + LOOK_SECONDS:
            self._looked_at = now
            self._charge(used)
        for number, job in self._jobs.items():
            if job.lane is None:
                continue
            where = f"graph {job.digest[:12]}"
            if job.stopped is not None and now >= job.stopped + GRACE_SECONDS:
                # To be slow to load when told to end is no crime; a run that does not listen is ended twice.
                error = GraphDied(f"{where} did not end within {GRACE_SECONDS:g} s of being told to")
                return self._end_for(number, error, blame=not job.loading, now=now)
            lanes = self._used.lanes
            loaded = lanes[job.lane] - job.lane_seconds if job.loading and job.lane < len(lanes) else 0.0
            if loaded > LOAD_PROCESSOR_SECONDS:
                error = GraphDied(f"{where} takes over {LOAD_PROCESSOR_SECONDS:g} processor seconds to load")
                return self._end_for(number, error, blame=True, now=now)
            if job.seconds > RUN_PROCESSOR_SECONDS:
                error = GraphDied(f"{where} takes over {RUN_PROCESSOR_SECONDS:g} processor seconds a run")
                return self._end_for(number, error, blame=True, now=now)
        return []

    def leave(self, now: float) -> list[Action]:
        """The node leaves: end the process, and start none again."""
        actions: list[Action] = []
        for number in list(self._jobs):
            actions += self._drop(number, Unavailable("the node has left"))
        return [*actions, *([] if self.phase is CellPhase.ABSENT else self._kill(now))]

    def died(self, how: str, now: float) -> list[Action]:
        """The process is gone, `how` in words."""
        was = self.phase
        self._turn(CellPhase.ABSENT, now, how)
        self._killed = False
        guilty, self._ended_for = self._ended_for, None
        running = {key: job for key, job in self._jobs.items() if job.lane is not None}
        for job in running.values():
            job.lane, job.loading, job.seconds = None, False, 0.0
        actions: list[Action] = []
        if was is CellPhase.STARTING:
            self._failed += 1
            if self._failed % START_TRIES:
                return [Notice(f"the process for graphs ended as it started: {how}"), *self._again(now)]
            text = f"the process for graphs could not start ({how}); its words are in the node's log"
            for waiting in list(self._jobs):
                actions += self._drop(waiting, Unavailable(text))
            return actions
        if guilty is not None:
            number, error, blame = guilty
            if number in self._jobs:
                digest = self._jobs[number].digest
                actions += self._drop(number, error)
                actions += [Blame(digest)] if blame else []
        elif running:
            actions.append(Notice(f"the process for graphs ended: {how}; {len(running)} graphs were running"))
            # Of an only one nobody knows either: somebody on the box may have ended it, or the kernel.
            for key, job in running.items():
                if job.alone:
                    actions += self._blamed(key, how)
        for job in running.values():
            job.alone = True  # also the innocent: else whoever ends cells one after the other holds them up
        for key in [key for key, job in self._jobs.items() if job.stopped is not None]:
            actions += self._drop(key, Unavailable("the task was stopped"))
        return actions + self._again(now)

    # What they have in common

    def _running(self) -> list[_Job]:
        return [job for job in self._jobs.values() if job.lane is not None]

    def _again(self, now: float) -> list[Action]:
        return self._start(now) if self._jobs else []

    def _start(self, now: float) -> list[Action]:
        self._turn(CellPhase.STARTING, now, "asked")
        self._began = now
        return [StartCell()]

    def _grant(self, now: float) -> list[Action]:
        if self.phase is not CellPhase.READY or self._ended_for is not None:
            return []
        waiting = [(n, job) for n, job in self._jobs.items() if job.lane is None]
        if not waiting:
            return []
        if len(self._jobs) == 1 and not waiting[0][1].alone:  # as most are: nobody is in its way
            self._looked_at = now
            return [self._granted(*waiting[0], 0)]
        actions: list[Action] = []
        running = self._running()
        # Those to be tried alone first, and while one is, nobody else.
        alone = next(((n, job) for n, job in waiting if job.alone), None)
        if any(job.alone for job in running) or (alone is not None and running):
            return actions
        if alone is not None and self._touched - {alone[1].digest}:
            # In a process that no other graph has been in: what one left behind is not the next one's fault.
            return self._end(now)
        taken = {job.lane for job in running}
        free = [n for n in range(self._lanes) if n not in taken]
        for number, job in [alone] if alone is not None else waiting:
            if not free:
                break
            if not running and not actions:
                self._looked_at = now
            actions.append(self._granted(number, job, free.pop(0)))
        return actions

    def _granted(self, number: int, job: _Job, lane: int) -> Grant:
        job.lane = lane
        self._touched.add(job.digest)
        return Grant(number, lane)

    def _charge(self, used: Usage) -> None:
        """Share what the cell has used since the last look among the jobs that run."""
        running = self._running()
        more = max(0.0, used.cell - self._used.cell) / max(1, len(running))
        for job in running:
            job.seconds += 0.0 if job.loading else more
        self._used = used

    def _drop(self, job: int, error: EdgeAttentionError) -> list[Action]:
        del self._jobs[job]
        return [Fail(job, error)]

    def _blamed(self, job: int, how: str) -> list[Action]:
        digest = self._jobs[job].digest
        error = GraphDied(f"graph {digest[:12]} ended its process: {how}")
        return [*self._drop(job, error), Blame(digest)]

    def _end_for(self, job: int, error: EdgeAttentionError, *, blame: bool, now: float) -> list[Action]:
        self._ended_for = (job, error, blame)
        return [Notice(f"{error.message}: its process is ended"), *self._kill(now)]

    def _kill(self, now: float) -> list[Action]:
        self._killed = True
        if self.phase is CellPhase.READY:
            self._turn(CellPhase.ENDING, now, "killed")
        return [EndCell(kill=True)]

    def _end(self, now: float) -> list[Action]:
        self._turn(CellPhase.ENDING, now, "told to end")
        self._began = now
        return [EndCell(kill=False)]

    def _turn(self, phase: CellPhase, now: float, why: str) -> None:
        self.transitions.append((now, (why,), self.phase, phase))
        self.phase = phase

    def check(self) -> None:
        """Raises AssertionError unless what must always hold does."""
        running = self._running()
        lanes = [job.lane for job in running]
        assert len(set(lanes)) == len(lanes), "two jobs on one lane"
        assert all(lane is not None and 0 <= lane < self._lanes for lane in lanes), "a lane that is none"
        assert not running or self.phase in (CellPhase.READY, CellPhase.ENDING), "a job runs in no process"
        assert len(running) <= 1 or not any(job.alone for job in running), "one that is to be alone is not"
        assert self.phase is not CellPhase.ABSENT or not self._jobs, "a job waits and nothing starts"
        if self.phase is CellPhase.READY and not running and self._ended_for is None:
            assert not self._jobs, "a job waits for a lane and all are free"
        if self._ended_for is not None:
            assert self.phase is CellPhase.ENDING, "somebody is guilty and the process lives"
        waits = self.phase is CellPhase.ABSENT or self._killed
        assert (self.wake is None) == waits, "nobody is to look again"
