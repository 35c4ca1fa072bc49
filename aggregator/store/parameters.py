"""The versions of a run's parameters: durable before anyone hears of them, verified when they are read.

    <state>/runs/<run>/00000007.parameters.safetensors     of every version
    <state>/runs/<run>/00000007.optimizer.safetensors      of the two newest

Files come first, then the rows that name them, in one transaction: that transaction is the commit. A
crash before it leaves files that nothing names; they are written over by the next commit and removed when
the store is opened. Names in the files carry the prefixes `p/` and `o/`, so that no parameter's name can be
safetensors' own `__metadata__`.

`commit` and `load` are for versions that fit in memory; `draft`, `open` and `stream` never hold one.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from aggregator.store.folder import TEMPORARY, sync, write_durably
from aggregator.store.state import State, Version, check_run_id
from aggregator.store.tensor_file import Spec, TensorFile, TensorFileWriter
from edge_attention.core.errors import DataLoss, FailedPrecondition, InvalidArgument, InvalidTensor

__all__ = ["Committed", "Draft", "ParameterStore", "Stream"]

_VERIFIED = 256  # files of which it is remembered

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Committed:
    """One committed version of a run's parameters.

    `optimizer_state` is empty for versions older than the two newest."""

    version: int
    round: int
    parameters: dict[str, Array]
    optimizer_state: dict[str, Array]


@dataclass(frozen=True, eq=False)
class Draft:
    """A version that is being written. Whoever does not commit it calls `abort`, which removes its files."""

    run: str
    version: int
    round: int
    parameters: TensorFileWriter
    state: TensorFileWriter | None

    def abort(self) -> None:
        """Remove what was written. It does nothing after `ParameterStore.commit_draft`, nor a second time."""
        self.parameters.abort()
        if self.state is not None:
            self.state.abort()


@dataclass(frozen=True, eq=False)
class Stream:
    """A safetensors file of a version's parameters, in pieces of `size` bytes together."""

    version: int
    size: int
    pieces: Iterator[bytes]


