"""The samples of a run: which a step takes, which are held out, and how they get to the parts.

The aggregator's own lie in a safetensors file, a row a sample, and are read row by row. Of those on nodes the
aggregator knows the numbers of their rows alone (alignment.py of fusion), and sends these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.store.tensor_file import TensorFile
from aggregator.training.federated.plan import DataInput
from edge_attention.core.errors import InvalidArgument, InvalidTensor, NotFinite
from edge_attention.core.messages.training import Samples, SplitJob
from edge_attention.core.rounds.sampling import holdout_rows, training_rows
from edge_attention.core.tensors import Array, Int64

__all__ = [
    "INPUT_ROWS",
    "LABEL_ROWS",
    "AlignedSamples",
    "OwnSamples",
    "SampleTurns",
    "StepSamples",
    "check_samples",
    "require_batch",
    "sample_shapes",
]

INPUT_ROWS, LABEL_ROWS = "rows/inputs", "rows/labels"
"""Feeds with numbers of rows, where the samples are on nodes."""
LOOKED_AT = 1 << 20
"""Elements of the samples that are looked at at a time."""


def sample_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Input -> the shape of one row, of a job's own samples.

    Raises:
        InvalidArgument: it is no such file.
    """
    return {name: tuple(shape[1:]) for name, (_, shape) in _opened(file).specs.items()}


def check_samples(
    file: Path, inputs: Sequence[DataInput], label: Any, looked_up: Mapping[str, int] | None = None
) -> int:
    """How many there are, once all that the model takes is there, and is what it takes.

    `label`: what is known of the labels (graphs/models/model_form.LabelKind), of a standard loss.
    `looked_up`: input -> the rows of the table that its numbers look up (graphs/axes/looked_up.py).

    Raises:
        InvalidTensor: an array lacks, has another type or shape, or holds what is no label, no number, or
            past its table.
    """
    opened = _opened(file)
    specs = opened.specs
    counts = {shape[0] if shape else 0 for _, shape in specs.values()}
    if len(counts) != 1 or not (count := counts.pop()):
        raise InvalidTensor(
            "data: its arrays have several numbers of rows, or none; give a row a sample in each"
        )
    for one in inputs:
        if one.name not in specs:
            raise InvalidTensor(
                f"data lacks {one.name!r}, an input of the model; it has "
                f"{', '.join(sorted(specs)[:20]) or 'none'}"
            )
        dtype, shape = specs[one.name]
        if dtype.name != one.dtype or tuple(shape[1:]) != one.shape:
            raise InvalidTensor(
                f"data: {one.name!r} is {dtype.name} {list(shape[1:])} a row; the model takes {one.dtype} "
                f"{list(one.shape)}: convert it, or cut or pad the rows"
            )
    if unknown := sorted(specs.keys() - {one.name for one in inputs}):
        raise InvalidTensor(
            f"data has {unknown[0]!r}, which is no input of the model; it takes "
            f"{', '.join(one.name for one in inputs)}: leave it out"
        )
    for one in inputs:
        _look(opened, one.name, label, (looked_up or {}).get(one.name, 0))
    return int(count)


