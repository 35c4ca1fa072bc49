"""Training runs: start, go on after a restart, wait for nodes, commit, stop, be watched."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator

from aggregator.bulk import Bulk
from aggregator.dispatch import Dispatcher
from aggregator.link import Link
from aggregator.membership import Membership
from aggregator.metrics import Metrics
from aggregator.parameters import ParameterStore
from aggregator.state import State
from aggregator.training.plan import FusionPlan, check_dataset, plan
from aggregator.training.records import record_from
from aggregator.training.trainer import ActiveRun, Trainer, evaluation_due
from edge_attention.core.errors import (
    EdgeAttentionError,
    FailedPrecondition,
    NotFound,
    Unavailable,
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
        self._closing = False

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
                if going and active is not None and row.round >= active.info.round + (not active.evaluating):
                    # Its commit is not yet known here, or its evaluation is still to come.
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
            if self._closing:
                raise Unavailable("the aggregator is stopping; the run goes on when it is started again")

    def export(self, name: str, version: int | None) -> tuple[int, bytes]:
        """A version's number and its parameters as a safetensors file."""
        info = self.describe(name)
        latest = self._parameters.latest(info.id)
        if latest is None:
            why = f"it {info.state.value}: {info.detail}" if info.detail else f"it waits for {info.waiting}"
            raise FailedPrecondition(f"run {info.id} has no version yet; {why}")
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
            record = self._state.record(row.id, row.round) if evaluation_due(job, row.round) else None
            active.evaluating = record is not None and record_from(record).evaluation is None
            self._begin(active, None)

    async def close(self) -> None:
        """Leave the runs as they are, to be taken up by the next process."""
        self._closing = True
        tasks = [active.task for active in self._active.values() if active.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for active in self._active.values():
            active.update()  # those who watch are to hear of it

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
            await self._trainer(active, planned).train()
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
                with contextlib.suppress(KeyError):  # it may never have been set
                    gauge.remove(id)

    def _end(self, active: ActiveRun, state: RunState, detail: str) -> None:
        self._state.set_run_status(active.info.id, state.value, detail)
        active.update(state=state, detail=detail, waiting="")

    def _trainer(self, active: ActiveRun, planned: FusionPlan) -> Trainer:
        patience = active.job.patience_seconds or self._patience
        return Trainer(
            active,
            planned,
            self._state,
            self._parameters,
            self._membership,
            self._dispatcher,
            self._bulk,
            self._link,
            self._metrics,
            patience,
        )
