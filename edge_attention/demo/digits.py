"""The demo's handwritten digits: 1797 images over five nodes, each with its own favourite digits.

The UCI digits (Alpaydin, Kaynak 1998) as scikit-learn carries them, 8 x 8 grey levels. How many of a digit
each node has is drawn from a Dirichlet distribution, as in Hsu, Qi, Brown, "Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification" (2019): at 0.3, most of a node's images
are of two or three digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_attention.core.tensors import Array, Float32, Int64

NODES = ("north", "south", "east", "west", "centre")
CLASSES, SIDE = 10, 8
ALPHA, TEST, MINIMUM, SEED = 0.3, 0.2, 100, 0
DATASET = "digits"


@dataclass(frozen=True, eq=False)
class Images:
    """Images float32 [rows, 8, 8] in [0, 1], their digits int64 [rows], and their numbers in the UCI file."""

    image: Float32
    label: Int64
    id: Int64

    def take(self, rows: Int64) -> Images:
        return Images(self.image[rows], self.label[rows], self.id[rows])

    def write(self, path: Path) -> Path:
        """As .npz with columns `image`, `label` and `id`, for `edge-node --data digits=FILE`."""
        np.savez(path, image=self.image, label=self.label, id=self.id)
        return path


@dataclass(frozen=True, eq=False)
class Digits:
    """What each node holds, all of it together, and a test set that nobody trains on."""

    nodes: Mapping[str, Images]
    train: Images
    test: Images

    @classmethod
    def load(cls, seed: int = SEED) -> Digits:
        """The same data in the same parts for the same seed."""
        from sklearn.datasets import load_digits

        data = load_digits()
        images = np.asarray(data.images / 16, np.float32)
        labels = np.asarray(data.target, np.int64)
        everything = Images(images, labels, np.arange(len(labels)))
        order = np.random.default_rng(seed).permutation(len(labels))
        held = round(TEST * len(labels))
        train, test = everything.take(np.sort(order[held:])), everything.take(np.sort(order[:held]))
        parts = dirichlet_split(train.label, len(NODES), ALPHA, MINIMUM, seed)
        return cls({node: train.take(rows) for node, rows in zip(NODES, parts, strict=True)}, train, test)


def dirichlet_split(labels: Array, nodes: int, alpha: float, minimum: int, seed: int) -> list[Int64]:
    """Rows of `labels` [rows] for each of `nodes`, sorted; every row is in exactly one part.

    Each label's rows are shared out by proportions drawn from a symmetric Dirichlet(`alpha`). Drawn again
    until every node has `minimum` rows or more.

    Raises ValueError where there are too few rows for that, or a hundred draws did not do it.
    """
    if nodes * minimum > len(labels):
        raise ValueError(f"{len(labels)} rows are too few for {nodes} nodes of at least {minimum}")
    rng = np.random.default_rng(seed)
    for _ in range(100):
        parts: list[list[Array]] = [[] for _ in range(nodes)]
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(nodes, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        found = [np.sort(np.concatenate(part)).astype(np.int64) for part in parts]
        if min(map(len, found)) >= minimum:
            return found
    raise ValueError(f"no draw of Dirichlet({alpha:g}) gave each of {nodes} nodes {minimum} rows; lower it")
