"""Which of its rows a node trains on in a round: pure, so that a run goes on at any round bit for bit.

A node's rows are an endless stream: epoch 0 in one order, epoch 1 in another, and so on. Each round takes
the next `steps * batch` of it, over the ends of epochs, so no row is left out because a batch came out short.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.core.tensors import Int64


def permutation(count: int, *key: str | int) -> Int64:
    """int64 [count]: 0..count-1 in an order that depends on `key` alone, whatever the machine or NumPy.

    Sorts the raw stream of PCG64, seeded with the key's SHA-256: NumPy guarantees that stream, and does not
    guarantee `Generator.permutation`. The low bits hold the position, so no two are equal.
    """
    digest = sha256("\0".join(str(word) for word in key).encode()).digest()
    bits = np.uint64(max(count - 1, 1).bit_length())
    keys = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(count) >> bits << bits
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def steps_of(rows: int, holdout: float, batch: int, steps: int, epochs: float) -> int:
    """Local steps of a round for a node of `rows` rows: `steps`, or as many as come closest to `epochs`.

    At least one. What an epoch's last step takes too much or too little, the next round makes up for.
    """
    _require(rows, holdout, batch)
    return steps or max(1, round(epochs * (rows - held_rows(rows, holdout)) / batch))


def holdout_rows(rows: int, holdout: float, seed: int, node: str) -> Int64:
    """int64 [n], ascending: the rows never trained on, the same for the whole run. One row always trains.

    Raises:
        FailedPrecondition: there are no rows.
        InvalidArgument: `holdout` is not in [0, 1).
    """
    _require(rows, holdout, 1)
    return np.sort(_split_order(rows, seed, node)[: held_rows(rows, holdout)])


def training_rows(
    rows: int, holdout: float, batch: int, steps: int, seed: int, node: str, number: int
) -> Int64:
    """int64 [steps, batch]: the rows of round `number` (1, 2, ...), never a held-out one.

    Fewer rows than a batch come several times in it.

    Raises:
        FailedPrecondition: there are no rows.
        InvalidArgument: `holdout` is not in [0, 1), or a count is below 1.
    """
    _require(rows, holdout, batch)
    if steps < 1 or number < 1:
        raise InvalidArgument(f"{steps} steps of round {number}; both are 1 or more")
    held = held_rows(rows, holdout)
    train = np.sort(_split_order(rows, seed, node)[held:]) if held else np.arange(rows)
    count, wanted = len(train), steps * batch
    taken = np.empty(wanted, np.int64)
    first, skipped = divmod((number - 1) * wanted, count)
    filled, epoch = 0, first
    while filled < wanted:
        order = permutation(count, seed, node, "epoch", epoch)[skipped if epoch == first else 0 :]
        piece = order[: wanted - filled]
        taken[filled : filled + len(piece)] = train[piece]
        filled, epoch = filled + len(piece), epoch + 1
    return taken.reshape(steps, batch)


def _split_order(rows: int, seed: int, node: str) -> Int64:
    return permutation(rows, seed, node, "holdout")


def held_rows(rows: int, holdout: float) -> int:
    """How many of the rows `holdout_rows` are."""
    return min(round(rows * holdout), rows - 1)


def _require(rows: int, holdout: float, batch: int) -> None:
    if rows < 1:
        raise FailedPrecondition("a dataset without rows cannot be trained on; leave its node out of the job")
    if not 0 <= holdout < 1:
        raise InvalidArgument(f"holdout is {holdout}; it is a share of each node's rows, 0 to below 1")
    if batch < 1:
        raise InvalidArgument(f"batch is {batch}; it is 1 or more")
