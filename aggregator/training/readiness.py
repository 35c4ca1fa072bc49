"""Before each round: every node there, with the samples the run began with; and when to give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from aggregator.fleet.columns import TableView
from aggregator.training.fusion.alignment import Alignment, align
from aggregator.training.fusion.plan import FusionPlan, PlannedPart, view_of
from aggregator.training.fusion.recipe import FusionRounds, Interrupted
from aggregator.training.fusion.sampling import CURRENT, Scheme, Split, scheme_of
from aggregator.training.gap_reads import MEANS, PRESENCE
from aggregator.training.known_data import KnownData, declared, known_from, require_same
from aggregator.training.services import Services
from edge_attention.core.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, InvalidTensor
from edge_attention.core.tensors import Array


class Readiness:
    """Sees to it that all nodes are there with the data the run began with, and gives up in the end.

    Once `check` has returned, `views`: how each part reads its dataset, by its prefix; `data`: what the nodes
    have declared of what they have.
    """

    def __init__(
        self,
        services: Services,
        run: str,
        planned: FusionPlan,
        rounds: FusionRounds,
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        self._state = services.state
        self._membership = services.membership
        self._trips = services.trips
        self._run = run
        self._planned = planned
        self._rounds = rounds
        self._patience = patience
        self._say = say
        self.views: Mapping[str, TableView] = {}
        self.data: tuple[KnownData, ...] = ()
        self._instances: tuple[str, ...] = ()
        self._found: tuple[Alignment, Split] | None = None
        self._failures = 0
        self._since = time.monotonic()

    async def check(self) -> tuple[Alignment, Split]:
        """Wait for every node; align the samples again where one has been restarted.

        Raises:
            DeadlineExceeded: a node stayed away longer than the run's patience.
            FailedPrecondition: the data, or what orders them, are no longer those the run began with.
        """
        nodes = self._planned.nodes
        before = time.monotonic()
        there = await self._trips.all_live(nodes, self._patience, self._say)
        # Patience with a round that fails does not run while a node is away: that has its own.
        self._since += time.monotonic() - before
        if not there:
            away = [n for n in nodes if (m := self._membership.get(n)) is None or not m.live]
            raise DeadlineExceeded(
                f"node {', '.join(away)} did not come within {self._patience:.0f} s; "
                "start it, and the run anew"
            )
        members = [self._membership.require_live(name) for name in nodes]
        instances = self._lives()
        if self._found is None or instances != self._instances:
            await self._view()
            hashes = await self._rounds.identities()
            told = await self._rounds.told(PRESENCE)
            self.data = tuple(
                one
                for member in members
                for one in declared(member.name, member.register.datasets, self._datasets_of(member.name))
            )
            # A million samples take seconds to match and a tenth of one to put in order.
            self._found = await asyncio.to_thread(self._as_begun, hashes, told)
            self._instances = instances
        return self._found

    def require_same_lives(self) -> None:
        """Raises Interrupted if a node was started anew since `check`: it may have answered of other data."""
        if self._lives() != self._instances:
            raise Interrupted("a node was started anew in the middle of the round")

    def _lives(self) -> tuple[str, ...]:
        members = (self._membership.get(name) for name in self._planned.nodes)
        return tuple(member.register.instance if member is not None else "" for member in members)

    def _datasets_of(self, node: str) -> list[str]:
        return [part.dataset for part in self._planned.parts if part.node == node]

    async def _view(self) -> None:
        """See to it that every part's dataset is read as the run began, or begins."""
        views: dict[str, TableView] = {}
        zeroth = await asyncio.to_thread(self._state.record, self._run, 0)
        for part in self._planned.parts:
            datasets = self._membership.require_live(part.node).register.datasets
            view = view_of(self._planned, part, datasets)  # which refuses what does not fit any more
            begun = zeroth is not None and zeroth.get("views", {}).get(part.prefix)
            views[part.prefix] = TableView.from_json(begun) if begun else view
        self._rounds.use(views)
        if zeroth is None and any(view.means for view in views.values()):
            told = await self._rounds.told(MEANS)
            views = {
                part.prefix: _filled(part, views[part.prefix], told.get(part.prefix))
                for part in self._planned.parts
            }
            self._rounds.use(views)
        self.views = views

    def _as_begun(
        self, hashes: Mapping[str, Array], told: Mapping[str, Mapping[str, Array]]
    ) -> tuple[Alignment, Split]:
        """The samples and their split, if they are those the run began with. Blocks.

        `told`: of parts that leave rows out, by prefix, which rows are whole.

        Raises:
            FailedPrecondition: they are not.
            InvalidArgument: none is left on a node.
        """
        job = self._planned.job
        sources = [encoder.source for encoder in self._planned.encoders]
        ranks: dict[str, Array] = {}
        whole: dict[str, Array] = {}
        for part in self._planned.parts:
            if part.prefix not in told:
                continue
            used = whole_rows(part, told[part.prefix]["complete"], len(hashes[part.source]))
            ranks[part.prefix] = np.cumsum(used, dtype=np.int64) - 1
            whole[part.source] = used & whole.get(part.source, True)
        aligned = align(hashes, self._planned.head.source, sources, job.missing, whole)
        aligned = replace(aligned, ranks=ranks)
        zeroth = self._state.record(self._run, 0)
        if zeroth is None:
            return aligned, Split(len(aligned), job.holdout, job.seed, CURRENT)
        if zeroth["fingerprint"] != aligned.fingerprint:
            raise FailedPrecondition(
                "the nodes' samples are no longer those this run began with; start a new run"
            )
        require_same(known_from(zeroth), self._membership)
        # Runs of earlier releases do not say.
        scheme = scheme_of(zeroth.get("sampling", Scheme.NUMPY))
        split = Split(len(aligned), job.holdout, job.seed, scheme)
        last = self._state.get_run(self._run).round
        record = self._state.record(self._run, last) if last and scheme is Scheme.NUMPY else None
        if record is not None and split.batch(job.batch, last).tolist() != list(record["samples"]):
            raise FailedPrecondition(
                f"NumPy {np.__version__} orders samples in another way than the one this run began with, and "
                "would train on samples that were held out; resume it with that NumPy, or start a new run"
            )
        return aligned, split

    def progress(self) -> None:
        if self._failures:
            self._say("")
        self._failures = 0
        self._since = time.monotonic()

    async def pause(self, interruption: Interrupted) -> None:
        """Wait a little before the round is run again; give up when nothing has worked for long."""
        self._failures += 1
        now = time.monotonic()
        if now - self._since > self._patience:
            raise DeadlineExceeded(f"no round has ended for {self._patience:.0f} s: {interruption.message}")
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + self._since + self._patience - now))
        self._say(f"another try, until {clock}: {interruption.message}")
        await asyncio.sleep(min(0.1 * 2**self._failures, 5.0))


