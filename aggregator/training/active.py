"""A run as it stands, and who is told when it changes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace

from aggregator.bounds.budget import Lease
from aggregator.training.metrics import RunMetrics
from edge_attention.core.messages.training import FederatedJob, FusionJob, SplitJob, TrainingRun

log = logging.getLogger(__name__)

Job = FusionJob | FederatedJob | SplitJob


@dataclass
class ActiveRun:
    """A run as it stands, for `caller`, who started it. `changed` is replaced each time something does."""

    info: TrainingRun
    job: Job
    identity_key: bytes
    caller: str = ""
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    evaluating: bool = False
    ending: bool = False
    """It has come to its end, which is being written down: it can no longer be stopped."""
    said: str = ""
    going: Lease | None = None
    """What it takes of the runs that may go on."""

    def update(self, **changes: object) -> None:
        self.info = replace(self.info, **changes)  # type: ignore[arg-type]
        self.changed.set()
        self.changed = asyncio.Event()

    def say(self, sentence: str, metrics: RunMetrics, about: str = "", missing: int = 0) -> None:
        """What the run waits for now; empty: it goes on. For the log, metrics and those who watch.

        `about`: what the sentence is about, as the nodes waited for: a sentence that only counts seconds
        on is news to those who watch, but none to the log. `missing`: nodes that lack for a quorum.
        """
        metrics.waits(self.info.id, bool(sentence), missing)
        if sentence == self.info.waiting:
            return
        about = about or sentence
        if sentence and about != self.said:
            whole = f": {sentence}" if " waits for " in sentence else f" waits for {sentence}"
            log.warning("run %s%s", self.info.id, whole)
        elif self.said and not sentence:
            log.info("run %s goes on", self.info.id)
        self.said = about if sentence else ""
        self.update(waiting=sentence)


def evaluation_due(job: Job, number: int) -> bool:
    """Whether the held-out samples are evaluated after round `number`; 0 is before the first."""
    every = job.evaluate_every
    due = number == job.rounds or bool(every and number % every == 0)
    return job.holdout > 0 and number > 0 and due
