"""One run through the split, from its nodes' arrival to its last version: steps, commits, evaluations,
records."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from aggregator.engine.endings import to_the_end
from aggregator.fleet.columns import TableView
from aggregator.inference.calls import CallTerms
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.runner import ChangingWeights
from aggregator.training.active import ActiveRun, evaluation_due
from aggregator.training.records import RecordFile, record_from, to_json
from aggregator.training.services import Services
from aggregator.training.split.on_nodes import OnNodes, reads_of
from aggregator.training.split.plan import (
    CUT,
    EVALUATE,
    LOSS,
    LOSS_WEIGHT,
    METRIC,
    MODEL,
    SplitPlan,
    grad,
    pieces_at_once,
)
from aggregator.training.split.releases import part_releases
from aggregator.training.split.samples import OwnSamples, SampleTurns, StepSamples
from aggregator.training.split.step import (
    FoldPiece,
    GiveUp,
    RenewParts,
    RunPiece,
    SplitAction,
    SplitStep,
    StepOver,
    StepPhase,
    require_finite,
)
from aggregator.training.split.versions import GradientSum, SplitVersion, SplitVersions
from edge_attention.core.errors import (
    DeadlineExceeded,
    DiskFull,
    EdgeAttentionError,
    FailedPrecondition,
    Internal,
    InvalidTensor,
)
from edge_attention.core.messages.training import Evaluation, NodeRound, SplitJob, StopSpec, TrainingRound
from edge_attention.core.schedule.schedule import Schedule
from edge_attention.core.tensors import Array, Int64
from edge_attention.core.transitions import told
from edge_attention.graphs.axes.folder import CutFolder

__all__ = ["SplitTrainer"]

log = logging.getLogger(__name__)

PASSES = 8
"""Tries at one step, each spoiled by the restart of a node that reads samples; more are not made."""
SAY_SECONDS = 2.0
"""After so long without a piece those who watch are told what is waited for."""


class SplitTrainer:
    """Trains one run; `train` returns when its last step is committed."""

    def __init__(self, active: ActiveRun, job: SplitJob, plan: SplitPlan, services: Services) -> None:
        self._active = active
        self._job = job
        self._plan = plan
        self._services = services
        self._id = active.info.id
        self._state = services.state
        self._metrics = services.metrics
        self._runner = services.runner
        self._patience = job.patience_seconds or services.patience
        folder = services.parameters.folder(self._id)
        self._cut = folder / "cut"
        self._lines = RecordFile(self._state, self._id, folder / "record.jsonl")
        self._versions = SplitVersions(self._id, job, plan, services.parameters)
        self._piece = job.batch // job.micro_batches
        self._prepared: set[str] = set()
        self._known: StepSamples | None = None
        self._lives: tuple[str, ...] = ()
        """Of the nodes that read samples, the processes whose rows are `_known`."""

    async def train(self) -> str:
        """Why it ended before its last round, or nothing. Raises EdgeAttentionError if it cannot go on."""
        self._active.update(notes=self._plan.model.notes)
        try:
            why = await self._all_rounds()
        except asyncio.CancelledError:
            await asyncio.shield(self._forget())
            raise
        except DiskFull:
            raise  # it waits for room, and what nodes hold stays
        except BaseException:
            await self._forget()
            raise
        await self._forget()
        # It is not resumed any more; until that is written down, `_done` says so.
        await asyncio.to_thread(shutil.rmtree, self._cut, ignore_errors=True)
        return why

    # Rounds

    def _done(self) -> bool:
        """Whether all was done in an earlier life, which ended before it could say so. Blocks."""
        if self._state.record(self._id, 0) is None:
            return False
        number = self._versions.latest().number
        if number < self._job.rounds and not self._cut.exists():
            return True  # it had ended early
        held = self._state.record(self._id, 0) or {}
        due = bool(held["samples"]["holdout"]) and evaluation_due(self._job, number)
        return number >= self._job.rounds and not (due and self._record(number).evaluation is None)

    async def _all_rounds(self) -> str:
        active, job = self._active, self._job
        if await asyncio.to_thread(self._done):
            current = await asyncio.to_thread(self._versions.latest)
            active.update(round=current.number, version=current.number)
            return ""
        self._schedules = await asyncio.to_thread(self._load)
        begun = await asyncio.to_thread(self._state.record, self._id, 0) is not None
        if begun:
            # Its nodes are expected back, before their parts go to others.
            self._services.membership.expect(self._plan.nodes, time.monotonic())
        samples, zeroth = await self._samples()
        turns = SampleTurns(samples.count, job.batch, self._piece, job.holdout, job.seed)
        if not begun:
            await to_the_end(
                asyncio.to_thread(self._versions.begin, {**zeroth, "samples": vars(turns.samples)})
            )
        current = await asyncio.to_thread(self._versions.latest)
        active.update(samples=turns.samples, round=current.number, version=current.number)
        self._metrics.at(self._id, current.number, current.number)
        await to_the_end(asyncio.to_thread(self._take_up, current.number))
        if job.holdout and not turns.held:
            log.warning("run %s: a share of %g holds out no whole piece", self._id, job.holdout)
        began = time.monotonic()
        while True:
            number = current.number
            if (
                self._due(number, turns)
                and (await asyncio.to_thread(self._record, number)).evaluation is None
            ):
                active.evaluating = True
                await self._evaluate(current, turns)
            if number > 0 and active.evaluating:
                active.evaluating = False
                active.update()
            if number >= job.rounds:
                return ""
            if number and job.stop != StopSpec():
                spent = time.monotonic() - began
                if why := await asyncio.to_thread(self._stops, number, spent, turns):
                    return why
            current = await self._round(current, turns)

    def _due(self, number: int, turns: SampleTurns) -> bool:
        return turns.held > 0 and evaluation_due(self._job, number)

    async def _round(self, current: SplitVersion, turns: SampleTurns) -> SplitVersion:
        """One step: gradients, the optimizer's step, a durable commit; then, and only then, it is known."""
        number = current.number + 1
        link = self._services.link
        sent, received = dict(link.bytes_sent), dict(link.bytes_received)
        began = time.perf_counter()
        positions = await asyncio.to_thread(turns.of_step, number)
        done = await self._pass(current, positions, CUT, gradients=True)
        loss, gradients, norm = await asyncio.to_thread(done.sum.mean, self._job.clip)
        require_finite(loss, number)
        seconds = dict(done.seconds)
        stepping = time.perf_counter()
        record: TrainingRound | None = None

        def recorded() -> Mapping[str, Any]:
            now = time.perf_counter()
            seconds["optimizer"] = now - stepping
            seconds["all"] = now - began  # the commit's own time cannot be part of what it commits
            nonlocal record
            down = {n: link.bytes_sent[n] - sent.get(n, 0) for n in done.nodes}
            up = {n: link.bytes_received[n] - received.get(n, 0) for n in done.nodes}
            record = done.record(number, loss, norm, positions, seconds, self._job.batch, down, up)
            return to_json(record)

        async def commit() -> SplitVersion:
            after = await asyncio.to_thread(self._versions.step, current, gradients, recorded)
            assert record is not None
            if not self._due(number, turns):
                await asyncio.to_thread(self._lines.write, number)
            self._announce(record, turns)
            return after

        # A commit under way cannot be called back: it counts, and the run is known to be there.
        return await to_the_end(commit())

    def _announce(self, record: TrainingRound, turns: SampleTurns) -> None:
        active, metrics = self._active, self._metrics
        self._services.activity.round(self._id, record, time.time())
        metrics.committed(self._id, record, time.time())
        for stage, seconds in record.seconds.items():
            metrics.round_seconds.labels(stage).observe(seconds)
        active.evaluating = self._due(record.number, turns)
        active.update(round=record.number, version=record.version)

    async def _evaluate(self, current: SplitVersion, turns: SampleTurns) -> None:
        began = time.perf_counter()
        held = await asyncio.to_thread(turns.held_out)
        done = await self._pass(current, held, EVALUATE, gradients=False)
        evaluation = Evaluation(len(held), done.mean_loss, done.metrics)
        number, spent = current.number, time.perf_counter() - began

        def write() -> None:
            record = self._record(number)
            record = replace(record, evaluation=evaluation, seconds={**record.seconds, "evaluate": spent})
            self._state.replace_record(self._id, number, to_json(record))
            self._lines.write(number)

        await to_the_end(asyncio.to_thread(write))
        self._services.activity.evaluated(self._id, number, evaluation)
        self._metrics.evaluated(self._id, evaluation)

    # One pass of some samples through the parts

    async def _pass(self, version: SplitVersion, positions: Int64, shape: str, *, gradients: bool) -> _Pass:
        """As `_gradients`, of rows that were matched as they were read, from the first piece to the last.

        A node that reads samples and was restarted meanwhile may have another file: what came of it counts
        no more, its rows are matched again, and all pieces are run again.

        Raises:
            FailedPrecondition: the samples are others now; or a node was restarted in each of PASSES.
        """
        for _ in range(PASSES):
            samples, _ = await self._samples()
            done: _Pass | None = None
            try:
                done = await self._gradients(version, positions, samples, shape, gradients=gradients)
            except EdgeAttentionError as error:
                # Of rows that are another file's there may be any: what is wrong is said of the samples.
                if isinstance(error, DeadlineExceeded) or self._lives == self._lives_now():
                    raise
            lives = self._lives_now()
            if done is not None and self._lives == lives:
                return done
            log.warning("run %s: a node that reads samples was restarted in a step: again", self._id)
        restarted = [n for n, old, new in zip(self._readers, self._lives, lives, strict=True) if old != new]
        raise FailedPrecondition(
            f"node {', '.join(restarted)}, which reads samples, was restarted in each of {PASSES} tries at "
            "one step: see in its log why it ends, and resume the run"
        )

    async def _gradients(
        self, version: SplitVersion, positions: Int64, samples: StepSamples, shape: str, *, gradients: bool
    ) -> _Pass:
        """The samples' loss, and gradients or metrics, at `version`.

        Raises:
            EdgeAttentionError: what time does not mend, or has not within the run's patience.
        """
        count = len(positions) // self._piece
        at_once = pieces_at_once(self._plan.stages, count)
        machine = SplitStep(count, at_once, self._patience, time.monotonic())
        running = _Pass(self._plan, gradients)
        answers: dict[int, ModelAnswer] = {}
        news: asyncio.Queue[tuple[str, int, Any]] = asyncio.Queue()
        tasks: set[asyncio.Task[None]] = set()

        async def work(kind: str, piece: int) -> None:
            left = max(machine.deadline - time.monotonic(), 0.001)
            try:
                if kind == "renew":
                    await self._renew(version, shape, left)
                    await news.put((kind, piece, None))
                    return
                own = positions[piece * self._piece : (piece + 1) * self._piece]
                feeds = await asyncio.to_thread(samples.feeds, own)
                answer = await self._runner.infer(self._id, shape, feeds, left)
                if not answer.exact:
                    raise InvalidTensor(f"what came of a piece lacks something: {answer.lacking}")
                await news.put((kind, piece, answer))
            except EdgeAttentionError as error:
                await news.put((kind, piece, error))
            except Exception as problem:  # whatever it is, the step ends with it
                log.exception("run %s: a step cannot go on", self._id)
                await news.put((kind, piece, Internal(f"a defect in the aggregator: {problem!r}")))

        def perform(actions: list[SplitAction]) -> list[int]:
            folds: list[int] = []
            for action in actions:
                match action:
                    case RenewParts():
                        tasks.add(asyncio.create_task(work("renew", -1)))
                    case RunPiece(piece):
                        tasks.add(asyncio.create_task(work("run", piece)))
                    case FoldPiece(piece):
                        folds.append(piece)
                    case GiveUp(error):
                        log.warning("run %s: %s", self._id, told(machine.transitions))
                        raise error
                    case StepOver():
                        pass
            return folds

        began = time.perf_counter()
        try:
            perform(machine.start())
            quiet = time.monotonic()
            while machine.phase is not StepPhase.OVER:
                try:
                    async with asyncio.timeout(self._until(machine)):
                        kind, piece, found = await news.get()
                except TimeoutError:
                    now = time.monotonic()
                    perform(machine.tick(now))
                    if now - quiet > SAY_SECONDS:
                        self._say(machine, shape)
                    continue
                quiet = now = time.monotonic()
                if isinstance(found, EdgeAttentionError):
                    log.info("run %s: %s of a step: %s", self._id, kind, found.message)
                    failed = (
                        machine.renewal_failed(found, now)
                        if kind == "renew"
                        else machine.failed(piece, found, now)
                    )
                    perform(failed)
                    continue
                self._active.say("", self._metrics)
                if kind == "renew":
                    running.lap("renew", time.perf_counter() - began)
                    perform(machine.renewed(now))
                    continue
                answers[piece] = found
                for fold in perform(machine.came(piece, now)):
                    await asyncio.to_thread(running.add, answers.pop(fold))
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            self._active.say("", self._metrics)
        running.lap("parts", time.perf_counter() - began - running.seconds.get("renew", 0.0))
        return running

    def _until(self, machine: SplitStep) -> float:
        wake = machine.wake
        return 0.5 if wake is None else min(max(wake - time.monotonic(), 0.0), 0.5)

    def _say(self, machine: SplitStep, shape: str) -> None:
        waits = machine.trouble or self._runner.waits(self._id, shape)
        if not waits:
            return
        left = max(machine.deadline - time.monotonic(), 0.0)
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        away = sum(not self._services.membership.live(node) for node in self._plan.nodes)
        if away or machine.trouble:
            self._active.say(f"until {clock}: {waits}", self._metrics, waits, missing=away)

    async def _renew(self, version: SplitVersion, shape: str, seconds: float) -> None:
        """Have the parts held, with that version's parameters."""
        changing = ChangingWeights(version.number, lambda weight: self._versions.piece(version, weight))
        if shape in self._prepared:
            await self._runner.renew(self._id, shape, changing, seconds)
            return
        schedule = self._schedules[shape]
        files = CutFolder(self._cut / MODEL, self._cut / shape)
        fixed = (
            {part.part for part in self._plan.parts if part.read} if self._job.data.on_nodes else set[int]()
        )
        only = frozenset(self._job.nodes)

        def may(part: int, node: str) -> bool:
            return part not in fixed and (not only or node in only)

        await self._runner.prepare(
            self._id,
            shape,
            schedule,
            files,
            self._plan.holders,
            seconds=seconds,
            terms=self._terms,
            version=changing,
            may=may,
            seek=True,
        )
        self._prepared.add(shape)

    # What it works with

    def _load(self) -> dict[str, Schedule]:
        names = (CUT, EVALUATE) if self._job.holdout else (CUT,)
        return {name: CutFolder(self._cut / MODEL, self._cut / name).schedule() for name in names}

    @property
    def _readers(self) -> tuple[str, ...]:
        """The nodes that read samples of their own."""
        if not self._job.data.on_nodes:
            return ()
        read = [self._plan.holders.get(part.part, ()) for part in self._plan.parts if part.read]
        return tuple(dict.fromkeys(node for nodes in read for node in nodes))

    def _lives_now(self) -> tuple[str, ...]:
        members = (self._services.membership.get(node) for node in self._readers)
        return tuple(member.register.instance if member is not None else "" for member in members)

    async def _samples(self) -> tuple[StepSamples, dict[str, Any]]:
        """The samples, and what the run's record 0 says of them; those of before, while they are that."""
        plan, job = self._plan, self._job
        lives = self._lives_now()
        if self._known is not None and lives == self._lives:
            return self._known, {}
        terms = CallTerms(changing=frozenset(plan.names))
        if not job.data.on_nodes:
            self._terms = terms
            path = await asyncio.to_thread(self._state.blob_path, job.data.file)
            self._known = await asyncio.to_thread(OwnSamples, path, plan.inputs)
            return self._known, {}
        where = OnNodes(
            self._id, job, plan, self._services, self._active.identity_key, self._patience, self._tell
        )
        samples, alignment, views = await where.samples()
        zeroth = await asyncio.to_thread(self._state.record, self._id, 0)
        if zeroth is not None:
            if zeroth["fingerprint"] != alignment.fingerprint:
                raise FailedPrecondition(
                    "the samples on the nodes are no longer those the run began with; start a new run"
                )
            views = {name: TableView.from_json(view) for name, view in zeroth["views"].items()}
        self._known, self._lives = samples, lives
        releases = part_releases(self._schedules.values(), views)
        texts = tuple(release.text for release in releases.values())
        self._terms = replace(terms, reads=reads_of(views, plan.labels), releases=texts)
        said = {
            "fingerprint": alignment.fingerprint,
            "views": {name: view.to_json() for name, view in views.items()},
        }
        return samples, said

    def _tell(self, sentence: str) -> None:
        away = sum(not self._services.membership.live(n) for n in self._plan.nodes) if sentence else 0
        self._active.say(sentence, self._metrics, missing=away)

    async def _forget(self) -> None:
        """Nodes keep nothing of the run."""
        await self._runner.release(self._id, nodes=self._plan.nodes)
        self._prepared.clear()

    def _take_up(self, number: int) -> None:
        """What the file of records lacks after an end in the middle, up to round `number`."""
        waits = number and evaluation_due(self._job, number) and self._record(number).evaluation is None
        self._lines.write(number - bool(waits))

    def _record(self, number: int) -> TrainingRound:
        record = self._state.record(self._id, number)
        assert record is not None  # it was committed with its version
        return record_from(record)

    def _stops(self, number: int, spent: float, turns: SampleTurns) -> str:
        """Why it ends here; empty: it goes on. Blocks."""
        stop = self._job.stop
        if stop.seconds is not None and spent >= stop.seconds:
            return f"{spent:.0f} s of training, of {stop.seconds:g}"
        record = self._record(number)
        evaluation = record.evaluation
        loss = evaluation.loss if evaluation is not None else None if turns.held else record.loss
        if stop.loss is not None and loss is not None and loss <= stop.loss:
            return f"the loss is {loss:.4g}, and {stop.loss:g} was wanted"
        for name, wanted in stop.metrics.items():
            if evaluation is not None and (share := evaluation.share(name)) >= wanted:
                return f"{name} is {share:.4g}, and {wanted:g} was wanted"
        return ""


