"""One run through the split, from its nodes' arrival to its last version: steps, commits, evaluations,
records. What its parts do is in passes.py, what groups of nodes do in grouped.py."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from aggregator.engine.endings import to_the_end
from aggregator.inference.model_answer import MakesNaN
from aggregator.training.active import ActiveRun, evaluation_due
from aggregator.training.divergence import NotANumber, diverged, unevaluated
from aggregator.training.known_data import by_rows_alone, known_from, news_since
from aggregator.training.records import RecordFile, every_record, mark_best, record_from, to_json
from aggregator.training.services import Services
from aggregator.training.split.grouped import GroupRounds
from aggregator.training.split.groups import deployment_of, group_jobs, together
from aggregator.training.split.pass_results import MadeRound, PassOfSamples, evaluated, round_record
from aggregator.training.split.passes import PartsVersion, SplitPasses
from aggregator.training.split.plan import CUT, EVALUATE, SplitPlan, cut_folder
from aggregator.training.split.releases import WholeRelease
from aggregator.training.split.samples import SampleTurns
from aggregator.training.split.versions import SplitVersion, SplitVersions
from aggregator.training.stopping import Stopping
from edge_attention.core.errors import DiskFull, FailedPrecondition, NotFinite
from edge_attention.core.messages.training import Samples, SplitJob, TrainingRound
from edge_attention.core.sentence import Sentence

__all__ = ["SplitTrainer"]

log = logging.getLogger(__name__)


class SplitTrainer:
    """Trains one run; `train` returns when its last step is committed."""

    def __init__(
        self, active: ActiveRun, job: SplitJob, plans: Sequence[SplitPlan], services: Services
    ) -> None:
        """`plans`: one a group, or that of all nodes."""
        self._active = active
        self._job = job
        self._plans = tuple(plans)
        self._services = services
        self._id = active.info.id
        self._state = services.state
        self._metrics = services.metrics
        folder = services.parameters.folder(self._id)
        self._cut = folder / "cut"
        self._lines = RecordFile(self._state, self._id, folder / "record.jsonl")
        self._stopping = Stopping(job.stop, held=False)
        self._versions = SplitVersions(
            self._id, job, self._plans[0], services.parameters, lambda: self._stopping.version
        )
        self._waiting: dict[int, tuple[str, str, int]] = {}
        self._whole = WholeRelease(len(self._plans))
        self._passes = tuple(self._passes_of(at, own) for at, own in enumerate(group_jobs(job)))
        self._groups = (
            GroupRounds(job, self._plans, self._passes, self._versions, folder / "groups")
            if job.groups
            else None
        )

    def _passes_of(self, group: int, job: SplitJob) -> SplitPasses:
        def begun() -> Mapping[str, Any] | None:
            record = self._state.record(self._id, 0)
            return record["groups"][group] if record is not None and self._job.groups else record

        return SplitPasses(
            deployment_of(self._id, self._job, group),
            job,
            self._plans[group],
            self._services,
            cut_folder(self._cut, self._job, group),
            self._active.identity_key,
            lambda sentence, about, away: self._say(group, sentence, about, away),
            begun,
            self._whole,
            group,
        )

    def _say(self, group: int, sentence: str, about: str, away: int) -> None:
        """What a group waits for now; empty: nothing."""
        if sentence:
            named = f"group {group}: " if self._job.groups else ""
            self._waiting[group] = Sentence(named, sentence), named + (about or sentence), away
        elif self._waiting.pop(group, None) is None and self._active.info.waiting == "":
            return
        sentences, abouts, missing = (
            zip(*self._waiting.values(), strict=True) if self._waiting else ((), (), ())
        )
        self._active.say(
            Sentence.joined("; ", sentences), self._metrics, "; ".join(abouts), missing=sum(missing)
        )

    async def train(self) -> str:
        """Why it ended before its last round, or nothing. Raises EdgeAttentionError if it cannot go on."""
        self._active.update(notes=tuple(dict.fromkeys(n for p in self._plans for n in p.model.notes)))
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
        await asyncio.to_thread(self._remove_cut)
        return why

    # Rounds

    def _remove_cut(self) -> None:
        """At once by its name: half of it would be a run that goes on and cannot. Blocks."""
        gone = self._cut.with_name("cut-over")
        with suppress(OSError):  # it has gone in an earlier life
            self._cut.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _done(self) -> str | None:
        """Why it had ended in an earlier life, which could not say so any more (empty: with its last round);
        None: it goes on. Blocks."""
        zeroth = self._state.record(self._id, 0)
        if zeroth is None:
            return None
        held, number = bool(zeroth["samples"]["holdout"]), self._versions.latest().number
        early, last = number < self._job.rounds, self._record(number) if number else None
        if early and self._cut.exists():
            return None
        due = held and evaluation_due(self._job, number)
        if not early and due and last is not None and last.evaluation is None:
            return None
        self._stopping = Stopping(self._job.stop, held)
        self._stopping.recall(every_record(self._state, self._id))
        # How long it had trained is not known: that is why, where nothing else is.
        return self._stopping.why(last, math.inf) if early and last is not None else ""

    async def _all_rounds(self) -> str:
        active, job = self._active, self._job
        if (why := await asyncio.to_thread(self._done)) is not None:
            current = await asyncio.to_thread(self._versions.latest)
            active.update(round=current.number, version=current.number)
            self._tell_best()
            return why
        begun = await asyncio.to_thread(self._state.record, self._id, 0) is not None
        if begun:
            # Its nodes are expected back, before their parts go to others.
            nodes = [node for plan in self._plans for node in plan.nodes]
            self._services.membership.expect(nodes, time.monotonic())
        taken = await together(passes.take_up() for passes in self._passes)
        turns, said = [own for own, _ in taken], [samples for _, samples in taken]
        samples = Samples(*map(sum, zip(*(vars(own.samples).values() for own in turns), strict=True)))
        if not begun:
            data = known_from({"groups": said})
            notes = (await asyncio.to_thread(news_since, self._state, self._id, data), by_rows_alone(data))
            data_of: Mapping[str, Any] = {"groups": said} if job.groups else said[0]
            first = {**data_of, "samples": vars(samples), "notes": [note for note in notes if note]}
            await to_the_end(asyncio.to_thread(self._versions.begin, first))
        zeroth = await asyncio.to_thread(self._state.record, self._id, 0)
        for note in zeroth.get("notes", ()) if zeroth else ():  # runs of earlier releases have none
            log.warning("run %s: %s", self._id, note)
            active.update(notes=(*active.info.notes, note))
        current = await asyncio.to_thread(self._versions.latest)
        active.update(samples=samples, round=current.number, version=current.number)
        self._metrics.at(self._id, current.number, current.number)
        self._stopping = Stopping(job.stop, any(own.held for own in turns))
        await to_the_end(asyncio.to_thread(self._take_up, current.number))
        if job.holdout and not samples.holdout:
            log.warning("run %s: a share of %g holds out no whole piece", self._id, job.holdout)
        self._tell_best()
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
            if number and self._stopping.looks:
                last = await asyncio.to_thread(self._record, number)
                if why := self._stopping.why(last, time.monotonic() - began):
                    return why
            current = await self._round(current, turns)

    def _due(self, number: int, turns: Sequence[SampleTurns]) -> bool:
        return any(own.held for own in turns) and evaluation_due(self._job, number)

    async def _round(self, current: SplitVersion, turns: Sequence[SampleTurns]) -> SplitVersion:
        """One step: gradients, the optimizer's step, a durable commit; then, and only then, it is known.

        Of groups: the steps of each, and a step of the server's.
        """
        number = current.number + 1
        link = self._services.link
        sent, received = dict(link.bytes_sent), dict(link.bytes_received)
        began = time.perf_counter()
        try:
            if self._groups is not None:
                made = await self._groups.trained(current, turns)
            else:
                made = await self._stepped(current, turns[0])
        except NotFinite as error:
            log.error("run %s: %s", self._id, error.message)
            raise await asyncio.to_thread(self._diverged, current.number, error) from None
        stepping = time.perf_counter()
        record: TrainingRound | None = None

        def recorded() -> Mapping[str, Any]:
            now = time.perf_counter()
            # The commit's own time cannot be part of what it commits.
            spent = {**made.record.seconds, "optimizer": now - stepping, "all": now - began}
            nonlocal record
            down = {n: link.bytes_sent[n] - sent.get(n, 0) for n in made.record.nodes}
            up = {n: link.bytes_received[n] - received.get(n, 0) for n in made.record.nodes}
            record = replace(
                made.record,
                seconds=spent,
                bytes_sent=down,
                bytes_received=up,
                nodes={
                    node: replace(one, bytes_up=up[node], bytes_down=down[node])
                    for node, one in made.record.nodes.items()
                },
            )
            return to_json(record)

        async def commit() -> SplitVersion:
            try:
                after = await asyncio.to_thread(made.commit, recorded)
            except NotFinite as error:
                log.error("run %s: %s", self._id, error.message)
                raise self._overflowed(made.record, error) from None
            assert record is not None
            self._stopping.hear(record)
            if not self._due(number, turns):
                await asyncio.to_thread(self._lines.write, number)
            self._announce(record, turns)
            return after

        # A commit under way cannot be called back: it counts, and the run is known to be there.
        return await to_the_end(commit())

    async def _stepped(self, current: SplitVersion, turns: SampleTurns) -> MadeRound:
        """A step of the one group there is, up to its commit."""
        number = current.number + 1
        positions = await asyncio.to_thread(turns.of_step, number)
        version = PartsVersion(current.number, current.parameters)
        done = await self._passes[0].run(version, positions, CUT, gradients=True)
        loss, gradients, norm = await asyncio.to_thread(done.sum.mean, self._job.clip)
        record = round_record(
            number, loss, positions, done.seconds, done.nodes_of(self._job.batch, 1, loss, norm)
        )
        return MadeRound(record, lambda recorded: self._versions.step(current, gradients, recorded))

    def _announce(self, record: TrainingRound, turns: Sequence[SampleTurns]) -> None:
        active, metrics = self._active, self._metrics
        self._services.activity.round(self._id, record, time.time())
        metrics.committed(self._id, record, time.time())
        for stage, seconds in record.seconds.items():
            metrics.round_seconds.labels(stage).observe(seconds)
        active.evaluating = self._due(record.number, turns)
        active.update(round=record.number, version=record.version)

    async def _evaluate(self, current: SplitVersion, turns: Sequence[SampleTurns]) -> None:
        began = time.perf_counter()
        version = PartsVersion(current.number * self._job.local_steps, current.parameters)

        async def of_group(passes: SplitPasses, own: SampleTurns) -> PassOfSamples:
            held = await asyncio.to_thread(own.held_out)
            return await passes.run(version, held, EVALUATE, gradients=False)

        holding = [(p, own) for p, own in zip(self._passes, turns, strict=True) if own.held]
        try:
            done = await together(of_group(passes, own) for passes, own in holding)
        except NotFinite as error:
            log.error("run %s: %s", self._id, error.message)
            raise await asyncio.to_thread(self._unevaluated, current.number, error) from None
        evaluation = evaluated(done, sum(own.held for _, own in holding))
        number, spent = current.number, time.perf_counter() - began

        def write() -> None:
            record = self._record(number)
            record = replace(record, evaluation=evaluation, seconds={**record.seconds, "evaluate": spent})
            self._state.replace_record(self._id, number, to_json(record))
            if self._stopping.hear(record):
                mark_best(self._state, self._id, self._stopping.version, self._stopping.loss)
            self._lines.write(number)

        await to_the_end(asyncio.to_thread(write))
        self._services.activity.evaluated(self._id, number, evaluation)
        self._metrics.evaluated(self._id, evaluation)
        self._tell_best()

    def _tell_best(self) -> None:
        if self._stopping.version is not None:
            self._active.update(best_version=self._stopping.version, best_loss=self._stopping.loss)

    def _diverged(self, number: int, error: NotFinite) -> FailedPrecondition:
        """Why it ends after step `number`. Blocks."""
        # Groups take steps of their own before anything comes of them.
        rate = _rate(self._job, self._versions, number) if number or self._job.groups else None
        last = self._record(number) if number else None
        return diverged(_not_finite(error), number + 1, rate, last, _remedy(self._job), _each(self._job))

    def _overflowed(self, record: TrainingRound, error: NotFinite) -> FailedPrecondition:
        """Why it ends with the step of `record`, which parameters did not stand: its loss was a number."""
        job, number = self._job, record.number
        rate = _rate(job, self._versions, number)
        return diverged(_not_finite(error), number, rate, record, _remedy(job), _each(job))

    def _unevaluated(self, number: int, error: NotFinite) -> FailedPrecondition:
        """Why it ends where samples held out are evaluated after step `number`. Blocks."""
        last = self._record(number) if number else None
        rate = _rate(self._job, self._versions, number)
        return unevaluated(_where(error), number, rate, last, _remedy(self._job), _each(self._job))

    # What it works with

    async def _forget(self) -> None:
        """Nodes keep nothing of the run, nor is anything left of a round that did not come to its end."""
        await together(passes.forget() for passes in self._passes)
        await asyncio.to_thread(shutil.rmtree, self._cut.with_name("groups"), ignore_errors=True)

    def _take_up(self, number: int) -> None:
        """What the file of records lacks after an end in the middle, up to round `number`; and what is best
        so far."""
        self._stopping.recall(every_record(self._state, self._id))
        mark_best(self._state, self._id, self._stopping.version, self._stopping.loss)
        waits = number and evaluation_due(self._job, number) and self._record(number).evaluation is None
        self._lines.write(number - bool(waits))

    def _record(self, number: int) -> TrainingRound:
        record = self._state.record(self._id, number)
        assert record is not None  # it was committed with its version
        return record_from(record)


def _rate(job: SplitJob, versions: SplitVersions, number: int) -> float:
    """The learning rate of the step that version `number` came of."""
    return versions.optimizer_at(max(number * job.local_steps, 1)).lr


def _each(job: SplitJob) -> str:
    """What its rounds are called."""
    return "round" if job.groups else "step"


def _not_finite(error: NotFinite) -> str:
    """What is not finite, and where in the model it was met first."""
    return error.what if isinstance(error, NotANumber) else f"what the model computes ({_where(error)})"


def _where(error: NotFinite) -> str:
    return error.where if isinstance(error, MakesNaN) else error.message


def _remedy(job: SplitJob) -> str:
    return "lower optimizer.lr" + ("" if job.clip else ", or set clip")
