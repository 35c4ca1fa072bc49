"""Before each round: every node there, with the samples the run began with; and when to give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aggregator.training.fusion.alignment import Alignment, Split, align, split
from aggregator.training.fusion.plan import FusionPlan, check_dataset
from aggregator.training.fusion.recipe import FusionRounds, Interrupted
from aggregator.training.services import Services
from edge_attention.core.errors import DeadlineExceeded, FailedPrecondition


class Readiness:
    """Sees to it that all nodes are there with the data the run began with, and gives up in the end."""

    def __init__(
        self,
        services: Services,
        run: str,
        planned: FusionPlan,
        rounds: FusionRounds,
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        self._state, self._membership = services.state, services.membership
        self._dispatcher = services.dispatcher
        self._run, self._planned, self._rounds = run, planned, rounds
        self._patience, self._say = patience, say
        self._instances: tuple[str, ...] = ()
        self._aligned: Alignment | None = None
        self._failures = 0
        self._since = time.monotonic()

    async def check(self) -> tuple[Alignment, Split]:
        """Wait for every node; align the samples again where one has been restarted.

        Raises:
            DeadlineExceeded: a node stayed away longer than the run's patience.
            FailedPrecondition: the data are no longer those the run began with.
        """
        job, nodes = self._planned.job, self._planned.nodes
        before = time.monotonic()
        there = await self._dispatcher.all_live(nodes, self._patience, self._say)
        # Patience with a round that fails does not run while a node is away: that has its own.
        self._since += time.monotonic() - before
        if not there:
            away = [n for n in nodes if (m := self._membership.get(n)) is None or not m.live]
            raise DeadlineExceeded(
                f"node {', '.join(away)} did not come within {self._patience:.0f} s; "
                "start it, and the run anew"
            )
        members = [self._membership.require_live(name) for name in nodes]
        instances = tuple(member.register.instance for member in members)
        if self._aligned is None or instances != self._instances:
            for part in self._planned.parts:
                check_dataset(part, self._membership.require_live(part.node).register.datasets)
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
        zeroth = self._state.record(self._run, 0)
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
