"""One run from its nodes' arrival to its last version: rounds, commits, evaluations, records."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from aggregator.engine.endings import to_the_end
from aggregator.store.parameters import Committed
from aggregator.store.tensor_file import TensorFile
from aggregator.training.active import ActiveRun, evaluation_due
from aggregator.training.divergence import Diverged, diverged, unevaluated
from aggregator.training.fusion.alignment import Alignment
from aggregator.training.fusion.plan import FusionPlan
from aggregator.training.fusion.recipe import FusionRounds, FusionSamples, Interrupted, Timer
from aggregator.training.fusion.sampling import Split
from aggregator.training.known_data import by_rows_alone, kept, news_since
from aggregator.training.readiness import Readiness
from aggregator.training.records import RecordFile, every_record, mark_best, record_from, to_json
from aggregator.training.services import Services
from aggregator.training.stopping import Stopping
from edge_attention.core.clipping import clip_factor, global_norm, squared_norm
from edge_attention.core.errors import EdgeAttentionError, FailedPrecondition, InvalidTensor, NotFinite
from edge_attention.core.learning_rates import factor_at, optimizer_at
from edge_attention.core.messages.training import Evaluation, FusionJob, TrainingRound
from edge_attention.core.optimizers import Optimizer
from edge_attention.core.tensors import Array, Int64

log = logging.getLogger(__name__)

_MANY = 65_536
"""Samples that take longer to be put in order than the event loop may be held."""


class Trainer:
    """Trains one run; `train` returns when its last round is committed and pushed."""

    def __init__(self, active: ActiveRun, job: FusionJob, planned: FusionPlan, services: Services) -> None:
        self._active = active
        self._job = job
        self._planned = planned
        self._id = active.info.id
        self._state = services.state
        self._parameters = services.parameters
        self._link = services.link
        self._metrics = services.metrics
        self._activity = services.activity
        self._membership = services.membership
        self._lines = RecordFile(self._state, self._id, self._parameters.folder(self._id) / "record.jsonl")
        patience = job.patience_seconds or services.patience
        self._rounds = FusionRounds(
            self._id, planned, services.trips, patience, active.identity_key, self._say
        )
        self._ready = Readiness(services, self._id, planned, self._rounds, patience, self._say)

    async def train(self) -> str:
        """Why it ended before its last round, or nothing. Raises EdgeAttentionError if it cannot go on."""
        try:
            return await self._all_rounds()
        finally:
            self._rounds.forget()

    def _say(self, sentence: str) -> None:
        away = sum(not self._membership.live(node) for node in self._planned.nodes) if sentence else 0
        self._active.say(sentence, self._metrics, missing=away)

    async def _all_rounds(self) -> str:
        active, job, rounds, ready = self._active, self._job, self._rounds, self._ready
        current = await self._first()
        await to_the_end(asyncio.to_thread(self._take_up, current.round))
        self._tell_best()
        began = time.monotonic()
        while True:
            number = current.round + 1
            due = evaluation_due(self._job, current.round)
            try:
                aligned, parts = await ready.check()
                if due and (await asyncio.to_thread(self._record, current.round)).evaluation is None:
                    timer = Timer()
                    active.evaluating = True
                    try:
                        evaluation = await rounds.evaluate(
                            FusionSamples(parts.holdout, aligned), current.parameters, current.version, timer
                        )
                    except NotFinite as error:
                        log.error("run %s: %s", self._id, error.message)
                        raise await asyncio.to_thread(self._unevaluated, current.round, error) from None
                    spent = sum(timer.seconds.values())
                    await to_the_end(asyncio.to_thread(self._evaluated, current.round, evaluation, spent))
                    self._activity.evaluated(self._id, current.round, evaluation)
                    self._metrics.evaluated(self._id, evaluation)
                    self._tell_best()
                if current.round > 0 and active.evaluating | due:
                    active.evaluating = False
                    active.update()
                why = ""
                if current.round > 0 and self._stopping.looks:
                    record = await asyncio.to_thread(self._record, current.round)
                    why = self._stopping.why(record, time.monotonic() - began)
                if number > job.rounds or why:
                    await rounds.push(current.parameters, current.version)
                    return why if number <= job.rounds else ""
                current = await self._round(aligned, parts, current)
                ready.progress()
            except Interrupted as interruption:
                log.warning("run %s: round %d is run again: %s", self._id, number, interruption.message)
                await ready.pause(interruption)

    async def _first(self) -> Committed:
        """The latest committed version; version 0 is committed when the nodes have first been seen."""
        id, job = self._id, self._job
        while True:
            try:
                aligned, parts = await self._ready.check()
                break
            except Interrupted as interruption:
                await self._ready.pause(interruption)
        samples = parts.samples(aligned)
        self._stopping = Stopping(job.stop, samples.holdout > 0)
        folder = self._parameters.folder(id) / "plan"
        latest = await asyncio.to_thread(self._parameters.latest, id)
        if latest is None:
            parts.batch(job.batch, 1)  # refused before anything is committed
            data = self._ready.data
            notes = (await asyncio.to_thread(news_since, self._state, id, data), by_rows_alone(data))
            parameters = await asyncio.to_thread(_initial, folder / "initial.safetensors", job, self._planned)
            state = self._planned.optimizer.init(parameters)
            begun = {
                "fingerprint": aligned.fingerprint,
                "samples": vars(samples),
                "sampling": parts.scheme.value,
                "views": {prefix: view.to_json() for prefix, view in self._ready.views.items()},
                "data": kept(data),
                "notes": [note for note in notes if note],
            }
            await asyncio.to_thread(self._parameters.commit, id, 0, 0, parameters, state, begun)
            committed = Committed(0, 0, parameters, state)
        else:
            committed = await asyncio.to_thread(self._parameters.load, id, latest)
        zeroth = await asyncio.to_thread(self._state.record, id, 0)
        self._note(zeroth.get("notes", ()) if zeroth else ())  # runs of earlier releases have none
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)  # what version 0 was made of
        self._active.update(samples=samples, round=committed.round, version=committed.version)
        self._metrics.at(self._id, committed.round, committed.version)
        return committed

    async def _round(self, aligned: Alignment, parts: Split, current: Committed) -> Committed:
        """One round: gradients, an optimizer step, a durable commit; then, and only then, it is known."""
        planned, number = self._planned, current.round + 1
        sent, received = dict(self._link.bytes_sent), dict(self._link.bytes_received)
        began, timer = time.perf_counter(), Timer()
        positions = await self._batch(parts, number)
        try:
            step = await self._rounds.step(
                FusionSamples(positions, aligned), current.parameters, current.version, timer
            )
            self._ready.require_same_lives()
            parameters, optimizer_state = await asyncio.to_thread(self._stepped, current, step.gradients)
        except NotFinite as error:
            log.error("run %s: %s", self._id, error.message)
            raise await asyncio.to_thread(self._diverged, current.round, error) from None
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
        # A commit under way cannot be called back: what it commits must be known.
        await to_the_end(self._commit(committed, record, timer))
        return committed

    def _stepped(
        self, current: Committed, gradients: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Parameters and the optimizer's state after a step down `gradients`, which is clipped as the job
        says. Blocks."""
        job = self._job
        factor = 1.0
        if job.clip:
            norm = global_norm(squared_norm(gradients[name]) for name in sorted(gradients))
            factor = clip_factor(norm, job.clip)
        if factor != 1.0:
            gradients = {name: array * np.float32(factor) for name, array in gradients.items()}
        optimizer = self._optimizer_at(current.round + 1)
        try:
            return optimizer.step(current.parameters, gradients, current.optimizer_state)
        except InvalidTensor as error:  # all else of it was looked at before
            raise Diverged(error.message) from None

    def _optimizer_at(self, number: int) -> Optimizer:
        """With the learning rate of round `number`."""
        return optimizer_at(self._planned.optimizer, factor_at(self._job.schedule, number, self._job.rounds))

    def _diverged(self, number: int, error: NotFinite) -> EdgeAttentionError:
        """Why it ends after round `number`: the model's doing, or, before any step, a node's data. Blocks."""
        if not number:
            return FailedPrecondition(
                f"{error.message}, in round 1, before any step: look for NaN, infinity or very large numbers "
                "in its data, and in the model's initial values"
            )
        # Its parts share one loss, and what one of them returns, the others' parameters have made as well.
        what = f"what the model gives ({error.message})"
        return diverged(what, number + 1, self._rate(number), self._record(number), self._remedy)

    def _unevaluated(self, number: int, error: NotFinite) -> EdgeAttentionError:
        """Why it ends where samples held out are evaluated after round `number`. Blocks."""
        last = self._record(number) if number else None
        return unevaluated(error.message, number, self._rate(number), last, self._remedy)

    def _rate(self, number: int) -> float:
        return self._optimizer_at(max(number, 1)).lr

    @property
    def _remedy(self) -> str:
        return "lower optimizer.lr" + ("" if self._job.clip else ", or set clip")

    def _note(self, notes: Sequence[str]) -> None:
        for note in notes:
            log.warning("run %s: %s", self._id, note)
        if notes:
            self._active.update(notes=tuple(notes))

    def _tell_best(self) -> None:
        if self._stopping.version is not None:
            self._active.update(best_version=self._stopping.version, best_loss=self._stopping.loss)

    async def _batch(self, parts: Split, number: int) -> Int64:
        if len(parts.train) <= _MANY:
            return parts.batch(self._job.batch, number)
        return await asyncio.to_thread(parts.batch, self._job.batch, number)

    async def _commit(self, committed: Committed, record: TrainingRound, timer: Timer) -> None:
        active, id, number = self._active, self._id, committed.round
        await asyncio.to_thread(self._write, committed, record)
        timer.lap("commit")
        self._activity.round(id, record, time.time())
        self._metrics.committed(id, record, time.time())
        for stage, seconds in timer.seconds.items():
            self._metrics.round_seconds.labels(stage).observe(seconds)
        active.evaluating = evaluation_due(self._job, number)
        active.update(round=number, version=committed.version)

    # What blocks, in threads

    def _write(self, committed: Committed, record: TrainingRound) -> None:
        c = committed
        self._parameters.commit(
            self._id, c.version, c.round, c.parameters, c.optimizer_state, to_json(record)
        )
        self._stopping.hear(record)
        if not evaluation_due(self._job, c.round):
            self._lines.write(c.round)

    def _evaluated(self, number: int, evaluation: Evaluation, seconds: float) -> None:
        record = self._record(number)
        record = replace(record, evaluation=evaluation, seconds={**record.seconds, "evaluate": seconds})
        self._state.replace_record(self._id, number, to_json(record))
        if self._stopping.hear(record):
            mark_best(self._state, self._id, self._stopping.version, self._stopping.loss)
        self._lines.write(number)

    def _take_up(self, number: int) -> None:
        """What the file of records lacks after an end in the middle, up to round `number`; and what is best
        so far."""
        self._stopping.recall(every_record(self._state, self._id))
        mark_best(self._state, self._id, self._stopping.version, self._stopping.loss)
        waits = evaluation_due(self._job, number) and self._record(number).evaluation is None
        self._lines.write(number - waits)

    def _record(self, number: int) -> TrainingRound:
        record = self._state.record(self._id, number)
        assert record is not None  # it was committed with its version
        return record_from(record)


def _initial(path: Path, job: FusionJob, planned: FusionPlan) -> dict[str, Array]:
    """Version 0: `queries`, and what the models bring, as it was left by their planning."""
    shapes = [shape for part in planned.parts for shape in part.parameters.values()]
    with TensorFile(path) as file:
        found = {n: file.read(n).reshape(shape) for n, shape in zip(planned.names, shapes, strict=True)}
    return {"queries": job.queries, **found}
