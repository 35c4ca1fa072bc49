"""One federated run from its nodes' arrival to its last version: rounds, commits, evaluations, records."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from aggregator.engine.endings import to_the_end
from aggregator.fleet.columns import TableView
from aggregator.training.active import ActiveRun, evaluation_due
from aggregator.training.divergence import diverged
from aggregator.training.federated.arrivals import arrivals
from aggregator.training.federated.asker import Asker
from aggregator.training.federated.buffered import Buffer
from aggregator.training.federated.collect import Collected, Collector, Divergence, Synchronous
from aggregator.training.federated.consensus import Consensus
from aggregator.training.federated.evaluate import Evaluator
from aggregator.training.federated.fold import Folded, Folder
from aggregator.training.federated.gaps import without_gaps
from aggregator.training.federated.labels import check_labels
from aggregator.training.federated.plan import (
    FederatedPlan,
    asked_of,
    push_encoding,
    strategy_at,
    strategy_of,
)
from aggregator.training.federated.programs import Programs, local_lr
from aggregator.training.federated.releases import texts
from aggregator.training.federated.samples import MAX_SHOWN, NodeSamples, short_of_a_batch
from aggregator.training.federated.updates import close_all
from aggregator.training.federated.versions import Current, Versions
from aggregator.training.federated.work import Basis, Work
from aggregator.training.known_data import by_rows_alone, kept, known_from, news_since
from aggregator.training.records import RecordFile, every_record, mark_best, record_from, to_json
from aggregator.training.services import Services
from aggregator.training.stopping import Stopping
from edge_attention.core.combine import from_config as combine_from
from edge_attention.core.encodings import from_config as encoding_from
from edge_attention.core.errors import DiskFull, FailedPrecondition
from edge_attention.core.messages.program import Drop
from edge_attention.core.messages.training import (
    Evaluation,
    FederatedJob,
    NodeRound,
    Samples,
    TrainingRound,
)

log = logging.getLogger(__name__)


class FederatedTrainer:
    """Trains one run; `train` returns when its last round is committed."""

    def __init__(self, active: ActiveRun, job: FederatedJob, plan: FederatedPlan, services: Services) -> None:
        self._active = active
        self._job = job
        self._plan = plan
        self._services = services
        self._id = active.info.id
        self._state = services.state
        self._metrics = services.metrics
        self._patience = job.patience_seconds or services.patience
        self._strategy = strategy_of(job)
        self._combine = combine_from(job.combine.name, **job.combine.options)
        self._lines = RecordFile(self._state, self._id, services.parameters.folder(self._id) / "record.jsonl")
        self._consensus = Consensus(job, plan, services.state)

    async def train(self) -> str:
        """Why it ended before its last round, or nothing. Raises EdgeAttentionError if it cannot go on."""
        self._active.update(notes=self._plan.model.notes if self._plan.model is not None else ())
        zeroth = await asyncio.to_thread(self._state.record, self._id, 0)
        if zeroth is None:
            came = await arrivals(self._job, self._plan, self._services, self._patience, self._say)
            self._view, self._data = came.view, came.data
            self._note(await asyncio.to_thread(news_since, self._state, self._id, self._data))
            self._note(by_rows_alone(self._data))
            rows, self._view, note = await without_gaps(self._plan, self._view, came.rows, self._new_asker())
            self._note(note)
            if not self._strategy.asynchronous:
                self._combine.require(asked_of(self._job, len(rows)))
        else:
            rows, self._data = dict(zeroth["nodes"]), known_from(zeroth)
            self._view = await self._view_of(zeroth)
            for known in zeroth.get("notes", ()):  # earlier releases did not keep them
                self._note(known)
            # Nodes of an earlier life are expected back: they keep what this run goes on from.
            self._services.membership.expect(rows, time.monotonic())
        samples = {n: NodeSamples(self._job, self._strategy, n, rows[n]) for n in sorted(rows)}
        for node in samples.values():
            node.check()
        self._held = sum(s.rows - s.training for s in samples.values())
        self._stopping = Stopping(self._job.stop, bool(self._held))
        self._put_together(samples)
        if zeroth is None:
            seconds = min(self._patience, self._job.selection.deadline_seconds or self._patience)
            note = await check_labels(
                self._id, self._asker, self._programs, samples, seconds, lambda waits: self._say(waits, 0)
            )
            self._note(note)
            self._note(short_of_a_batch(samples.values()))
            everything, train = sum(rows.values()), sum(s.training for s in samples.values())
            counts = Samples(everything, 0, train, everything - train)
            of_model = self._plan.model.notes if self._plan.model is not None else ()
            first = {
                "nodes": rows,
                "samples": vars(counts),
                "view": self._view.to_json(),
                "data": kept(self._data),
                "notes": self._active.info.notes[len(of_model) :],
            }
            await to_the_end(asyncio.to_thread(self._versions.begin, first))
        else:
            counts = Samples(**zeroth["samples"])
        if self._job.holdout and not self._held:
            log.warning(
                "run %s: a share of %g holds out no row of so few; nothing is evaluated",
                self._id, self._job.holdout,
            )  # fmt: skip
        current = await asyncio.to_thread(self._versions.latest)
        self._active.update(samples=counts, round=current.round, version=current.version)
        self._metrics.at(self._id, current.round, current.version)
        await to_the_end(asyncio.to_thread(self._take_up, current.round))
        self._tell_best()
        try:
            why = await self._all_rounds(current)
        except (asyncio.CancelledError, DiskFull):
            # Stopped, or the aggregator is, or it waits for room: what nodes keep for the next round stays.
            await self._collector.close()
            raise
        except BaseException:
            await self._collector.close()
            self._forget(tuple(samples))
            raise
        await self._collector.close()
        self._forget(tuple(samples))
        return why

    async def _view_of(self, zeroth: Mapping[str, Any]) -> TableView:
        """As the run began; one that an earlier release began did not say."""
        if "view" in zeroth:
            return TableView.from_json(zeroth["view"])
        job = replace(self._job, nodes=tuple(zeroth["nodes"]))
        return (await arrivals(job, self._plan, self._services, self._patience, self._say)).view

    def _new_asker(self) -> Asker:
        services = self._services
        needed = texts(self._plan, self._job, self._view)
        membership = services.membership
        return Asker(services.trips, membership, self._patience, needed, self._data, self._others)

    def _others(self, others: Mapping[str, str]) -> None:
        """For those who look: which nodes have other data than the run began with, and are left out."""
        shown = "; ".join(list(others.values())[:MAX_SHOWN])
        more = f"; and {len(others) - MAX_SHOWN:,} more nodes" if len(others) > MAX_SHOWN else ""
        names = ", ".join(list(others)[:MAX_SHOWN])
        back = "started with its file of before, a node takes part again"
        detail = f"goes on without {names}: {shown}{more}; {back}"
        self._metrics.without(self._id, len(others))
        self._active.update(detail=detail if others else "")

    def _put_together(self, samples: dict[str, NodeSamples]) -> None:
        job, plan, services = self._job, self._plan, self._services
        encoding = encoding_from(job.update.name, **job.update.options)
        push = push_encoding(job) if job.push.difference else None
        equal = job.weighting == "equal"
        folder = Folder(
            plan, self._strategy, self._combine, encoding, tuple(samples), partial(local_lr, job), equal,
            push, partial(strategy_at, job, self._strategy),
            job.local.clip_gradients if self._strategy.gradients else 0.0,
        )  # fmt: skip
        self._nodes = tuple(samples)
        self._versions = Versions(self._id, job, services.parameters, folder, self._stopping)
        self._programs = programs = Programs(self._id, job, plan, self._view, self._strategy, encoding)
        self._asker = asker = self._new_asker()
        self._work = work = Work(self._id, services, asker, programs, folder, samples)
        kind = Buffer if self._strategy.asynchronous else Synchronous
        self._collector: Collector = kind(self._active, job, services, work, samples, self._patience)
        deadline = job.selection.deadline_seconds
        # Where rounds do not wait for a slow node, nor for one that is away, an evaluation does not either.
        self._hurried = self._strategy.asynchronous or job.selection.adaptive is not None
        self._present = self._hurried or deadline is not None
        self._evaluator = Evaluator(
            work, programs, samples, self._collector.say,
            patience=self._patience, deadline=deadline, hurried=self._hurried,
        )  # fmt: skip

    def _take_up(self, number: int) -> None:
        """Learn from the `number` rounds of an earlier life of this run; nobody else has what it fills yet.

        Blocks, for seconds where there are many.
        """
        quarantined: dict[str, str] = {}
        for record in every_record(self._state, self._id):
            self._stopping.hear(record)
            quarantined = {node: record.left_out[node] for node in record.quarantined}
            for node, part in record.nodes.items():
                # Residuals of buffered rounds go by turns, which begin anew: they begin at zero.
                if not self._strategy.asynchronous:
                    self._work.took_part(node, record.number)
                self._collector.took(node, part.seconds)
        self._collector.quarantined |= quarantined
        mark_best(self._state, self._id, self._stopping.version, self._stopping.loss)
        waits = self._due(number) and self._record(number).evaluation is None
        self._lines.write(number - waits)

    def _forget(self, nodes: Sequence[str]) -> None:
        for node in nodes:
            self._services.trips.post(node, (Drop((f"job/{self._id}/",)),))

    def _note(self, note: str) -> None:
        if note:
            log.warning("run %s: %s", self._id, note)
            self._active.update(notes=(*self._active.info.notes, note))

    def _say(self, sentence: str, missing: int) -> None:
        self._active.say(sentence, self._metrics, missing=missing)

    # Rounds

    async def _all_rounds(self, current: Current) -> str:
        active, job = self._active, self._job
        began = time.monotonic()
        while True:
            # The weights of attention on the probe that this version gives, for penalties and losses.
            alpha = None
            if self._consensus.wanted:
                alpha = await self._consensus.alpha(current.parameters)
            basis = Basis(
                current.round + 1,
                current.version,
                current.parameters,
                current.state,
                alpha,
                current.difference,
            )
            if (
                self._due(current.round)
                and (await asyncio.to_thread(self._record, current.round)).evaluation is None
            ):
                active.evaluating = True
                await self._evaluate(basis, current.round)
            if current.round > 0 and active.evaluating:
                active.evaluating = False
                active.update()
            if current.round >= job.rounds:
                return ""
            if current.round and self._stopping.looks:
                record = await asyncio.to_thread(self._record, current.round)
                if why := self._stopping.why(record, time.monotonic() - began):
                    return why
            current = await self._round(current, basis)

    async def _round(self, current: Current, basis: Basis) -> Current:
        """One round: updates, the server's step, a durable commit; then, and only then, it is known."""
        link = self._services.link
        sent, received = dict(link.bytes_sent), dict(link.bytes_received)
        began = time.perf_counter()
        try:
            collected = await self._collector.collect(basis)
        except Divergence as error:
            log.error("run %s: %s", self._id, error.message)
            raise await asyncio.to_thread(self._diverged, current.round, error.loss) from None
        seconds = {"collect": time.perf_counter() - began}

        def recorded(folded: Folded) -> tuple[TrainingRound, dict[str, object]]:
            seconds["all"] = time.perf_counter() - began  # the commit's own cannot be part of it
            seconds["fold"] = seconds["all"] - seconds["collect"]
            record = self._make_record(current, collected, folded, seconds)
            down = {n: link.bytes_sent[n] - sent.get(n, 0) for n in self._nodes}
            up = {n: link.bytes_received[n] - received.get(n, 0) for n in self._nodes}
            nodes = {n: replace(part, bytes_down=down[n]) for n, part in record.nodes.items()}
            record = replace(record, nodes=nodes, bytes_sent=down, bytes_received=up)
            return record, to_json(record)

        async def commit() -> Current:
            try:
                after, record = await asyncio.to_thread(self._write, current, collected, recorded)
                self._announce(record, collected)
                return after
            finally:
                # 150 MB of files take 25 ms to remove: nobody else waits for that.
                await asyncio.to_thread(close_all, collected.updates)

        # A commit under way cannot be called back: it counts, and the run is known to be there.
        return await to_the_end(commit())

    def _make_record(
        self, current: Current, collected: Collected, folded: Folded, seconds: dict[str, float]
    ) -> TrainingRound:
        updates = collected.updates
        share = np.array([u.counted for u in updates], np.float64)
        share = share if share.any() else np.ones(len(updates))
        unused = {n: f"{self._combine.name} gave it no weight" for n, w in folded.weights.items() if not w}
        return TrainingRound(
            number=current.round + 1,
            version=current.version + 1,
            loss=float(np.array([u.loss for u in updates]) @ share / share.sum()),
            samples=(),
            seconds=dict(seconds),
            bytes_sent={},
            bytes_received={},
            mass={},
            nodes={
                u.node: NodeRound(u.samples, u.steps, u.loss, u.seconds, u.staleness, u.norm, u.bytes)
                for u in updates
            },
            left_out={**collected.left_out, **unused},
            quarantined=collected.quarantined,
            consensus=self._consensus.losses(updates, folded.distances),
        )

    def _announce(self, record: TrainingRound, collected: Collected) -> None:
        active, metrics, number = self._active, self._metrics, record.number
        self._services.activity.round(self._id, record, time.time())
        metrics.committed(self._id, record, time.time())
        for stage, seconds in record.seconds.items():
            metrics.round_seconds.labels(stage).observe(seconds)
        metrics.updates.labels("folded").inc(len(collected.updates))
        metrics.updates.labels("left_out").inc(len(record.left_out))
        metrics.updates.labels("stale").inc(collected.dropped)
        for node in record.nodes.values():
            metrics.staleness.observe(node.staleness)
        active.evaluating = self._due(number)
        active.update(round=number, version=record.version)

    async def _evaluate(self, basis: Basis, number: int) -> None:
        began = time.perf_counter()
        without = set(self._collector.quarantined)
        if self._present:
            without |= {n for n in self._nodes if not self._services.membership.live(n)}
        evaluation = await self._evaluator.evaluate(basis, without)
        spent = time.perf_counter() - began
        await to_the_end(asyncio.to_thread(self._evaluated, number, evaluation, spent))
        self._services.activity.evaluated(self._id, number, evaluation)
        self._metrics.evaluated(self._id, evaluation)
        self._tell_best()

    def _tell_best(self) -> None:
        if self._stopping.version is not None:
            self._active.update(best_version=self._stopping.version, best_loss=self._stopping.loss)

    def _due(self, number: int) -> bool:
        """Whether the held-out rows, if there are any, are evaluated after this round."""
        return bool(self._held) and evaluation_due(self._job, number)

    # What blocks, in threads

    def _write(
        self,
        current: Current,
        collected: Collected,
        recorded: Callable[[Folded], tuple[TrainingRound, dict[str, object]]],
    ) -> tuple[Current, TrainingRound]:
        after, record = self._versions.commit(current, collected, self._consensus.wanted, recorded)
        self._stopping.hear(record)
        if not self._due(after.round):
            self._lines.write(after.round)
        return after, record

    def _evaluated(self, number: int, evaluation: Evaluation, seconds: float) -> None:
        record = self._record(number)
        record = replace(record, evaluation=evaluation, seconds={**record.seconds, "evaluate": seconds})
        self._state.replace_record(self._id, number, to_json(record))
        if self._stopping.hear(record):
            mark_best(self._state, self._id, self._stopping.version, self._stopping.loss)
        self._lines.write(number)

    def _diverged(self, number: int, loss: bool) -> FailedPrecondition:
        """Why it ends after round `number`."""
        job = self._job
        # Where nodes take no step, the first gradients are of the parameters that the run began with.
        rate = None if self._strategy.gradients and not number else local_lr(job, number + 1)
        last = self._record(number) if number else None
        clip = "" if job.local.clip_gradients else ", or set local.clip_gradients"
        return diverged(
            f"the {'loss' if loss else 'update'} of every node",
            number + 1, rate, last, f"lower local.optimizer.lr{clip}",
        )  # fmt: skip

    def _record(self, number: int) -> TrainingRound:
        record = self._state.record(self._id, number)
        if record is None:
            raise FailedPrecondition(f"round {number} of run {self._id} has no record")
        return record_from(record)