class _Pass:
    """What comes of some samples, piece by piece."""

    def __init__(self, plan: SplitPlan, gradients: bool) -> None:
        self._plan = plan
        self._wants = gradients
        self.sum = GradientSum(plan.names if gradients else ())
        self.metrics = dict.fromkeys(plan.metrics, 0.0)
        self.seconds: dict[str, float] = {}
        self._loss = self._count = 0.0
        self._runs: defaultdict[str, float] = defaultdict(float)

    def add(self, answer: ModelAnswer) -> None:
        """Fold the next piece in. Blocks for as long as adding takes.

        Raises:
            InvalidTensor: what came is not finite.
        """
        results, plan = answer.results, self._plan
        loss = _number(results, LOSS)
        count = _number(results, LOSS_WEIGHT) if plan.weighted else 1.0
        self._loss += loss * count
        self._count += count
        for name in plan.metrics:
            self.metrics[name] += _number(results, METRIC + name)
        if self._wants:
            self.sum.add(loss, {name: results[grad(name)] for name in plan.names}, count)
        for run in answer.segments:
            self._runs[run.node] += run.run
            self.seconds["graphs"] = self.seconds.get("graphs", 0.0) + run.run

    def lap(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @property
    def nodes(self) -> tuple[str, ...]:
        """Those that ran something."""
        return tuple(sorted(self._runs))

    @property
    def mean_loss(self) -> float:
        return self._loss / self._count if self._count else 0.0

    def record(
        self,
        number: int,
        loss: float,
        norm: float,
        positions: Array,
        seconds: Mapping[str, float],
        batch: int,
        down: Mapping[str, int],
        up: Mapping[str, int],
    ) -> TrainingRound:
        """The step's. `down`, `up`: bytes by node, of all that went over the link meanwhile."""
        return TrainingRound(
            number=number,
            version=number,
            loss=loss,
            samples=tuple(positions.tolist()),
            seconds=dict(seconds),
            bytes_sent=down,
            bytes_received=up,
            mass={},
            nodes={
                node: NodeRound(batch, 1, loss, run, 0, norm, up[node], down[node])
                for node, run in sorted(self._runs.items())
            },
        )


def _number(results: Mapping[str, Array], name: str) -> float:
    value = float(np.asarray(results[name]).reshape(-1)[0])
    if not np.isfinite(value):
        raise InvalidTensor(f"{name} is {value}: lower the learning rate, or clip gradients")
    return value