def _look(file: TensorFile, name: str, label: Any, table: int) -> None:
    """Refuse what is no number, labels that are none, and what is past the rows that it looks up, `table`
    of them (0: it looks up none)."""
    dtype, shape = file.specs[name]
    size = int(np.prod(shape, dtype=np.int64))
    each = max(1, size // shape[0])
    for start in range(0, size, LOOKED_AT):
        piece = file.read(name, start, min(start + LOOKED_AT, size))
        if dtype.kind == "f" and not (finite := np.isfinite(piece)).all():
            row = (start + int(np.argmin(finite))) // each
            raise NotFinite(f"data: {name!r} holds NaN or Inf, first in row {row:,}; take such samples out")
        if table and dtype.kind in "iu" and not 0 <= piece.min() <= piece.max() < table:
            # Below 0 ONNX counts from the table's end, where PyTorch's lookups refuse: -1 for padding would
            # train the last row, and nobody would be told.
            first = int(np.argmax((piece < 0) | (piece >= table)))
            raise InvalidTensor(
                f"data: {name!r} holds {piece[first]} in row {(start + first) // each:,}, and the model "
                f"looks it up in a table of {table:,} rows, 0 to {table - 1:,}: make the ids with the "
                "tokenizer of this model (padding is one of them, too), or bring a model with a larger table"
            )
        if label is not None and name == label.weights and (piece < 0).any():
            raise InvalidTensor(
                f"data: {name!r} says what rows count, and holds {piece.min():g}; it is 0 or above"
            )
        if label is None or name != label.labels:
            continue
        counted = piece if label.ignore is None else piece[piece != label.ignore]
        if not counted.size:
            continue
        low, high = counted.min(), counted.max()
        if label.classes and (low < 0 or high >= label.classes):
            raise InvalidTensor(
                f"data: labels {name!r} are {low} to {high}, and the model has the classes 0 to "
                f"{label.classes - 1}: number them so, or say which is ignored (ignore_index)"
            )
        if label.binary and (low < 0 or high > 1):
            raise InvalidTensor(
                f"data: labels {name!r} are {low:g} to {high:g}; they must be between 0 and 1"
            )


def _opened(file: Path) -> TensorFile:
    try:
        return TensorFile(file)
    except InvalidTensor as error:
        raise InvalidArgument(f"data is no safetensors file that can be read: {error.message}") from None


@dataclass(frozen=True)
class SampleTurns:
    """Which samples each step takes: a function of the seed and the step's number alone.

    Attributes:
        count: of all samples.
        piece: samples of a piece; those held out are whole pieces.
    """

    count: int
    batch: int
    piece: int
    holdout: float
    seed: int

    @property
    def held(self) -> int:
        """Samples held out: as many whole pieces as the share has, and not all."""
        return min(round(self.count * self.holdout), self.count - 1) // self.piece * self.piece

    @property
    def samples(self) -> Samples:
        return Samples(self.count, 0, self.count - self.held, self.held)

    def of_step(self, number: int) -> Int64:
        """int64 [batch]: positions of the samples of step `number` (1, 2, ...)."""
        rows: Int64 = training_rows(self.count, self._share, self.batch, 1, self.seed, "", number)[0]
        return rows

    def held_out(self) -> Int64:
        """int64 [held], never trained on."""
        return holdout_rows(self.count, self._share, self.seed, "") if self.held else np.zeros(0, np.int64)

    @property
    def _share(self) -> float:
        # As `core/rounds/sampling` rounds it, it is that many.
        return self.held / self.count


def require_batch(job: SplitJob, count: int) -> None:
    """Refuse a batch of more samples than are trained on: a step would take some of them several times.

    `count`: of all samples, those held out included.

    Raises:
        InvalidArgument: it says how large a batch may be.
    """
    pieces = job.micro_batches
    of = SampleTurns(count, job.batch, job.batch // pieces, job.holdout, job.seed).samples
    if job.batch <= of.train:
        return
    held = f" of {count:,}, as {of.holdout:,} are held out" if of.holdout else ""
    most = of.train // pieces * pieces
    fits = f"batch = {most}" if most else f"batch = {of.train} and micro_batches = 1"
    raise InvalidArgument(
        f"batch is {job.batch}, and {of.train:,} samples are trained on{held}: a step would take some of "
        f"them several times; set {fits}, or less, or bring more samples"
    )


class StepSamples(ABC):
    """Samples by their positions in the run's list."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many there are."""

    @abstractmethod
    def feeds(self, positions: Int64) -> dict[str, Array]:
        """What a request through the parts brings of them. Blocks."""


class OwnSamples(StepSamples):
    """The aggregator's own, of a file. `inputs`: those that the model takes."""

    def __init__(self, file: Path, inputs: Sequence[DataInput]) -> None:
        opened = TensorFile(file)
        self._arrays: dict[str, Array] = {}
        for one in inputs:
            dtype, shape = opened.specs[one.name]
            path, offset, nbytes = opened.location(one.name)
            empty = np.zeros(shape, dtype)
            self._arrays[one.name] = np.memmap(path, dtype, "r", offset, shape) if nbytes else empty
        self._count = len(next(iter(self._arrays.values())))

    @property
    def count(self) -> int:
        return self._count

    def feeds(self, positions: Int64) -> dict[str, Array]:
        return {name: np.ascontiguousarray(array[positions]) for name, array in self._arrays.items()}


class AlignedSamples(StepSamples):
    """Those on nodes. `rows`: by feed (INPUT_ROWS, LABEL_ROWS) the row of each sample, int64 [samples]."""

    def __init__(self, rows: Mapping[str, Int64]) -> None:
        self._rows = rows

    @property
    def count(self) -> int:
        return len(self._rows[INPUT_ROWS])

    def feeds(self, positions: Int64) -> dict[str, Array]:
        return {name: np.ascontiguousarray(rows[positions]) for name, rows in self._rows.items()}
