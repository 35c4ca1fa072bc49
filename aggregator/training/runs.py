"""Training runs: start, go on after a restart, wait for nodes, commit, stop, be watched."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Collection, Mapping
from functools import partial
from pathlib import Path

from aggregator.bounds.bounds import JOB_BYTES, RUNS, RUNS_KEPT
from aggregator.bounds.budget import Budgets, Lease
from aggregator.engine import scratch
from aggregator.engine.endings import to_the_end
from aggregator.store.folder import is_full, require_space, unwritable
from aggregator.store.parameters import Stream
from aggregator.training.active import ActiveRun, Job
from aggregator.training.disk_room import train_with_room
from aggregator.training.earlier_runs import GoingRun, earlier_run, going_run, job_of, recall_courses
from aggregator.training.federated.plan import FederatedPlan
from aggregator.training.job_recipes import JobRecipe, recipe_of
from aggregator.training.planner import request_of
from aggregator.training.records import PAGE, record_from
from aggregator.training.run_states import RunStates
from aggregator.training.services import Services
from aggregator.training.split.plan import SplitPlan
from aggregator.training.trained import (
    WrittenModel,
    best_version,
    chosen_version,
    predicted,
    written_model,
)
from aggregator.trust.acting import context_of
from edge_attention.core.errors import (
    DiskFull,
    EdgeAttentionError,
    FailedPrecondition,
    GraphDied,
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.job_release import job_release_of
from edge_attention.core.messages.training import (
    PlanRunResponse,
    PredictResponse,
    RunState,
    TrainingRound,
    TrainingRun,
)
from edge_attention.wire.services import START_RUN

log = logging.getLogger(__name__)

STOPPED = "stopped on request"
RECALLED = 8
"""Runs whose curves are drawn again after a restart."""

UNUSED_SECONDS = 3600.0
"""A blob that was asked for within so many seconds is not removed with a run: somebody may be about to name
it in another. It goes when the retention next looks."""


class Runs:
    """All runs: those going on and those that have ended."""

    def __init__(self, services: Services, budgets: Budgets | None = None) -> None:
        self._budgets = budgets or Budgets()
        self._services = services
        self._state = services.state
        self._parameters = services.parameters
        self._metrics = services.metrics
        self._active: dict[str, ActiveRun] = {}
        """Those that go on; what an end leaves of one is below: there may be hundreds a day."""
        self._earlier: dict[str, TrainingRun] | None = None
        """Those that have ended, in this life or before."""
        self._errors: dict[str, EdgeAttentionError] = {}
        """What those failed with that did in this life, without what led there."""
        self._going: list[GoingRun] | None = None
        self._resuming: set[str] = set()
        self._deleting: set[str] = set()
        self._kept: dict[str, Lease] = {}
        """What each run takes of those that may be kept."""
        self._closing = False
        self._states = RunStates(services.state)
        # What a process that was killed was at.
        shutil.rmtree(self._state.directory / scratch.SCRATCH, ignore_errors=True)

    # Calls of clients

    async def plan(self, job: Job | None) -> PlanRunResponse:
        """What the job would run and what has to be released for it; what it makes of its models; and what a
        run would be refused for."""
        recipe = recipe_of(job, self._services)
        await self._plan(recipe)
        try:
            graphs, found = recipe.released(), await recipe.findings()
            whole = job_release_of(graph.release for graph in graphs)
            return PlanRunResponse(
                graphs,
                recipe.models(),
                whole.flag if whole is not None else "",
                tuple(found.problems),
                tuple(found.unchecked),
            )
        finally:
            await recipe.discard()

    async def start(self, job: Job | None, owner: str = "") -> TrainingRun:
        """Start a run, counted for `owner` ("": nobody in particular).

        Raises:
            EdgeAttentionError: the job cannot run; nothing is left of it.
            ResourceExhausted: too many runs go on, or are kept.
        """
        recipe = recipe_of(job, self._services)
        assert job is not None  # or there is no recipe
        self._known()  # those of before count, too
        with contextlib.ExitStack() as stack:
            going = stack.enter_context(self._budgets.take(RUNS, owner or None))
            kept = stack.enter_context(self._budgets.take(RUNS_KEPT, owner or None))
            return await self._start(job, recipe, owner, (going, kept), stack)

    async def _start(
        self,
        job: Job,
        recipe: JobRecipe,
        owner: str,
        leases: tuple[Lease, Lease],
        taken: contextlib.ExitStack,
    ) -> TrainingRun:
        """`leases`: of the runs that go on, and of those that are kept."""
        await self._plan(recipe)
        try:
            recipe.check_nodes()
            stem = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-") or "run"
            id, created, key = f"{stem[:40]}-{secrets.token_hex(3)}", time.time(), secrets.token_bytes(32)
            encoded = START_RUN.request.encode(request_of(job))
            if len(encoded) > JOB_BYTES:
                raise ResourceExhausted(
                    f"bound job-bytes: this job takes {len(encoded):,} bytes to keep, and one has "
                    f"{JOB_BYTES:,}: name fewer nodes, columns or parameters one by one"
                )
            stored = {"job": base64.b64encode(encoded).decode(), "identity_key": key.hex(), "owner": owner}
            info = TrainingRun(id, job.name, RunState.RUNNING, "", 0, job.rounds, 0, created)

            async def begin() -> None:
                await asyncio.to_thread(self._put, recipe, info, stored)
                self._begin(ActiveRun(info, job, key, owner, going=leases[0]), recipe, None)
                self._kept[info.id] = leases[1]
                taken.pop_all()  # one is given back when the run ends, the other when it is deleted

            # What is written down has begun, whether its caller still waits or not.
            await to_the_end(begin(), counts=True)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            await recipe.discard()
        return info

    async def _plan(self, recipe: JobRecipe) -> None:
        """Have the recipe's plan made, or say that there is no room to make it.

        Raises:
            DiskFull: there is no room for it, or for what the run would commit.
            EdgeAttentionError: the job cannot run.
        """
        await asyncio.to_thread(require_space, self._state.directory, 0)
        try:
            await recipe.plan()
        except OSError as error:
            raise self._unwritable(error) from error
        except EdgeAttentionError as error:
            # The process that plans may die of it, and cannot say why.
            if isinstance(error, GraphDied | Internal) and is_full(self._state.directory):
                raise DiskFull(f"{self._state.directory}: the disk is full; free space there") from error
            raise

    def _unwritable(self, error: OSError) -> EdgeAttentionError:
        return unwritable(Path(error.filename or self._state.directory), error)

    def _put(self, recipe: JobRecipe, info: TrainingRun, stored: dict[str, str]) -> None:
        """Write down a run that begins; all or nothing. Blocks."""
        try:
            kept = {**stored, **recipe.keep(info.id)}
            self._state.put_run(info.id, info.name, info.created, kept, info.state.value)
        except BaseException:
            shutil.rmtree(self._parameters.folder(info.id), ignore_errors=True)
            raise

    async def resume_run(self, name: str) -> TrainingRun:
        """Let a run that was stopped, or failed, go on after its last committed round.

        Raises:
            FailedPrecondition: it is neither.
            DiskFull: it stays what it is.
        """
        info = self.describe(name)
        if info.state not in (RunState.STOPPED, RunState.FAILED):
            raise FailedPrecondition(
                f"run {info.id} is {info.state.value}; only a run that was stopped, or failed, is resumed"
            )
        if info.id in self._resuming or info.id in self._deleting:
            what = "resumed" if info.id in self._resuming else "deleted"
            raise FailedPrecondition(f"run {info.id} is just being {what}")
        self._resuming.add(info.id)
        try:
            await to_the_end(self._resume(info.id), counts=True)
        finally:
            self._resuming.discard(info.id)
        return self.describe(info.id)

    async def _resume(self, id: str) -> None:
        row = await asyncio.to_thread(self._state.get_run, id)
        going = self._budgets.take(RUNS, row.job.get("owner") or None)
        try:
            async with self._states.replaced(id):
                run = await asyncio.to_thread(self._marked_running, id)
            self._take_up(run, going)
        except BaseException:
            going.give_back()
            raise

    def _marked_running(self, id: str) -> GoingRun:
        self._state.set_run_status(id, RunState.RUNNING.value)
        row = self._state.get_run(id)
        return going_run(self._state, row, job_of(row.job))

    async def stop(self, name: str) -> TrainingRun:
        """Stop a run; what was committed stays, a round under way is dropped."""
        info = self.describe(name)
        active = self._active.get(info.id)
        if active is None or active.task is None or info.state is not RunState.RUNNING:
            return info
        # Half of it would be a run that goes on and is not taken up after a restart.
        await to_the_end(self._stop(active, active.task), counts=True)
        return active.info

    async def _stop(self, active: ActiveRun, task: asyncio.Task[None]) -> None:
        if not active.ending:
            await self._states.keep(active.info.id, RunState.STOPPED, STOPPED)
        # Meanwhile it may have come to an end of its own, which is written down after this one.
        if not active.ending and not task.cancelling():
            task.cancel()
        await asyncio.wait([task])

    async def delete(self, name: str) -> TrainingRun:
        """Forget a run that has ended: its job, records, versions and files; the run as it was.

        What was deployed from it serves on, and blobs that other runs name stay. Durable when this returns.

        Raises:
            FailedPrecondition: it goes on.
        """
        info = self.describe(name)
        active = self._active.get(info.id)
        if info.state is RunState.RUNNING or (active is not None and active.task is not None):
            raise FailedPrecondition(
                f"run {info.id} goes on; stop it first: edge-attention train stop {info.id}"
            )
        if info.id in self._resuming or info.id in self._deleting:
            what = "resumed" if info.id in self._resuming else "deleted"
            raise FailedPrecondition(f"run {info.id} is just being {what}")
        self._deleting.add(info.id)
        try:
            await to_the_end(self._delete(info.id), counts=True)
        finally:
            self._deleting.discard(info.id)
        return info

    async def _delete(self, id: str) -> None:
        async with self._states.replaced(id):
            named = await asyncio.to_thread(self._state.delete_run, id)
        self._active.pop(id, None)
        self._errors.pop(id, None)
        if self._earlier is not None:
            self._earlier.pop(id, None)
        if (kept := self._kept.pop(id, None)) is not None:
            kept.give_back()
        self._services.activity.forget(id)
        await asyncio.to_thread(self._remove, id, named)

    def _remove(self, id: str, named: Collection[str]) -> None:
        """Remove the files of a run that is forgotten. What is left goes at the next start. Blocks."""
        self._parameters.remove(id)
        self._state.drop_blobs(named, UNUSED_SECONDS)

    def describe(self, name: str) -> TrainingRun:
        """The run with this id, or the latest of this name.

        Raises:
            NotFound: there is none.
        """
        if (active := self._active.get(name)) is not None:
            return active.info  # as watchers ask at every round; the others need their jobs decoded
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
        return tuple(sorted(self._known().values(), key=lambda run: run.created))

    def _known(self) -> dict[str, TrainingRun]:
        if self._earlier is None:
            self._recall_runs()
            assert self._earlier is not None
        # A list, as threads ask, too; and first, as one that ends is among the others before it goes here.
        going = {id: active.info for id, active in list(self._active.items())}
        return self._earlier | going

    def _recall_runs(self) -> None:
        """Read what earlier processes have left, and which of their runs go on. Blocks."""
        earlier, going = {}, []
        for row in self._state.each_run():
            if row.id in self._active:
                continue
            if row.id not in self._kept:
                self._kept[row.id] = self._budgets[RUNS_KEPT].keep(row.job.get("owner") or None)
            job = job_of(row.job)
            earlier[row.id] = earlier_run(self._state, row, job)
            if row.status == RunState.RUNNING.value:
                going.append(going_run(self._state, row, job))
        self._earlier = earlier
        self._going = going

    def ended(self) -> tuple[TrainingRun, ...]:
        """Those that do not go on, and nobody is about to have go on."""
        going = {id for id, active in list(self._active.items()) if active.task is not None}
        busy = going | self._resuming | self._deleting
        return tuple(r for r in self.list() if r.state is not RunState.RUNNING and r.id not in busy)

    def error_of(self, id: str) -> EdgeAttentionError | None:
        """What the run with this id failed with; None: it did not, or in an earlier process."""
        return self._errors.get(id)

    def overview(self, count: int) -> tuple[TrainingRun, ...]:
        """Those going on, then the latest, at most `count`; cheap enough to be asked every second."""
        runs = sorted(
            self._known().values(), key=lambda r: (r.state is RunState.RUNNING, r.created), reverse=True
        )
        return tuple(runs[:count])

    def recall(self) -> None:
        """Read what earlier processes have left, and have curves and rounds of the latest runs known. Blocks.

        Call it once, in a thread, before anything else is asked of the runs.
        """
        self._recall_runs()
        recall_courses(self._state, self._services.activity, reversed(self.overview(RECALLED)))

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
            page = await asyncio.to_thread(self._state.records, info.id, after_round, count=PAGE)
            for row in page:
                if going and active is not None and row.round >= active.info.round + (not active.evaluating):
                    # Its commit is not yet known here, or its evaluation is still to come.
                    break
                yield record_from(row.record)
                after_round = row.round
            else:
                if len(page) == PAGE:
                    continue  # there may be more
            if told is None or _shown(now) != _shown(told):
                told = now
                yield now
            if not going or changed is None:
                return
            await changed.wait()
            if self._closing:
                raise Unavailable("the aggregator is stopping; the run goes on when it is started again")

    def parameters(self, name: str, version: int | None, best: bool = False) -> Stream:
        """A version's parameters as a safetensors file, in pieces."""
        info = self.describe(name)
        latest = self._parameters.latest(info.id)
        if latest is None:
            why = f"it {info.state.value}: {info.detail}" if info.detail else f"it waits for {info.waiting}"
            raise FailedPrecondition(f"run {info.id} has no version yet; {why}")
        job = self._state.get_run(info.id).job
        names = FederatedPlan.from_json(job["plan"]).names if "plan" in job else None
        if "split_plan" in job:
            names = SplitPlan.from_json(job["split_plan"]).names
        return self._parameters.stream(info.id, best_version(info) if best else version, names)

    @contextlib.asynccontextmanager
    async def model(self, name: str, version: int | None, best: bool = False) -> AsyncIterator[WrittenModel]:
        """The trained model as an ONNX file, which is there meanwhile.

        Raises:
            FailedPrecondition: the run trains a step graph, or has no version yet.
            InvalidGraph: the head of a fusion run says nothing without labels.
        """
        info = self.describe(name)
        row = await asyncio.to_thread(self._state.get_run, info.id)
        chosen = chosen_version(info, row, version, best)
        async with scratch.folder(self._state.directory) as folder:
            yield await written_model(row, job_of(row.job), chosen, self._services, folder)

    async def predict(
        self, name: str, version: int | None, best: bool, ids: tuple[str, ...]
    ) -> PredictResponse:
        """What a fusion run's model says of samples whose rows are on the nodes.

        Raises:
            FailedPrecondition: it is no fusion run, or has no version yet.
            Unavailable, NotFound, InvalidGraph: see fusion/predict.py.
        """
        info = self.describe(name)
        row = await asyncio.to_thread(self._state.get_run, info.id)
        chosen = chosen_version(info, row, version, best)
        async with scratch.folder(self._state.directory) as folder:
            return await predicted(row, job_of(row.job), chosen, ids, self._services, folder)

    # Of the process

    def resume(self) -> None:
        """Take up the runs that were going on when the aggregator ended."""
        if self._going is None:
            self._recall_runs()
        going, self._going = self._going or [], []
        for run in going:
            self._take_up(run, self._budgets[RUNS].keep(run.row.job.get("owner") or None))

    def _take_up(self, run: GoingRun, going: Lease) -> None:
        row, job = run.row, run.job
        info = TrainingRun(
            row.id, row.name, RunState.RUNNING, "", row.round, job.rounds, row.version or 0, row.created
        )
        log.info("run %s goes on after round %d of %d", row.id, row.round, job.rounds)
        # Whoever resumes it, it is still for who started it. Runs of earlier releases do not say who.
        active = ActiveRun(
            info, job, bytes.fromhex(row.job["identity_key"]), row.job.get("owner", ""), going=going
        )
        active.evaluating = run.evaluating
        self._begin(active, recipe_of(job, self._services), row.job)

    async def close(self) -> None:
        """Leave the runs as they are, to be taken up by the next process."""
        self._closing = True
        await self._states.close()
        tasks = [active.task for active in self._active.values() if active.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for active in self._active.values():
            active.update()  # those who watch are to hear of it

    # Inside

    def _begin(self, active: ActiveRun, recipe: JobRecipe, stored: Mapping[str, str] | None) -> None:
        self._active[active.info.id] = active
        self._errors.pop(active.info.id, None)
        self._metrics.begun(active.info.id, time.time())
        work = self._supervise(active, recipe, stored)
        context = context_of(active.caller)
        active.task = asyncio.create_task(work, name=f"run {active.info.id}", context=context)
        active.task.add_done_callback(partial(self._over, active))

    def _over(self, active: ActiveRun, task: asyncio.Task[None]) -> None:
        if active.going is not None:
            active.going.give_back()
        if active.task is task:  # it was stopped before it had begun
            active.task = None
            self._metrics.ended(active.info.id, time.monotonic())
            if not self._closing:
                active.update(state=RunState.STOPPED, detail=STOPPED, waiting="")
        if active.info.state is not RunState.RUNNING and self._earlier is not None:
            self._earlier[active.info.id] = active.info
            self._active.pop(active.info.id, None)

    async def _supervise(
        self, active: ActiveRun, recipe: JobRecipe, stored: Mapping[str, str] | None
    ) -> None:
        id = active.info.id
        try:
            if stored is not None:
                await recipe.recall(id, stored)
            where = self._state.directory
            detail = await train_with_room(recipe.train, active, where, self._metrics)
            await self._end(active, RunState.FINISHED, detail)
        except EdgeAttentionError as error:
            log.error("run %s failed: %s", id, error.message)
            self._errors[id] = error.with_traceback(None)
            error.__cause__ = error.__context__ = None
            await self._end(active, RunState.FAILED, error.message)
        except asyncio.CancelledError:
            # Here, not in `stop`: whoever called that may have gone meanwhile.
            if not self._closing and not active.ending:
                active.update(state=RunState.STOPPED, detail=STOPPED, waiting="")
            raise
        except Exception as error:
            log.exception("run %s failed", id)
            await self._end(
                active, RunState.FAILED, f"{type(error).__name__} in the aggregator; its log says more"
            )
        finally:
            active.task = None  # a task that was cancelled holds all it worked with
            self._metrics.ended(id, time.monotonic())

    async def _end(self, active: ActiveRun, state: RunState, detail: str) -> None:
        """Those who watch hear of it once it is written down."""
        active.ending = True
        await to_the_end(self._ended(active, state, detail))

    async def _ended(self, active: ActiveRun, state: RunState, detail: str) -> None:
        await self._states.keep(active.info.id, state, detail)
        active.update(state=state, detail=detail, waiting="")


def _shown(run: TrainingRun) -> tuple[object, ...]:
    """What of a run is news to those who watch; its rounds they hear of by themselves."""
    return run.state, run.detail, run.waiting, run.samples, run.nodes
