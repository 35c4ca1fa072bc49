"""A run's versions on the disk: the first one, and each round's, folded from what nodes returned."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.store.behind import Behind
from aggregator.store.parameters import ParameterStore
from aggregator.store.tensor_file import TensorFile, TensorFileWriter
from aggregator.training.federated.collect import Collected
from aggregator.training.federated.fold import Folded, Folder
from aggregator.training.federated.updates import pieces
from aggregator.training.stopping import Stopping
from edge_attention.core.messages.training import FederatedJob, TrainingRound


@dataclass(frozen=True, eq=False)
class Current:
    """The version last committed: its parameters and the server's state, on the disk.

    `difference`: from the version before to this one, where it was committed as one by this process.
    """

    round: int
    version: int
    parameters: TensorFile
    state: TensorFile | None
    difference: TensorFile | None = None


class Versions:
    """The versions of one run on the disk: the initial one, and those that its rounds commit."""

    def __init__(
        self, run: str, job: FederatedJob, store: ParameterStore, folder: Folder, stopping: Stopping
    ) -> None:
        self._run = run
        self._stopping = stopping
        self._job = job
        self._store = store
        self._folder = folder
        self._plan = folder.plan

    def latest(self, difference: TensorFile | None = None) -> Current:
        """The version last committed; every round commits one."""
        version = self._store.latest(self._run)
        assert version is not None
        parameters, state = self._store.open(self._run, version)
        return Current(version, version, parameters, state, difference)

    def begin(self, record: Mapping[str, Any]) -> None:
        """Commit version 0: the initial parameters that the plan left."""
        folder = self._store.folder(self._run) / "plan"
        initial = TensorFile(folder / "initial.safetensors")
        draft = self._store.draft(self._run, 0, 0, self._specs(), {})
        try:
            for index, size in enumerate(self._plan.sizes):
                for start, stop in pieces(size):
                    draft.parameters.write_at(f"p/{index}", start, initial.read(f"p/{index}", start, stop))
            self._store.commit_draft(draft, record)
        except BaseException:
            draft.abort()
            raise
        shutil.rmtree(folder, ignore_errors=True)

    def commit(
        self,
        current: Current,
        collected: Collected,
        distances: bool,
        recorded: Callable[[Folded], tuple[TrainingRound, Mapping[str, Any]]],
    ) -> tuple[Current, TrainingRound]:
        """Fold, step, write and commit the next version, with what `recorded` makes of it.

        `recorded` gives the round's record, as it is and as JSON. All or nothing.
        """
        version = current.version + 1
        state_specs = self._folder.state_specs()
        draft = self._store.draft(self._run, version, version, self._specs(), state_specs)
        path = self._difference_path(version)
        with ExitStack() as undo:
            undo.callback(draft.abort)
            writer: TensorFileWriter | None = None
            if self._folder.push is not None:
                writer = TensorFileWriter(path, self._folder.difference_specs(), {})
                undo.callback(path.unlink, missing_ok=True)
                undo.callback(writer.abort)
            with Behind() as behind:
                folded = self._folder.fold(
                    collected.updates,
                    version,
                    current.parameters,
                    current.state,
                    behind.writer(draft.parameters),
                    behind.writer(draft.state) if draft.state is not None else None,
                    behind.writer(writer) if writer is not None else None,
                    distances,
                )
            digests = writer.finish().digests if writer is not None else {}
            record, encoded = recorded(folded)
            keep = max(2, self._job.keep_versions)
            self._store.commit_draft(draft, encoded, keep=keep, besides=self._stopping.version)
            undo.pop_all()
        self._difference_path(version - 1).unlink(missing_ok=True)
        return self.latest(TensorFile(path, digests) if writer is not None else None), record

    def _difference_path(self, version: int) -> Path:
        return self._store.folder(self._run) / f"{version:08d}.difference.safetensors"

    def _specs(self) -> dict[str, tuple[np.dtype[np.float32], tuple[int, ...]]]:
        return {f"p/{i}": (np.dtype(np.float32), shape) for i, shape in enumerate(self._plan.shapes)}