class ParameterStore:
    """Versions 0, 1, 2... of every run in `state`; `clock` gives seconds since 1970."""

    def __init__(self, state: State, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._mutex = threading.Lock()  # one commit at a time: two would write the same file
        # File -> its digest when it was last found whole, and those of its tensors.
        self._verified: OrderedDict[str, tuple[str, Mapping[str, str]]] = OrderedDict()
        self._runs = state.directory / "runs"
        self._runs.mkdir(mode=0o700, exist_ok=True)
        sync(state.directory)
        self._clean()

    def _clean(self) -> None:
        """Removes the files that an interrupted commit, or an interrupted deletion, left."""
        named = {file for v in self._state.list_versions() for file in (v.file, v.optimizer_file)}
        for suffix in (".safetensors", TEMPORARY):
            for path in self._runs.glob(f"*/*{suffix}"):
                if str(path.relative_to(self._state.directory)) not in named:
                    path.unlink()
        runs = set(self._state.run_ids())
        for folder in self._runs.iterdir():
            if folder.name not in runs:  # of one that was deleted, or had not begun
                shutil.rmtree(folder, ignore_errors=True)

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
        with self._mutex:
            self._check_next(run, version, round)
            metadata = {"run": run, "version": str(version), "round": str(round)}
            stem = self._folder(run) / f"{version:08d}"
            file, digest = self._write(Path(f"{stem}.parameters.safetensors"), "p/", parameters, metadata)
            held, held_digest = self._write(
                Path(f"{stem}.optimizer.safetensors"), "o/", optimizer_state, metadata
            )
            sync(stem.parent)
            self._name(Version(run, version, round, file, digest, held, held_digest, self._clock()), record)

    def draft(
        self, run: str, version: int, round: int, parameters: Mapping[str, Spec], state: Mapping[str, Spec]
    ) -> Draft:
        """A version to be written piece by piece: name -> (dtype, shape) of its parameters and its state.

        Names are the files' own: parameters' begin with `p/`. Without any state there is no file of it.
        Raises what `commit` does.
        """
        self._check_next(run, version, round)
        if any(not name.startswith("p/") for name in parameters):
            raise InvalidArgument(f"a parameter's name in a file of run {run!r} begins with 'p/'")
        metadata = {"run": run, "version": str(version), "round": str(round)}
        stem = self._folder(run) / f"{version:08d}"
        first = TensorFileWriter(Path(f"{stem}.parameters.safetensors"), parameters, metadata)
        second = None
        if state:
            try:
                second = TensorFileWriter(Path(f"{stem}.optimizer.safetensors"), state, metadata)
            except BaseException:
                first.abort()
                raise
        return Draft(run, version, round, first, second)

    def commit_draft(
        self,
        draft: Draft,
        record: Mapping[str, Any] | None = None,
        *,
        keep: int = 0,
        besides: int | None = None,
    ) -> None:
        """Makes `draft`, whose tensors are all written, the run's latest version, as `commit` does.

        `keep`: with that, versions older than so many of the newest are forgotten; version 0, what the run
        began with, and version `besides` stay. 0: none is.

        After any error the previous version is still the latest.
        """
        try:
            with self._mutex:
                self._check_next(draft.run, draft.version, draft.round)
                file, digest = self._finish(draft.parameters)
                held, held_digest = (None, None) if draft.state is None else self._finish(draft.state)
                sync(draft.parameters.path.parent)
                self._name(
                    Version(
                        draft.run, draft.version, draft.round, file, digest, held, held_digest, self._clock()
                    ),
                    record,
                    keep,
                    besides,
                )
        except BaseException:
            draft.abort()
            raise

    def _finish(self, writer: TensorFileWriter) -> tuple[str, str]:
        written = writer.finish()
        file = str(writer.path.relative_to(self._state.directory))
        self._known(file, written.digest, written.digests)
        return file, written.digest

    def _known(self, file: str, digest: str, digests: Mapping[str, str]) -> None:
        self._verified[file] = (digest, digests)
        self._verified.move_to_end(file)
        if len(self._verified) > _VERIFIED:
            self._verified.popitem(last=False)

    def _check_next(self, run: str, version: int, round: int) -> None:
        check_run_id(run)
        latest = self.latest(run)
        expected = 0 if latest is None else latest + 1
        if version != expected:
            raise FailedPrecondition(
                f"version {version} of run {run!r} cannot be committed after version {latest}; "
                f"load the latest and commit {expected}"
            )
        if round < 0:
            raise InvalidArgument(f"round {round} of run {run!r} is negative; rounds count from 0")

    def _folder(self, run: str) -> Path:
        folder = self.folder(run)
        if not folder.is_dir():
            folder.mkdir(mode=0o700)
            sync(self._runs)
        return folder

    def _name(
        self,
        version: Version,
        record: Mapping[str, Any] | None,
        keep: int = 0,
        besides: int | None = None,
    ) -> None:
        """Commit `version`: write the rows that name its files, which are on the disk already.

        All in one transaction, as each waits for the disk.
        """
        with self._state.transaction():
            self._state.add_version(version)
            if record is not None:
                self._state.add_record(version.run, version.round, record)
            forgotten = self._state.forget_optimizers(version.run, before=version.version - 1)
            if keep:
                forgotten += self._state.forget_versions(version.run, version.version - keep + 1, besides)
        self._remove(forgotten)

    def _remove(self, files: Sequence[str]) -> None:
        """Delete files that no row names any more."""
        for name in files:
            self._verified.pop(name, None)
            with suppress(OSError):  # it is committed all the same; the file goes at the next opening
                (self._state.directory / name).unlink()

    def remove(self, run: str) -> None:
        """Removes the files of a run that is no longer in the state."""
        folder = self.folder(run)
        prefix = f"{folder.relative_to(self._state.directory)}/"
        with self._mutex:
            for name in [name for name in self._verified if name.startswith(prefix)]:
                del self._verified[name]
            shutil.rmtree(folder, ignore_errors=True)

    def latest(self, run: str) -> int | None:
        """The run's latest committed version, None before the first; `NotFound` for an unknown run."""
        return self._state.latest_version(run)

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

    def open(self, run: str, version: int) -> tuple[TensorFile, TensorFile | None]:
        """The version's parameters and its state, to be read in pieces; digests of all tensors are known.

        There is no state of versions older than the two newest, nor where none was committed. Names are the
        files' own. A file is verified once in a process. Raises what `load` does.
        """
        row = self._state.get_version(run, version)
        state = None
        if row.optimizer_file is not None and row.optimizer_digest is not None:
            state = self._file(row.optimizer_file, row.optimizer_digest)
        return self._file(row.file, row.digest), state

    def _file(self, name: str, digest: str) -> TensorFile:
        path = self._state.directory / name
        verified, digests = self._verified.get(name, ("", {}))
        file = TensorFile(path, digests if verified == digest else None)
        if verified != digest:
            file.verify(digest)
            self._known(name, digest, file.digests)
        return file

    def stream(self, run: str, version: int | None = None, names: Sequence[str] | None = None) -> Stream:
        """The file of `export` in pieces.

        `names`: those of the parameters committed as `p/0`, `p/1`..., in that order, if these are numbers.
        """
        version = self.latest(run) if version is None else version
        if version is None:
            raise FailedPrecondition(f"run {run!r} has no version yet; wait for its first")
        row = self._state.get_version(run, version)
        file = self._file(row.file, row.digest)
        own = {name: name.removeprefix("p/") for name in file.specs}
        if names is not None:
            numbered = {f"p/{index}": name for index, name in enumerate(names)}
            if numbered.keys() != own.keys():
                raise InvalidArgument(f"run {run!r} has not {len(numbered)} parameters that are numbered")
            own = numbered
        metadata = {"run": run, "version": str(row.version), "round": str(row.round)}
        return Stream(row.version, *file.renamed(own, metadata))

    def export(self, run: str, version: int | None = None) -> bytes:
        """A safetensors file of the parameters alone, under their own names; the latest version by default.

        Its metadata give run, version and round. Raises what `load` does, `FailedPrecondition` for a run
        without a version and `InvalidTensor` for a parameter called `__metadata__`.
        """
        return b"".join(self.stream(run, version).pieces)

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
