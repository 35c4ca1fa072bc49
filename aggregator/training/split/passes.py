"""One group's parts, and passes of its samples through them: gradients, or what an evaluation finds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aggregator.fleet.columns import TableView
from aggregator.inference.calls import CallTerms
from aggregator.inference.model_answer import ModelAnswer
from aggregator.inference.runner import ChangingWeights, HeldRequest
from aggregator.store.tensor_file import TensorFile
from aggregator.training.known_data import kept, known_from, require_same
from aggregator.training.services import Services
from aggregator.training.split.on_nodes import OnNodes, reads_of
from aggregator.training.split.pass_results import PassOfSamples, counted
from aggregator.training.split.plan import (
    CUT,
    EVALUATE,
    MODEL,
    SplitPlan,
    grad,
    pieces_at_once,
    sums_of,
)
from aggregator.training.split.releases import WholeRelease, part_releases
from aggregator.training.split.samples import OwnSamples, SampleTurns, StepSamples, require_batch
from aggregator.training.split.step import (
    BeginAgain,
    CollectSums,
    FoldPiece,
    GiveUp,
    RenewParts,
    RunPiece,
    SplitAction,
    SplitStep,
    StepOver,
    StepPhase,
)
from aggregator.training.split.sums import AddingPrograms, NodeSums
from aggregator.training.split.versions import piece_of_version
from edge_attention.core.errors import (
    DeadlineExceeded,
    EdgeAttentionError,
    FailedPrecondition,
    Internal,
    InvalidTensor,
)
from edge_attention.core.losses import most_counted
from edge_attention.core.messages.training import SplitJob
from edge_attention.core.schedule.schedule import Schedule
from edge_attention.core.tensors import Int64
from edge_attention.core.transitions import told
from edge_attention.graphs.axes.folder import CutFolder

__all__ = [
    "PartsVersion",
    "SayOfGroup",
    "SplitPasses",
]

log = logging.getLogger(__name__)

PASSES = 8
"""Tries at one step, each spoiled by the restart of a node that reads samples; more are not made."""
SAY_SECONDS = 2.0
"""After so long without a piece those who watch are told what is waited for."""

SayOfGroup = Callable[[str, str, int], None]
"""What is waited for, in a sentence (empty: nothing); what the sentence is about; how many nodes are away."""


@dataclass(frozen=True, eq=False)
class PartsVersion:
    """Parameters that parts are given. `number`: those of equal numbers are the same."""

    number: int
    parameters: TensorFile


class SplitPasses:
    """The parts of one group's model.

    Args:
        deployment: what its names on nodes begin with.
        job: the group's alone.
        cut: the folder of what the model is cut into.
        key: of the hashes of ids.
        say: told what is waited for.
        begun: what the run's record 0 says of the group's samples, once there is one.
        whole, group: what the job lets leave, and which of its groups this is.
    """

    def __init__(
        self,
        deployment: str,
        job: SplitJob,
        plan: SplitPlan,
        services: Services,
        cut: Path,
        key: bytes,
        say: SayOfGroup,
        begun: Callable[[], Mapping[str, Any] | None],
        whole: WholeRelease,
        group: int = 0,
    ) -> None:
        self._id = deployment
        self._job = job
        self._plan = plan
        self._services = services
        self._runner = services.runner
        self._patience = job.patience_seconds or services.patience
        self._cut = cut
        self._key = key
        self._say = say
        self._begun = begun
        self._whole = whole
        self._group = group
        self._piece = job.batch // job.micro_batches
        self._most = self._piece * most_counted(job.model.loss)
        """What the labels of a piece count at most."""
        self._prepared: set[str] = set()
        self._adding: AddingPrograms | None = None
        """Of the last step, unless something of it may be late."""
        self._known: StepSamples | None = None
        self._lives: tuple[str, ...] = ()
        """Of the nodes that read samples, the processes whose rows are `_known`."""

    async def take_up(self) -> tuple[SampleTurns, dict[str, Any]]:
        """Which samples steps take; and what record 0 is to say of them.

        Raises:
            EdgeAttentionError: what lacks, or is no longer what the run began with.
        """
        job = self._job
        self._schedules = await asyncio.to_thread(self._load)
        self._sums = await asyncio.to_thread(sums_of, self._cut)
        samples, said = await self._samples()
        if await asyncio.to_thread(self._begun) is None:  # a run of an earlier release goes on as it began
            require_batch(job, samples.count)
        return SampleTurns(samples.count, job.batch, self._piece, job.holdout, job.seed), said

    async def forget(self) -> None:
        """Nodes keep nothing of it."""
        await self._runner.release(self._id, nodes=self._plan.nodes)
        self._prepared.clear()

    # One pass

    async def run(
        self, version: PartsVersion, positions: Int64, shape: str, *, gradients: bool
    ) -> PassOfSamples:
        """As `_gradients`, of rows that were matched as they were read, from the first piece to the last.

        A node that reads samples and was restarted meanwhile may have another file: what came of it counts
        no more, its rows are matched again, and all pieces are run again.

        Raises:
            FailedPrecondition: the samples are others now; or a node was restarted in each of PASSES.
        """
        for _ in range(PASSES):
            samples, _ = await self._samples()
            done: PassOfSamples | None = None
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
        self, version: PartsVersion, positions: Int64, samples: StepSamples, shape: str, *, gradients: bool
    ) -> PassOfSamples:
        """The samples' loss, and gradients or metrics, at `version`.

        Raises:
            EdgeAttentionError: what time does not mend, or has not within the run's patience.
        """
        count = len(positions) // self._piece
        sums = self._new_sums(count) if gradients else None
        added = sums is not None
        # Those that are added together wait for each other, so all of them are under way.
        together = sums is not None and sums.together
        at_once = count if together else pieces_at_once(self._plan.stages, count)
        machine = SplitStep(count, at_once, self._patience, time.monotonic(), sums=added)
        running = PassOfSamples(self._plan, gradients and not added, self._most)
        answers: dict[int, ModelAnswer] = {}
        news: asyncio.Queue[tuple[str, int, Any]] = asyncio.Queue()
        in_turn = asyncio.Lock()
        tasks: set[asyncio.Task[None]] = set()
        spent: list[NodeSums] = []
        """Of tries that have ended: closed before the next one, as what came may be as large as the model."""

        async def work(kind: str, piece: int) -> None:
            left = max(machine.deadline - time.monotonic(), 0.001)
            try:
                if kind == "renew":
                    for tried in spent:
                        await tried.close()
                    await self._renew(version, shape, left)
                    await news.put((kind, piece, None))
                    return
                if kind == "collect":
                    assert sums is not None
                    await news.put((kind, piece, await sums.collect(self._gradient_names)))
                    return
                own = positions[piece * self._piece : (piece + 1) * self._piece]
                # So that pieces have the same lanes in every step, by which nodes know them.
                async with in_turn:
                    feeds = await asyncio.to_thread(samples.feeds, own)
                answer = await self._runner.infer(
                    self._id, shape, feeds, left, then=adding(sums, piece) if sums is not None else None
                )
                if not answer.exact:
                    raise InvalidTensor(f"what came of a piece lacks something: {answer.lacking}")
                await news.put((kind, piece, answer))
            except EdgeAttentionError as error:
                await news.put((kind, piece, error))
            except Exception as problem:  # whatever it is, the step ends with it
                log.exception("run %s: a step cannot go on", self._id)
                await news.put((kind, piece, Internal(f"a defect in the aggregator: {problem!r}")))

        def adding(into: NodeSums, piece: int) -> Callable[[HeldRequest], Awaitable[None]]:
            async def add(held: HeldRequest) -> None:
                weight = counted(held.results, self._most) if self._plan.weighted else 1.0
                await into.add(piece, weight, held, machine.deadline - time.monotonic())

            return add

        def perform(actions: list[SplitAction]) -> list[int]:
            nonlocal sums, running
            folds: list[int] = []
            for action in actions:
                match action:
                    case RenewParts():
                        tasks.add(asyncio.create_task(work("renew", -1)))
                    case RunPiece(piece):
                        tasks.add(asyncio.create_task(work("run", piece)))
                    case FoldPiece(piece):
                        folds.append(piece)
                    case CollectSums():
                        tasks.add(asyncio.create_task(work("collect", -1)))
                    case BeginAgain():
                        assert sums is not None
                        sums.free()
                        spent.append(sums)
                        self._adding = None  # something of that try may be late
                        sums = self._new_sums(count)
                        running = PassOfSamples(self._plan, False, self._most, running.seconds)
                        answers.clear()
                        folds.clear()
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
                        self._tell_of(machine, shape)
                    continue
                quiet = now = time.monotonic()
                if isinstance(found, EdgeAttentionError):
                    log.info("run %s: %s of a step: %s", self._id, kind, found.message)
                    if sums is not None:
                        await sums.spoil()
                    match kind:
                        case "renew":
                            perform(machine.renewal_failed(found, now))
                        case "collect":
                            perform(machine.collection_failed(found, now))
                        case _:
                            perform(machine.failed(piece, found, now))
                    continue
                self._say("", "", 0)
                if kind == "renew":
                    running.lap("renew", time.perf_counter() - began)
                    perform(machine.renewed(now))
                    continue
                if kind == "collect":
                    await asyncio.to_thread(running.have, found)
                    perform(machine.collected(now))
                    continue
                answers[piece] = found
                for fold in perform(machine.came(piece, now)):
                    if added or not gradients:
                        running.add(answers.pop(fold))  # a few numbers
                    else:
                        await asyncio.to_thread(running.add, answers.pop(fold))
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            if sums is not None and not sums.whole:
                sums.free()
                self._adding = None
            for tried in (*spent, *((sums,) if sums is not None else ())):
                await tried.close()
            self._say("", "", 0)
        running.lap("parts", time.perf_counter() - began - running.seconds.get("renew", 0.0))
        return running

    def _until(self, machine: SplitStep) -> float:
        wake = machine.wake
        return 0.5 if wake is None else min(max(wake - time.monotonic(), 0.0), 0.5)

    def _tell_of(self, machine: SplitStep, shape: str) -> None:
        waits = machine.trouble or self._runner.waits(self._id, shape)
        if not waits:
            return
        left = max(machine.deadline - time.monotonic(), 0.0)
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        away = sum(not self._services.membership.live(node) for node in self._plan.nodes)
        if away or machine.trouble:
            self._say(f"until {clock}: {waits}", waits, away)

    async def _renew(self, version: PartsVersion, shape: str, seconds: float) -> None:
        """Have the parts held, with that version's parameters."""
        changing = ChangingWeights(
            version.number, lambda weight: piece_of_version(self._plan, version.parameters, weight)
        )
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

    def _new_sums(self, pieces: int) -> NodeSums | None:
        """Where a step has several pieces: the sums of their gradients, on the nodes."""
        if self._sums is None:
            return None
        if self._adding is None:
            self._adding = AddingPrograms(self._id, self._sums, self._schedules[CUT].graphs)
        reading = {part.part for part in self._plan.parts if part.read} if self._job.data.on_nodes else ()
        return NodeSums(self._adding, pieces, self._services.trips, frozenset(reading), self._terms.releases)

    # What it works with

    @property
    def _gradient_names(self) -> dict[str, str]:
        return {grad(name): name for name in self._plan.names}

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
        """The samples, and what record 0 is to say of them; those of before, while they are that."""
        plan, job = self._plan, self._job
        lives = self._lives_now()
        if self._known is not None and lives == self._lives:
            return self._known, {}
        terms = CallTerms(changing=frozenset(plan.names))
        if not job.data.on_nodes:
            self._terms = terms
            path = await asyncio.to_thread(self._services.state.blob_path, job.data.file)
            self._known = await asyncio.to_thread(OwnSamples, path, plan.inputs)
            return self._known, {}
        where = OnNodes(self._id, job, plan, self._services, self._key, self._patience, self._tell)
        views = await where.views()
        zeroth = await asyncio.to_thread(self._begun)
        if zeroth is not None:
            views = {name: TableView.from_json(view) for name, view in zeroth["views"].items()}
        own = part_releases(self._schedules.values(), views, self._sums)
        texts = await self._whole.texts(self._group, own.values())
        samples, alignment = await where.samples(texts)
        if zeroth is not None:
            if zeroth["fingerprint"] != alignment.fingerprint:
                raise FailedPrecondition(
                    "the samples on the nodes are no longer those the run began with; start a new run"
                )
            require_same(known_from(zeroth), self._services.membership)
        self._known, self._lives = samples, lives
        self._terms = replace(terms, reads=reads_of(views, plan.labels), releases=texts)
        said = {
            "fingerprint": alignment.fingerprint,
            "data": kept(where.data()),
            "views": {name: view.to_json() for name, view in views.items()},
        }
        return samples, said

    def _tell(self, sentence: str) -> None:
        away = sum(not self._services.membership.live(n) for n in self._plan.nodes) if sentence else 0
        self._say(sentence, sentence, away)
