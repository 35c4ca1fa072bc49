"""Training runs: start, go on after a restart, wait for nodes, commit, stop, be watched."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from aggregator.bulk import Bulk
from aggregator.dispatch import Dispatcher
from aggregator.link import Link
from aggregator.membership import Membership
from aggregator.metrics import Metrics
from aggregator.parameters import Committed, ParameterStore
from aggregator.state import State
from aggregator.training.alignment import Alignment, Split, align, batch_positions, split
from aggregator.training.fusion import FusionRounds, Interrupted, Timer
from aggregator.training.fusion import Samples as Batch
from aggregator.training.plan import FusionPlan, Graph, check_dataset, plan
from aggregator.training.records import record_from, to_json, write_lines
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    NotFound,
)
from edge_attention.core.jobs import (
    FusionJob,
    PlannedGraph,
    RunState,
    Samples,
    StartRunRequest,
    TrainingRound,
    TrainingRun,
)
from edge_attention.wire.services import START_RUN

log = logging.getLogger(__name__)


@dataclass
class ActiveRun:
    """A run as it stands. `changed` is replaced each time something does."""

    info: TrainingRun
    job: FusionJob
    identity_key: bytes
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    evaluating: bool = False

    def update(self, **changes: object) -> None:
        self.info = replace(self.info, **changes)  # type: ignore[arg-type]
        self.changed.set()
        self.changed = asyncio.Event()


class Runs:
    """All runs: those going on and those that have ended."""

    def __init__(
        self,
        state: State,
        parameters: ParameterStore,
        membership: Membership,
        dispatcher: Dispatcher,
        bulk: Bulk,
        link: Link,
        metrics: Metrics,
        patience: float,
    ) -> None:
        self._state = state
        self._parameters = parameters
        self._membership = membership
        self._dispatcher = dispatcher
        self._bulk = bulk
        self._link = link
        self._metrics = metrics
        self._patience = patience
        self._active: dict[str, ActiveRun] = {}

    # Calls of clients

    async def plan(self, job: FusionJob) -> tuple[PlannedGraph, ...]:
        """What the job would run and what has to be released for it."""
        return (await self._plan(job)).released()

    async def start(self, job: FusionJob) -> TrainingRun:
        """Start a run.

        Raises:
            EdgeAttentionError: the job cannot run; nothing is left of it.
        """
        planned = await self._plan(job)
        for part in (*planned.encoders, planned.head):
            member = self._membership.get(part.node)
            if member is not None and member.live:
                check_dataset(part, member.register.datasets)
        stem = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-") or "run"
        id, created, key = f"{stem[:40]}-{secrets.token_hex(3)}", time.time(), secrets.token_bytes(32)
        encoded = START_RUN.request.encode(StartRunRequest(job))
        stored = {"job": base64.b64encode(encoded).decode(), "identity_key": key.hex()}
        self._state.put_run(id, job.name, created, stored, RunState.RUNNING.value)
        info = TrainingRun(id, job.name, RunState.RUNNING, "", 0, job.rounds, 0, created)
        self._begin(ActiveRun(info, job, key), planned)
        return info

    async def stop(self, name: str) -> TrainingRun:
        """Stop a run after the round it is in; what was committed stays."""
        info = self.describe(name)
        active = self._active.get(info.id)
        if active is None or active.task is None or info.state is not RunState.RUNNING:
            return info
        self._state.set_run_status(info.id, RunState.STOPPED.value, "stopped on request")
        active.task.cancel()
        await asyncio.wait([active.task])
        active.update(state=RunState.STOPPED, detail="stopped on request", waiting="")
        return active.info

    def describe(self, name: str) -> TrainingRun:
        """The run with this id, or the latest of this name.

        Raises:
            NotFound: there is none.
        """
        runs = self.list()
        for run in runs:
            if run.id == name:
                return run
        named = [run for run in runs if run.name == name]
        if not named:
            known = ", ".join(run.id for run in runs[-10:]) or "none"
            raise NotFound(f"no run {name[:80]!r}; runs here: {known}")
        return named[-1]

    def list(self) -> tuple[TrainingRun, ...]:
        """Every run, oldest first."""
        found = []
        for row in self._state.list_runs():
            active = self._active.get(row.id)
            job = self._job(row.job) if active is None else active.job
            found.append(
                active.info
                if active is not None
                else TrainingRun(
                    row.id, row.name, RunState(row.status), row.detail, row.round, job.rounds,
                    row.version or 0, row.created, "", self._samples(row.id),
                )
            )  # fmt: skip
        return tuple(found)

    async def watch(self, name: str, after_round: int) -> AsyncIterator[TrainingRound | TrainingRun]:
        """Rounds after `after_round`, and the run whenever it changes, until it ends."""
        info = self.describe(name)
        told: TrainingRun | None = None
        while True:
            active = self._active.get(info.id)
            changed = active.changed if active is not None else None
            # Asked before the records: of a run that has ended they are all there.
            now = self.describe(info.id)
            going = now.state is RunState.RUNNING
            for row in self._state.records(info.id, after_round):
                if going and active is not None and active.evaluating and row.round == active.info.round:
                    # Its evaluation is still to come.
                    break
                yield record_from(row.record)
                after_round = row.round
            if told is None or (now.state, now.waiting, now.samples) != (
                told.state,
                told.waiting,
                told.samples,
            ):
                told = now
                yield now
            if not going or changed is None:
                return
            await changed.wait()

    def export(self, name: str, version: int | None) -> tuple[int, bytes]:
        """A version's number and its parameters as a safetensors file."""
        info = self.describe(name)
        latest = self._parameters.latest(info.id)
        if latest is None:
            raise FailedPrecondition(f"run {info.id} has no version yet; it waits for its nodes")
        chosen = latest if version is None else version
        return chosen, self._parameters.export(info.id, chosen)

    # Of the process

    def resume(self) -> None:
        """Take up the runs that were going on when the aggregator ended."""
        for row in self._state.list_runs():
            if row.status != RunState.RUNNING.value:
                continue
            job = self._job(row.job)
            info = TrainingRun(
                row.id, row.name, RunState.RUNNING, "", row.round, job.rounds, row.version or 0, row.created
            )
            log.info("run %s goes on after round %d of %d", row.id, row.round, job.rounds)
            active = ActiveRun(info, job, bytes.fromhex(row.job["identity_key"]))
            due = row.round > 0 and self._due(job, row.round)
            active.evaluating = due and self._unevaluated(row.id, row.round)
            self._begin(active, None)

    async def close(self) -> None:
        """Leave the runs as they are, to be taken up by the next process."""
        tasks = [active.task for active in self._active.values() if active.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Inside

    def _job(self, stored: dict[str, str]) -> FusionJob:
        return START_RUN.request.decode(base64.b64decode(stored["job"])).job

    def _samples(self, id: str) -> Samples | None:
        zeroth = self._state.record(id, 0)
        return Samples(**zeroth["samples"]) if zeroth is not None else None

    async def _plan(self, job: FusionJob) -> FusionPlan:
        digests = {encoder.graph for encoder in job.encoders} | {job.head.graph}
        models = {digest: self._bulk.find(digest) for digest in digests}
        # Differentiating takes a second or more; heartbeats must not wait for it.
        return await asyncio.to_thread(plan, job, models)

    def _begin(self, active: ActiveRun, planned: FusionPlan | None) -> None:
        self._active[active.info.id] = active
        self._metrics.runs.inc()
        active.task = asyncio.create_task(self._supervise(active, planned), name=f"run {active.info.id}")

    async def _supervise(self, active: ActiveRun, planned: FusionPlan | None) -> None:
        id = active.info.id
        try:
            planned = planned or await self._plan(active.job)
            await self._train(active, planned)
            self._end(active, RunState.FINISHED, "")
        except EdgeAttentionError as error:
            log.error("run %s failed: %s", id, error.message)
            self._end(active, RunState.FAILED, error.message)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("run %s failed", id)
            self._end(active, RunState.FAILED, f"{type(error).__name__} in the aggregator; its log says more")
        finally:
            self._metrics.runs.dec()
            for gauge in (self._metrics.version, self._metrics.waiting):
                gauge.remove_by_labels({"run": id})

    def _end(self, active: ActiveRun, state: RunState, detail: str) -> None:
        self._state.set_run_status(active.info.id, state.value, detail)
        active.update(state=state, detail=detail, waiting="")

    async def _train(self, active: ActiveRun, planned: FusionPlan) -> None:
        id, job = active.info.id, active.job
        patience = job.patience_seconds or self._patience
        for part in (*planned.encoders, planned.head):
            for graph in (part.forward, part.gradient):
                self._keep(graph)

        def say(sentence: str) -> None:
            if sentence != active.info.waiting:
                if sentence:
                    log.warning("run %s waits for %s", id, sentence)
                elif active.info.waiting:
                    log.info("run %s goes on", id)
                self._metrics.waiting.labels(id).set(bool(sentence))
                active.update(waiting=sentence)

        rounds = FusionRounds(id, planned, self._dispatcher, self._bulk, patience, active.identity_key, say)
        ready = _Ready(self, active, planned, rounds, patience, say)
        try:
            await self._rounds(active, planned, rounds, ready)
        finally:
            rounds.forget()

    async def _rounds(
        self, active: ActiveRun, planned: FusionPlan, rounds: FusionRounds, ready: _Ready
    ) -> None:
        id, job = active.info.id, active.job
        current = await ready.first()
        self._write_lines(id)
        while True:
            number = current.round + 1
            due = current.round > 0 and self._due(job, current.round)
            try:
                aligned, parts = await ready.check()
                if due and self._unevaluated(id, current.round):
                    timer = Timer()
                    active.evaluating = True
                    evaluation = await rounds.evaluate(
                        Batch(parts.holdout, aligned), current.parameters, current.version, timer
                    )
                    record = self._record(id, current.round)
                    seconds = {**record.seconds, "evaluate": sum(timer.seconds.values())}
                    record = replace(record, evaluation=evaluation, seconds=seconds)
                    self._state.replace_record(id, current.round, to_json(record))
                if current.round > 0 and active.evaluating | due:
                    active.evaluating = False
                    active.update()
                    self._write_lines(id, current.round)
                if number > job.rounds:
                    await rounds.push(current.parameters, current.version)
                    return
                current = await self._round(active, planned, rounds, aligned, parts, current)
                ready.progress()
            except Interrupted as interruption:
                log.warning("run %s: round %d is run again: %s", id, number, interruption.message)
                await ready.pause(interruption)

    async def _round(
        self,
        active: ActiveRun,
        planned: FusionPlan,
        rounds: FusionRounds,
        aligned: Alignment,
        parts: Split,
        current: Committed,
    ) -> Committed:
        """One round: gradients, an optimizer step, a durable commit; then, and only then, it is known."""
        job, number = active.job, current.round + 1
        sent, received = dict(self._link.bytes_sent), dict(self._link.bytes_received)
        began, timer = time.perf_counter(), Timer()
        positions = batch_positions(parts.train, job.batch, job.seed, number)
        step = await rounds.step(Batch(positions, aligned), current.parameters, current.version, timer)
        parameters, optimizer_state = await asyncio.to_thread(
            planned.optimizer.step, current.parameters, step.gradients, current.optimizer_state
        )
        timer.lap("optimizer")
        record = TrainingRound(
            number=number,
            version=current.version + 1,
            loss=step.loss,
            samples=tuple(positions.tolist()),
            # The commit's own time cannot be part of what it commits; `all` ends before it.
            seconds={**timer.seconds, "all": time.perf_counter() - began},
            bytes_sent={n: self._link.bytes_sent[n] - sent.get(n, 0) for n in planned.nodes},
            bytes_received={n: self._link.bytes_received[n] - received.get(n, 0) for n in planned.nodes},
            mass=step.mass,
            absent=step.absent,
        )
        committed = Committed(current.version + 1, number, parameters, optimizer_state)
        commit = asyncio.create_task(self._commit(active, committed, record, timer))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await commit  # a commit under way cannot be called back: what it commits must be known
            raise
        return committed

    async def _commit(
        self,
        active: ActiveRun,
        committed: Committed,
        record: TrainingRound,
        timer: Timer,
    ) -> None:
        id, job, number = active.info.id, active.job, committed.round
        await asyncio.to_thread(
            self._parameters.commit,
            id,
            committed.version,
            number,
            committed.parameters,
            committed.optimizer_state,
            to_json(record),
        )
        timer.lap("commit")
        self._metrics.rounds.inc()
        self._metrics.version.labels(id).set(committed.version)
        for stage, seconds in timer.seconds.items():
            self._metrics.round_seconds.labels(stage).observe(seconds)
        active.evaluating = self._due(job, number)
        active.update(round=number, version=committed.version)
        if not active.evaluating:
            self._write_lines(id, number)

    def _keep(self, graph: Graph) -> None:
        if not self._state.has_blob(graph.digest):
            self._state.put_blob(graph.data)

    def _due(self, job: FusionJob, number: int) -> bool:
        every = job.evaluate_every
        return job.holdout > 0 and (number == job.rounds or bool(every and number % every == 0))

    def _record(self, id: str, number: int) -> TrainingRound:
        record = self._state.record(id, number)
        assert record is not None  # it was committed with its version
        return record_from(record)

    def _unevaluated(self, id: str, number: int) -> bool:
        return self._record(id, number).evaluation is None

    def _write_lines(self, id: str, number: int | None = None) -> None:
        """Append round `number` to the run's JSON lines, or write them all anew."""
        path = self._parameters.folder(id) / "record.jsonl"
        after = 0 if number is None else number - 1
        records = (record_from(r.record) for r in self._state.records(id, after))
        write_lines(path, records, append=number is not None)


class _Ready:
    """Sees to it that all nodes are there with the data the run began with, and gives up in the end."""

    def __init__(
        self,
        runs: Runs,
        active: ActiveRun,
        planned: FusionPlan,
        rounds: FusionRounds,
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        self._runs, self._active, self._planned, self._rounds = runs, active, planned, rounds
        self._patience, self._say = patience, say
        self._instances: tuple[str, ...] = ()
        self._aligned: Alignment | None = None
        self._failures = 0
        self._since = time.monotonic()

    async def first(self) -> Committed:
        """The latest committed version; version 0 is committed when the nodes have first been seen."""
        runs, id = self._runs, self._active.info.id
        while True:
            try:
                aligned, parts = await self.check()
                break
            except Interrupted as interruption:
                await self.pause(interruption)
        samples = parts.samples(aligned)
        latest = runs._parameters.latest(id)
        if latest is None:
            batch_positions(parts.train, self._active.job.batch, self._active.job.seed, 1)
            parameters = self._planned.parameters()
            state = self._planned.optimizer.init(parameters)
            zeroth = {"fingerprint": aligned.fingerprint, "samples": vars(samples)}
            await asyncio.to_thread(runs._parameters.commit, id, 0, 0, parameters, state, zeroth)
            committed = Committed(0, 0, parameters, state)
        else:
            committed = await asyncio.to_thread(runs._parameters.load, id, latest)
        self._active.update(samples=samples, round=committed.round, version=committed.version)
        return committed

    async def check(self) -> tuple[Alignment, Split]:
        """Wait for every node; align the samples again where one has been restarted.

        Raises:
            DeadlineExceeded: a node stayed away longer than the run's patience.
            FailedPrecondition: the data are no longer those the run began with.
        """
        runs, job = self._runs, self._active.job
        nodes = self._planned.nodes
        if not await runs._dispatcher.all_live(nodes, self._patience, self._say):
            away = [n for n in nodes if (m := runs._membership.get(n)) is None or not m.live]
            raise DeadlineExceeded(
                f"node {', '.join(away)} did not come within {self._patience:.0f} s; "
                "start it, and the run anew"
            )
        members = [runs._membership.require_live(name) for name in nodes]
        instances = tuple(member.register.instance for member in members)
        if self._aligned is None or instances != self._instances:
            for part in (*self._planned.encoders, self._planned.head):
                check_dataset(part, runs._membership.require_live(part.node).register.datasets)
            hashes = await self._rounds.identities()
            sources = [encoder.source for encoder in self._planned.encoders]
            self._aligned = align(hashes, self._planned.head.source, sources, job.missing)
            self._instances = instances
            began = self._fingerprint()
            if began is not None and began != self._aligned.fingerprint:
                raise FailedPrecondition(
                    "the nodes' samples are no longer those this run began with; start a new run"
                )
        return self._aligned, split(len(self._aligned), job.holdout, job.seed)

    def _fingerprint(self) -> str | None:
        zeroth = self._runs._state.record(self._active.info.id, 0)
        return None if zeroth is None else str(zeroth["fingerprint"])

    def progress(self) -> None:
        if self._failures:
            self._say("")
        self._failures, self._since = 0, time.monotonic()

    async def pause(self, interruption: Interrupted) -> None:
        """Wait a little before the round is run again; give up when nothing has worked for long."""
        self._failures += 1
        now = time.monotonic()
        if now - self._since > self._patience:
            raise DeadlineExceeded(f"no round has ended for {self._patience:.0f} s: {interruption.message}")
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + self._since + self._patience - now))
        self._say(f"another try, until {clock}: {interruption.message}")
        await asyncio.sleep(min(0.1 * 2**self._failures, 5.0))
