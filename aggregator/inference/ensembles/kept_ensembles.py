"""Ensembles that are deployed: a file each in the state folder, so that they are there after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator.inference.ensembles.asking_members import DEPTH
from aggregator.inference.ensembles.ensemble_tensors import EnsembleTensors, tensors_of
from aggregator.inference.generation.streamed_models import require_no_stream
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.store.folder import sync, write_durably
from aggregator.store.state import State
from edge_attention.core.ensembles.ensemble import EnsembleSpec
from edge_attention.core.ensembles.ensemble_file import read_ensemble
from edge_attention.core.errors import (
    AlreadyExists,
    EdgeAttentionError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from edge_attention.core.messages.open_inference import TensorMetadata
from edge_attention.core.printable import shown
from edge_attention.core.tensors import require_name

__all__ = ["MAX_ENSEMBLES", "KeptEnsemble", "KeptEnsembles"]

log = logging.getLogger(__name__)

FOLDER = "ensembles"
MAX_ENSEMBLES = 256
MAX_ASKED = 256
"""Models that one request asks, those of ensembles that are members included."""


@dataclass(frozen=True, eq=False)
class KeptEnsemble:
    """One that serves. `text`: the file it came as."""

    name: str
    version: int
    text: str
    owner: str
    created: float
    ensemble: EnsembleSpec
    tensors: EnsembleTensors


class KeptEnsembles:
    """All of them. `taken`: whether a deployed model has a name. `gone`: told of each version that ends."""

    def __init__(
        self,
        state: State,
        plane: DataPlane,
        taken: Callable[[str], bool],
        gone: Callable[[str, int], None] = lambda name, version: None,
    ) -> None:
        self._state = state
        self._folder = state.directory / FOLDER
        self._plane = plane
        self._taken = taken
        self._gone = gone
        self._all: dict[str, KeptEnsemble] = {}
        self._changing = asyncio.Lock()

    async def deploy(self, name: str, text: str, owner: str) -> KeptEnsemble:
        """Have it serve, in place of one of that name. Durable when this returns.

        Raises:
            InvalidArgument: the file says what cannot be, or its members do not fit together.
            FailedPrecondition: a member's model is not deployed.
            AlreadyExists: a deployed model has the name.
            ResourceExhausted: there are too many.
        """
        require_name(name, "ensemble")
        require_no_stream(name)
        ensemble = read_ensemble(text)
        models = {member.model for member in ensemble.members} | {ensemble.head}
        if name in models:
            raise InvalidArgument(f"ensemble '{name}' would ask itself: give it another name")
        async with self._changing:
            if self._taken(name):
                raise AlreadyExists(f"a deployed model is called '{name}'; give the ensemble another name")
            if name not in self._all and len(self._all) >= MAX_ENSEMBLES:
                raise ResourceExhausted(
                    f"bound MAX_ENSEMBLES: there are {len(self._all)}; end one with edge-attention ensemble "
                    "undeploy"
                )
            self._require_bounded(name, ensemble)
            tensors = tensors_of(ensemble, self._plane)
            numbers = await asyncio.to_thread(self._state.take_numbers, f"ensemble/{name}", 1, 1)
            made = KeptEnsemble(name, numbers.start, text, owner, time.time(), ensemble, tensors)
            await asyncio.to_thread(self._write, made)
            before = self._all.get(name)
            self._all[name] = made
            if before is not None:
                self._gone(name, before.version)
        log.info("ensemble %s serves as version %d", name, made.version)
        return made

    def _require_bounded(self, name: str, ensemble: EnsembleSpec) -> None:
        """Refuse one that would ask itself, or more models than MAX_ASKED; or have others that ask it do so.

        Raises:
            InvalidArgument: says which.
        """
        every = {kept.name: kept.ensemble for kept in self._all.values()} | {name: ensemble}
        self._require_own(name, every)
        asking = {name}
        for _ in range(DEPTH):  # those that ask it, those that ask these, and so on
            asking |= {one for one, spec in every.items() if asking & set(_models(spec))}
        for one in sorted(asking - {name}):
            try:
                self._require_own(one, every)
            except InvalidArgument as error:
                raise InvalidArgument(f"ensemble '{one}' asks this one: {error.message}") from None

    def _require_own(self, name: str, every: Mapping[str, EnsembleSpec]) -> None:
        asked, level = 0, [every[name]]
        for _ in range(DEPTH):
            models = [model for one in level for model in _models(one)]
            asked += len(models)
            if name in models:
                raise InvalidArgument(f"ensemble '{name}' would ask itself, by way of another one")
            if asked > MAX_ASKED:
                raise InvalidArgument(
                    f"bound MAX_ASKED: a request of ensemble '{name}' would ask {asked:,} models, and "
                    f"{MAX_ASKED} is the most"
                )
            level = [every[model] for model in models if model in every]
        if level:
            raise InvalidArgument(f"bound DEPTH: ensembles of ensembles are {DEPTH} deep at most")

    async def undeploy(self, name: str) -> KeptEnsemble:
        """End it. Raises NotFound."""
        async with self._changing:
            ended = self.require(name)
            await asyncio.to_thread(self._remove, name)
            del self._all[name]
            self._gone(name, ended.version)
        return ended

    def find(self, name: str) -> KeptEnsemble | None:
        return self._all.get(name)

    def require(self, name: str) -> KeptEnsemble:
        """Raises NotFound."""
        found = self._all.get(name)
        if found is None:
            known = ", ".join(sorted(self._all)) or "none"
            raise NotFound(f"there is no ensemble {shown(name, 80)!r}; there are: {known}")
        return found

    def __iter__(self) -> Iterator[KeptEnsemble]:
        return iter(sorted(self._all.values(), key=lambda one: one.name))

    def recall(self) -> None:
        """Those of earlier lives serve again. Blocks on the disk; one that cannot be read is left out, and
        logged."""
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else ():
            try:
                kept = _read(path)
            except (OSError, ValueError, KeyError, TypeError, EdgeAttentionError) as error:
                log.error("ensemble %s cannot be read, and does not serve: %s", path.stem, shown(error, 200))
                continue
            self._all[kept.name] = kept

    def _write(self, kept: KeptEnsemble) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        data = {
            "name": kept.name,
            "version": kept.version,
            "text": kept.text,
            "owner": kept.owner,
            "created": kept.created,
            "inputs": [[one.name, one.datatype, one.shape] for one in kept.tensors.inputs],
            "outputs": [[one.name, one.datatype, one.shape] for one in kept.tensors.outputs],
            "shapes": kept.tensors.shapes,
        }
        write_durably(self._path(kept.name), json.dumps(data).encode())
        sync(self._folder)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(name).unlink()
        sync(self._folder)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _models(ensemble: EnsembleSpec) -> list[str]:
    """That a request of it asks, as often as it does."""
    return [model for model in (*(member.model for member in ensemble.members), ensemble.head) if model]


def _read(path: Path) -> KeptEnsemble:
    data: dict[str, Any] = json.loads(path.read_text())
    inputs, outputs = (
        tuple(TensorMetadata(str(name), str(kind), tuple(map(int, shape))) for name, kind, shape in data[key])
        for key in ("inputs", "outputs")
    )
    shapes = {str(name): tuple(map(int, shape)) for name, shape in data["shapes"].items()}
    return KeptEnsemble(
        str(data["name"]),
        int(data["version"]),
        str(data["text"]),
        str(data["owner"]),
        float(data["created"]),
        read_ensemble(data["text"]),
        EnsembleTensors(inputs, outputs, shapes),
    )