def whole_rows(part: PlannedPart, complete: Array, rows: int) -> Array:
    """bool [rows]: which of the rows are whole, as the part's node said.

    Raises:
        InvalidTensor: it said it of other rows.
        InvalidArgument: none is.
    """
    if len(complete) != rows:
        raise InvalidTensor(f"{part.source}: it tells of {len(complete):,} rows and has {rows:,} ids")
    if not complete.any():
        raise InvalidArgument(
            f"dataset {part.dataset!r} of node {part.node!r} has no row left: each lacks a value in one of "
            "the columns that rows are dropped by; name another rule for them"
        )
    return np.asarray(complete != 0)


def _filled(part: PlannedPart, view: TableView, told: Mapping[str, Array] | None) -> TableView:
    """With the means that the part's node told of: its column is nowhere else.

    Raises:
        InvalidTensor: it told what cannot be.
        InvalidArgument: a column has no value.
    """
    if told is None:
        return view
    sums, counts = told["sums"], told["counts"]
    if not (np.isfinite(sums).all() and np.isfinite(counts).all() and (counts >= 0).all()):
        raise InvalidTensor(f"{part.source}: sums and counts of its columns are no numbers")
    if not (counts >= 1).all():  # a share of a value is none
        name = view.means[int(np.argmin(counts))].name
        raise InvalidArgument(f"column {name!r} of {part.source} has no value, and so no mean; leave it out")
    return view.filled(dict(zip(view.means, (sums / counts).tolist(), strict=True)))
