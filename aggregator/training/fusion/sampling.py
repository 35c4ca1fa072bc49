"""Which samples a fusion run holds out, and which each round takes: whatever process goes on with it.

The list of samples is in an order that all processes find again (`alignment`). A share of it is held out
for the whole run; each round takes the next batch of what is left, each epoch in an order of its own.
"""

from __future__ import annotations

import enum

import numpy as np

from aggregator.training.fusion.alignment import Alignment
from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.messages.training import Samples
from edge_attention.core.rounds.sampling import permutation
from edge_attention.core.tensors import Int64


class Scheme(enum.IntEnum):
    """How samples are put in order. The number is kept with the run: a run keeps what it began with."""

    NUMPY = 1
    """`Generator.permutation`, which NumPy may change: that of earlier releases, whose runs say nothing."""
    STREAM = 2
    """`core/rounds/sampling.permutation`, as federated runs use it: the same for ever."""


CURRENT = Scheme.STREAM


def scheme_of(number: int) -> Scheme:
    """The scheme with this number.

    Raises:
        FailedPrecondition: this release knows none.
    """
    try:
        return Scheme(number)
    except ValueError:
        raise FailedPrecondition(
            f"this run orders its samples by scheme {number} and this release knows up to {CURRENT.value}; "
            "resume it with the release that began it, or a newer one"
        ) from None


class Split:
    """The run's samples to train on and those held out, and the batches of its rounds. One thread at a time.

    Attributes:
        train, holdout: int64, ascending positions in the run's list.
        scheme: by which they were chosen, and by which batches are.
    """

    def __init__(self, count: int, holdout: float, seed: int, scheme: Scheme = CURRENT) -> None:
        """Hold out a share `holdout`, 0 to below 1, of `count` samples."""
        order = _order(scheme, count, seed, None)
        held = round(count * holdout)
        self.train: Int64 = np.sort(order[held:])
        self.holdout: Int64 = np.sort(order[:held])
        self.scheme = scheme
        self._seed = seed
        self._epoch = -1
        self._in_epoch: Int64 = order[:0]

    def samples(self, alignment: Alignment) -> Samples:
        """How many there are, for those who watch."""
        return Samples(alignment.complete, alignment.incomplete, len(self.train), len(self.holdout))

    def batch(self, size: int, number: int) -> Int64:
        """int64 [size]: the positions of round `number` (1, 2, ...). No batch is short: what is left of an
        epoch is left out of it.

        Raises:
            FailedPrecondition: fewer samples than a batch takes.
        """
        turns = len(self.train) // size
        if not turns:
            raise FailedPrecondition(
                f"{len(self.train)} samples to train on do not fill a batch of {size}; make the batch smaller"
            )
        epoch, turn = divmod(number - 1, turns)
        if epoch != self._epoch:
            self._in_epoch = _order(self.scheme, len(self.train), self._seed, epoch)
            self._epoch = epoch
        return self.train[self._in_epoch[turn * size : (turn + 1) * size]]


def _order(scheme: Scheme, count: int, seed: int, epoch: int | None) -> Int64:
    """int64 [count]: the order of an epoch, or (None) that whose first are held out."""
    if scheme is Scheme.NUMPY:
        key = [seed, 0] if epoch is None else [seed, 1, epoch]
        return np.random.default_rng(key).permutation(count)
    return permutation(count, seed, *(("holdout",) if epoch is None else ("epoch", epoch)))
