"""Which rows a node uses: pure functions of the job's seed, the node's name and the round."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.training import FederatedJob
from edge_attention.core.rounds.sampling import held_rows, holdout_rows, steps_of, training_rows
from edge_attention.core.strategies import Strategy
from edge_attention.core.tensors import Int64

MAX_ROWS = 1 << 24
"""Rows of all local steps of a round together: their numbers go down with the program."""
MAX_DATASET = 1 << 26
"""Rows of a node's dataset, of which a node only says how many there are: to draw some of them takes 24 bytes
here for each that there is."""
ONE_AT_A_TIME = 1 << 20
"""Rows of a dataset from which nobody else draws meanwhile."""
MAX_SHOWN = 8
"""Nodes that a note names."""


_drawing = threading.Lock()


@dataclass(frozen=True)
class NodeSamples:
    """One node's dataset of `rows` rows, as a job cuts it."""

    job: FederatedJob
    strategy: Strategy
    node: str
    rows: int

    @property
    def steps(self) -> int:
        """Local steps of a round."""
        if self.strategy.gradients:
            return 1
        local = self.job.local
        return steps_of(self.rows, self.job.holdout, local.batch, local.steps, local.epochs)

    @property
    def drawn(self) -> int:
        """Rows of all local steps of a round together."""
        return self.steps * self.job.local.batch

    def check(self) -> None:
        """Raises InvalidArgument if a round takes more than MAX_ROWS, or there are more than MAX_DATASET."""
        if self.rows > MAX_DATASET:
            raise InvalidArgument(
                f"node {self.node!r} says that dataset {self.job.dataset!r} has {self.rows:,} rows, and a "
                f"run takes {MAX_DATASET:,} of a node at most: give it fewer, or leave the node out of the "
                "job"
            )
        if self.drawn > MAX_ROWS:
            raise InvalidArgument(
                f"{self.steps:,} local steps of {self.job.local.batch:,} rows on node {self.node!r} are more "
                f"than {MAX_ROWS:,} rows a round; have fewer local.steps or local.epochs, and more rounds"
            )

    @cached_property
    def training(self) -> int:
        """Rows that are not held out."""
        return self.rows - held_rows(self.rows, self.job.holdout)

    def of_round(self, number: int) -> Int64:
        """int64 [steps, batch]."""
        job = self.job
        with self._alone():
            return training_rows(
                self.rows, job.holdout, job.local.batch, self.steps, job.seed, self.node, number
            )

    def held_out(self) -> Int64:
        """int64 [n], never trained on."""
        with self._alone():
            return holdout_rows(self.rows, self.job.holdout, self.job.seed, self.node)

    def _alone(self) -> AbstractContextManager[object]:
        return _drawing if self.rows > ONE_AT_A_TIME else nullcontext()


def short_of_a_batch(samples: Iterable[NodeSamples]) -> str:
    """What whoever trains should know of nodes whose rows do not fill a batch; nothing: they all do."""
    few = [one for one in samples if one.training < one.job.local.batch]
    if not few:
        return ""
    shown = ", ".join(f"{one.training:,} on node {one.node}" for one in few[:MAX_SHOWN])
    more = f", and fewer on {len(few) - MAX_SHOWN:,} more nodes" if len(few) > MAX_SHOWN else ""
    return (
        f"local.batch is {few[0].job.local.batch:,}, and there are fewer rows to train on where each step "
        f"takes some of them several times: {shown}{more}; a batch of "
        f"{min(one.training for one in few):,} takes none twice"
    )
