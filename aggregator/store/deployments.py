"""Deployed models on the disk: a folder each, with the model's files and what is made of them.

    <state>/deployments/<id>/deployment.json  what it is; it is there once the deployment serves
    <state>/deployments/<id>/model/           the files as they came: `model.onnx`, and those of its weights
    <state>/deployments/<id>/shapes/<key>/    what a model cut for one shape of inputs is
    <state>/deployments/<id>/decoder/         what a decoder cut for sessions is

    <state>/deployments/ended.json            ids of those that went last, for nodes that were away

A folder without the first is of a deployment that never served. Methods block on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator.store.folder import remedy, require_space, sync, unwritable, write_durably
from aggregator.store.sealed import file_digest
from aggregator.store.state import State, check_run_id
from edge_attention.core.errors import DataLoss, EdgeAttentionError, InvalidArgument

__all__ = ["DeploymentFolder", "DeploymentFolders", "KeptDeployment"]

FOLDER = "deployments"
ENDED = 256
"""Ids of deployments that are remembered once they are gone."""
_ENDED = "ended.json"
_SPEC = "deployment.json"
_SUM = "sum"
"""In a deployment's JSON: SHA-256 of the rest of it, as `_sum` has it. Earlier releases wrote none."""


@dataclass(frozen=True)
class DeploymentFolder:
    """One deployment's folder."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def model(self) -> Path:
        """The ONNX file; those of its weights lie beside it."""
        return self.path / "model" / "model.onnx"

    @property
    def decoder(self) -> Path:
        """What a decoder is cut into for sessions, if it has any."""
        return self.path / "decoder"

    def shape(self, key: str) -> Path:
        """Where what is made for this shape lies."""
        return self.path / "shapes" / key


@dataclass(frozen=True)
class KeptDeployment:
    """A deployment that served; `spec` is JSON."""

    folder: DeploymentFolder
    spec: Mapping[str, Any]


class DeploymentFolders:
    """Those of the state folder."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._folder = state.directory / FOLDER
        self._lock = threading.Lock()

    def make(self, id: str, model: str, files: Mapping[str, str]) -> tuple[DeploymentFolder, int]:
        """A new folder with the model's files, which are blobs; and their bytes together.

        Args:
            id: 1 to 64 of a-z, 0-9 and hyphens.
            model: digest of the ONNX file.
            files: path beside it -> digest.

        Raises:
            InvalidArgument: a path leads elsewhere, or is that of the model; a digest is none.
            NotFound: a file has not been sent.
            DataLoss: a file is damaged.
        """
        check_run_id(id)
        paths = {_inside(name): digest for name, digest in files.items()}
        made = DeploymentFolder(self._folder / id)
        try:
            for folder in (self._folder, made.path, made.model.parent, made.path / "shapes"):
                folder.mkdir(mode=0o700, exist_ok=True)
            size = self._bring(model, made.model)
            for path, digest in paths.items():
                target = made.model.parent / path
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                size += self._bring(digest, target)
        except OSError as error:
            self.remove(made)
            raise unwritable(made.path, error) from error
        except BaseException:
            self.remove(made)
            raise
        return made, size

    def _bring(self, digest: str, target: Path) -> int:
        """Have the blob at `target`, too; its bytes."""
        blob = self._state.blob_path(digest)
        if target.exists():
            raise InvalidArgument(f"two of the model's files are called {target.name[:80]!r}")
        try:
            os.link(blob, target)
        except OSError:  # a file system without links
            require_space(target.parent, blob.stat().st_size)
            shutil.copyfile(blob, target)
        return target.stat().st_size

    def require_model(
        self, folder: DeploymentFolder, name: str, model: str, files: Mapping[str, str]
    ) -> None:
        """Read the model's files, and refuse those that are not what came as `make` has them.

        Raises:
            DataLoss: one is gone or damaged; says what to do.
        """
        paths = {folder.model: model, **{folder.model.parent / path: one for path, one in files.items()}}
        for path, digest in paths.items():
            try:
                if file_digest(path) == digest:
                    continue
                what = "is damaged: its bytes have another digest"
            except OSError as error:
                what = f"cannot be read: {error.strerror}"
            raise DataLoss(
                f"{path} {what}; deploy the model {name!r} again, from its file, and look at the disk"
            )

    def served(self, folder: DeploymentFolder) -> bool:
        """Whether it serves, or did in an earlier life."""
        return (folder.path / _SPEC).is_file()

    def keep(self, folder: DeploymentFolder, spec: Mapping[str, Any]) -> None:
        """It serves: it is there after a restart, with this `spec`. Durable when this returns."""
        for path in (folder.model.parent, folder.path / "shapes", folder.path, self._folder):
            sync(path)
        write_durably(folder.path / _SPEC, json.dumps({**spec, _SUM: _sum(spec)}).encode())
        sync(folder.path)

    def forget(self, folder: DeploymentFolder) -> None:
        """It is not there after a restart. Durable when this returns; `remove` the rest."""
        if folder.path.is_dir():
            (folder.path / _SPEC).unlink(missing_ok=True)
            sync(folder.path)

    def remove(self, folder: DeploymentFolder, blobs: Collection[str] = ()) -> None:
        """Nothing is left of it, nor of `blobs`, of which those go that no run has a use for."""
        self.forget(folder)  # first: one that is removed by half is none
        if folder.path.is_dir():
            self._remember(folder.id)
        shutil.rmtree(folder.path, ignore_errors=True)
        for digest in blobs:
            self._state.drop_blob(digest)

    def _remember(self, id: str) -> None:
        # A full disk is no reason to keep what was to go.
        with self._lock, contextlib.suppress(OSError, EdgeAttentionError):
            ended = [one for one in self.ended() if one != id]
            write_durably(self._folder / _ENDED, json.dumps([*ended, id][-ENDED:]).encode())

    def ended(self) -> tuple[str, ...]:
        """The ids of those that went last. A node that was away meanwhile may have something of them."""
        try:
            found = json.loads((self._folder / _ENDED).read_bytes())
        except (FileNotFoundError, ValueError):  # it only saves room on nodes
            return ()
        return tuple(id for id in found if isinstance(id, str)) if isinstance(found, list) else ()

    def used_shape(self, folder: DeploymentFolder, key: str) -> None:
        """What was made for this shape is used now."""
        with contextlib.suppress(OSError):
            os.utime(folder.shape(key))

    def keep_shapes(
        self, folder: DeploymentFolder, in_use: Collection[str], most: int, seconds: float, now: float
    ) -> None:
        """Forget what was made for shapes beyond `most`, those used longest ago, or not used for `seconds`.

        `in_use`: stay in any case. `now`: seconds since 1970.
        """
        found: list[tuple[float, Path]] = []
        with contextlib.suppress(OSError):
            found = [(path.stat().st_mtime, path) for path in (folder.path / "shapes").iterdir()]
        found.sort(key=lambda one: one[0], reverse=True)
        for number, (used, path) in enumerate(found):
            if path.name not in in_use and (number >= most or used < now - seconds):
                shutil.rmtree(path, ignore_errors=True)

    def recall(self) -> list[KeptDeployment]:
        """Those that served; what else is there is removed, with blobs that only it was made of.

        Raises:
            DataLoss: what is kept of one cannot be read.
        """
        found, ended = [], []
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if path.name == _ENDED:
                continue
            folder = DeploymentFolder(path)
            try:
                spec = json.loads((path / _SPEC).read_bytes())
                if isinstance(spec, dict) and spec.pop(_SUM, None) not in (None, _sum(spec)):
                    raise ValueError("it is not what was written")
            except (FileNotFoundError, NotADirectoryError):
                ended.append(folder)
                continue
            except OSError as error:  # which says nothing of what is in it
                what = f"{path / _SPEC} cannot be read ({error.strerror}); {remedy(path, error)}"
                if isinstance(error, IsADirectoryError):
                    what += "; or remove the folder, and deploy the model again"
                raise DataLoss(what) from None
            except ValueError as error:
                raise DataLoss(
                    f"{path / _SPEC} cannot be read ({error}); remove the folder, and deploy the model again"
                ) from None
            found.append(KeptDeployment(folder, spec))
        # Nothing says of what these were to be made but the blobs themselves, which their files are.
        files = _files(ended) - _files(kept.folder for kept in found)
        blobs = self._state.directory / "blobs"
        left = [path.name for path in (blobs.iterdir() if files else ()) if path.stat().st_ino in files]
        for folder in ended:
            self.remove(folder)
        for digest in left:
            self._state.drop_blob(digest)
        return found


def _sum(spec: Mapping[str, Any]) -> str:
    # As it is read: the keys of all maps are strings then, and have the order of these.
    read = json.loads(json.dumps({name: value for name, value in spec.items() if name != _SUM}))
    text = json.dumps(read, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _files(folders: Iterable[DeploymentFolder]) -> set[int]:
    """The inodes of the models' files."""
    return {path.stat().st_ino for one in folders for path in one.model.parent.rglob("*") if path.is_file()}


def _inside(name: str) -> Path:
    """`name` as a path below the model's folder.

    Raises:
        InvalidArgument: it is none.
    """
    path = Path(name)
    parts = path.parts
    if (
        not parts
        or path.is_absolute()
        or len(parts) > 8
        or len(name) > 512
        or any(part in ("..", ".") or len(part.encode()) > 200 for part in parts)
        or "\0" in name
        or name == "model.onnx"
    ):
        raise InvalidArgument(
            f"a file of weights is called {name[:80]!r}; it lies beside the ONNX file, under the path that "
            "that one names"
        )
    return path
