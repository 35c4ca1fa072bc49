"""The versions of a run's parameters: durable before anyone hears of them, verified when they are read.

    <state>/runs/<run>/00000007.parameters.safetensors     of every version
    <state>/runs/<run>/00000007.optimizer.safetensors      of the two newest

Files come first, then the rows that name them, in one transaction: that transaction is the commit. A
crash before it leaves files that nothing names; they are written over by the next commit and removed when
the store is opened. Names in the files carry the prefixes `p/` and `o/`, so that no parameter's name can be
safetensors' own `__metadata__`.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from aggregator.folder import TEMPORARY, sync, write_durably
from aggregator.state import State, Version, check_run_id
from edge_attention.core.errors import DataLoss, FailedPrecondition, InvalidArgument, InvalidTensor

__all__ = ["Committed", "ParameterStore"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Committed:
    """One version. `optimizer_state` is empty for versions older than the two newest."""

    version: int
    round: int
    parameters: dict[str, Array]
    optimizer_state: dict[str, Array]


class ParameterStore:
    """Versions 0, 1, 2... of every run in `state`; `clock` gives seconds since 1970."""

    def __init__(self, state: State, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._mutex = threading.Lock()  # one commit at a time: two would write the same file
        self._runs = state.directory / "runs"
        self._runs.mkdir(mode=0o700, exist_ok=True)
        sync(state.directory)
        self._clean()

    def _clean(self) -> None:
        """Removes the files that an interrupted commit left."""
        named = {file for v in self._state.list_versions() for file in (v.file, v.optimizer_file)}
        for suffix in (".safetensors", TEMPORARY):
            for path in self._runs.glob(f"*/*{suffix}"):
                if str(path.relative_to(self._state.directory)) not in named:
                    path.unlink()

    def commit(
        self,
        run: str,
        version: int,
        round: int,
        parameters: Mapping[str, Array],
        optimizer_state: Mapping[str, Array],
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes `version` the run's latest, with its optimizer state and the round's record: all or nothing.

        Arrays have any shape and any dtype of safetensors. When this returns, the version survives a crash
        of the process and of the machine. Raises `FailedPrecondition` unless `version` is the latest plus
        one (0 first), `NotFound` for an unknown run, `InvalidTensor` for what safetensors cannot hold,
        `ResourceExhausted` for a full disk; after any error the previous version is still the latest.
        """
        folder = self.folder(run)
        with self._mutex:
            latest = self.latest(run)
            expected = 0 if latest is None else latest + 1
            if version != expected:
                raise FailedPrecondition(
                    f"version {version} of run {run!r} cannot be committed after version {latest}; "
                    f"load the latest and commit {expected}"
                )
            if round < 0:
                raise InvalidArgument(f"round {round} of run {run!r} is negative; rounds count from 0")
            metadata = {"run": run, "version": str(version), "round": str(round)}
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
                sync(self._runs)
            stem = folder / f"{version:08d}"
            file, digest = self._write(Path(f"{stem}.parameters.safetensors"), "p/", parameters, metadata)
            held, held_digest = self._write(
                Path(f"{stem}.optimizer.safetensors"), "o/", optimizer_state, metadata
            )
            sync(folder)
            with self._state.transaction():
                self._state.add_version(
                    Version(run, version, round, file, digest, held, held_digest, self._clock())
                )
                if record is not None:
                    self._state.add_record(run, round, record)
                forgotten = self._state.forget_optimizers(run, before=version - 1)
            for name in forgotten:
                with suppress(OSError):  # it is committed all the same; the file goes at the next opening
                    (self._state.directory / name).unlink()

    def latest(self, run: str) -> int | None:
        """The run's latest committed version, None before the first; `NotFound` for an unknown run."""
        return self._state.get_run(run).version

    def load(self, run: str, version: int) -> Committed:
        """The version as it was committed, bit for bit.

        Raises `NotFound` for an unknown run or version, `DataLoss` for a file that is missing or damaged.
        """
        row = self._state.get_version(run, version)
        parameters = self._read(row.file, row.digest, "p/")
        state = {}
        if row.optimizer_file is not None and row.optimizer_digest is not None:
            state = self._read(row.optimizer_file, row.optimizer_digest, "o/")
        return Committed(row.version, row.round, parameters, state)

    def export(self, run: str, version: int | None = None) -> bytes:
        """A safetensors file of the parameters alone, under their own names; the latest version by default.

        Its metadata give run, version and round. Raises what `load` does, `FailedPrecondition` for a run
        without a version and `InvalidTensor` for a parameter called `__metadata__`.
        """
        version = self.latest(run) if version is None else version
        if version is None:
            raise FailedPrecondition(f"run {run!r} has no version yet; wait for its first")
        row = self._state.get_version(run, version)
        metadata = {"run": run, "version": str(row.version), "round": str(row.round)}
        return _serialize(self._read(row.file, row.digest, "p/"), metadata)

    def folder(self, run: str) -> Path:
        check_run_id(run)
        return self._runs / run

    def _write(
        self, path: Path, prefix: str, tensors: Mapping[str, Array], metadata: dict[str, str]
    ) -> tuple[str, str]:
        data = _serialize({prefix + name: tensor for name, tensor in tensors.items()}, metadata)
        write_durably(path, data)
        return str(path.relative_to(self._state.directory)), hashlib.sha256(data).hexdigest()

    def _read(self, file: str, digest: str, prefix: str) -> dict[str, Array]:
        path = self._state.directory / file
        remedy = "restore it from a copy of the state folder, or use another version"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataLoss(f"{path} cannot be read: {error.strerror}; {remedy}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataLoss(f"{path} is damaged: its bytes are not those committed; {remedy}")
        tensors: dict[str, Array] = safetensors.numpy.load(data)
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _serialize(tensors: Mapping[str, Array], metadata: dict[str, str]) -> bytes:
    if "__metadata__" in tensors:
        raise InvalidTensor("a tensor called __metadata__ cannot be in a safetensors file; rename it")
    # safetensors copies nbytes from the first element on, whatever the strides; and the name keeps the
    # copy alive while it does.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    try:
        data: bytes = safetensors.numpy.save(contiguous, metadata=metadata)
    except SafetensorError as error:
        raise InvalidTensor(f"a tensor cannot be stored: {error}; convert it to float32") from error
    return data
